"""Every surrogate's gradient by autograd against the formula by hand, closed forms, schedules."""
import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import common
import gradient_components as G
import linear_eval
from test_simsiam import randn, result_of, same_gradients

TAU, N = 0.3, 7
TINY = "--limit 160 --size 8 --batch-size 32 --proj-dim 12 --pred-hidden 8 --eval-every 9".split()
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def random_letters():
    """Letters in float64 whose members except for the centres are leaves."""
    rows = (normalize(randn(N, 5, seed=s) + 0.5, dim=1).requires_grad_() for s in range(4))
    Za, Zb, Pa, Pb = rows
    o_z, o_p = torch.cat([Za, Zb]).mean(0), torch.cat([Pa, Pb]).mean(0)
    return G.Letters(randn(N, 5, seed=9).requires_grad_(), Za, Zb, Pa, Pb, o_z, o_p)


def minus_gradient(loss, x):
    """A row's own, without the mean over the batch."""
    return -N * torch.autograd.grad(loss, x, retain_graph=True)[0]


def weights(v, tau):
    """lambda, by loops.  -> [N, N]"""
    e = [[math.exp(float(a @ b) / tau) for b in v.Zb.detach()] for a in v.Za.detach()]
    return torch.tensor([[x / sum(row) for x in row] for row in e], dtype=torch.double)


BY_HAND = {                                            # the target t, in the paper's letters
    ("simsiam", "none"): lambda v, lam: v.Zb,
    ("simsiam", "r_e"): lambda v, lam: v.Pb + v.o_z - v.o_p,
    ("simsiam", "o_e"): lambda v, lam: v.Zb - v.o_z + v.o_p,
    ("simsiam", "both"): lambda v, lam: v.Pb,
    ("triplet", "none"): lambda v, lam: v.Zb - v.Zb.roll(1, 0),
    ("triplet", "r_e"): lambda v, lam: v.Zb - v.o_z,
    ("triplet", "o_e"): lambda v, lam: v.Zb - v.Zb.roll(1, 0) + v.o_z,
    ("triplet", "both"): lambda v, lam: v.Zb,
    ("infonce", "none"): lambda v, lam: (v.Zb - lam @ v.Zb) / TAU,
    ("infonce", "r_e"): lambda v, lam: (v.Zb - v.o_z) / TAU,
    ("infonce", "o_e"): lambda v, lam: (v.Zb - lam @ (v.Zb - v.o_z)) / TAU,
    ("infonce", "both"): lambda v, lam: v.Zb / TAU}


@pytest.mark.parametrize("kind, without", BY_HAND)
def test_surrogate_has_the_stated_gradient_and_no_other(kind, without):
    v = random_letters()
    t = BY_HAND[kind, without](v, weights(v, TAU))
    loss = G.surrogate(kind, v, TAU, without)
    X = v.Pa if kind == "simsiam" else v.Za
    assert torch.allclose(minus_gradient(loss, X), t, atol=1e-12)
    rest = [x for x in (v.Za, v.Zb, v.Pa, v.Pb) if x is not X]
    assert torch.autograd.grad(loss, rest, allow_unused=True) == (None,) * 3


@pytest.mark.parametrize("kind", ["simsiam", "triplet", "infonce"])
def test_letters_and_components_from_either_view(kind):
    """The parts sum to the whole; r_e has no centre."""
    rows = [(randn(N, 5, seed=s) + 0.3).float() for s in range(4)]
    unit = [x.double() / x.double().norm(dim=1, keepdim=True) for x in rows]           # z1 z2 p1 p2
    o_z, o_p = sum(unit[:2]).mean(0) / 2, sum(unit[2:]).mean(0) / 2
    residual = []
    for v, order in zip(G.letters(*rows), ((0, 1, 2, 3), (1, 0, 3, 2)), strict=True):
        expected = G.Letters(rows[order[0]].double(), *(unit[i] for i in order), o_z, o_p)
        assert all(torch.allclose(x.double(), y, atol=1e-6) for x, y in zip(v, expected))
        basic, o_e, r_e = G.components(kind, v, TAU)
        whole = BY_HAND[kind, "none"](expected, weights(expected, TAU)).float()
        assert torch.allclose(basic + o_e + r_e, whole, atol=1e-5) and (o_e == o_e[0]).all()
        residual.append(r_e)
    if kind != "infonce":                              # there lambda leaves r_e a mean of its own
        assert torch.cat(residual).mean(0).abs().max() < 1e-6


def test_the_other_losses_by_hand():
    v = random_letters()
    expected = {"naive": v.Zb, "centre": v.o_z, "residual": v.Za - v.o_z,
                "residual_b": v.Zb - v.o_z, "mirror": v.Pb}
    for name, t in expected.items():
        assert torch.allclose(minus_gradient(G.LOSSES[name](v), v.Za), t), name
    assert torch.allclose(minus_gradient(G.LOSSES["mirror"](v), v.Pb), v.Za)   # h learns from it
    bias = G.LOSSES["bias"](v)
    assert torch.allclose(minus_gradient(bias, v.Pa), v.Zb)
    assert torch.autograd.grad(bias, v.Zb, allow_unused=True) == (None,)
    torch.manual_seed(123)                             # not a seed of random_letters
    g = minus_gradient(G.LOSSES["random"](v), v.Za)
    assert torch.allclose(g.norm(dim=1), torch.ones(N).double())
    assert abs((g * v.Za).sum(1).mean().item()) < 0.6


def test_decorrelation_is_algorithm_5():
    def off_diagonal(C):
        return sum(C[i, j] ** 2 for i in range(len(C)) for j in range(len(C)) if i != j) / len(C)

    z = randn(20, 4, seed=3) @ randn(4, 4, seed=4)
    assert G.decorrelation_loss(z).item() == pytest.approx(off_diagonal(np.cov(z.numpy().T)))
    v = random_letters()
    v.za.data.copy_(z[:N, [0, 1, 2, 3, 0]])
    za, Za = v.za.detach().numpy().T, v.Za.detach().numpy().T
    expected = {"decorrelate": 0.1 * off_diagonal(np.cov(za)),
                "decorrelate_standardised": 0.01 * off_diagonal(np.corrcoef(za)),
                "decorrelate_normalised": off_diagonal(np.cov(Za))}
    for name, value in expected.items():
        assert G.LOSSES[name](v).item() == pytest.approx(value, rel=1e-3), name


def test_a_row_of_steps_by_hand():
    """Lengths of centre and residual; how much of o is in the other minus o, by least squares;
    cosines with the de-correlation gradient by autograd."""
    v = random_letters()
    seen = G.measure(["simsiam", "infonce"], None, v)
    for suffix, a, b in (("", v.Za, v.Zb), ("_P", v.Pa, v.Pb)):
        X = torch.cat([a, b]).detach().numpy()
        m_r = np.linalg.norm(X - X.mean(0), axis=1).mean()
        assert seen["m_o" + suffix].item() == pytest.approx(np.linalg.norm(X.mean(0)))
        assert seen["m_r" + suffix].item() == pytest.approx(m_r)
    for column, o, other in (("eta_p", v.o_p, v.o_z), ("eta_z", v.o_z, v.o_p)):
        fit = np.linalg.lstsq(o.detach().numpy()[:, None], (other - o).detach().numpy(), rcond=None)
        assert seen[column].item() == pytest.approx(fit[0].item())
    downhill = -torch.autograd.grad(G.decorrelation_loss(v.Za), v.Za)[0]
    for tau in G.TAUS:
        parts = {"r": v.o_z - weights(v, tau) @ v.Zb, "o": -v.o_z.expand(N, -1)}
        for key, part in parts.items():
            cos = sum(x @ y / x.norm() / y.norm() for x, y in zip(part, downhill)) / N
            assert seen[f"cos_{key}_{tau}"].item() == pytest.approx(cos.item(), abs=1e-7)


def test_the_bias_comes_to_rest_where_it_is_predicted():
    """Gradient descent on b alone, Z fixed, against (1 - m) / m o with the corrected m of A.8."""
    torch.manual_seed(0)
    base = torch.randn(400, 16).double() + 0.4
    Za, Zb = (normalize(base + 0.3 * torch.randn(400, 16), dim=1) for _ in range(2))
    b = torch.zeros(16, dtype=torch.double, requires_grad=True)
    for _ in range(1000):
        Pa, Pb = normalize(Za + b, dim=1), normalize(Zb + b, dim=1)
        loss = -(Pa * Zb).sum(1).mean() / 2 - (Pb * Za).sum(1).mean() / 2
        b.data -= torch.autograd.grad(loss, b)[0]
    v, _ = G.letters(Za, Zb, Za + b, Zb + b)
    seen = G.measure(["bias"], SimpleNamespace(bias=b.float()), v)
    assert seen["b"].item() == pytest.approx(seen["b_theory"].item(), rel=0.05)
    assert seen["b_cos"] > 0.97 and seen["b"] > 0.02


@pytest.mark.parametrize("flags", [
    "--loss bias", "--loss simsiam", "--loss simsiam --without r_e", "--loss mirror",
    "--loss simsiam --without r_e --predictor-loss simsiam", "--loss infonce --temperature 0.7"])
def test_first_step_has_the_gradient_of_the_loss(flags, first_step):
    """None at what is not used, bias or h; in mirror none reaches f through h.  With a loss of its
    own h learns from equation 2, SimSiam's loss, and f from the surrogate."""
    model, x1, x2, grads = first_step(G, *TINY, *flags.split())
    loss, z = 0, [model.encoder(x1), model.encoder(x2)]
    Z, h = [normalize(x, dim=1) for x in z], model.predictor
    if "predictor-loss" in flags:
        own, h = [h(x.detach()) for x in z], copy.deepcopy(h).requires_grad_(False)
        loss = -sum(cosine_similarity(own[i], Z[1 - i].detach()).mean() / 2 for i in (0, 1))
    p = [h(x.detach() if "mirror" in flags else x) for x in z]
    P = [normalize(x, dim=1) for x in ([x + model.bias for x in Z] if "bias" in flags else p)]
    o_z, o_p = sum(Z).mean(0) / 2, sum(P).mean(0) / 2
    for a, b in ((0, 1), (1, 0)):
        t = P[b] + o_z - o_p if "r_e" in flags else Z[b]
        one = -(P[a] * t.detach()).sum(1).mean()
        if "mirror" in flags:
            one = -(Z[a] * P[b]).sum(1).mean()
        elif "infonce" in flags:
            one = cross_entropy(Z[a] @ Z[b].detach().T / 0.7, torch.arange(len(x1)))
        loss = loss + one / 2
    same_gradients(loss, model, grads)


def test_losses_follow_one_another_at_a_constant_rate_and_what_is_kept_of_them(watch):
    seen = watch(G, "loss_of", lambda _, name, *rest: name)
    flags = "--loss simsiam:1+naive:1+decorrelate:2 --schedule constant --lr 0.8"
    G.main([*TINY, *flags.split()])
    assert seen == ["simsiam"] * 5 + ["naive"] * 5 + ["decorrelate"] * 10
    folder = Path("runs/gradient_components-simsiam1-naive1-decorrelate2-patches-s0")
    epochs, steps = common.load_run(folder)["tables"].values()
    result, last = result_of(folder), epochs[-1]
    assert [row["lr"] for row in epochs] == [0.1] * 5
    assert [row["step"] for row in steps] == list(range(20))
    assert [row["epoch"] for row in steps] == [epoch for epoch in (1, 2, 3, 4) for _ in range(5)]
    for key in ("m_o", "m_o_P"):                       # the last step's in both
        assert last[key] == pytest.approx(steps[-1][key], abs=1e-4)
    assert result["m_o_before"] == steps[10]["m_o"] and result["m_r_before"] == steps[10]["m_r"]
    assert result["effective_rank_before"] == epochs[2]["effective_rank"]
    assert result["m_r_highest"] == max(row["m_r"] for row in steps[10:])
    assert result["eta_p"] == pytest.approx(np.mean([row["eta_p"] for row in steps[15:]]))


def test_verdict_P_is_of_P():
    step = {"epoch": 1, "step": 0, "m_o": 0.1, "m_r": 0.9}
    row = {"epoch": 1, "m_o": 0.1, "effective_rank": 30.0, "m_o_P": 0.99, "effective_rank_P": 30.0}
    log = SimpleNamespace(steps=1, history=[row, row], tables={"steps": [step]})
    assert G.summary(log, 0)["verdict_P"] == "complete"


@pytest.mark.parametrize("flags, label, columns", [
    ("--loss infonce", "infonce", ["cos_r_0.05", "cos_o_5.0"]),
    ("--loss bias:1", "bias1", ["b", "b_theory", "b_cos"]),
    ("--loss triplet --without o_e", "triplet-without_o_e", ["eta_p"]),
    ("--loss simsiam --without both --predictor-loss simsiam", "simsiam-without_both", ["eta_z"]),
    ("--loss simsiam:3+centre:1 --dry-run", "simsiam3-centre1", ["eta_z"])])
def test_every_kind_of_run_and_linear_eval(flags, label, columns):
    G.main([*TINY, "--epochs", "1", *flags.split()])
    folder = Path(f"runs/gradient_components-{label}-patches-s0")
    steps = common.load_run(folder)["tables"]["steps"]
    assert len(steps) == (2 if "dry" in flags else 5)
    result = result_of(folder)
    for key in columns:
        assert result[key] == pytest.approx(np.mean([row[key] for row in steps]))
    assert (folder / "steps.png").stat().st_size > 10_000
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"].keys() >= {"knn", "linear"}

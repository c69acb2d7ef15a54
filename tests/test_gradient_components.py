"""Every surrogate's gradient by autograd against the formula by hand, closed forms, schedules."""
import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import common
import gradient_components as G
import linear_eval

TAU, N = 0.3, 7
TINY = "--limit 160 --size 8 --batch-size 32 --proj-dim 12 --pred-hidden 8 --eval-every 9".split()
pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def no_figure(monkeypatch):
    """For tests of something else than steps.png."""
    monkeypatch.setattr(common, "save_figure", lambda figure, file: None)


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double)


def random_letters():
    """Letters in float64 whose members but for the centres are leaves."""
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


# ------------------------------------------------------------------------------------ surrogates

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


def test_what_the_surrogates_stand_for():
    """The losses' own gradients at unit vectors are those of the surrogates that are whole."""
    v = random_letters()
    simsiam = -(v.Pa * v.Zb.detach()).sum(1).mean()
    expected = minus_gradient(simsiam, v.Pa)
    assert torch.allclose(minus_gradient(G.surrogate("simsiam", v, TAU), v.Pa), expected)
    infonce = cross_entropy(v.Za @ v.Zb.detach().T / TAU, torch.arange(N))
    expected = minus_gradient(infonce, v.Za)
    assert torch.allclose(minus_gradient(G.surrogate("infonce", v, TAU), v.Za), expected)


@pytest.mark.parametrize("kind", ["simsiam", "triplet", "infonce"])
def test_components_sum_to_the_whole_and_r_e_has_no_centre(kind):
    z = [(randn(N, 5, seed=s) + 0.3).float() for s in range(4)]
    extra, residual = [], []
    for v in G.letters(*z):
        basic, o_e, r_e = G.components(kind, v, TAU)
        whole = BY_HAND[kind, "none"](v, weights(v, TAU).float())
        assert torch.allclose(basic + o_e + r_e, whole, atol=1e-5) and (o_e == o_e[0]).all()
        extra.append(o_e + r_e)
        residual.append(r_e)
    if kind != "infonce":                              # there lambda leaves r_e a mean of its own
        assert torch.cat(residual).mean(0).abs().max() < 1e-6
        assert torch.allclose(torch.cat(extra).mean(0), o_e[0], atol=1e-6)


def test_letters_are_the_papers_from_either_view():
    z1, z2, p1, p2 = (randn(N, 5, seed=s).float() for s in range(4))
    v, w = G.letters(z1, z2, p1, p2)
    unit = [x.double() / x.double().norm(dim=1, keepdim=True) for x in (z1, z2, p1, p2)]
    o_z, o_p = sum(unit[:2]).mean(0) / 2, sum(unit[2:]).mean(0) / 2
    for found, order, z in ((v, (0, 1, 2, 3), z1), (w, (1, 0, 3, 2), z2)):
        expected = [z.double(), *(unit[i] for i in order), o_z, o_p]
        assert all(torch.allclose(x.double(), y, atol=1e-6) for x, y in zip(found, expected))


# -------------------------------------------------------------------------------- the other losses

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


# --------------------------------------------------------------------------------------- measures

def test_cosine_with_the_decorrelation_gradient_is_that_of_autograd():
    v = random_letters()
    uphill, = torch.autograd.grad(G.decorrelation_loss(v.Za), v.Za)
    seen = G.measure(["simsiam", "infonce"], None, v)
    for tau in G.TAUS:
        parts = {"r": v.o_z - weights(v, tau) @ v.Zb, "o": -v.o_z.expand(N, -1)}
        for key, part in parts.items():
            pairs = list(zip(part.detach().numpy(), -uphill.numpy()))
            cos = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in pairs]
            assert seen[f"cos_{key}_{tau}"].item() == pytest.approx(np.mean(cos), abs=1e-7)


def test_lengths_of_centre_and_residual_in_a_row_of_steps():
    v = random_letters()
    seen = G.measure(["simsiam"], None, v)
    assert not any(key.startswith(("cos_", "b")) for key in seen)
    for suffix, a, b in (("", v.Za, v.Zb), ("_P", v.Pa, v.Pb)):
        X = torch.cat([a, b]).detach().numpy()
        o = X.mean(0)
        assert seen["m_o" + suffix].item() == pytest.approx(np.linalg.norm(o))
        m_r = np.linalg.norm(X - o, axis=1).mean()
        assert seen["m_r" + suffix].item() == pytest.approx(m_r)


def test_at_a_high_temperature_infonces_r_e_is_the_covariance_times_z():
    """Why it de-correlates: to first order in 1 / tau r_e is -C Z_a / tau^2, C that of the Z_i."""
    v = random_letters()
    v = v._replace(o_z=v.Zb.mean(0))
    R = (v.Zb - v.o_z).detach()
    _, _, r_e = G.components("infonce", v, 1e4)
    assert torch.allclose(r_e * 1e8, -v.Za @ (R.T @ R / N), atol=1e-3)


@pytest.mark.parametrize("mirror", [False, True])
def test_eta_is_the_zero_of_the_papers_scan(mirror):
    """cos(o_e - eta o, o), by bisection."""
    v = random_letters()
    o_z, o_p = v.o_z.detach(), v.o_p.detach()
    o, other = (o_z, o_p) if mirror else (o_p, o_z)
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        x = other - o - middle * o
        is_below = float(x @ o / x.norm() / o.norm()) > 0
        low, high = (middle, high) if is_below else (low, middle)
    assert G.eta(other - o, o).item() == pytest.approx(low, abs=1e-6)
    column = G.measure(["simsiam"], None, v)["eta_z" if mirror else "eta_p"]
    assert column.item() == pytest.approx(low, abs=1e-6)


def test_the_bias_comes_to_rest_where_it_is_predicted():
    """Gradient descent on b alone, Z fixed, against (1 - m) / m o with the m of the errata."""
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


# ---------------------------------------------------------------------------------- what h learns

def gradients(name, *flags):
    """-> those of z1, z2; those of h's parameters; net, z1, z2"""
    torch.manual_seed(0)
    args = G.parse(["--proj-dim", "5", "--pred-hidden", "4", *flags])
    net = G.Siamese(args)
    z1, z2 = (torch.randn(N, 5, requires_grad=True) for _ in range(2))
    loss, _ = G.loss_of(name, args, z1, z2, *G.predict(name, net, z1, z2, args))
    found = torch.autograd.grad(loss, [z1, z2, *net.predictor.parameters()], allow_unused=True)
    return found[:2], found[2:], net, z1, z2


def close(a, b, atol=1e-6):
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(a, b, strict=True))


def test_whole_simsiam_is_the_papers_loss():
    """Equation 2, normalisation and predictor included."""
    on_f, on_h, net, z1, z2 = gradients("simsiam")
    cos, p1, p2 = torch.nn.CosineSimilarity(dim=1), net.predictor(z1), net.predictor(z2)
    loss = -cos(p1, z2.detach()).mean() / 2 - cos(p2, z1.detach()).mean() / 2
    expected = torch.autograd.grad(loss, [z1, z2, *net.predictor.parameters()])
    assert close(on_f + on_h, expected)


@pytest.mark.parametrize("without", ["o_e", "r_e", "both"])
def test_the_two_readings_of_what_h_learns(without):
    """f learns from the surrogate in both, h in the second from SimSiam's whole loss."""
    whole_f, whole_h, *_ = gradients("simsiam")
    first_f, first_h, *_ = gradients("simsiam", "--without", without)
    flags = ["--without", without, "--predictor-loss", "simsiam"]
    second_f, second_h, *_ = gradients("simsiam", *flags)
    assert close(first_f, second_f) and close(second_h, whole_h)
    assert not close(first_h, second_h, 1e-4) and not close(first_f, whole_f, 1e-4)


def test_no_gradient_reaches_f_through_mirrors_predictor():
    on_f, on_h, net, z1, z2 = gradients("mirror")
    cos = torch.nn.CosineSimilarity(dim=1)
    p1, p2 = net.predictor(z1).detach(), net.predictor(z2).detach()
    expected = torch.autograd.grad(-cos(z1, p2).mean() / 2 - cos(z2, p1).mean() / 2, [z1, z2])
    assert close(on_f, expected)
    p1, p2 = net.predictor(z1), net.predictor(z2)
    loss = -cos(p1, z2.detach()).mean() / 2 - cos(p2, z1.detach()).mean() / 2
    assert close(on_h, torch.autograd.grad(loss, list(net.predictor.parameters())))


@pytest.mark.parametrize("flags", ["--loss simsiam", "--loss bias", "--loss simsiam --without r_e"])
def test_first_step_has_the_gradient_of_the_loss(flags, first_step, no_figure):
    model, x1, x2, grads = first_step(G, *TINY, *flags.split())
    loss, z = 0, [model.encoder(x1), model.encoder(x2)]
    Z = [x / x.norm(dim=1, keepdim=True) for x in z]
    p = [x + model.bias for x in Z] if "bias" in flags else [model.predictor(x) for x in z]
    P = [x / x.norm(dim=1, keepdim=True) for x in p]
    o_z, o_p = sum(Z).mean(0) / 2, sum(P).mean(0) / 2
    for a, b in ((0, 1), (1, 0)):
        t = P[b] + o_z - o_p if "r_e" in flags else Z[b]
        loss = loss - (P[a] * t.detach()).sum(1).mean() / 2
    names, params = zip(*model.named_parameters())
    for name, g in zip(names, torch.autograd.grad(loss, params, allow_unused=True)):
        if g is None:                                  # bias and h: one of them is not used
            assert grads[name] is None, name
        else:
            assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name


# ------------------------------------------------------------------------------------------- runs

def rows(file):
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def test_losses_follow_one_another(in_tmp, monkeypatch):
    seen = []

    def watch(name, *rest, loss_of=G.loss_of):
        seen.append(name)
        return loss_of(name, *rest)

    monkeypatch.setattr(G, "loss_of", watch)
    G.main([*TINY, "--loss", "simsiam:1+naive:1+decorrelate:2"])
    assert seen == ["simsiam"] * 5 + ["naive"] * 5 + ["decorrelate"] * 10
    folder = Path("runs/gradient_components-simsiam1-naive1-decorrelate2-patches-s0")
    steps = common.read_csv(folder / "steps.csv")
    assert [row["step"] for row in steps] == list(range(20))
    assert [row["epoch"] for row in steps] == [epoch for epoch in (1, 2, 3, 4) for _ in range(5)]
    epochs = common.read_csv(folder / "metrics.csv")
    last = epochs[-1]
    for key in ("m_o", "m_o_P"):                       # the last step's in both
        assert last[key] == pytest.approx(steps[-1][key], abs=1e-4)
    result = json.loads((folder / "result.json").read_text())
    assert result["m_o_before"] == steps[10]["m_o"] and result["m_r_before"] == steps[10]["m_r"]
    assert result["effective_rank_before"] == epochs[2]["effective_rank"]
    assert result["m_r_highest"] == max(row["m_r"] for row in steps[10:])
    assert result["eta_p"] == pytest.approx(np.mean([row["eta_p"] for row in steps[15:]]))
    expected = common.verdict(last["m_o_P"], last["effective_rank_P"])
    assert result["verdict_P"] == expected and result["epoch"] == 4
    assert (folder / "steps.png").stat().st_size > 10_000


def test_a_schedule_that_is_constant_is_so_in_every_phase(in_tmp, monkeypatch, no_figure):
    """centre from the start and centre after SimSiam differ in the start alone."""
    seen = []

    def watch(self, *loss, log=common.Run.log, **views):
        seen.append([group["lr"] for group in self.optimizer.param_groups])
        log(self, *loss, **views)

    monkeypatch.setattr(common.Run, "log", watch)
    flags = [*TINY, "--lr", "0.8", "--bias-lr", "3"]
    G.main([*flags, "--loss", "centre:1", "--schedule", "constant"])
    G.main([*flags, "--loss", "simsiam:1+centre:1", "--schedule", "constant"])
    assert seen == [pytest.approx([0.1, 0.1, 0.3])] * 15
    seen.clear()
    G.main([*flags, "--loss", "centre:1", "--warmup-epochs", "0"])
    encoder, *heads = zip(*seen)
    cosine = [0.05 * (1 + math.cos(math.pi * (i + 0.5) / 5)) for i in range(5)]
    assert encoder == pytest.approx(cosine)
    assert [set(rates) for rates in heads] == [{0.1}, {0.1 * 3}]


def test_no_epochs_is_the_untrained_net(in_tmp, no_figure):
    G.main([*TINY, "--epochs", "0"])
    folder = Path("runs/gradient_components-simsiam-patches-s0")
    assert json.loads((folder / "result.json").read_text())["epoch"] == 0


def test_a_resumed_run_goes_on_as_if_uninterrupted(whole_and_cut, no_figure):
    flags = "--loss simsiam:1+random:1 --batch-size 32 --proj-dim 12 --size 8".split()
    whole, cut = whole_and_cut(G, *flags)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    file = "gradient_components-simsiam1-random1-patches-s0/steps.csv"
    assert rows(f"whole/{file}") == rows(f"cut/{file}") and len(rows(f"whole/{file}")) == 18


@pytest.mark.parametrize("flags, label, columns", [
    ("--loss infonce", "infonce", ["cos_r_0.05", "cos_o_5.0"]),
    ("--loss bias:1", "bias1", ["b", "b_theory", "b_cos"]),
    ("--loss triplet --without o_e", "triplet-without_o_e", ["eta_p"]),
    ("--loss simsiam --without both --predictor-loss simsiam", "simsiam-without_both", ["eta_z"])])
def test_every_kind_of_run_and_linear_eval(flags, label, columns, in_tmp):
    G.main([*TINY, "--epochs", "1", *flags.split()])
    folder = Path(f"runs/gradient_components-{label}-patches-s0")
    steps = common.read_csv(folder / "steps.csv")
    result = json.loads((folder / "result.json").read_text())
    for key in columns:
        assert result[key] == pytest.approx(np.mean([row[key] for row in steps]))
    assert (folder / "steps.png").stat().st_size > 10_000
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


def test_dry_run_of_two_losses(in_tmp, no_figure):
    G.main([*TINY, "--dry-run", "--loss", "simsiam:3+centre:1"])
    folder, = Path("runs").iterdir()
    assert len(rows(folder / "steps.csv")) == 2 and (folder / "result.json").exists()


@pytest.mark.parametrize("flags, words", [
    ("--loss simsiam:1+nave:1", "nave"), ("--loss simsiam+naive:1", "epochs"),
    ("--loss naive:0", "epochs"), ("--loss nave --dry-run", "nave"), ("--without r", "--without"),
    ("--bias-lr -1", "--bias-lr"), ("--schedule linear", "--schedule")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        G.main(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_several_processes_are_refused(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr(common, "world_size", lambda: 2)
    with pytest.raises(SystemExit) as stop:
        G.main([])
    assert stop.value.code == 2 and "torchrun" in capsys.readouterr().err
    assert not Path("runs").exists()

"""Every surrogate's gradient by autograd against the formula by hand, the closed forms, the experiments.  In float64."""
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

TAU, N = 0.3, 7
TINY = "--limit 160 --batch-size 32 --proj-dim 12 --pred-hidden 8".split()


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def random_letters(unit=True):
    """Letters whose capital members are leaves."""
    Za, Zb, Pa, Pb = (normalize(randn(N, 5, seed=s) + 0.5, dim=1).requires_grad_() for s in range(4))
    return G.Letters(randn(N, 5, seed=9).requires_grad_(), Za, Zb, Pa, Pb, torch.cat([Za, Zb]).mean(0), torch.cat([Pa, Pb]).mean(0))


def minus_gradient(loss, x):
    g, = torch.autograd.grad(loss, x)
    return -N * g                                                          # a row's own, without the mean over the batch


BY_HAND = {                                                                # the target t, in the paper's letters
    "simsiam": lambda v, lam: v.Zb, "simsiam-r_e": lambda v, lam: v.Pb + v.o_z - v.o_p,
    "simsiam-o_e": lambda v, lam: v.Zb - v.o_z + v.o_p, "simsiam-o_e-r_e": lambda v, lam: v.Pb,
    "triplet": lambda v, lam: v.Zb - v.Zb.roll(1, 0), "triplet-r_e": lambda v, lam: v.Zb - v.o_z,
    "triplet-o_e": lambda v, lam: v.Zb - v.Zb.roll(1, 0) + v.o_z,
    "infonce": lambda v, lam: (v.Zb - lam @ v.Zb) / TAU, "infonce-r_e": lambda v, lam: (v.Zb - v.o_z) / TAU,
    "infonce-o_e": lambda v, lam: (v.Zb - lam @ (v.Zb - v.o_z)) / TAU}


@pytest.mark.parametrize("name", G.SURROGATES)
def test_surrogate_has_the_stated_gradient_and_no_other(name):
    v = random_letters()
    with torch.no_grad():
        e = torch.exp(v.Za @ v.Zb.T / TAU)
        t = BY_HAND[name](v, e / e.sum(1, keepdim=True))
    X = v.Pa if name.startswith("simsiam") else v.Za
    loss = G.surrogate(name, v, TAU)
    assert torch.allclose(minus_gradient(loss, X), t, atol=1e-12)
    rest = [x for x in (v.Za, v.Zb, v.Pa, v.Pb) if x is not X]
    assert all(g is None for g in torch.autograd.grad(G.surrogate(name, v, TAU), rest, allow_unused=True))


def test_what_the_surrogates_stand_for():
    """SimSiam's and InfoNCE's own losses have, at unit vectors, the gradient of the surrogate with both components."""
    v = random_letters()
    simsiam = -(v.Pa * v.Zb.detach()).sum(1).mean()
    assert torch.allclose(minus_gradient(simsiam, v.Pa), minus_gradient(G.surrogate("simsiam", v, TAU), v.Pa))
    infonce = cross_entropy(v.Za @ v.Zb.detach().T / TAU, torch.arange(N))
    assert torch.allclose(minus_gradient(infonce, v.Za), minus_gradient(G.surrogate("infonce", v, TAU), v.Za), atol=1e-12)


@pytest.mark.parametrize("kind", ["simsiam", "triplet", "infonce"])
def test_components_sum_to_the_whole_and_r_e_has_no_centre(kind):
    z = [randn(N, 5, seed=s) + 0.3 for s in range(4)]
    both = G.letters(*(x.float() for x in z))
    extra, residual = [], []
    for v in both:
        basic, o_e, r_e = G.components(kind, v, TAU)
        whole = BY_HAND[kind](v, (v.Za @ v.Zb.T / TAU).softmax(1))
        assert torch.allclose(basic + o_e + r_e, whole, atol=1e-5) and (o_e == o_e[0]).all()
        extra.append(o_e + r_e), residual.append(r_e)
    if kind != "infonce":                                                  # there the weights lambda leave r_e a mean of its own
        assert torch.cat(residual).mean(0).abs().max() < 1e-6 and torch.allclose(torch.cat(extra).mean(0), o_e[0], atol=1e-6)


def test_the_other_losses_by_hand():
    v = random_letters()
    with torch.no_grad():
        expected = {"naive": v.Zb, "centre": v.o_z, "residual": v.Za - v.o_z, "mirror": v.Pb}
    for name, t in expected.items():
        assert torch.allclose(minus_gradient(G.LOSSES[name](v), v.Za), t), name
    assert torch.allclose(minus_gradient(G.LOSSES["mirror"](v), v.Pb), v.Za.detach())                       # h learns from it
    torch.manual_seed(123)                                                 # not a seed of random_letters
    g = minus_gradient(G.LOSSES["random"](v), v.Za)
    assert torch.allclose(g.norm(dim=1), torch.ones(N).double()) and abs((g * v.Za).sum(1).mean().item()) < 0.6


def test_decorrelation_is_algorithm_5():
    z = randn(20, 4, seed=3) @ randn(4, 4, seed=4)
    C = np.cov(z.numpy().T)
    assert G.decorrelation_loss(z).item() == pytest.approx(sum(C[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4)
    v = random_letters()
    v.za.data.copy_(z[:N, [0, 1, 2, 3, 0]])
    C = np.corrcoef(v.za.detach().numpy().T)
    assert G.LOSSES["decorrelate"](v).item() == pytest.approx(0.1 * G.decorrelation_loss(v.za).item())
    assert G.LOSSES["decorrelate_standardised"](v).item() == pytest.approx(0.01 * ((C**2).sum() - 5) / 5, rel=1e-3)
    assert G.LOSSES["decorrelate_normalised"](v).item() == pytest.approx(G.decorrelation_loss(v.Za).item())


def test_cosine_with_the_decorrelation_gradient_is_that_of_autograd():
    v = random_letters()
    g, = torch.autograd.grad(G.decorrelation_loss(v.Za), v.Za)
    seen = G.measure("infonce", None, v, TAU)
    for t in G.TAUS:
        lam = torch.stack([torch.tensor([math.exp(float(a @ b) / t) for b in v.Zb.detach()]).double() for a in v.Za.detach()])
        lam = lam / lam.sum(1, keepdim=True)
        r_e = -(lam @ v.Zb - v.o_z)
        for key, e in (("r", r_e), ("o", -v.o_z.expand(N, -1))):
            cos = [float(x @ -y / x.norm() / y.norm()) for x, y in zip(e.detach(), g)]
            assert seen[f"cos_{key} {t}"].item() == pytest.approx(np.mean(cos), abs=1e-7)


def test_at_a_high_temperature_infonces_r_e_is_the_covariance_times_z():
    """Why it de-correlates: to first order in 1 / tau, r_e = -C Z_a / tau^2, C the covariance of the Z_i."""
    v = random_letters()
    v = v._replace(o_z=v.Zb.mean(0))
    R = (v.Zb - v.o_z).detach()
    _, _, r_e = G.components("infonce", v, 1e4)
    assert torch.allclose(r_e * 1e8, -v.Za @ (R.T @ R / N), atol=1e-3)


@pytest.mark.parametrize("mirror", [False, True])
def test_eta_is_the_zero_of_the_scan(mirror):
    o_z, o_p = randn(6, seed=1), randn(6, seed=2) + 0.4
    o, other = (o_z, o_p) if mirror else (o_p, o_z)

    def cos(e):
        x = other - o - e * o
        return float(x @ o / x.norm() / o.norm())
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if cos(middle) > 0 else (low, middle)
    assert G.eta(other - o, o).item() == pytest.approx(low, abs=1e-6)
    etas = [-2, -0.5, 0, 1.3]
    assert G.scan(etas, float(o_z @ o_z), float(o_p @ o_p), float(o_z @ o_p), mirror) == pytest.approx([cos(e) for e in etas])


def test_the_bias_comes_to_rest_where_it_is_predicted():
    """Gradient descent on b alone, Z fixed, against (1 - m) / m o with the m of the errata."""
    torch.manual_seed(0)
    base = torch.randn(400, 16).double()
    Za, Zb = (normalize(base + 0.3 * torch.randn(400, 16).double() + 0.4, dim=1) for _ in range(2))
    b = torch.zeros(16, dtype=torch.double, requires_grad=True)
    for _ in range(3000):
        loss = -(normalize(Za + b, dim=1) * Zb).sum(1).mean() / 2 - (normalize(Zb + b, dim=1) * Za).sum(1).mean() / 2
        b.data -= 0.5 * torch.autograd.grad(loss, b)[0]
    v, _ = G.letters(Za, Zb, Za + b, Zb + b)
    seen = G.measure("bias", SimpleNamespace(bias=b.float()), v, TAU)
    assert seen["b"].item() == pytest.approx(seen["b_theory"].item(), rel=0.05) and seen["b_cos"] > 0.97 and seen["b"] > 0.02


# -------------------------------------------------------------------------------------------------------- what h learns

def gradients(name, predictor_loss):
    """Of f, at z, and of h's parameters."""
    torch.manual_seed(0)
    args = G.parse(["--proj-dim", "5", "--pred-hidden", "4", "--predictor-loss", predictor_loss])
    net = G.Siamese(args)
    z1, z2 = torch.randn(N, 5, requires_grad=True), torch.randn(N, 5, requires_grad=True)
    loss, _ = G.loss_of(name, TAU, z1, z2, *G.predict(name, net, z1, z2, args.predictor_loss))
    return torch.autograd.grad(loss, [z1, z2, *net.predictor.parameters()], allow_unused=True), net, z1, z2


@pytest.mark.parametrize("name", ["simsiam-o_e", "simsiam-r_e", "simsiam-o_e-r_e"])
def test_the_two_readings_of_what_h_learns(name):
    whole, net, z1, z2 = gradients("simsiam", "surrogate")
    A, B = gradients(name, "surrogate")[0], gradients(name, "simsiam")[0]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(A[:2], B[:2]))                               # f: the surrogate in both
    assert all(torch.allclose(b, w, atol=1e-6) for b, w in zip(B[2:], whole[2:]))                           # h: SimSiam's in the second
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(A[2:], B[2:]))
    assert not all(torch.allclose(a, w, atol=1e-4) for a, w in zip(A[:2], whole[:2]))


def test_no_gradient_reaches_f_through_mirrors_predictor():
    (g1, g2, *h), net, z1, z2 = gradients("mirror", "surrogate")
    P1, P2 = normalize(net.predictor(z1), dim=1).detach(), normalize(net.predictor(z2), dim=1).detach()
    loss = -(normalize(z1, dim=1) * P2).sum(1).mean() / 2 - (normalize(z2, dim=1) * P1).sum(1).mean() / 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip((g1, g2), torch.autograd.grad(loss, [z1, z2])))
    assert all(g is not None for g in h)


# -------------------------------------------------------------------------------------------------------------- command

def rows(file):
    return list(csv.DictReader(open(file)))


def test_phases_follow_one_another(in_tmp, monkeypatch):
    seen, real = [], G.loss_of
    monkeypatch.setattr(G, "loss_of", lambda name, *rest: (seen.append(name), real(name, *rest))[1])
    G.main([*TINY, "--phases", "simsiam:2,naive:1,decorrelate:1", "--eval-every", "9"])
    assert seen == ["simsiam"] + 10 * ["simsiam"] + 5 * ["naive"] + 5 * ["decorrelate"]                     # epoch 0 has one batch
    folder = Path("runs/gradient_components-simsiam2-naive1-decorrelate1-patches-s0")
    steps = rows(folder / "steps.csv")
    column = {key: [int(float(r[key])) for r in steps] for key in ("step", "epoch", "phase")}
    assert column["step"] == list(range(20))
    assert list(zip(column["epoch"], column["phase"])) == [pair for pair in ((1, 0), (2, 0), (3, 1), (4, 2)) for _ in range(5)]
    last = rows(folder / "metrics.csv")[-1]
    assert all(float(last[key]) == pytest.approx(float(steps[-1][key]), abs=1e-4) for key in ("m_o", "m_o_P"))


def test_a_resumed_run_goes_on_as_if_uninterrupted(whole_and_cut):
    a, b = whole_and_cut(G, "--phases", "simsiam:1,random:1", "--batch-size", "32", "--proj-dim", "12")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_all_makes_every_table_and_figure_and_trains_nothing_twice(in_tmp, monkeypatch):
    trained, real = [], G.train
    monkeypatch.setattr(G, "train", lambda args, *rest: (trained.append(args), real(args, *rest))[1])
    monkeypatch.setattr(common, "linear_probe", lambda *_, **__: (50.0, 90.0))                              # tested elsewhere
    G.main([*TINY, "--dry-run", "--all"])
    n = sum(map(len, G.EXPERIMENTS.values()))
    assert len(trained) == n and set(G.PANELS) == set(G.SETTINGS) == set(G.COLUMNS) == set(G.EXPERIMENTS)
    for experiment, arms in G.EXPERIMENTS.items():
        folder = Path(f"runs/gradient_components-{experiment}-patches-s0")
        assert (folder / "figure.png").stat().st_size > 10_000
        table = (folder / "table.md").read_text().splitlines()
        assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == [name for name, *_ in arms]
        cells = [[c.strip() for c in line.strip().strip("|").split("|")] for line in table]
        assert all(0 < float(line[cells[0].index("m_o")]) <= 1 for line in cells[2:]) and len(cells[0]) == len(G.COLUMNS[experiment])
    for experiment, row, arm in (("conjecture", 5, "random_from_SimSiam"), ("recover", 0, "of_z")):         # the start of the last phase
        folder = Path(f"runs/gradient_components-{experiment}-patches-s0")
        table, steps = rows(folder / "table.csv")[row], rows(folder / f"gradient_components-{arm}-patches-s0" / "steps.csv")
        last = [r for r in steps if r["epoch"] == steps[-1]["epoch"]]      # a phase has one epoch here
        assert table["m_o_before"] == last[0]["m_o"] and float(table["m_r_highest"]) == max(float(r["m_r"]) for r in last)
    G.main([*TINY, "--dry-run", "--experiment", "triplet"])
    assert len(trained) == n


@pytest.mark.parametrize("flags, words", [("--phases simsiam:1,nave:1", "nave"), ("--phases simsiam,naive:1", "epochs"),
                                          ("--phases naive:0", "epochs"), ("--resume runs/x", "runs/x"), ("--experiment fig4", "fig4"),
                                          ("--bias-lr -1", "--bias-lr")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        G.main(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err and not Path("runs").exists()

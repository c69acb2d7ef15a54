"""The theory scripts against autograd, closed forms and the known numbers, in float64."""
import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import common
import toy_dynamics as dynamics
import toy_infonce as infonce
import toy_landscape as landscape
import toy_patch as patch
import toy_sphere as sphere
from test_simsiam import randn


def eye(n):
    return torch.eye(n, dtype=torch.double)


def covariance(n, seed):
    A = randn(n, n, seed=seed)
    return A @ A.T / n + 0.1 * eye(n)


X, X_AUG = covariance(5, 1), covariance(5, 2)
SIGMA2, TAU, ALPHA_P, ETA, BETA = 0.2, 0.7, 1.3, 0.05, 0.4


def table_of(module, *flags):
    """Run it as a user does -> {what: (measured, theory)} of its csv; its figure is there too."""
    module.main(list(flags))
    folder, = Path("runs").iterdir()
    assert (folder / f"{module.__name__}.png").stat().st_size > 20_000
    with open(folder / f"{module.__name__}.csv") as file:
        return {row["what"]: (float(row["measured"]), row["theory"])
                for row in csv.DictReader(file)}


def agree(table, least):
    """At least so many rows have a number or a bound as their theory, and it holds."""
    checked = {what: row for what, row in table.items() if row[1] and row[1][0] in "<>0123456789"}
    assert len(checked) >= least
    for what, (measured, theory) in checked.items():
        if theory[0] == "<":
            assert measured < float(theory[2:]), what
        elif theory[0] == ">":
            assert measured > float(theory[2:].split()[0]), what
        else:
            assert measured == pytest.approx(float(theory), rel=1e-4, abs=1e-4), what


def objective(W_p, W, W_a):
    """E||W_p W x1 - W_a x2||^2 / 2 where x1 and x2 share their mean:
    E x1 x1^T = E x2 x2^T = X + X', E x1 x2^T = X."""
    P = W_p @ W
    same = torch.trace(P @ (X + X_AUG) @ P.T) + torch.trace(W_a @ (X + X_AUG) @ W_a.T)
    return (same - 2 * torch.trace(P @ X @ W_a.T)) / 2


def test_flows_are_gradients_of_the_objective():
    W_p, W = randn(3, 3, seed=3).requires_grad_(), randn(3, 5, seed=4).requires_grad_()
    W_a = randn(3, 5, seed=5)
    g_p, g = torch.autograd.grad(objective(W_p, W, W_a), (W_p, W))
    d_p, d, d_a = dynamics.lemma1(X, X_AUG, ALPHA_P, ETA, BETA)(W_p, W, W_a)
    assert torch.allclose(d_p, -ALPHA_P * g_p - ETA * W_p, atol=1e-12)
    assert torch.allclose(d, -g - ETA * W, atol=1e-12)
    assert torch.allclose(d_a, BETA * (W - W_a))
    g, = torch.autograd.grad(objective(eye(3), W, W.detach()), W)
    assert torch.allclose(dynamics.no_predictor(X_AUG, ETA)(W)[0], -g - ETA * W, atol=1e-12)
    g, = torch.autograd.grad(objective(W_p, W, W), W)
    found = dynamics.no_stopgrad(X, X_AUG, ETA)(W_p, W)[1]
    assert torch.allclose(found, -g - ETA * W, atol=1e-12)


def test_symmetrized_follows_from_lemma1():
    W_p, W = covariance(4, 1), randn(4, 4, seed=2)
    d_p, d, _ = dynamics.lemma1(eye(4), SIGMA2 * eye(4), ALPHA_P, ETA)(W_p, W, TAU * W)
    s_p, s_F = dynamics.symmetrized(SIGMA2, TAU, ALPHA_P, ETA)(W_p, W @ W.T)
    assert torch.allclose(s_p, (d_p + d_p.T) / 2)
    assert torch.allclose(s_F, d @ W.T + W @ d.T)


def test_decoupled_follows_from_symmetrized():
    p, s = torch.tensor([[0.3, 0.8], [0.5, 0.1]], dtype=torch.double)
    s_p, s_F = dynamics.symmetrized(SIGMA2, TAU, ALPHA_P, ETA)(p.diag(), s.diag())
    d_p, d_s, d_tau = dynamics.decoupled(SIGMA2, ALPHA_P, ETA)(p, s, torch.full_like(p, TAU))
    assert torch.allclose(s_p.diagonal(), d_p) and torch.allclose(s_F.diagonal(), d_s)
    assert (d_tau == 0).all()                                               # without an EMA
    d_p, _, _ = dynamics.decoupled(SIGMA2, 1.0, ETA)(p, p**2, torch.full_like(p, TAU))
    assert torch.allclose(d_p, dynamics.one_dimensional(SIGMA2, ETA, TAU)(p)[0])


def test_one_dimension_of_lemma1(w=0.7, p=0.4):
    """tau = W_a / W moves by the quotient rule; DirectSet(alpha) is W_p = w^(2 alpha), no EMA."""
    one = eye(1)
    flow = dynamics.lemma1(one, SIGMA2 * one, 1.0, ETA, BETA)
    _, d, d_a = flow(p * one, w * one, TAU * w * one)
    found = dynamics.decoupled(SIGMA2, 1.0, ETA, BETA)(p * one, w**2 * one, TAU * one)[2]
    assert found.item() == pytest.approx(((d_a - TAU * d) / w).item())
    for alpha in (0.5, 1.0):
        _, dw, _ = flow(w ** (2 * alpha) * one, w * one, w * one)
        found, = dynamics.directset(alpha, ETA, SIGMA2)(w * one)
        assert found.item() == pytest.approx(dw.item())


def test_what_decoupled_conserves(time=5.0):
    """s = p^2 / alpha_p + c e^(-2 eta t), with the sign of c that the docstring has."""
    start = tuple(torch.tensor([x]).double() for x in (0.3, 0.5, 0.1))
    flow = dynamics.decoupled(SIGMA2, ALPHA_P, ETA, BETA)
    states = dynamics.simulate(flow, start, time, 1000)
    (p0, s0, _), (p, s, _) = states[0], states[-1]
    c = s0 - p0**2 / ALPHA_P
    assert s.item() == pytest.approx((p**2 / ALPHA_P + c * math.exp(-2 * ETA * time)).item())


def test_simulate_is_of_order_4():
    A, start, errors = randn(3, 3), torch.ones(3, dtype=torch.double), []
    for steps in (40, 80):
        end = dynamics.simulate(lambda x: (A @ x,), (start,), 2.0, steps)[-1][0]
        errors.append((end - torch.linalg.matrix_exp(2 * A) @ start).norm().item())
    assert 12 < errors[0] / errors[1] < 20 and errors[1] < 1e-4


def test_dynamics_numbers(in_tmp):
    table = table_of(dynamics)
    agree(table, least=20)
    assert all(math.isnan(p) for p in dynamics.fixed_points(SIGMA2, 0.25))     # too much decay
    times = [row[0] for what, row in table.items() if "time until" in what]
    assert len(times) == 2 and times == sorted(times)      # later with weight decay
    for name, rises in (("alpha_p", False), ("eta", True), ("beta", False)):
        least = [row[0] for what, row in table.items() if f"escapes, {name}" in what]
        assert len(least) >= 4 and least == sorted(least, reverse=not rises)


def test_info_nce_is_the_double_loop(t=0.3):
    z1, z2 = randn(2, 6, 4, seed=1), randn(2, 6, 4, seed=2)
    for s, loss in enumerate(infonce.info_nce(z1, z2, t)):
        total = 0.0
        for i in range(6):
            e = [math.exp(z1[s, i] @ z2[s, j] / t) for j in range(6)]
            total -= math.log(e[i] / sum(e))
        assert loss.item() == pytest.approx(total / 6)


def test_gradient_formula_of_the_theorem():
    W, x, x2 = randn(3, 5, seed=1).requires_grad_(), randn(7, 5, seed=2), randn(7, 5, seed=3)
    loss, z, z2 = 0, x @ W.T, x2 @ W.T
    for i in range(7):
        others = z.clone()
        others[i] = z2[i]                                                   # its positive
        e = torch.exp(-(z[i] - others).square().sum(1) / 2)
        loss = loss - torch.log(e[i] / e.sum())
    found = infonce.gradient_of_theorem(W.detach(), x, x2)
    assert torch.allclose(found, -torch.autograd.grad(loss, W)[0], atol=1e-10)
    assert infonce.loss_of_theorem(W, x, x2)[0].item() == pytest.approx(loss.item())


@pytest.mark.parametrize("noise, clean, rate", [(2.0, False, 2), (1.0, True, 1), (2.0, True, -2)])
def test_a_noisy_dimension_dies_where_X_is_negative(noise, clean, rate):
    """Uniform alpha at W = 0: Sigma_0 is twice the covariance of the x_i, Sigma_1 that of the
    x_i - x'_i, so X is 2 - noise^2 along a noisy dimension if the anchors are clean, else 2."""
    g = torch.Generator().manual_seed(1)
    X, _ = infonce.flow_of_theorem(noise, clean, g, steps=0, n=200)
    assert X[0, 8:].mean().item() == pytest.approx(rate, abs=0.15)
    assert X[0, :8].mean().item() == pytest.approx(2, abs=0.15)


def test_spectra_are_those_of_the_embeddings():
    layers, x = [randn(1, 16, 16, seed=s) for s in (1, 2, 3)], randn(1, 200_000, 16, seed=5)
    W1, W2, W3 = (W[0].T for W in layers)
    z = ((x[0] @ W1).clamp(min=0) @ W2).clamp(min=0) @ W3
    assert torch.allclose(infonce.net(layers, x, relu=True)[0], z)
    assert torch.allclose(infonce.net(layers, x)[0], x[0] @ W1 @ W2 @ W3)
    found = infonce.spectrum_relu(layers, torch.Generator().manual_seed(0))[0]
    assert torch.allclose(found, torch.linalg.eigvalsh(torch.cov(z.T)).flip(0), rtol=0.1)
    sampled = torch.linalg.eigvalsh(torch.cov((x[0] @ W1 @ W2).T)).flip(0)
    assert torch.allclose(infonce.spectrum(layers[:2])[0], sampled, rtol=0.03)


def test_infonce_numbers(in_tmp, monkeypatch):
    """An eighth of the steps, or a fifth."""
    for name, steps in (("strong_augmentation", 600), ("deeper_nets", 700), ("negative_X", 200)):
        monkeypatch.setattr(infonce, name, partial(getattr(infonce, name), steps=steps))
    table = table_of(infonce)
    agree(table, least=7)
    live = {what.split(":")[0]: row[0] for what, row in table.items() if "eigenvalue over" in what}
    assert 16 == live["1 layer"] > live["2 layers"] > live["3 layers"]
    assert 16 >= live["2 layers with ReLU"] > live["3 layers with ReLU"]
    ratios = [row[0] for what, row in table.items() if what.endswith("over eigenvalue 8")]
    assert len(ratios) == 5 and ratios == sorted(ratios, reverse=True)
    best = [table[f"{D} dimensions: tau of the best cosine"][0] for D in (16, 64, 2048)]
    assert best[0] > best[1] > best[2] and best[2] in (0.1, 0.2)       # Zhang et al., Fig. 5c


def test_the_cosine_of_r_e_and_decorrelation():
    """r_e from the gradient of the cross-entropy, Algorithm 5's gradient from the covariance."""
    for tau in (0.1, 0.7):
        Za, Zb = (normalize(randn(20, 6, seed=seed), dim=1) for seed in (1, 2))
        Za.requires_grad_()
        loss = cross_entropy(Za @ Zb.T / tau, torch.arange(20))
        pushed = Zb + 20 * tau * torch.autograd.grad(loss, Za)[0]      # sum_j lambda_j Z_j
        Za = Za.detach()
        r_e = torch.cat([Za, Zb]).mean(0) - pushed
        off = Za.T.cov() - Za.T.cov().diag().diag()
        downhill = -(Za - Za.mean(0)) @ off
        cosine = cosine_similarity(r_e, downhill).mean().item()
        assert infonce.cosine_with_decorrelation(Za, Zb, tau) == pytest.approx(cosine, abs=1e-9)


@pytest.mark.parametrize("name", landscape.LOSSES)
def test_hessian_at_the_origin(name):
    loss, B, options = landscape.LOSSES[name]
    for seed in range(3):
        x, x2 = randn(24, 5, seed=seed), randn(24, 5, seed=seed + 3)
        H = torch.autograd.functional.hessian(
            lambda w: loss(x @ w.view(3, 5).T, x2 @ w.view(3, 5).T, **options),
            torch.zeros(15).double())
        assert torch.allclose(H, -2 * torch.kron(eye(3), B(x, x2, **options)), atol=1e-10)


def test_losses_are_their_definitions(n=5):
    f, f2 = randn(n, 3, seed=1), randn(n, 3, seed=2)
    total = 0.0
    for i in range(n):
        d2 = [(f[i] - f2[j]).square().sum().item() for j in range(n)]
        total += 1.7 * d2[i] / 2 + math.log(sum(math.exp(-d / 2) for d in d2) / n)
    assert landscape.infonce(f, f2, 1.7).item() == pytest.approx(total / n)
    attract = sum((f[i] @ f2[i]).item() for i in range(n)) / n
    repel = sum((a @ b).item() ** 2 for a in f for b in f2) / n**2
    assert landscape.spectral(f, f2).item() == pytest.approx(-2 * attract + repel)
    cross = sum(torch.outer(a, b) + torch.outer(b, a) for a, b in zip(f, f2)) / (2 * n)
    assert landscape.barlow(f, f2).item() == pytest.approx(((cross - eye(3)) ** 2).sum().item())


def population_infonce(W, A0, C, a):
    """InfoNCE for Gaussian data and N -> infinity."""
    e = torch.linalg.eigvalsh(W @ (A0 + C) @ W.T)
    return a * torch.trace(W @ C @ W.T) - (torch.log1p(e) + e / (1 + e)).sum() / 2


@pytest.mark.parametrize("a", [1.0, 4.0, 8.0])
def test_infonce_spectrum_is_the_minimum_of_the_population(a, n=4000):
    """From the formula's W, which is diagonal here, no direction leads downhill."""
    A0, C = (torch.tensor(x).double() for x in (landscape.EIG_A0, landscape.EIG_C))
    e = torch.tensor(landscape.infonce_spectrum(a)).double()
    assert (e > 0).sum() == landscape.rank_of_theory(a)
    W = (e / (A0 + C)).sqrt().diag()
    least = population_infonce(W, A0.diag(), C.diag(), a)
    for seed in range(20):
        near = W + 1e-3 * randn(5, 5, seed=seed)
        assert population_infonce(near, A0.diag(), C.diag(), a) > least
    W, x = W / 3, randn(n, 5, seed=4) * A0.sqrt()          # and it is what a large batch gives
    f, f2 = ((x + randn(n, 5, seed=s) * C.sqrt()) @ W.T for s in (5, 6))
    population = population_infonce(W, A0.diag(), C.diag(), a).item()
    assert landscape.infonce(f, f2, a).item() == pytest.approx(population, abs=0.02)


def test_landscape_numbers(in_tmp, monkeypatch):
    monkeypatch.setattr(landscape, "simulate", partial(landscape.simulate, steps=700))      # half
    table = table_of(landscape)
    agree(table, least=21)
    found = [table[f"a = {a}, 10 labels: probe"][0] for a in (12, 1, 2.1)]
    assert 0.4 < found[0] < 0.6 < 0.7 < found[1] < found[2] < 0.9           # the nuisance is gone
    growth = [row for what, row in table.items() if "half is learnt" in what]
    assert len(growth) == 5
    for measured, theory in growth:
        assert measured == pytest.approx(float(theory.split()[1]), rel=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_the_water_level_is_the_same_wherever_there_is_water(seed):
    rho = sorted((3 * randn(6, seed=seed)).tolist(), reverse=True)
    shares = landscape.water_filling(rho, 0.75, False)
    assert sum(shares) == pytest.approx(1)
    level = rho[0] - 1.5 * shares[0]
    for r, share in zip(rho, shares):
        assert r - 1.5 * share == pytest.approx(level) if share else r <= level
    # a bias keeps what (0.3 - 0) / 1.5 leaves; nothing is left of a spectrum without positive rho
    assert landscape.water_filling([0.3, -1], 0.75, True) == pytest.approx([0.2, 0])
    assert landscape.water_filling([-0.3, -1], 0.75, True) == [0, 0]


def test_two_views_share_the_feature_alone(n=4000):
    X1, X2 = patch.two_views(n, 7, 3.0, 0.5, torch.Generator().manual_seed(0))
    signal, noise = X1[:, :patch.FEATURE_PATCHES], X1[:, patch.FEATURE_PATCHES:, 2:]
    assert torch.equal(signal, X2[:, :patch.FEATURE_PATCHES])
    assert (signal == signal[:, :1]).all()
    assert (signal[..., 2:] == 0).all() and (X1[:, patch.FEATURE_PATCHES:, :2] == 0).all()
    kinds, counts = signal[:, 0, :2].unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[-3, 0], [0, -1], [0, 1], [3, 0]]
    assert (counts / n - 0.25).abs().max() < 0.03
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs((noise * X2[:, patch.FEATURE_PATCHES:, 2:]).mean().item()) < 0.003  # independent


@pytest.mark.parametrize("stop_gradient, normalise, train_head", [
    (True, True, True), (False, True, True), (True, False, True), (True, True, False)])
def test_a_step_is_downhill(stop_gradient, normalise, train_head, eta=1e-3):
    """Of the loss as the docstring has it, on the batch that simulate draws; the stop-gradient is
    a target of the weights at the start."""
    start, g = randn(2, 6, seed=1), torch.Generator().manual_seed(5)
    W, E, _ = patch.simulate(start, 1, eta, eta, batch_size=7, generator=g, train_head=train_head,
                             stop_gradient=stop_gradient, normalise=normalise)
    g.manual_seed(5)
    views = patch.two_views(7, 6, 2.0, 0.4, g)

    def outputs(W, E, X):
        out = torch.stack([sum((W @ x) ** 3 for x in image) for image in X]) @ (eye(2) + E).T
        if normalise:
            out = (out - out.mean(0)) / out.std(0, unbiased=False)
        return out

    W0, E0 = start.clone().requires_grad_(), torch.zeros(2, 2).double().requires_grad_()
    target = outputs(start if stop_gradient else W0, 0 * eye(2), views[1])
    loss = (outputs(W0, E0, views[0]) - target).square().sum() / 7
    g_W, g_E = torch.autograd.grad(loss, (W0, E0))
    assert torch.allclose(W[1] - W[0], -eta * g_W, rtol=1e-4, atol=1e-9)
    assert torch.allclose(E[1], -eta * g_E * (1 - eye(2)) * train_head, rtol=1e-4, atol=1e-9)


def test_each_part_of_the_mechanism_is_needed(in_tmp):
    """700 of the 2600 steps, batches half as large."""
    table = table_of(patch, "--ablate", "--steps", "700", "--batch-size", "128")
    agree(table, least=7)
    found = {what: row[0] for what, row in table.items()}
    ends = [found[f"trained: phase {phase} ends at step"] for phase in ("I", "II", "III")]
    assert ends == sorted(ends) and 0 < ends[0] < ends[2] < 700
    assert found["frozen: cos(w2, v2)"] < 0.4 and found["frozen: largest E_21"] == 0
    assert found["no stop-gradient: cos(w2, v1)"] > 0.8                     # it learns v1 too,
    assert found["no stop-gradient: |E_21| at the end"] > 0.1               # and E_21 stays
    assert found["no BN: |<w2, v2>|, 0.18 at the start"] == pytest.approx(0.18, abs=0.03)


def test_phases_end_where_the_docstring_says():
    """Eleven times: w1 rises 0..1 by tenths, E_21 peaks at 4 and falls, w2 rises from 5 on."""
    W, E = torch.zeros(11, 2, 5).double(), torch.zeros(11, 2, 2).double()
    W[:, 0, 0] = torch.arange(11).double() / 10
    W[:, 1, 1] = (torch.arange(11) - 5).clamp(min=0) / 5
    E[:, 1, 0] = torch.tensor([0, 1, 2, 3, 10, 8, 6, 4, 2, 1.1, 0.9])
    assert patch.phases(W, E) == [9, 4, 8]


@pytest.mark.parametrize("name, m_o, rank", [
    ("naive", (0.9, 1), (1, 3)), ("mirror", (0.9, 1), (1, 3)), ("naive_bn", (0, 0.5), (1, 2.3)),
    ("simsiam", (0, 0.3), (2.4, 3)), ("infonce", (0, 0.2), (2.7, 3))])
def test_what_collapses_within_100_steps(name, m_o, rank):
    film, y = sphere.simulate(name, steps=100, seed=9, every=10)
    assert film.shape == (11, 400, 3) and y.unique().tolist() == list(range(8))
    assert torch.allclose(film.norm(dim=2), torch.ones(11, 400), atol=1e-5)
    found = common.collapse_metrics(film[-1])
    assert m_o[0] <= found["m_o"] <= m_o[1] + 1e-4
    assert rank[0] <= found["effective_rank"] <= rank[1] + 1e-4


def test_it_leaves_a_film_and_a_picture(in_tmp, monkeypatch):
    short = sphere.simulate
    monkeypatch.setattr(sphere, "simulate", lambda name, seed: short(name, 30, seed))
    sphere.main(["--nets", "bias,symmetric"])
    with Image.open("runs/toy_sphere-s0/toy_sphere.gif") as film:
        assert film.n_frames > 5
    assert Path("runs/toy_sphere-s0/toy_sphere.png").stat().st_size > 20_000

"""The four theory scripts against autograd, closed forms and the known numbers, in float64."""
import csv
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import toy_dynamics as dynamics
import toy_infonce as infonce
import toy_landscape as landscape
import toy_patch as patch

README = (Path(dynamics.__file__).parent / "README.md").read_text()


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double)


def eye(n):
    return torch.eye(n, dtype=torch.double)


def covariance(n, seed):
    A = randn(n, n, seed=seed)
    return A @ A.T / n + 0.1 * eye(n)


def table_of(module):
    """Run it as a user does -> {what: (measured, theory)} of its csv; its figure is there, and the
    README has the command."""
    module.main([])
    folder, = Path("runs").iterdir()
    name = Path(module.__file__).stem
    assert (folder / f"{name}.png").stat().st_size > 20_000
    assert f"python {name}.py" in README
    with open(folder / f"{name}.csv") as file:
        return {row["what"]: (float(row["measured"]), row["theory"])
                for row in csv.DictReader(file)}


def agree(table):
    """Every row whose theory is a number, or a bound; most are far inside."""
    checked = 0
    for what, (measured, theory) in table.items():
        checked += 1
        if theory.startswith("<"):
            assert measured <= float(theory.split()[1]), what
        elif theory.startswith(">"):
            assert measured > float(theory.split()[1]), what
        elif theory[:1].isdigit():
            assert measured == pytest.approx(float(theory), rel=1e-4, abs=1e-4), what
        else:
            checked -= 1
    assert checked > 4


# ------------------------------------------------------------------------------------- dynamics

def objective(W_p, W, W_a, X, X_aug):
    """E||W_p W x1 - W_a x2||^2 / 2 where x1 and x2 share their mean:
    E x1 x1^T = E x2 x2^T = X + X', E x1 x2^T = X."""
    P, Sigma = W_p @ W, X + X_aug
    same = torch.trace(P @ Sigma @ P.T) + torch.trace(W_a @ Sigma @ W_a.T)
    return (same - 2 * torch.trace(P @ X @ W_a.T)) / 2


def test_lemma1_is_the_gradient_of_the_objective(alpha_p=1.7, eta=0.3, beta=0.6):
    X, X_aug = covariance(5, 1), covariance(5, 2)
    W_p, W = randn(3, 3, seed=3).requires_grad_(), randn(3, 5, seed=4).requires_grad_()
    W_a = randn(3, 5, seed=5)
    g_p, g = torch.autograd.grad(objective(W_p, W, W_a, X, X_aug), (W_p, W))
    flow = dynamics.lemma1(X, X_aug, alpha_p, eta, beta)
    d_p, d, d_a = flow(W_p.detach(), W.detach(), W_a)
    assert torch.allclose(d_p, -alpha_p * g_p - eta * W_p, atol=1e-12)
    assert torch.allclose(d, -g - eta * W, atol=1e-12)
    assert torch.allclose(d_a, beta * (W - W_a))


def test_no_predictor_and_no_stopgrad(eta=0.3):
    X, X_aug = covariance(5, 1), covariance(5, 2)
    W_p, W = randn(3, 3, seed=3), randn(3, 5, seed=4).requires_grad_()
    g, = torch.autograd.grad(objective(eye(3), W, W.detach(), X, X_aug), W)
    flow = dynamics.no_predictor(X_aug, eta)(W.detach())[0]
    assert torch.allclose(flow, -g - eta * W, atol=1e-12)
    g, = torch.autograd.grad(objective(W_p, W, W, X, X_aug), W)
    flow = dynamics.no_stopgrad(X, X_aug, eta)(W_p, W.detach())[1]
    assert torch.allclose(flow, -g - eta * W, atol=1e-12)
    # the slide's form, with vec by columns; its matrix is positive, so W -> 0
    rest = W_p - eye(3)
    matrix = torch.kron(X_aug, W_p.T @ W_p + eye(3)) + torch.kron(X, rest.T @ rest) + eta * eye(15)
    assert torch.allclose(flow.T.flatten(), -matrix @ W.detach().T.flatten())
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_symmetrized_follows_from_lemma1(sigma2=0.2, tau=0.7, alpha_p=1.3, eta=0.05):
    W_p, W = covariance(4, 1), randn(4, 4, seed=2)
    flow = dynamics.lemma1(eye(4), sigma2 * eye(4), alpha_p, eta)
    d_p, d, _ = flow(W_p, W, tau * W)
    s_p, s_F = dynamics.symmetrized(sigma2, tau, alpha_p, eta)(W_p, W @ W.T)
    assert torch.allclose(s_p, (d_p + d_p.T) / 2)
    assert torch.allclose(s_F, d @ W.T + W @ d.T)


def test_theorem_3_follows_from_symmetrized(sigma2=0.2, tau=0.7, alpha_p=1.3, eta=0.05):
    """d[F, W_p]/dt = -[F, W_p] K - K [F, W_p], K with 3/2 eta: the product rule."""
    W_p, F = covariance(4, 1), covariance(4, 2)
    d_p, d_F = dynamics.symmetrized(sigma2, tau, alpha_p, eta)(W_p, F)
    change = d_F @ W_p + F @ d_p - d_p @ F - W_p @ d_F
    K = (1 + sigma2) * (alpha_p / 2 * F + W_p @ W_p) - tau * W_p + 1.5 * eta * eye(4)
    commutator = F @ W_p - W_p @ F
    assert torch.allclose(change, -commutator @ K - K @ commutator, atol=1e-12)


def test_decoupled_follows_from_symmetrized(sigma2=0.2, tau=0.7, alpha_p=1.3, eta=0.05):
    p = torch.tensor([0.3, 0.8], dtype=torch.double)
    s = torch.tensor([0.5, 0.1], dtype=torch.double)
    s_p, s_F = dynamics.symmetrized(sigma2, tau, alpha_p, eta)(p.diag(), s.diag())
    d_p, d_s, d_tau = dynamics.decoupled(sigma2, alpha_p, eta)(p, s, torch.full_like(p, tau))
    assert torch.allclose(s_p.diagonal(), d_p)
    assert torch.allclose(s_F.diagonal(), d_s)
    assert (d_tau == 0).all()                                               # without an EMA
    on_parabola = dynamics.one_dimensional(sigma2, eta, tau)(p)[0]
    d_p = dynamics.decoupled(sigma2, 1.0, eta)(p, p**2, torch.full_like(p, tau))[0]
    assert torch.allclose(d_p, on_parabola)


def test_tau_follows_the_target(sigma2=0.2, eta=0.05, beta=0.4):
    """One mode of Lemma 1 with W_a = tau W: tau = W_a / W, by the quotient rule."""
    w, tau, p = 0.6 * eye(1), 0.3, 0.5
    flow = dynamics.lemma1(eye(1), sigma2 * eye(1), 1.0, eta, beta)
    _, d, d_a = flow(p * eye(1), w, tau * w)
    expected = ((d_a - tau * d) / w).item()
    state = (p * eye(1), w**2, tau * eye(1))
    d_tau = dynamics.decoupled(sigma2, 1.0, eta, beta)(*state)[2]
    assert d_tau.item() == pytest.approx(expected)


def test_simulate_is_of_order_4():
    A, start = randn(3, 3), torch.ones(3, dtype=torch.double)
    exact = torch.linalg.matrix_exp(2 * A) @ start
    errors = []
    for steps in (40, 80):
        end = dynamics.simulate(lambda x: (A @ x,), (start,), 2.0, steps)[-1][0]
        errors.append((end - exact).norm().item())
    assert 12 < errors[0] / errors[1] < 20 and errors[1] < 1e-4


def test_directset_is_lemma1_of_one_dimension(alpha=1.0, sigma2=0.4, eta=0.1):
    """No EMA (the target is the net), W_p = w^(2 alpha)."""
    w, one = torch.tensor([[0.7]]).double(), eye(1)
    _, dw, _ = dynamics.lemma1(one, sigma2 * one, 1.0, eta)(w ** (2 * alpha), w, w)
    found, = dynamics.directset(alpha, eta, sigma2)(w)
    assert found.item() == pytest.approx(dw.item())


def test_dynamics_numbers(in_tmp):
    table = table_of(dynamics)
    agree({what: row for what, row in table.items() if "basin" not in what})
    assert table["p-"][0] == pytest.approx(0.02050, abs=1e-5)
    assert table["p+"][0] == pytest.approx(0.81283, abs=1e-5)
    assert table["basin at alpha_p = 0.1 over that at 10"][0] == pytest.approx(100, rel=0.1)
    times = [table[f"time until [F, Wp] is under 1e-3, eta = {eta}: mean of 12 starts"][0]
             for eta in ("0.0", "0.01", "0.05")]
    ends = [table[f"[F, Wp] relative at t = 60, eta = {eta}: largest of 12 starts"][0]
            for eta in ("0.0", "0.01", "0.05")]
    assert times == sorted(times) and ends == sorted(ends, reverse=True)    # weight decay: later
    left, = (row[0] for what, row in table.items() if "tau = 1.000" in what)
    assert left < 1e-3
    assert table["||W of SGD - W of the ODE|| / ||W||"][0] < 0.05
    known = {"alpha_p = 0.1": 0.0103, "alpha_p = 1.0": 0.00103, "eta = 0.08": 0.0185,
             "eta = 0.2": 0.193, "beta = 0.02": 0.039, "beta = 0.1": 0.008, "beta = 0.5": 0.004,
             "beta = 2.0": 0.0033}
    for what, value in known.items():
        assert table[f"basin at {what}"][0] == pytest.approx(value, rel=0.05)
    ratios = [table[f"signal / nuisance at eta = 0.1, alpha = {a}"][0]
              for a in ("0.25", "0.5", "1", "2")]
    assert ratios == pytest.approx([6.014, 2.452, 1.566, 1.251], abs=1e-3)


def test_too_much_weight_decay_leaves_no_fixed_point_but_0():
    sigma2, eta = 0.2, 0.25                                             # 4 eta (1 + sigma^2) > 1
    assert all(math.isnan(p) for p in dynamics.fixed_points(sigma2, eta))
    p = torch.linspace(0.01, 1, 100, dtype=torch.double)
    assert (dynamics.one_dimensional(sigma2, eta)(p)[0] < 0).all()


# -------------------------------------------------------------------------------------- InfoNCE

def test_info_nce_is_the_double_loop():
    z1, z2, t = randn(2, 6, 4, seed=1), randn(2, 6, 4, seed=2), 0.3
    losses = infonce.info_nce(z1, z2, t)
    for s in range(2):
        total = 0.0
        for i in range(6):
            e = [math.exp(z1[s, i] @ z2[s, j] / t) for j in range(6)]
            total -= math.log(e[i] / sum(e))
        assert losses[s].item() == pytest.approx(total / 6)


def test_gradient_formula_of_the_theorem():
    W, x, x2 = randn(3, 5, seed=1).requires_grad_(), randn(7, 5, seed=2), randn(7, 5, seed=3)
    loss, z, z2 = 0, x @ W.T, x2 @ W.T
    for i in range(7):
        others = z.clone()
        others[i] = z2[i]                                                   # its positive
        e = torch.exp(-(z[i] - others).square().sum(1) / 2)
        loss = loss - torch.log(e[i] / e.sum())
    by_autograd, = torch.autograd.grad(loss, W)
    W = W.detach()
    assert torch.allclose(infonce.gradient_of_theorem(W, x, x2), -by_autograd, atol=1e-10)
    assert infonce.loss_of_theorem(W, x, x2)[0].item() == pytest.approx(loss.item())


def test_what_two_layers_conserve():
    """Along the gradient flow d(W1 W1^T - W2^T W2)/dt = 0, whatever the batch."""
    layers = [randn(1, 16, 16, seed=s).requires_grad_() for s in (1, 2)]
    z1, z2 = (infonce.net(layers, randn(1, 9, 16, seed=s)) for s in (3, 4))
    grads = torch.autograd.grad(infonce.info_nce(z1, z2, 0.1).sum(), layers)
    W1, W2 = (W[0].detach() for W in layers)
    d1, d2 = (grad[0] for grad in grads)
    change = d1 @ W1.T + W1 @ d1.T - d2.T @ W2 - W2.T @ d2
    assert change.abs().max() < 1e-10 * (d1 @ W1.T).abs().max()


@pytest.mark.parametrize("noise, clean, rate", [(2.0, False, 2), (1.0, True, 1), (2.0, True, -2)])
def test_a_noisy_dimension_dies_where_X_is_negative(noise, clean, rate):
    """Uniform alpha at W = 0: Sigma_0 is twice the covariance of the x_i, Sigma_1 that of the
    x_i - x'_i, so X is 2 - noise^2 along a noisy dimension if the anchors are clean, else 2."""
    g = torch.Generator().manual_seed(1)
    X, _ = infonce.flow_of_theorem(noise, clean, g, steps=0, n=200)
    assert X[0, 8:].mean().item() == pytest.approx(rate, abs=0.15)
    assert X[0, :8].mean().item() == pytest.approx(2, abs=0.15)
    _, z = infonce.flow_of_theorem(noise, clean, g, steps=100, n=32)
    if rate < 0:
        assert z[-1, 8] < 1e-3 * z[0, 8] and z[-1, 7] > 0.1
    else:
        assert z[-1, 8] > 30 * z[0, 8]


def test_singular_values_of_two_layers_follow_the_law(h=1e-5, n=20, d=16):
    """sigma_1 and sigma_2 not equal, vectors shared: autograd of the loss against X in loops."""
    U, V, R = torch.linalg.qr(randn(3, d, d, seed=1))[0]
    s1 = torch.linspace(2, 0.5, d).double()
    s2 = 0.7 * s1 + 0.1
    W1, W2, x = U * s1 @ V.T, R * s2 @ U.T, 0.2 * randn(n, d, seed=2)
    x2 = x + 0.1 * randn(n, d, seed=3)
    W1.requires_grad_(), W2.requires_grad_()
    loss, alpha = infonce.loss_of_theorem(W2 @ W1, x, x2)
    d1, d2 = torch.autograd.grad(-loss, (W1, W2))
    W1, W2, alpha, X = W1.detach(), W2.detach(), alpha.detach(), torch.zeros(d, d).double()
    for i in range(n):
        for j in range(n):
            if i == j:
                X -= (1 - alpha[i, i]) * torch.outer(x[i] - x2[i], x[i] - x2[i])
            else:
                X += alpha[i, j] * torch.outer(x[i] - x[j], x[i] - x[j])
    vXv = (V.T @ X @ V).diagonal()
    for W, change, law in ((W1, d1, s1 * s2**2 * vXv), (W2, d2, s2 * s1**2 * vXv)):
        later, before = (torch.linalg.svdvals(W + t * change) for t in (h, -h))
        assert torch.allclose((later - before) / (2 * h), law, rtol=1e-4, atol=1e-5)


def test_the_law_holds_along_a_flow_of_layers_that_share_vectors():
    def error(aligned, steps, h):
        g = torch.Generator().manual_seed(2)
        return infonce.singular_value_law(g, aligned, steps, h, n=24)

    assert 1.8 < error(True, 60, 0.01) / error(True, 120, 0.005) < 2.2      # Euler is of order 1
    assert error(True, 120, 0.005) < 0.01 < 0.1 < error(False, 120, 0.005)


def test_spectrum_is_that_of_the_embeddings():
    layers = [randn(1, 16, 16, seed=s) for s in (1, 2)]
    z = infonce.net(layers, randn(1, 200_000, 16, seed=5))[0]
    sampled = torch.linalg.eigvalsh(torch.cov(z.T)).flip(0)
    assert torch.allclose(infonce.spectrum(layers)[0], sampled, rtol=0.03)


def test_with_relu_it_is_torchs_own_mlp():
    layers = [randn(1, 16, 16, seed=s) for s in (1, 2, 3)]
    x = randn(1, 9, 16, seed=4)
    mlp = torch.nn.Sequential()
    for W in layers:
        mlp += torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False), torch.nn.ReLU())
    mlp = mlp[:-1].double()
    for linear, W in zip(mlp[::2], layers):
        linear.weight.data = W[0]
    assert torch.allclose(infonce.net(layers, x, relu=True)[0], mlp(x[0]))
    seen = infonce.spectrum_relu(layers, torch.Generator().manual_seed(0))[0]
    z = mlp(randn(100_000, 16, seed=5))
    assert torch.allclose(seen, torch.linalg.eigvalsh(torch.cov(z.T)).flip(0), rtol=0.1)


def test_infonce_numbers(in_tmp, monkeypatch):
    """A fifth to a quarter of the script's steps."""
    shorter = partial(infonce.strong_augmentation, steps=1000)
    monkeypatch.setattr(infonce, "strong_augmentation", shorter)
    shorter = partial(infonce.implicit_regularization, steps=1200)
    monkeypatch.setattr(infonce, "implicit_regularization", shorter)
    monkeypatch.setattr(infonce, "flow_of_theorem", partial(infonce.flow_of_theorem, steps=200))
    table = table_of(infonce)
    agree(table)
    one, two, three = (table[f"{layers}: dimensions with an eigenvalue over 1e-4"][0]
                       for layers in ("1 layer", "2 layers", "3 layers"))
    assert 16 == one > two > three
    two, three = (table[f"{n} layers with ReLU: dimensions with an eigenvalue over 1e-4"][0]
                  for n in (2, 3))
    assert 16 >= two > three
    ratios = [table[f"noise {noise}: eigenvalue 9 over eigenvalue 8"][0] for noise in infonce.NOISE]
    assert ratios == sorted(ratios, reverse=True)


# ------------------------------------------------------------------------------------ landscape

@pytest.mark.parametrize("name", landscape.LOSSES)
def test_hessian_at_the_origin(name):
    loss, B = landscape.LOSSES[name]
    for seed in range(3):
        x, x2 = randn(24, 5, seed=seed), randn(24, 5, seed=seed + 3)
        H = torch.autograd.functional.hessian(
            lambda w: loss(x @ w.view(3, 5).T, x2 @ w.view(3, 5).T), torch.zeros(15).double())
        assert torch.allclose(H, -2 * torch.kron(eye(3), B(x, x2)), atol=1e-10)
    g = torch.Generator().manual_seed(0)
    assert landscape.hessian_error(loss, B, g) < 1e-10
    assert landscape.hessian_error(loss, lambda x, x2: 1.1 * B(x, x2), g) > 0.01


def test_losses_are_the_double_loops():
    f, f2, n = randn(5, 3, seed=1), randn(5, 3, seed=2), 5
    d2 = [[((f[i] - f2[j]) ** 2).sum().item() for j in range(n)] for i in range(n)]
    dot = [[(f[i] @ f2[j]).item() for j in range(n)] for i in range(n)]

    def log_mean_exp(values):
        return math.log(sum(math.exp(v) for v in values) / len(values))

    distance = [1.7 * d2[i][i] / 2 + log_mean_exp([-d / 2 for d in d2[i]]) for i in range(n)]
    assert landscape.infonce_distance(f, f2, 1.7).item() == pytest.approx(sum(distance) / n)
    product = [-dot[i][i] + log_mean_exp(dot[i]) for i in range(n)]
    assert landscape.infonce_dot(f, f2).item() == pytest.approx(sum(product) / n)

    both, terms = torch.cat([f, f2]), []
    for i in range(2 * n):
        others = [(both[i] @ both[j]).item() for j in range(2 * n) if j != i]
        positive = (both[i] @ both[(i + n) % (2 * n)]).item()
        terms.append(-positive + log_mean_exp(others))
    assert landscape.nt_xent(f, f2).item() == pytest.approx(sum(terms) / (2 * n))

    attract = sum(dot[i][i] for i in range(n)) / n
    repel = sum(x * x for row in dot for x in row) / n**2
    assert landscape.spectral(f, f2).item() == pytest.approx(-2 * attract + repel)


def test_population_infonce_is_the_limit_of_the_batch():
    A0, C = covariance(3, 1), covariance(3, 2)
    W = 0.4 * randn(2, 3, seed=3)
    x = randn(4000, 3, seed=4) @ torch.linalg.cholesky(A0).T
    f, f2 = ((x + randn(4000, 3, seed=s) @ torch.linalg.cholesky(C).T) @ W.T for s in (5, 6))
    population = landscape.population_infonce(W[None], A0, C, 1.5).item()
    assert landscape.infonce_distance(f, f2, 1.5).item() == pytest.approx(population, abs=0.02)


def test_landscape_numbers(in_tmp, monkeypatch):
    """A third of the script's gradient steps, half of those on batches."""
    descend, simulate = landscape.descend, landscape.simulate

    def shorter(loss, *variables, steps=2000, lr=0.05):
        return descend(loss, *variables, steps=steps // 3, lr=lr)

    monkeypatch.setattr(landscape, "descend", shorter)
    monkeypatch.setattr(landscape, "simulate", partial(simulate, steps=700, batch_size=128))
    table = table_of(landscape)
    agree(table)
    found = [table[f"a = {a}, 10 labels: probe"][0] for a in (12, 1, 2.1)]
    assert 0.4 < found[0] < 0.6 < 0.7 < found[1] < found[2] < 0.9           # the nuisance is gone


def test_a_mode_grows_along_its_logistic_curve(kappa=0.75, time=6.0):
    """The flow by autograd and Runge-Kutta, from a W whose modes are orthogonal: no interplay."""
    A, Sigma = (torch.tensor(x).double() for x in (landscape.EIG_A0, landscape.EIG_SIGMA))
    W0 = torch.linalg.qr(randn(5, 5))[0] * torch.linspace(0.01, 0.05, 5).double()

    def downhill(W):
        W = W.detach().requires_grad_()
        loss = landscape.population_quartic(W, A.diag(), Sigma.diag(), kappa)
        return (-torch.autograd.grad(loss, W)[0],)

    W = randn(3, 5, seed=4)
    flow = landscape.quartic_flow(W, A.diag(), Sigma.diag(), kappa)
    assert torch.allclose(flow, downhill(W)[0])
    states = dynamics.simulate(downhill, (W0,), time, 1200)
    end, start = A / (2 * kappa * Sigma**2), W0.square().sum(0)
    for i in range(0, 1201, 100):
        logistic = end / (1 + (end / start - 1) * torch.exp(-4 * A * time * i / 1200))
        assert torch.allclose(states[i][0].square().sum(0), logistic, rtol=1e-4)


def test_modes_are_learnt_at_the_predicted_times():
    """Random starts.  Euler's step h makes b = 3 late by 3 h b, 1 %."""
    for seed in range(2):
        rows, _ = landscape.stepwise(torch.Generator().manual_seed(seed), h=0.004)
        times = [measured for _, measured, _ in rows]
        assert times == sorted(times)
        for _, measured, theory in rows:
            assert measured == pytest.approx(float(theory.split()[1]), rel=0.03)


def test_known_spectra_of_the_landscape():
    known = [5.3642, 2.7913, 0.3187, 1.4611, 0.2153]
    assert landscape.infonce_spectrum(1.0) == pytest.approx(known, abs=1e-4)
    rho = [(a - 11 * c) / (a + c) for a, c in zip(landscape.EIG_A0, landscape.EIG_C)]
    known = [0.803, 0.197, 0, 0, 0]
    assert landscape.water_filling(rho, 0.75, False) == pytest.approx(known, abs=1e-3)
    # a bias keeps what (0.3 - 0) / 1.5 leaves; nothing is left of a spectrum without positive rho
    assert landscape.water_filling([0.3, -1], 0.75, True) == pytest.approx([0.2, 0])
    assert landscape.water_filling([-0.3, -1], 0.75, True) == [0, 0]
    assert landscape.spectrum_error([3.0, 1.0], [1.5, 3.0]) == 0.5


# -------------------------------------------------------------------------------------- patches

def test_phi_is_the_sum_of_cubes_over_patches():
    W, length = randn(2, 3, 7, seed=1), torch.tensor([2.0, 1.0], dtype=torch.double)
    sign = torch.tensor([[1.0, -1, 1], [-1, 1, 1]], dtype=torch.double)
    feature = torch.tensor([[0, 1, 1], [1, 0, 0]])
    noise = randn(2, 3, patch.NOISE_PATCHES, 5, seed=2)
    out = patch.phi(W, sign, feature, noise, length)
    for s in range(2):
        for n in range(3):
            v = torch.zeros(7, dtype=torch.double)
            v[feature[s, n]] = sign[s, n] * length[feature[s, n]]
            patches = [v] * patch.FEATURE_PATCHES
            patches += [torch.cat([torch.zeros(2), q]) for q in noise[s, n]]
            assert torch.allclose(out[s, n], sum((W[s] @ q) ** 3 for q in patches))


def test_batch_norm_is_that_of_torch():
    x = randn(1, 50, 3, seed=1)
    expected = torch.nn.functional.batch_norm(x[0], None, None, training=True, eps=1e-8)
    assert torch.allclose(patch.batch_norm(x)[0], expected)


def test_shares_are_those_of_a_sample():
    W, sigma, alpha1, n = randn(1, 2, 6, seed=12), 0.7, 2.0, 400_000        # no share is small
    E = torch.tensor([[0, 0.3], [0.5, 0]], dtype=torch.double)
    length = torch.tensor([alpha1, 1.0], dtype=torch.double)
    g = torch.Generator().manual_seed(3)
    sign = 2.0 * torch.randint(2, (1, n), generator=g).double() - 1
    feature = torch.randint(2, (1, n), generator=g)
    noise = sigma * randn(1, n, patch.NOISE_PATCHES, 4, seed=4)
    whole = (patch.phi(W, sign, feature, noise, length) @ (eye(2) + E).T)[0]                # [n, 2]
    signal = (patch.phi(W, sign, feature, 0 * noise, length) @ (eye(2) + E).T)[0]
    v1, v2 = ((signal**2 * (feature[0] == k)[:, None]).mean(0) for k in (0, 1))
    sampled = torch.stack([v1, v2, (whole - signal).var(0)], 1) / whole.var(0)[:, None]
    assert torch.allclose(patch.shares(W[0], E, sigma, alpha1), sampled, atol=0.005)


def test_trained_head_learns_both_features_and_frozen_one_does_not():
    """Three random starts at once, with E trained and frozen; 1000 of the 2600 steps, batches half
    as large."""
    g = torch.Generator().manual_seed(0)
    W = torch.cat([patch.start("controlled", 1, 2, 20, g) for _ in range(3)]).repeat(2, 1, 1)
    seen = patch.simulate(W, torch.arange(6) < 3, 1000, batch_size=128, generator=g)
    trained, frozen = patch.cosines(seen["W"][-1]).split(3)
    assert (trained[:, 0, 0] > 0.8).all() and (trained[:, 1, 1] > 0.8).all()
    assert (frozen[:, :, 0] > 0.8).all()
    E = seen["E"]
    assert (E[:, :3, 1, 0].amax(0) > 0.2).all() and (E[-1, :3, 1, 0].abs() < 0.05).all()
    assert (E[:, :3, 0, 1].abs() < 0.1).all()
    assert (E[:, 3:] == 0).all() and (E.diagonal(dim1=2, dim2=3) == 0).all()
    assert patch.outcome(seen["W"][-1]) == ["both features"] * 3 + ["only v1"] * 3
    for run in range(3):
        one, two, three, four = patch.phases(seen["W"][:, run], E[:, run], 10)
        assert 0 < one < two < three < 1000 and two < four < 1000


@pytest.mark.parametrize("stopgrad, normalised", [(True, True), (False, True), (True, False)])
def test_a_step_is_downhill_by_finite_differences(stopgrad, normalised, eta=1e-3, h=1e-5):
    """Of the loss as the docstring has it, on the batch that simulate draws; the stop-gradient is
    a target of the weights at the start."""
    start, g = randn(1, 2, 6, seed=1), torch.Generator().manual_seed(5)
    seen = patch.simulate(start, torch.tensor([True]), 1, eta, eta, batch_size=7, generator=g,
                          every=1, stopgrad=stopgrad, normalised=normalised)
    g.manual_seed(5)
    feature = torch.randint(2, (1, 7), generator=g)
    sign = 2.0 * torch.randint(2, (1, 7), generator=g).double() - 1
    noise = 0.4 * torch.randn(2, 1, 7, patch.NOISE_PATCHES, 4, generator=g, dtype=torch.double)

    def outputs(W, E, view):
        out = patch.phi(W, sign, feature, noise[view], torch.tensor([2.0, 1.0]).double())[0]
        out = out @ (eye(2) + E).T
        if normalised:
            out = (out - out.mean(0)) / out.std(0, unbiased=False)
        return out

    def loss(W, E):
        target = outputs(start if stopgrad else W, 0 * E, 1)
        return (outputs(W, E, 0) - target).square().sum().item() / 7

    zero = torch.zeros(2, 2).double()
    for index in ((0, 0), (1, 1), (1, 4)):
        step = torch.zeros_like(start)
        step[0][index] = h
        slope = (loss(start + step, zero) - loss(start - step, zero)) / (2 * h)
        moved = (seen["W"][1] - seen["W"][0])[0][index].item()
        assert moved == pytest.approx(-eta * slope, rel=1e-5, abs=1e-9)
    step = torch.tensor([[0, 0], [h, 0]]).double()
    slope = (loss(start, step) - loss(start, -step)) / (2 * h)
    assert seen["E"][1, 0, 1, 0].item() == pytest.approx(-eta * slope, rel=1e-5, abs=1e-9)


def test_without_stopgrad_or_batch_norm_neuron_2_does_not_learn_v2():
    """Two starts of each; 800 steps, a quarter of the batch.  Nor does w2's part along v2 grow."""
    g = torch.Generator().manual_seed(0)
    W = torch.cat([patch.start("controlled", 1, 2, 20, g) for _ in range(2)]).repeat(2, 1, 1)
    stopgrad = torch.tensor([False, False, True, True])
    seen = patch.simulate(W, torch.ones(4), 800, batch_size=64, generator=g, stopgrad=stopgrad,
                          normalised=~stopgrad)
    end, E = seen["W"][-1], seen["E"][..., 1, 0]
    assert ((end[:, 1, 1] - 0.18).abs() < 0.03).all()
    assert (patch.cosines(end)[:2, 1, 0] > 0.8).all()                       # it learns v1 instead
    assert (E[-1, :2] > 0.1).all() and (E[-1, 2:].abs() < 0.1).all()
    assert (end[2:, 1].norm(dim=1) < 0.5 * W[2:, 1].norm(dim=1)).all()      # or shrinks


def run_patch(flags):
    """-> the name of the run's folder, the rows of its csv"""
    patch.main([*flags.split(), "--seed", "3"])
    folder, = Path("runs").iterdir()
    assert (folder / "toy_patch.png").stat().st_size > 5000
    with open(folder / "toy_patch.csv") as file:
        return folder.name, list(csv.DictReader(file))


def test_more_neurons(in_tmp):
    name, rows = run_patch("--steps 60 --m 4")
    assert name == "toy_patch-s3" and len(rows) == 11


def ends_with(features, E_21):
    """What simulate would return of runs whose neurons learn these features, [(of 1, of 2)], with
    the E_21 of each at three times, [S][3]"""
    W = torch.full((3, len(features), 2, 5), 0.1).double()
    for run, learnt in enumerate(features):
        for neuron, feature in enumerate(learnt):
            W[1:, run, neuron, feature - 1] = 2.0
    E = torch.zeros(3, len(features), 2, 2).double()
    E[:, :, 1, 0] = torch.tensor(E_21).T
    return {"W": W, "E": E, "loss": torch.ones(3, len(features))}


def test_the_trained_run_is_called_trained(monkeypatch):
    def simulate(W, trained, *_):
        assert trained.tolist() == [True, False]
        return ends_with([(1, 2), (1, 1)], [[0.0, 0.3, 0.01], [0.0, 0.0, 0.0]])
    monkeypatch.setattr(patch, "simulate", simulate)
    args = SimpleNamespace(m=2, d=5, steps=20, eta_w=0.05, eta_e=0.05, sigma=0.4, alpha1=2.0,
                           batch_size=4)
    table, _ = patch.side_by_side(args, None)
    agree({what: (measured, theory) for what, measured, theory in table})


def test_each_arm_lacks_what_its_name_says(monkeypatch):
    def simulate(W, trained, steps, *rest):
        stopgrad, normalised = rest[-2:]
        assert list(patch.ARMS) == ["all three", "no stop-gradient", "no BN", "no head (E = 0)"]
        assert trained.tolist() == [True, True, True, False]
        assert stopgrad.tolist() == [True, False, True, True]
        assert normalised.tolist() == [True, True, False, True]
        return ends_with([(1, 2), (1, 1), (1, 1), (1, 1)], [[0.0, 0.3, 0.1]] * 4)
    monkeypatch.setattr(patch, "simulate", simulate)
    args = SimpleNamespace(m=2, d=5, steps=20, eta_w=0.05, eta_e=0.05, sigma=0.4, alpha1=2.0,
                           batch_size=4)
    table, _ = patch.ablations(args, None)
    found = {what: (measured, theory) for what, measured, theory in table}
    assert found["all three: cos(w2, v2)"][0] > 0.9 > 0.1 > found["no BN: cos(w2, v2)"][0]
    assert found["all three: largest E_21"][0] == pytest.approx(0.3)
    assert found["all three: E_21 at the end"][0] == pytest.approx(0.1)


def test_random_starts_count_what_trained_and_frozen_runs_learnt(monkeypatch):
    def simulate(W, trained, *_, every):
        assert trained.tolist() == [True] * 3 + [False] * 3 and torch.equal(W[:3], W[3:])
        learnt = [(1, 2), (2, 1), (1, 1), (1, 1), (1, 2), (2, 2)]
        return ends_with(learnt, [[0.0] * 3] * 6)
    monkeypatch.setattr(patch, "simulate", simulate)
    args = SimpleNamespace(m=2, d=5, steps=20, eta_w=0.05, eta_e=0.05, sigma=0.4, alpha1=2.0,
                           batch_size=4, random_init=3)
    table, _ = patch.random_starts(args, None)
    counts = {what.split(", of")[0]: measured for what, measured, _ in table}
    assert counts == {
        "E trained: both features": 2, "E trained: only v1": 1, "E trained: only v2": 0,
        "E trained: unfinished": 0, "E frozen: both features": 1, "E frozen: only v1": 1,
        "E frozen: only v2": 1, "E frozen: unfinished": 0,
        "only v1 when frozen, both when trained": 1}


def test_scan_says_at_which_rate_and_noise(monkeypatch):
    """Both features are learnt at one ratio and one noise, in two of three runs."""
    def simulate(W, trained, steps, eta_w, eta_e, sigma, *_, every):
        hit = ((eta_e - 0.1).abs() < 1e-6) & ((sigma - 0.3).abs() < 1e-6)
        hit &= torch.arange(len(W)) % 3 < 2
        learnt = [(1, 2) if both else (1, 1) for both in hit.tolist()]
        return ends_with(learnt, [[0.0] * 3] * len(W))
    monkeypatch.setattr(patch, "simulate", simulate)
    args = SimpleNamespace(m=2, d=5, steps=20, eta_w=0.05, sigma=0.4, alpha1=2.0, batch_size=4)
    table, figure = patch.scan(args, None)
    found = [what for what, count, _ in table if count]
    assert found == ["eta_e / eta_w = 2, sigma = 0.3: both features, of 3 runs"]
    image = figure.axes[0].images[0].get_array()
    assert image[3, 1] == 2 and image.sum() == 2


def test_phases_end_where_the_docstring_says():
    """Eleven times: w1 rises 0..1 by tenths, E_21 peaks at 4 and falls, w2 rises from 5 on."""
    W, E = torch.zeros(11, 2, 5).double(), torch.zeros(11, 2, 2).double()
    W[:, 0, 0] = torch.arange(11).double() / 10
    W[:, 1, 1] = (torch.arange(11) - 5).clamp(min=0) / 5
    E[:, 1, 0] = torch.tensor([0, 1, 2, 3, 10, 8, 6, 4, 2, 1.1, 0.9])
    assert patch.phases(W, E, 10) == [90, 40, 80, 100]


def test_ablations(in_tmp):
    name, rows = run_patch("--steps 20 --ablate --batch-size 16")
    assert name == "toy_patch-ablate-s3" and len(rows) == 20


def test_random_starts(in_tmp):
    name, rows = run_patch("--steps 40 --random-init 6 --d 12")
    assert name == "toy_patch-random-s3"
    counts = [int(row["measured"]) for row in rows]
    assert sum(counts[:4]) == sum(counts[4:8]) == 6 and counts[8] <= 6


def test_scan(in_tmp):
    name, rows = run_patch("--steps 20 --scan --batch-size 16")
    assert name == "toy_patch-scan-s3" and len(rows) == 20


def test_outcome_names_what_each_neuron_learnt():
    v1, v2, neither = [1.0, 0.1, 0.1], [0.1, -1.0, 0.1], [0.5, 0.5, 1.0]
    W = torch.tensor([[v1, v2], [v2, v1], [v1, v1], [v2, v2], [v1, neither]])
    both = "both features"
    assert patch.outcome(W) == [both, both, "only v1", "only v2", "unfinished"]


@pytest.mark.parametrize("flags, words", [("--m 1", "--m"), ("--steps 0", "--steps"),
                                          ("--device tpu", "--device"), ("--device mps", "float64"),
                                          ("--nonsense", "nonsense")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        patch.main(flags.split())
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()

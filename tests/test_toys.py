"""The four theory scripts against autograd, closed forms and the known numbers, in float64."""
import csv
import math
from pathlib import Path

import pytest
import torch

import toy_dynamics as dynamics
import toy_infonce as infonce
import toy_landscape as landscape
import toy_patch as patch

README = (Path(dynamics.__file__).parent / "README.md").read_text()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def covariance(n, seed):
    A = randn(n, n, seed=seed)
    return A @ A.T / n + 0.1 * torch.eye(n, dtype=torch.double)


def table_of(module, in_tmp, *flags):
    """Run it as a user does -> {what: (measured, theory)} of its csv; its figure is there, and the README has the command."""
    module.main([str(f) for f in flags])
    folder, = Path("runs").iterdir()
    name = Path(module.__file__).stem
    assert (folder / f"{name}.png").stat().st_size > 20_000 and f"python {name}.py" in README
    return {row["what"]: (float(row["measured"]), row["theory"]) for row in csv.DictReader(open(folder / f"{name}.csv"))}


def agree(table, digits=1e-4):
    """Every row whose theory is a number, or a bound."""
    for what, (measured, theory) in table.items():
        if theory.startswith(("<", ">")):
            bound = float(theory.split()[-1 if "(" not in theory else -2])
            assert measured < bound * (1 + 1e-9) if theory[0] == "<" else measured > bound, what
        elif theory and theory[0] in "0123456789":
            assert measured == pytest.approx(float(theory), rel=digits, abs=digits), what


# ------------------------------------------------------------------------------------------------------------- dynamics

def objective(W_p, W, W_a, X, X_aug):
    """E||W_p W x1 - W_a x2||^2 / 2 where x1 and x2 share their mean: E x1 x1^T = E x2 x2^T = X + X', E x1 x2^T = X."""
    P = W_p @ W
    return (torch.trace(P @ (X + X_aug) @ P.T) - 2 * torch.trace(P @ X @ W_a.T) + torch.trace(W_a @ (X + X_aug) @ W_a.T)) / 2


def test_lemma1_is_the_gradient_of_the_objective(alpha_p=1.7, eta=0.3, beta=0.6):
    X, X_aug = covariance(5, 1), covariance(5, 2)
    W_p, W, W_a = randn(3, 3, seed=3).requires_grad_(), randn(3, 5, seed=4).requires_grad_(), randn(3, 5, seed=5)
    g_p, g = torch.autograd.grad(objective(W_p, W, W_a, X, X_aug), (W_p, W))
    d_p, d, d_a = dynamics.lemma1(X, X_aug, alpha_p, eta, beta)(W_p.detach(), W.detach(), W_a)
    assert torch.allclose(d_p, -alpha_p * g_p - eta * W_p, atol=1e-12) and torch.allclose(d, -g - eta * W, atol=1e-12)
    assert torch.allclose(d_a, beta * (W - W_a))


def test_no_predictor_and_no_stopgrad(eta=0.3):
    X, X_aug = covariance(5, 1), covariance(5, 2)
    W_p, W, eye = randn(3, 3, seed=3), randn(3, 5, seed=4).requires_grad_(), torch.eye(3, dtype=torch.double)
    g, = torch.autograd.grad(objective(eye, W, W.detach(), X, X_aug), W)
    assert torch.allclose(dynamics.no_predictor(X_aug, eta)(W.detach())[0], -g - eta * W, atol=1e-12)
    g, = torch.autograd.grad(objective(W_p, W, W, X, X_aug), W)
    flow = dynamics.no_stopgrad(X, X_aug, eta)(W_p, W.detach())[1]
    assert torch.allclose(flow, -g - eta * W, atol=1e-12)
    rest = W_p - eye
    matrix = torch.kron(X_aug, W_p.T @ W_p + eye) + torch.kron(X, rest.T @ rest) + eta * torch.eye(15, dtype=torch.double)
    assert torch.allclose(flow.T.flatten(), -matrix @ W.detach().T.flatten())                   # the slide's, with vec by columns
    assert torch.linalg.eigvalsh(matrix).min() > 0                                              # so W -> 0


def test_symmetrized_follows_from_lemma1_and_decoupled_from_symmetrized(sigma2=0.2, tau=0.7, alpha_p=1.3, eta=0.05):
    W_p, W, eye = covariance(4, 1), randn(4, 4, seed=2), torch.eye(4, dtype=torch.double)
    d_p, d, _ = dynamics.lemma1(eye, sigma2 * eye, alpha_p, eta)(W_p, W, tau * W)
    s_p, s_F = dynamics.symmetrized(sigma2, tau, alpha_p, eta)(W_p, W @ W.T)
    assert torch.allclose(s_p, (d_p + d_p.T) / 2) and torch.allclose(s_F, d @ W.T + W @ d.T)
    p, s = torch.tensor([0.3, 0.8], dtype=torch.double), torch.tensor([0.5, 0.1], dtype=torch.double)
    s_p, s_F = dynamics.symmetrized(sigma2, tau, alpha_p, eta)(p.diag(), s.diag())
    d_p, d_s, _ = dynamics.decoupled(sigma2, alpha_p, eta)(p, s, torch.full_like(p, tau))
    assert torch.allclose(s_p.diagonal(), d_p) and torch.allclose(s_F.diagonal(), d_s)
    on_parabola, = dynamics.one_dimensional(sigma2, eta, tau)(p)
    assert torch.allclose(dynamics.decoupled(sigma2, 1.0, eta)(p, p**2, torch.full_like(p, tau))[0], on_parabola)


def test_tau_follows_the_target(sigma2=0.2, eta=0.05, beta=0.4):
    """One mode of Lemma 1 with W_a = tau W: tau = W_a / W, by the quotient rule."""
    w, tau, p = torch.tensor([[0.6]]).double(), 0.3, 0.5
    one = torch.ones(1, 1, dtype=torch.double)
    _, d, d_a = dynamics.lemma1(one, sigma2 * one, 1.0, eta, beta)(p * one, w, tau * w)
    expected = ((d_a - tau * d) / w).item()
    state = (torch.tensor([p]).double(), (w**2).flatten(), torch.tensor([tau]).double())
    assert dynamics.decoupled(sigma2, 1.0, eta, beta)(*state)[2].item() == pytest.approx(expected)


def test_simulate_is_of_order_4():
    A = randn(3, 3)
    exact = torch.linalg.matrix_exp(2 * A) @ torch.ones(3, dtype=torch.double)
    errors = [(dynamics.simulate(lambda x: (A @ x,), (torch.ones(3, dtype=torch.double),), 2.0, n)[-1][0] - exact).norm().item() for n in (40, 80)]
    assert 12 < errors[0] / errors[1] < 20 and errors[1] < 1e-4


def test_dynamics_numbers(in_tmp):
    table = table_of(dynamics, in_tmp)
    agree({what: row for what, row in table.items() if "basin" not in what})
    assert table["p-"][0] == pytest.approx(0.02050, abs=1e-5) and table["p+"][0] == pytest.approx(0.81283, abs=1e-5)
    assert table["basin at alpha_p = 0.1 over that at 10"][0] == pytest.approx(100, rel=0.1)
    known = {"alpha_p = 0.1": 0.0103, "alpha_p = 1.0": 0.00103, "eta = 0.08": 0.0185, "eta = 0.2": 0.193, "beta = 0.02": 0.039, "beta = 0.1": 0.008,
             "beta = 0.5": 0.004, "beta = 2.0": 0.0033}
    for what, value in known.items():
        assert table[f"basin at {what}"][0] == pytest.approx(value, rel=0.05)
    ratios = [table[f"signal / nuisance at eta = 0.1, alpha = {a}"][0] for a in ("0.25", "0.5", "1", "2")]
    assert ratios == pytest.approx([6.014, 2.452, 1.566, 1.251], abs=1e-3)


# -------------------------------------------------------------------------------------------------------------- InfoNCE

def test_info_nce_is_the_double_loop():
    z1, z2, t = randn(2, 6, 4, seed=1), randn(2, 6, 4, seed=2), 0.3
    for s in range(2):
        terms = [-math.log(math.exp(z1[s, i] @ z2[s, i] / t) / sum(math.exp(z1[s, i] @ z2[s, j] / t) for j in range(6))) for i in range(6)]
        assert infonce.info_nce(z1, z2, t)[s].item() == pytest.approx(sum(terms) / 6)


def test_gradient_formula_of_the_theorem():
    W, x, x2 = randn(3, 5, seed=1).requires_grad_(), randn(7, 5, seed=2), randn(7, 5, seed=3)
    loss, z, z2 = 0, x @ W.T, x2 @ W.T
    for i in range(7):
        e = [torch.exp(-((z[i] - (z2[i] if i == j else z[j])) ** 2).sum() / 2) for j in range(7)]
        loss = loss - torch.log(e[i] / sum(e))
    by_autograd, = torch.autograd.grad(loss, W)
    assert torch.allclose(infonce.gradient_of_theorem(W.detach(), x, x2), -by_autograd, atol=1e-10)
    assert infonce.loss_of_theorem(W, x, x2)[0].item() == pytest.approx(loss.item())


def test_what_two_layers_conserve_and_the_spectrum():
    """Along the gradient flow d(W1 W1^T - W2^T W2)/dt = 0, whatever the batch."""
    layers = [randn(1, 16, 16, seed=s).requires_grad_() for s in (1, 2)]
    loss = infonce.info_nce(infonce.net(layers, randn(1, 9, 16, seed=3)), infonce.net(layers, randn(1, 9, 16, seed=4)), 0.1).sum()
    (W1, W2), (d1, d2) = (w[0].detach() for w in layers), (g[0] for g in torch.autograd.grad(loss, layers))
    change = d1 @ W1.T + W1 @ d1.T - d2.T @ W2 - W2.T @ d2
    assert change.abs().max() < 1e-10 * (d1 @ W1.T).abs().max()
    x = randn(200_000, 16, seed=5)
    sampled = torch.linalg.eigvalsh(torch.cov((infonce.net(layers, x[None])[0]).T.detach())).flip(0)
    assert torch.allclose(infonce.spectrum([w.detach() for w in layers])[0], sampled, rtol=0.03)


def test_infonce_numbers(in_tmp):
    table = table_of(infonce, in_tmp)
    agree(table)
    live = [table[f"{depth}: dimensions with an eigenvalue over 1e-4"][0] for depth in ("1 layer", "2 layers", "3 layers")]
    assert live == sorted(live, reverse=True) and live[0] == 16 and len(set(live)) == 3
    ratios = [table[f"noise {n}: eigenvalue 9 over eigenvalue 8"][0] for n in infonce.NOISE]
    assert ratios == sorted(ratios, reverse=True)


# ------------------------------------------------------------------------------------------------------------ landscape

@pytest.mark.parametrize("name", landscape.LOSSES)
def test_hessian_at_the_origin(name):
    for seed in range(3):
        assert landscape.hessian_error(*landscape.LOSSES[name], torch.Generator().manual_seed(seed)) < 1e-10


def test_losses_are_the_double_loops():
    f, f2, n = randn(5, 3, seed=1), randn(5, 3, seed=2), 5
    d2 = [[((f[i] - f2[j]) ** 2).sum().item() for j in range(n)] for i in range(n)]
    dot = [[(f[i] @ f2[j]).item() for j in range(n)] for i in range(n)]

    def mean_exp(values):
        return math.log(sum(map(math.exp, values)) / len(values))
    assert landscape.infonce_distance(f, f2, 1.7).item() == pytest.approx(
        sum(1.7 * d2[i][i] / 2 + mean_exp([-d / 2 for d in d2[i]]) for i in range(n)) / n)
    assert landscape.infonce_dot(f, f2).item() == pytest.approx(sum(-dot[i][i] + mean_exp(dot[i]) for i in range(n)) / n)
    both = torch.cat([f, f2])
    terms = [-(both[i] @ both[(i + n) % (2 * n)]).item() + mean_exp([(both[i] @ both[j]).item() for j in range(2 * n) if j != i]) for i in range(2 * n)]
    assert landscape.nt_xent(f, f2).item() == pytest.approx(sum(terms) / (2 * n))
    assert landscape.spectral(f, f2).item() == pytest.approx(-2 * sum(dot[i][i] for i in range(n)) / n + sum(x * x for r in dot for x in r) / n**2)


def test_population_infonce_is_the_limit_of_the_batch():
    A0, C = covariance(3, 1), covariance(3, 2)
    W = 0.4 * randn(2, 3, seed=3)
    x = randn(4000, 3, seed=4) @ torch.linalg.cholesky(A0).T
    f, f2 = ((x + randn(4000, 3, seed=s) @ torch.linalg.cholesky(C).T) @ W.T for s in (5, 6))
    assert landscape.infonce_distance(f, f2, 1.5).item() == pytest.approx(landscape.population_infonce(W[None], A0, C, 1.5).item(), abs=0.02)


def test_landscape_numbers(in_tmp):
    agree(table_of(landscape, in_tmp))
    assert landscape.infonce_spectrum(1.0) == pytest.approx([5.3642, 2.7913, 0.3187, 1.4611, 0.2153], abs=1e-4)
    rho = [(a - 11 * c) / (a + c) for a, c in zip(landscape.A, landscape.C)]
    assert landscape.water_filling(rho, 0.75, False) == pytest.approx([0.803, 0.197, 0, 0, 0], abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------- patches

def test_phi_is_the_sum_of_cubes_over_patches():
    W, length = randn(2, 3, 7, seed=1), torch.tensor([2.0, 1.0], dtype=torch.double)
    sign, feature = torch.tensor([[1.0, -1, 1], [-1, 1, 1]]).double(), torch.tensor([[0, 1, 1], [1, 0, 0]])
    noise = randn(2, 3, patch.NOISE_PATCHES, 5, seed=2)
    out = patch.phi(W, sign, feature, noise, length)
    for s in range(2):
        for n in range(3):
            v = torch.zeros(7, dtype=torch.double)
            v[feature[s, n]] = sign[s, n] * length[feature[s, n]]
            patches = [v] * patch.FEATURE_PATCHES + [torch.cat([torch.zeros(2), q]) for q in noise[s, n]]
            assert torch.allclose(out[s, n], sum((W[s] @ q) ** 3 for q in patches))


def test_batch_norm_and_shares_against_torch_and_sampling():
    x = randn(1, 50, 3, seed=1)
    assert torch.allclose(patch.batch_norm(x)[0], torch.nn.functional.batch_norm(x[0], None, None, training=True, eps=1e-8))
    W, E, sigma, alpha1, n = 0.5 * randn(1, 2, 6, seed=2), torch.tensor([[0, 0.3], [0.5, 0]]).double(), 0.7, 2.0, 400_000
    g = torch.Generator().manual_seed(3)
    sign, feature = 2.0 * torch.randint(2, (1, n), generator=g) - 1, torch.randint(2, (1, n), generator=g)
    noise, nothing = sigma * randn(1, n, patch.NOISE_PATCHES, 4, seed=4), torch.zeros(1, n, patch.NOISE_PATCHES, 4, dtype=torch.double)
    A, length = torch.eye(2).double() + E, torch.tensor([alpha1, 1.0]).double()
    signal = (patch.phi(W, sign.double(), feature, nothing, length) @ A.T)[0]                               # [n, 2]
    whole = (patch.phi(W, sign.double(), feature, noise, length) @ A.T)[0]
    v1, v2 = ((signal**2 * (feature[0] == k)[:, None]).mean(0) for k in (0, 1))
    sampled = torch.stack([v1, v2, (whole - signal).var(0)], 1) / whole.var(0)[:, None]
    assert torch.allclose(patch.shares(W[0], E, sigma, alpha1), sampled, atol=0.02)


def test_trained_head_learns_both_features_and_frozen_one_does_not():
    """Five random starts and batches at once; 1500 of the 2600 steps."""
    g = torch.Generator().manual_seed(0)
    W = torch.cat([patch.start("controlled", 1, 2, 20, g) for _ in range(5)]).repeat(2, 1, 1)
    seen = patch.simulate(W, torch.arange(10) < 5, 1500, batch_size=200, generator=g)
    cos, E = patch.cosines(seen["W"][-1]), seen["E"]
    assert (cos[:5, 0, 0] > 0.8).all() and (cos[:5, 1, 1] > 0.8).all() and (cos[5:, :, 0] > 0.8).all()
    assert (E[:, :5, 1, 0].amax(0) > 0.2).all() and (E[-1, :5, 1, 0].abs() < 0.05).all() and (E[:, :5, 0, 1].abs() < 0.1).all()
    assert (E[:, 5:] == 0).all() and (E.diagonal(dim1=2, dim2=3) == 0).all()
    assert patch.outcome(seen["W"][-1]) == ["both features"] * 5 + ["only v1"] * 5
    for run in range(5):
        one, two, three, four = patch.phases(seen["W"][:, run], E[:, run], 10)
        assert 0 < one < two < three < 1500 and two < four < 1500


@pytest.mark.parametrize("flags", ["--steps 60 --m 4", "--steps 40 --random-init 6 --d 12", "--steps 20 --scan --batch-size 16"])
def test_other_commands_of_toy_patch(flags, in_tmp):
    patch.main([*flags.split(), "--seed", "3"])
    folder, = Path("runs").iterdir()
    label = "-random" if "random" in flags else "-scan" if "scan" in flags else ""
    assert folder.name == f"toy_patch{label}-s3" and (folder / "toy_patch.png").stat().st_size > 5000
    rows = list(csv.DictReader(open(folder / "toy_patch.csv")))
    if "random" in flags:
        assert sum(int(r["measured"]) for r in rows[:4]) == sum(int(r["measured"]) for r in rows[4:8]) == 6


@pytest.mark.parametrize("flags, words", [("--m 1", "--m"), ("--steps 0", "--steps"), ("--device tpu", "--device"), ("--nonsense", "nonsense")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        patch.main(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err and not Path("runs").exists()

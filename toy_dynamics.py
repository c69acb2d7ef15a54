"""Why does BYOL not collapse?  The linear model of Tian et al., as differential equations that can be solved and checked.

Tian, Chen & Ganguli, "Understanding Self-supervised Learning Dynamics without Contrastive Pairs", 2021 (arXiv 2102.06810), and
DirectSet(alpha) of Wang et al. 2021 (arXiv 2110.04947).  Online net f = W x, target W_a x, linear predictor W_p;
    J = 1/2 E||W_p W x1 - sg(W_a x2)||^2,   X = E[x x^T] of the images, X' = the covariance of the augmentation.
eta: weight decay, alpha_p: the predictor's rate over the net's, beta: how fast the target follows, tau: W_a = tau W.

    python toy_dynamics.py                           prints every number beside what the theorem says; toy_dynamics.png and .csv

It takes 21 s on two CPU cores (torch 2.15).  Where the papers err: the sign of c in s = p^2 / alpha_p + c e^(-2 eta t) is such that
c = s(0) - p(0)^2 / alpha_p, and "the larger alpha, the larger the signal-noise ratio" needs a nuisance that has died (last panel).
"""
import math

import torch

import common

def simulate(flow, state, time, steps):
    """Runge-Kutta of order 4.  flow: state -> its time derivative; state: a tuple of tensors -> list of steps + 1 states"""
    h, trajectory = time / steps, [state]

    def add(x, scale, k):
        return tuple(a + scale * b for a, b in zip(x, k))
    for _ in range(steps):
        k1 = flow(*state)
        k2 = flow(*add(state, h / 2, k1))
        k3 = flow(*add(state, h / 2, k2))
        k4 = flow(*add(state, h, k3))
        state = tuple(x + h / 6 * (a + 2 * b + 2 * c + d) for x, a, b, c, d in zip(state, k1, k2, k3, k4))
        trajectory.append(state)
    return trajectory


# ----------------------------------------------------------------------------------------------- the equations of the paper

def lemma1(X, X_aug, alpha_p=1.0, eta=0.0, beta=1.0):
    """Lemma 1: the gradient flow of J, with weight decay and a target that follows."""
    def flow(W_p, W, W_a):
        error = W_a @ X - W_p @ W @ (X + X_aug)
        return alpha_p * error @ W.T - eta * W_p, W_p.T @ error - eta * W, beta * (W - W_a)
    return flow


def no_predictor(X_aug, eta=0.0):
    """W_p = I and W_a = W: dW/dt = -W (X' + eta I), which decays to 0.  (The slide has it transposed.)"""
    return lambda W: (-W @ X_aug - eta * W,)


def no_stopgrad(X, X_aug, eta=0.0):
    """The gradient through both paths, with W_p as it is: decays to 0 as well."""
    def flow(W_p, W):
        rest = W_p - torch.eye(len(W_p), dtype=W.dtype)
        return torch.zeros_like(W_p), -(W_p.T @ W_p @ W + W) @ X_aug - rest.T @ rest @ W @ X - eta * W
    return flow


def symmetrized(sigma2, tau=1.0, alpha_p=1.0, eta=0.0):
    """Assumptions 1 to 3 (X = I, X' = sigma^2 I, W_a = tau W, W_p symmetric): W_p and F = W X W^T.  {A, B} = AB + BA"""
    def both(A, B):
        return A @ B + B @ A
    return lambda W_p, F: (-alpha_p / 2 * (1 + sigma2) * both(W_p, F) + alpha_p * tau * F - eta * W_p,
                           -(1 + sigma2) * both(W_p @ W_p, F) + tau * both(W_p, F) - 2 * eta * F)


def decoupled(sigma2, alpha_p=1.0, eta=0.0, beta=math.inf):
    """Eigenvalues p of W_p and s of F once the two share eigenvectors, and tau.  beta = inf: no EMA, tau stays.  Numbers or tensors."""
    beta = torch.as_tensor(beta, dtype=torch.double)

    def flow(p, s, tau):
        ds = 2 * p * s * (tau - (1 + sigma2) * p) - 2 * eta * s
        dtau = torch.where(torch.isinf(beta), 0.0, beta.nan_to_num(posinf=0.0) * (1 - tau) - tau * ds / (2 * s))
        return alpha_p * s * (tau - (1 + sigma2) * p) - eta * p, ds, dtau
    return flow


def one_dimensional(sigma2, eta, tau=1.0):
    """On the parabola s = p^2 (alpha_p = 1)."""
    return lambda p: (p * p * (tau - (1 + sigma2) * p) - eta * p,)


def fixed_points(sigma2, eta, tau=1.0):
    """-> p- (unstable), p+ (stable) of one_dimensional; nan where there are none but 0"""
    root = math.sqrt(d) if (d := tau**2 - 4 * eta * (1 + sigma2)) >= 0 else math.nan
    return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))


def directset(alpha, eta, noise):
    """W_p = (W W^T)^alpha: how an eigenvalue w of W moves along a direction with augmentation variance `noise` (0: signal)."""
    return lambda w: (w.pow(2 * alpha) * (1 - (1 + noise) * w.pow(2 * alpha)) * w - eta * w,)


# ------------------------------------------------------------------------------------------------------------- experiments
# Each returns rows of (what, measured, theory) and functions that draw on an axis.

def random_covariance(n, low, high, generator):
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.double))[0]
    return Q * torch.linspace(low, high, n, dtype=torch.double) @ Q.T


def lemma1_and_sgd(g, alpha_p=2.0, eta=0.02, beta=0.5, lr=0.02, time=40.0):
    """The ODE of Lemma 1 over what it describes: SGD on samples, rates lr and lr alpha_p, EMA momentum 1 - lr beta."""
    X, X_aug = random_covariance(5, 0.5, 1.5, g), random_covariance(5, 0.1, 0.3, g)
    start = tuple(0.5 * torch.randn(*shape, generator=g, dtype=torch.double) for shape in ((3, 3), (3, 5), (3, 5)))
    ode = simulate(lemma1(X, X_aug, alpha_p, eta, beta), start, time, 6400)

    W_p, W, W_a = (x.clone().requires_grad_(i < 2) for i, x in enumerate(start))
    half, half_aug, seen = torch.linalg.cholesky(X), torch.linalg.cholesky(X_aug), [start]
    for _ in range(round(time / lr)):
        noise = torch.randn(3, 256, 5, generator=g, dtype=torch.double)
        x = noise[0] @ half.T
        f1, f2 = (x + noise[1] @ half_aug.T) @ W.T, (x + noise[2] @ half_aug.T) @ W_a.T
        J = (f1 @ W_p.T - f2.detach()).square().sum(1).mean() / 2
        grads = torch.autograd.grad(J, (W_p, W))
        with torch.no_grad():
            for w, grad, rate in ((W_p, grads[0] * alpha_p, lr), (W, grads[1], lr)):
                w -= rate * (grad + eta * w)
            W_a += lr * beta * (W - W_a)
        seen.append(tuple(w.detach().clone() for w in (W_p, W, W_a)))
    C = [W @ W.T - W_p.T @ W_p / alpha_p for W_p, W, _ in ode]
    decay = max((c - math.exp(-2 * eta * time * i / 6400) * C[0]).norm() / C[0].norm() for i, c in enumerate(C)).item()
    apart = ((seen[-1][1] - ode[-1][1]).norm() / ode[-1][1].norm()).item()

    def draw(axis):
        for states, style, label in ((seen[::20], dict(color="C1", lw=3, alpha=0.6), "SGD on samples"),
                                     (ode[::64], dict(color="k", ls="--"), "ODE")):
            sizes = torch.linalg.svdvals(torch.stack([W for _, W, _ in states])).tolist()                                # [T, 3]
            for k, values in enumerate(zip(*sizes)):
                axis.plot(torch.linspace(0, time, len(states)).tolist(), values, **style, label=label if k == 0 else None)
        axis.set(title="Lemma 1: singular values of W", xlabel="t", ylim=(0, None))
        axis.legend()
    return [("W W' - Wp' Wp / alpha_p = e^(-2 eta t) C: relative error", decay, "< 1e-6"),
            ("||W of SGD - W of the ODE|| / ||W||", apart, "small")], draw


def without_predictor_or_stopgrad(g, time=20.0, eta=0.02):
    """Both end at W = 0: the norm of W falls at least as fast as its slowest rate allows."""
    X, X_aug = random_covariance(5, 0.5, 1.5, g), random_covariance(5, 0.2, 0.6, g)
    W, W_p = (torch.randn(*shape, generator=g, dtype=torch.double) for shape in ((3, 5), (3, 3)))
    none = [w[0].norm().item() for w in simulate(no_predictor(X_aug, eta), (W,), time, 800)]
    through = [w[1].norm().item() for w in simulate(no_stopgrad(X, X_aug, eta=eta), (W_p, W), time, 800)]
    bound = [W.norm().item() * math.exp(-(0.2 + eta) * time * i / 800) for i in range(801)]        # 0.2: least eigenvalue of X'

    def draw(axis):
        t = [time * i / 800 for i in range(801)]
        axis.plot(t, none, label="no predictor")
        axis.plot(t, through, label="no stop-gradient")
        axis.plot(t, bound, "k:", label="bound: e$^{-(λ_{min}(X') + η) t}$")
        axis.set(title="‖W‖: both collapse to 0", xlabel="t", yscale="log")
        axis.legend()
    return [("no predictor: ||W|| at the end over the bound", none[-1] / bound[-1], "<= 1"),
            ("no stop-gradient: ||W|| at the end over the bound", through[-1] / bound[-1], "<= 1")], draw


def alignment(g, time=60.0, sigma2=0.2, n=6):
    """Theorem 3: under the symmetrized dynamics F and W_p come to commute; weight decay makes it faster."""
    A, B = (torch.randn(n, n, generator=g, dtype=torch.double) for _ in range(2))
    W_p, F = 0.1 * (A + A.T) + 0.5 * torch.eye(n, dtype=torch.double), B @ B.T / n
    curves = {}
    for eta in (0.0, 0.01, 0.05):
        states = simulate(symmetrized(sigma2, eta=eta), (W_p, F), time, 3000)
        curves[eta] = [((f @ w - w @ f).norm() / f.norm() / w.norm()).item() for w, f in states]

    def draw(axis):
        for eta, curve in curves.items():
            axis.plot([time * i / 3000 for i in range(3001)], [max(c, 1e-17) for c in curve], label=f"η = {eta}")
        axis.set(title="‖[F, W$_p$]‖ / ‖F‖‖W$_p$‖: eigenvectors align", xlabel="t", yscale="log")
        axis.legend()
    return [(f"[F, Wp] relative, from {curves[eta][0]:.2f}, at t = 60, eta = {eta}", curves[eta][-1], 0) for eta in curves], draw


def modes(_, sigma2=0.2, eta=0.04, beta=0.4, time=60.0, alpha_p=1.0):
    """The decoupled eigenvalues: strong ones grow together to p+, one below its threshold dies; s = p^2 / alpha_p + c e^(-2 eta t)."""
    s = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.003], dtype=torch.double)
    p, tau = torch.full_like(s, 0.02), torch.zeros_like(s)
    states = simulate(decoupled(sigma2, alpha_p, eta, beta), (p, s, tau), time, 3000)
    c = s - p**2 / alpha_p
    worst = max(((s_t - p_t**2 / alpha_p) / (c * math.exp(-2 * eta * time * i / 3000)) - 1).abs().max().item()
                for i, (p_t, s_t, _) in enumerate(states[:1500]))                        # later c e^(-2 eta t) is rounding beside p^2

    def draw(axis):
        t = [time * i / 3000 for i in range(3001)]
        for j in range(len(s)):
            axis.plot(t, [x[0][j].item() for x in states], color=f"C{j}", label=f"s(0) = {s[j]:g}")
        axis.axhline(fixed_points(sigma2, eta)[1], color="k", ls=":", label="p+")
        axis.set(title=f"eigenvalues p of W$_p$ (EMA, β = {beta})", xlabel="t")
        axis.legend(fontsize=7)
    return [("s - p^2 / alpha_p = c e^(-2 eta t): relative error", worst, "< 1e-6")], draw


def flow_in_one_dimension(_, sigma2=0.2, eta=0.02):
    """Three fixed points: 0 and p+ are stable, p- between them is the edge of the basin of collapse."""
    low, high = fixed_points(sigma2, eta)
    p0 = torch.tensor([0.0204, 0.0206], dtype=torch.double)
    ends = simulate(one_dimensional(sigma2, eta), (p0,), 1500.0, 3000)[-1][0].tolist()
    p = torch.linspace(-0.02, 1, 400, dtype=torch.double)
    speed, = one_dimensional(sigma2, eta)(p)

    def draw(axis):
        axis.plot(p.tolist(), speed.tolist())
        axis.axhline(0, color="0.7", lw=0.8)
        axis.plot([0, high], [0, 0], "ko", label="stable: 0 (collapse), p+")
        axis.plot(low, 0, "o", mfc="w", mec="k", label="unstable: p-")
        axis.set(title=f"dp/dt against p (η = {eta}, σ² = {sigma2})", xlabel="p")
        axis.legend()
    return [("p-", low, 0.02050), ("p+", high, 0.81283), ("from p = 0.0204 to", ends[0], 0), ("from p = 0.0206 to", ends[1], high)], draw


def basin(_, sigma2=0.2):
    """The least s(0) from which an eigenvalue escapes collapse, against alpha_p, eta and beta."""
    sweeps = {"alpha_p": (0.1, 0.3, 1.0, 3.0, 10.0), "eta": (0.005, 0.02, 0.08, 0.2), "beta": (0.02, 0.1, 0.5, 2.0)}
    settings = [dict(alpha_p=1.0, eta=0.02, beta=math.inf, p=0.0, tau=1.0) | {name: value}
                # the EMA shows only where the target does not start as a copy: tau from 0
                | ({"eta": 0.05, "p": 0.05, "tau": 0.0} if name == "beta" else {}) for name, values in sweeps.items() for value in values]
    starts = torch.logspace(-5, 0, 600, dtype=torch.double)                                                 # [600]
    a = {key: torch.tensor([s[key] for s in settings], dtype=torch.double)[:, None] for key in settings[0]}              # [settings, 1]
    state = tuple(x.expand(len(settings), 600) for x in (a["p"], starts, a["tau"]))
    flow = decoupled(sigma2, a["alpha_p"], a["eta"], a["beta"])
    for _ in range(10):                                                    # in parts, so that only one is kept in memory
        state = simulate(flow, state, 60.0, 600)[-1]
    first = (state[0] > 0.1).double().argmax(1)
    values = starts[first].tolist()
    found = {name: [values.pop(0) for _ in values_of] for name, values_of in sweeps.items()}

    def draw(axis):
        for name, label in (("alpha_p", "predictor's rate α$_p$"), ("eta", "weight decay η"), ("beta", "EMA rate β")):
            axis.plot(sweeps[name], found[name], "o-", label=label)
        axis.set(title="basin of collapse: least s(0) that escapes", xlabel="value", xscale="log", yscale="log")
        axis.legend()
    rows = [("basin at alpha_p = 0.1 over that at 10", found["alpha_p"][0] / found["alpha_p"][-1], 100)]
    return rows + [(f"basin at {name} = {value}", s, "") for name in sweeps for value, s in zip(sweeps[name], found[name])], draw


def directset_limits(_, sigma2=1.0):
    """DirectSet(alpha): where signal and nuisance directions end, and the slide's "larger alpha, larger signal-noise ratio".

    The signal grows with alpha.  So does the nuisance while it lives, and faster: the ratio of the two falls.  The slide holds
    where weight decay has killed the nuisance, eta > 1 / 4 (1 + sigma^2)."""
    values = ((0.25, 0.5, 1, 2), (0, 0.05, 0.1, 0.2), (0, sigma2))
    alpha, eta, noise = torch.meshgrid(*(torch.tensor(v, dtype=torch.double) for v in values), indexing="ij")
    w = simulate(directset(alpha, eta, noise), (torch.full_like(alpha, 0.9),), 1500.0, 3000)[-1][0]                   # [4, 4, 2]
    root = 1 - 4 * eta * (1 + noise)
    limit = torch.where(root >= 0, ((1 + root.clamp(min=0).sqrt()) / 2 / (1 + noise)) ** (1 / (2 * alpha)), 0.0)
    rows = [(f"DirectSet({alpha[i, j, k]:g}), eta = {eta[i, j, k]:g}: w of {name}", w[i, j, k].item(), limit[i, j, k].item())
            for i in range(4) for j in range(4) for k, name in enumerate(("signal", "nuisance"))]
    rows += [(f"signal / nuisance at eta = 0.1, alpha = {a:g}", (w[i, 2, 0] / w[i, 2, 1]).item(), (limit[i, 2, 0] / limit[i, 2, 1]).item())
             for i, a in enumerate((0.25, 0.5, 1, 2))]

    def draw(axis):
        for j, color in ((2, "C0"), (3, "C3")):
            axis.plot(alpha[:, 0, 0].tolist(), w[:, j, 0].tolist(), "o-", color=color, label=f"signal, η = {eta[0, j, 0]:g}")
            axis.plot(alpha[:, 0, 0].tolist(), w[:, j, 1].tolist(), "s--", color=color, label=f"nuisance, η = {eta[0, j, 0]:g}")
        axis.set(title="DirectSet(α): end of w", xlabel="α", xscale="log", xticks=[0.25, 0.5, 1, 2], xticklabels=["1/4", "1/2", "1", "2"])
        axis.minorticks_off()
        axis.legend(fontsize=7)

    def draw_ratio(axis):
        for j, eta_j in ((1, 0.05), (2, 0.1)):
            axis.plot(alpha[:, 0, 0].tolist(), (w[:, j, 0] / w[:, j, 1]).tolist(), "o-", color=f"C{j}", label=f"η = {eta_j}: nuisance lives")
        axis.set(title="signal / nuisance falls with α", xlabel="α", xscale="log", xticks=[0.25, 0.5, 1, 2],
                 xticklabels=["1/4", "1/2", "1", "2"], ylim=(0, None))
        axis.minorticks_off()
        axis.legend(fontsize=7)
    return rows, draw, draw_ratio


# ------------------------------------------------------------------------------------------------------------------- main

PARTS = {"Lemma 1": lemma1_and_sgd, "collapse": without_predictor_or_stopgrad, "Theorem 3": alignment, "eigenvalues": modes,
         "one dimension": flow_in_one_dimension, "basin": basin, "DirectSet": directset_limits}


def main(argv=None):
    common.run_parts(__file__, __doc__, argv, PARTS, (2, 4))


if __name__ == "__main__":
    main()

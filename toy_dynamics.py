"""Why does BYOL not collapse?  The linear model of Tian et al., as equations solved and checked.

Tian, Chen & Ganguli, "Understanding Self-supervised Learning Dynamics without Contrastive Pairs",
2021 (arXiv 2102.06810), and DirectSet(alpha) of Wang et al. 2021 (arXiv 2110.04947).  Online net
f = W x, target W_a x, linear predictor W_p;
    J = 1/2 E||W_p W x1 - sg(W_a x2)||^2,
    X = E[x x^T] of the images, X' = the covariance of the augmentation.
eta: weight decay, alpha_p: the predictor's rate over the net's, beta: how fast the target follows,
tau: W_a = tau W.

    python toy_dynamics.py      every number beside what the theorem says; toy_dynamics.png and .csv

It takes 15 s on two CPU cores (torch 2.14).  Where the papers err: in
s_j = p_j^2 / alpha_p + e^(-2 eta t) c_j Tian et al. print c_j with the opposite sign, it is
s_j(0) - p_j(0)^2 / alpha_p (their slides leave it open); and "the larger alpha, the larger the
signal-noise ratio" needs a nuisance that has died (last panel).  Where an assumption or a reading
is not exact: with an EMA, W_a = tau W comes true late, with tau = 1, and weight decay delays most
alignments to 1e-3.
"""
import math

import torch

import common


def simulate(flow, state, time, steps):
    """Runge-Kutta of order 4.  flow: state -> its time derivative; state: a tuple of tensors
    -> list of steps + 1 states"""
    def add(x, scale, k):
        return tuple(a + scale * b for a, b in zip(x, k))

    h = time / steps
    trajectory = [state]
    for _ in range(steps):
        k1 = flow(*state)
        k2 = flow(*add(state, h / 2, k1))
        k3 = flow(*add(state, h / 2, k2))
        k4 = flow(*add(state, h, k3))
        state = tuple(x + h / 6 * (a + 2 * b + 2 * c + d)
                      for x, a, b, c, d in zip(state, k1, k2, k3, k4))
        trajectory.append(state)
    return trajectory


# ------------------------------------------------------------------- the equations of the paper
# Each returns a flow: the state's entries -> a tuple of their time derivatives, for simulate.

def lemma1(X, X_aug, alpha_p=1.0, eta=0.0, beta=1.0):
    """Lemma 1: the gradient flow of J (alpha_p times W_p's gradient), with weight decay of W_p and
    W, and a target that follows."""
    def flow(W_p, W, W_a):
        error = W_a @ X - W_p @ W @ (X + X_aug)
        dW_p = alpha_p * error @ W.T - eta * W_p
        dW = W_p.T @ error - eta * W
        return dW_p, dW, beta * (W - W_a)
    return flow


def no_predictor(X_aug, eta=0.0):
    """W_p = I and W_a = W: dW/dt = -W (X' + eta I), which decays to 0.  (The slide has it
    transposed.)"""
    return lambda W: (-W @ X_aug - eta * W,)


def no_stopgrad(X, X_aug, eta=0.0):
    """The gradient through both paths, with W_p as it is: decays to 0 as well."""
    def flow(W_p, W):
        rest = W_p - torch.eye(len(W_p), dtype=W.dtype)
        dW = -(W_p.T @ W_p @ W + W) @ X_aug - rest.T @ rest @ W @ X - eta * W
        return torch.zeros_like(W_p), dW
    return flow


def symmetrized(sigma2, tau=1.0, alpha_p=1.0, eta=0.0):
    """Assumptions 1 to 3 (X = I, X' = sigma^2 I, W_a = tau W, W_p symmetric): W_p and F = W X W^T.
    {A, B} = AB + BA"""
    def both(A, B):
        return A @ B + B @ A

    def flow(W_p, F):
        dW_p = -alpha_p / 2 * (1 + sigma2) * both(W_p, F) + alpha_p * tau * F - eta * W_p
        dF = -(1 + sigma2) * both(W_p @ W_p, F) + tau * both(W_p, F) - 2 * eta * F
        return dW_p, dF
    return flow


def decoupled(sigma2, alpha_p=1.0, eta=0.0, beta=math.inf):
    """Eigenvalues p of W_p and s of F once the two share eigenvectors, and tau.  Numbers or
    tensors; where beta is inf, there is no EMA and tau stays."""
    beta = torch.as_tensor(beta, dtype=torch.double)

    def flow(p, s, tau):
        dp = alpha_p * s * (tau - (1 + sigma2) * p) - eta * p
        ds = 2 * p * s * (tau - (1 + sigma2) * p) - 2 * eta * s
        dtau = torch.where(torch.isinf(beta), 0.0, beta * (1 - tau) - tau * ds / (2 * s))
        return dp, ds, dtau
    return flow


def one_dimensional(sigma2, eta, tau=1.0):
    """On the parabola s = p^2 (alpha_p = 1)."""
    return lambda p: (p * p * (tau - (1 + sigma2) * p) - eta * p,)


def fixed_points(sigma2, eta, tau=1.0):
    """-> p- (unstable), p+ (stable) of one_dimensional; nan where there are none but 0"""
    discriminant = tau**2 - 4 * eta * (1 + sigma2)
    if discriminant < 0:
        return math.nan, math.nan
    root = math.sqrt(discriminant)
    return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))


def directset(alpha, eta, noise):
    """W_p = (W W^T)^alpha: how an eigenvalue w of W moves along a direction with augmentation
    variance `noise` (0: signal)."""
    def flow(w):
        p = w.pow(2 * alpha)
        return (p * (1 - (1 + noise) * p) * w - eta * w,)
    return flow


# ---------------------------------------------------------------------------------- experiments
# Each returns rows of (what, measured, theory) and functions that draw on an axis.

def random_covariance(n, low, high, generator):
    """Eigenvalues from low to high, along random directions."""
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.double))[0]
    return Q * torch.linspace(low, high, n, dtype=torch.double) @ Q.T


def times(time, steps):
    """The times of simulate's states."""
    return [time * i / steps for i in range(steps + 1)]


def lemma1_and_sgd(g, alpha_p=2.0, eta=0.02, beta=0.5, lr=0.02, time=40.0):
    """The ODE of Lemma 1 over what it describes: SGD on samples, rates lr and lr alpha_p, EMA
    momentum 1 - lr beta."""
    X, X_aug = random_covariance(5, 0.5, 1.5, g), random_covariance(5, 0.1, 0.3, g)
    W_p = 0.5 * torch.randn(3, 3, generator=g, dtype=torch.double)
    W = 0.5 * torch.randn(3, 5, generator=g, dtype=torch.double)
    W_a = 0.5 * torch.randn(3, 5, generator=g, dtype=torch.double)
    ode = simulate(lemma1(X, X_aug, alpha_p, eta, beta), (W_p, W, W_a), time, 6400)
    C = [W @ W.T - W_p.T @ W_p / alpha_p for W_p, W, _ in ode]
    decay = 0.0
    for i, C_t in enumerate(C):
        expected = math.exp(-2 * eta * time * i / 6400) * C[0]
        decay = max(decay, ((C_t - expected).norm() / C[0].norm()).item())

    W_p, W, W_a = W_p.clone().requires_grad_(), W.clone().requires_grad_(), W_a.clone()
    half, half_aug = torch.linalg.cholesky(X), torch.linalg.cholesky(X_aug)
    sgd = [W.detach().clone()]
    for _ in range(round(time / lr)):
        noise = torch.randn(3, 256, 5, generator=g, dtype=torch.double)
        x = noise[0] @ half.T
        f1 = (x + noise[1] @ half_aug.T) @ W.T
        f2 = (x + noise[2] @ half_aug.T) @ W_a.T
        J = (f1 @ W_p.T - f2.detach()).square().sum(1).mean() / 2
        grad_p, grad = torch.autograd.grad(J, (W_p, W))
        with torch.no_grad():
            W_p -= lr * (grad_p * alpha_p + eta * W_p)
            W -= lr * (grad + eta * W)
            W_a += lr * beta * (W - W_a)
        sgd.append(W.detach().clone())
    ode = [W for _, W, _ in ode]
    apart = ((sgd[-1] - ode[-1]).norm() / ode[-1].norm()).item()

    def draw(axis):
        thick, dashed = {"color": "C1", "lw": 3, "alpha": 0.6}, {"color": "k", "ls": "--"}
        for name, weights, style in (("SGD on samples", sgd[::20], thick),
                                     ("ODE", ode[::64], dashed)):
            sizes = torch.linalg.svdvals(torch.stack(weights))              # [T, 3]
            lines = axis.plot(times(time, len(sizes) - 1), sizes.tolist(), **style)
            lines[0].set_label(name)
        axis.set(title="Lemma 1: singular values of W", xlabel="t", ylim=(0, None))
        axis.legend()
    rows = [("W W' - Wp' Wp / alpha_p = e^(-2 eta t) C: relative error", decay, "< 1e-6"),
            ("||W of SGD - W of the ODE|| / ||W||", apart, "small")]
    return rows, draw


def without_predictor_or_stopgrad(g, time=20.0, eta=0.02):
    """Both end at W = 0: the norm of W falls at least as fast as its slowest rate allows."""
    X, X_aug = random_covariance(5, 0.5, 1.5, g), random_covariance(5, 0.2, 0.6, g)
    W = torch.randn(3, 5, generator=g, dtype=torch.double)
    W_p = torch.randn(3, 3, generator=g, dtype=torch.double)
    states = simulate(no_predictor(X_aug, eta), (W,), time, 800)
    none = [W.norm().item() for (W,) in states]
    states = simulate(no_stopgrad(X, X_aug, eta), (W_p, W), time, 800)
    through = [W.norm().item() for _, W in states]
    t = times(time, 800)
    slowest = 0.2 + eta                                      # 0.2: the least eigenvalue of X'
    bound = [none[0] * math.exp(-slowest * x) for x in t]

    def draw(axis):
        axis.plot(t, none, label="no predictor")
        axis.plot(t, through, label="no stop-gradient")
        axis.plot(t, bound, "k:", label="bound: e$^{-(λ_{min}(X') + η) t}$")
        axis.set(title="‖W‖: both collapse to 0", xlabel="t", yscale="log")
        axis.legend()
    rows = [("no predictor: ||W|| at the end over the bound", none[-1] / bound[-1], "<= 1"),
            ("no stop-gradient: ||W|| at the end over the bound", through[-1] / bound[-1], "<= 1")]
    return rows, draw


def alignment(g, time=60.0, sigma2=0.2, n=6, starts=12, steps=1200):
    """Theorem 3: under the symmetrized dynamics F and W_p come to commute.  Weight decay adds
    3/2 eta to the rate K, but makes F and W_p smaller, and so the rest of K."""
    A, B = torch.randn(2, starts, n, n, generator=g, dtype=torch.double)
    W_p = 0.1 * (A + A.mT) + 0.5 * torch.eye(n, dtype=torch.double)
    F = B @ B.mT / n
    etas, curves, until = (0.0, 0.01, 0.05), {}, {}
    for eta in etas:
        states = simulate(symmetrized(sigma2, eta=eta), (W_p, F), time, steps)
        W_t, F_t = (torch.stack(x) for x in zip(*states))                   # [T, starts, n, n]
        commutator = (F_t @ W_t - W_t @ F_t).norm(dim=(2, 3))
        curves[eta] = commutator / F_t.norm(dim=(2, 3)) / W_t.norm(dim=(2, 3))
        until[eta] = time / steps * (curves[eta] > 1e-3).double().sum(0)    # it falls

    def draw(axis):
        for eta, color in zip(etas, ("C0", "C1", "C2")):
            shown = curves[eta].clamp(min=1e-17).tolist()
            axis.plot(times(time, steps), shown, color=color, lw=0.6)
            axis.plot([], color=color, label=f"η = {eta}, {starts} starts")
        axis.axhline(1e-3, color="0.7", ls=":")
        axis.set(title="‖[F, W$_p$]‖ / ‖F‖‖W$_p$‖: eigenvectors align", xlabel="t", yscale="log")
        axis.legend()
    rows = [(f"[F, Wp] relative at t = 60, eta = {eta}: largest of {starts} starts",
             curves[eta][-1].max().item(), 0) for eta in etas]
    rows += [(f"time until [F, Wp] is under 1e-3, eta = {eta}: mean of {starts} starts",
              until[eta].mean().item(), "") for eta in etas]
    rows += [(f"starts of {starts} that align sooner than without weight decay, eta = {eta}",
              int((until[eta] < until[0.0]).sum()), "") for eta in etas[1:]]
    return rows, draw


def target(g, sigma2=0.2, eta=0.02, beta=0.1):
    """How true is the assumption W_a = tau W?  Lemma 1 from a target that has nothing to do with W:
    the best tau, and what of W_a it leaves over."""
    X = torch.eye(5, dtype=torch.double)
    W_p = 0.5 * torch.randn(3, 3, generator=g, dtype=torch.double)
    W, W_a = 0.5 * torch.randn(2, 3, 5, generator=g, dtype=torch.double)
    states = simulate(lemma1(X, sigma2 * X, 1.0, eta, beta), (W_p, W, W_a), 200.0, 1000)
    rows = []
    for t, left in ((5, ""), (20, ""), (200, "to 0, and tau to 1")):
        _, W, W_a = states[5 * t]
        tau = ((W_a * W).sum() / (W * W).sum()).item()
        rows.append((f"EMA at t = {t}: ||W_a - tau W|| / ||W_a||, tau = {tau:.3f}",
                     ((W_a - tau * W).norm() / W_a.norm()).item(), left))
    return (rows,)                                                          # no panel


def modes(_, sigma2=0.2, eta=0.04, beta=0.4, time=60.0, alpha_p=1.0):
    """The decoupled eigenvalues: strong ones grow together to p+, one below its threshold dies;
    s = p^2 / alpha_p + c e^(-2 eta t)."""
    s = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.003], dtype=torch.double)
    p, tau = torch.full_like(s, 0.02), torch.zeros_like(s)
    states = simulate(decoupled(sigma2, alpha_p, eta, beta), (p, s, tau), time, 3000)
    c = s - p**2 / alpha_p
    worst = 0.0
    for i in range(1500):                       # later c e^(-2 eta t) is rounding beside p^2
        p_t, s_t, _ = states[i]
        ratio = (s_t - p_t**2 / alpha_p) / (c * math.exp(-2 * eta * time * i / 3000))
        worst = max(worst, (ratio - 1).abs().max().item())

    def draw(axis):
        for j in range(len(s)):
            values = [p[j].item() for p, _, _ in states]
            axis.plot(times(time, 3000), values, label=f"s(0) = {s[j]:g}")
        axis.axhline(fixed_points(sigma2, eta)[1], color="k", ls=":", label="p+")
        axis.set(title=f"eigenvalues p of W$_p$ (EMA, β = {beta})", xlabel="t")
        axis.legend(fontsize=7)
    return [("s - p^2 / alpha_p = c e^(-2 eta t): relative error", worst, "< 1e-6")], draw


def flow_in_one_dimension(_, sigma2=0.2, eta=0.02):
    """Three fixed points: 0 and p+ are stable, p- between them is the edge of the basin of
    collapse."""
    flow = one_dimensional(sigma2, eta)
    low, high = fixed_points(sigma2, eta)
    p0 = torch.tensor([0.0204, 0.0206], dtype=torch.double)
    below, above = simulate(flow, (p0,), 1500.0, 3000)[-1][0].tolist()

    def draw(axis):
        p = torch.linspace(-0.02, 1, 400, dtype=torch.double)
        axis.plot(p.tolist(), flow(p)[0].tolist())
        axis.axhline(0, color="0.7", lw=0.8)
        axis.plot([0, high], [0, 0], "ko", label="stable: 0 (collapse), p+")
        axis.plot(low, 0, "o", mfc="w", mec="k", label="unstable: p-")
        axis.set(title=f"dp/dt against p (η = {eta}, σ² = {sigma2})", xlabel="p")
        axis.legend()
    rows = [("p-", low, 0.02050), ("p+", high, 0.81283),
            ("from p = 0.0204 to", below, 0), ("from p = 0.0206 to", above, high)]
    return rows, draw


def basin(_, sigma2=0.2):
    """The least s(0) from which an eigenvalue escapes collapse, against alpha_p, eta and beta."""
    sweeps = {"alpha_p": (0.1, 0.3, 1.0, 3.0, 10.0), "eta": (0.005, 0.02, 0.08, 0.2),
              "beta": (0.02, 0.1, 0.5, 2.0)}
    # alpha_p, eta, beta, and where p and tau start
    cases = [(value, 0.02, math.inf, 0.0, 1.0) for value in sweeps["alpha_p"]]
    cases += [(1.0, value, math.inf, 0.0, 1.0) for value in sweeps["eta"]]
    # an EMA shows only where the target does not start as a copy: tau from 0
    cases += [(1.0, 0.05, value, 0.05, 0.0) for value in sweeps["beta"]]
    columns = torch.tensor(cases, dtype=torch.double).T[:, :, None]         # [5, 13, 1]
    alpha_p, eta, beta, p, tau = columns
    starts = torch.logspace(-5, 0, 600, dtype=torch.double)
    state = torch.broadcast_tensors(p, starts, tau)                         # each [13, 600]
    for _ in range(10):                             # in parts, so that only one is kept in memory
        state = simulate(decoupled(sigma2, alpha_p, eta, beta), state, 60.0, 600)[-1]
    escapes = state[0] > 0.1
    least = starts[escapes.double().argmax(1)].tolist()                     # argmax: the first
    found = {"alpha_p": least[:5], "eta": least[5:9], "beta": least[9:]}

    def draw(axis):
        for name, label in (("alpha_p", "predictor's rate α$_p$"), ("eta", "weight decay η"),
                            ("beta", "EMA rate β")):
            axis.plot(sweeps[name], found[name], "o-", label=label)
        axis.set(title="basin of collapse: least s(0) that escapes", xlabel="value",
                 xscale="log", yscale="log")
        axis.legend()
    ratio = found["alpha_p"][0] / found["alpha_p"][-1]
    rows = [("basin at alpha_p = 0.1 over that at 10", ratio, 100)]
    for name, values in sweeps.items():
        for value, s in zip(values, found[name]):
            rows.append((f"basin at {name} = {value}", s, ""))
    return rows, draw


def directset_limits(_, sigma2=1.0):
    """DirectSet(alpha): where signal and nuisance directions end, and the slide's "larger alpha,
    larger signal-noise ratio".

    The signal grows with alpha.  So does the nuisance while it lives, and faster: the ratio of the
    two falls.  The slide holds where weight decay has killed the nuisance,
    eta > 1 / 4 (1 + sigma^2)."""
    alphas, etas = (0.25, 0.5, 1, 2), (0, 0.05, 0.1, 0.2)
    alpha, eta, noise = torch.meshgrid(torch.tensor(alphas, dtype=torch.double),
                                       torch.tensor(etas, dtype=torch.double),
                                       torch.tensor((0, sigma2), dtype=torch.double),
                                       indexing="ij")
    start = torch.full_like(alpha, 0.9)
    w = simulate(directset(alpha, eta, noise), (start,), 1500.0, 3000)[-1][0]   # [4, 4, 2]
    root = 1 - 4 * eta * (1 + noise)
    p = (1 + root.clamp(min=0).sqrt()) / 2 / (1 + noise)
    limit = torch.where(root >= 0, p ** (1 / (2 * alpha)), 0.0)
    rows = []
    for i, a in enumerate(alphas):
        for j, e in enumerate(etas):
            for k, name in enumerate(("signal", "nuisance")):
                rows.append((f"DirectSet({a:g}), eta = {e:g}: w of {name}",
                             w[i, j, k].item(), limit[i, j, k].item()))
    ratio, expected = w[..., 0] / w[..., 1], limit[..., 0] / limit[..., 1]
    for i, a in enumerate(alphas):
        rows.append((f"signal / nuisance at eta = 0.1, alpha = {a:g}",
                     ratio[i, 2].item(), expected[i, 2].item()))

    def finish(axis, title):
        axis.set(title=title, xlabel="α", xscale="log", xticks=alphas,
                 xticklabels=["1/4", "1/2", "1", "2"])
        axis.minorticks_off()
        axis.legend(fontsize=7)

    def draw(axis):
        for j, color in ((2, "C0"), (3, "C3")):
            signal, nuisance = w[:, j].T.tolist()
            axis.plot(alphas, signal, "o-", color=color, label=f"signal, η = {etas[j]}")
            axis.plot(alphas, nuisance, "s--", color=color, label=f"nuisance, η = {etas[j]}")
        finish(axis, "DirectSet(α): end of w")

    def draw_ratio(axis):
        for j in (1, 2):
            axis.plot(alphas, ratio[:, j].tolist(), "o-", color=f"C{j}",
                      label=f"η = {etas[j]}: nuisance lives")
        axis.set_ylim(bottom=0)
        finish(axis, "signal / nuisance falls with α")
    return rows, draw, draw_ratio


# ----------------------------------------------------------------------------------------- main

PARTS = {"Lemma 1": lemma1_and_sgd, "collapse": without_predictor_or_stopgrad,
         "Theorem 3": alignment, "eigenvalues": modes, "one dimension": flow_in_one_dimension,
         "basin": basin, "DirectSet": directset_limits, "target": target}


def main(argv=None):
    common.run_parts(__file__, __doc__, argv, PARTS, (2, 4))


if __name__ == "__main__":
    main()

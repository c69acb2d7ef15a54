"""Six panels that tell when a linear net without negative pairs collapses, and when it does not.

Tian, Chen & Ganguli, "Understanding Self-supervised Learning Dynamics without Contrastive Pairs",
2021 (arXiv 2102.06810), and DirectSet(alpha) of Wang et al. 2021 (arXiv 2110.04947).

The net gives W x1 for one view of an image (image plus noise), the target net W_a x2 for another.
A predictor, the matrix W_p, predicts the target.  The stop-gradient sg lets no gradient into it.
SGD with small steps on J = 1/2 E||W_p W x1 - sg(W_a x2)||^2 follows differential equations in
    X, X'          covariance of the images, and of what augmentation adds
    alpha_p, eta   the predictor's learning rate divided by the net's; weight decay
    beta           how fast the target follows the net; inf: the target is the net
    sigma2, tau    the paper assumes X = I, X' = sigma2 I and W_a = tau W
    p, s           eigenvalues of W_p and of F = W X W^T, for an eigenvector that the two share

    python toy_dynamics.py

The six panels, as measured with seed 0 (15 seconds on two CPU cores):
1. Without predictor, or without stop-gradient, W goes to 0: complete collapse.  With both it lives.
2. F W_p - W_p F falls below 1e-7 of its factors: W_p and F come to share eigenvectors.  From then
   on each p and its s follow equations of their own.
3. If s starts large enough, p rises to p+.  If s starts too small, p dies: a dimension collapses.
4. Why: below p- = 0.0205 the speed dp/dt is negative.  Above it p goes to p+ = 0.813 (eta = 0.02).
5. With a faster predictor smaller s(0) escape, with weight decay or a slow target only larger ones.
6. DirectSet sets W_p = (W W^T)^alpha.  Then weight decay selects: over 1/8 it kills a nuisance,
   which augmentation changes (sigma2 = 1), and only over 1/4 the signal, which it leaves alone.

Where we differ.  In s = p^2 / alpha_p + c e^(-2 eta t) the paper prints the opposite sign of
c = s(0) - p(0)^2 / alpha_p.  In theory weight decay speeds alignment up.  It also shrinks W_p and
F, and on average our runs align later.  "The larger alpha, the larger the signal-noise ratio"
(slides) needs a dead nuisance: while the nuisance lives, the ratio falls with alpha.
"""
import math
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import torch
from matplotlib.figure import Figure

import common


def simulate(flow, state, time, steps):
    """Solve a differential equation with Runge-Kutta steps of order 4.  -> steps + 1 states, tuples
    of tensors.  flow gets the entries of a state and returns a tuple of their time derivatives."""
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


# ------------------------------------------------------------------- the equations of the papers
# Each function returns a flow for simulate, which maps a state's entries to their derivatives.

def lemma1(X, X_aug, alpha_p=1.0, eta=0.0, beta=1.0):
    """Lemma 1: SGD on J, with weight decay of W_p and W, and a target that follows the net.  The
    state is (W_p, W, W_a).  alpha_p multiplies the gradient of W_p alone."""
    def flow(W_p, W, W_a):
        error = W_a @ X - W_p @ W @ (X + X_aug)
        dW_p = alpha_p * error @ W.T - eta * W_p
        dW = W_p.T @ error - eta * W
        return dW_p, dW, beta * (W - W_a)
    return flow


def no_predictor(X_aug, eta=0.0):
    """W_p = I and W_a = W: dW/dt = -W (X' + eta I), so W goes to 0.  The state is (W,)."""
    return lambda W: (-W @ X_aug - eta * W,)


def no_stopgrad(X, X_aug, eta=0.0):
    """The gradient flows through both nets, and W_a = W.  The state is (W_p, W); W_p is fixed."""
    def flow(W_p, W):
        rest = W_p - torch.eye(len(W_p), dtype=W.dtype)
        dW = -(W_p.T @ W_p @ W + W) @ X_aug - rest.T @ rest @ W @ X - eta * W
        return torch.zeros_like(W_p), dW
    return flow


def symmetrized(sigma2, tau=1.0, alpha_p=1.0, eta=0.0):
    """Lemma 1 if X = I, X' = sigma2 I, W_a = tau W and W_p is symmetric.  The state is (W_p, F)."""
    def both(A, B):
        return A @ B + B @ A                               # {A, B} in the paper

    def flow(W_p, F):
        dW_p = -alpha_p / 2 * (1 + sigma2) * both(W_p, F) + alpha_p * tau * F - eta * W_p
        dF = -(1 + sigma2) * both(W_p @ W_p, F) + tau * both(W_p, F) - 2 * eta * F
        return dW_p, dF
    return flow


def decoupled(sigma2, alpha_p=1.0, eta=0.0, beta=math.inf):
    """The eigenvalues p of W_p and s of F once the two share eigenvectors, and tau.  The state is
    (p, s, tau), numbers or tensors.  If beta is inf, the target is the net, and tau stays."""
    beta = torch.as_tensor(beta, dtype=torch.double)

    def flow(p, s, tau):
        dp = alpha_p * s * (tau - (1 + sigma2) * p) - eta * p
        ds = 2 * p * s * (tau - (1 + sigma2) * p) - 2 * eta * s
        dtau = torch.where(torch.isinf(beta), 0.0, beta * (1 - tau) - tau * ds / (2 * s))
        return dp, ds, dtau
    return flow


def one_dimensional(sigma2, eta, tau=1.0):
    """`decoupled` if s = p^2, which p and s approach (for alpha_p = 1).  The state is (p,)."""
    return lambda p: (p * p * (tau - (1 + sigma2) * p) - eta * p,)


def fixed_points(sigma2, eta, tau=1.0):
    """The p > 0 at which one_dimensional is 0: p- (unstable), p+ (stable); nan, nan if none is"""
    discriminant = tau**2 - 4 * eta * (1 + sigma2)
    if discriminant < 0:
        return math.nan, math.nan
    root = math.sqrt(discriminant)
    return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))


def directset(alpha, eta, sigma2):
    """DirectSet(alpha): an eigenvalue w of W, with W_p set to w^(2 alpha).  sigma2 is the variance
    that augmentation adds along its direction, 0 for a signal.  The state is (w,)."""
    def flow(w):
        p = w.pow(2 * alpha)
        return (p * (1 - (1 + sigma2) * p) * w - eta * w,)
    return flow


# --------------------------------------------------------------------------------- the six panels
# Each function draws on an axis and returns rows (what, measured, theory) of the table.

def random_covariance(n, low, high, generator):
    """A matrix [n, n] with eigenvalues from low to high along random directions."""
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.double))[0]
    return Q * torch.linspace(low, high, n, dtype=torch.double) @ Q.T


def collapse(axis, generator, time=40.0, steps=800, eta=0.02):
    """The size of W without the predictor, without the stop-gradient, and with both."""
    X, X_aug = random_covariance(5, 0.5, 1.5, generator), random_covariance(5, 0.2, 0.6, generator)
    W = torch.randn(3, 5, generator=generator, dtype=torch.double)
    W_p = torch.randn(3, 3, generator=generator, dtype=torch.double)
    none = simulate(no_predictor(X_aug, eta), (W,), time, steps)
    through = simulate(no_stopgrad(X, X_aug, eta), (W_p, W), time, steps)
    both = simulate(lemma1(X, X_aug, 2.0, eta, 0.5), (W_p, W, W), time, steps)
    rows, t = [], torch.linspace(0, time, steps + 1).tolist()
    # Without one of the two W decays at least this fast: 0.2 is the least eigenvalue of X'.
    bound = [W.norm().item() * math.exp(-(0.2 + eta) * x) for x in t]
    for name, states, at in (("no predictor", none, 0), ("no stop-gradient", through, 1),
                             ("both", both, 1)):
        size = [state[at].norm().item() for state in states]       # at: W's place in the state
        axis.plot(t, size, label=name)
        rows.append((f"{name}: ||W|| at the end over the bound", size[-1] / bound[-1],
                     "> 100" if name == "both" else "< 1"))
    axis.plot(t, bound, "k:", label="at least this fast without one")
    axis.set(title="1  size ‖W‖: does the net collapse?", xlabel="time t", yscale="log")
    axis.legend()
    return rows


def alignment(axis, generator, time=60.0, steps=600, sigma2=0.2, n=6, starts=12):
    """Theorem 3: in `symmetrized`, F and W_p come to share their eigenvectors, so F W_p = W_p F."""
    rows, t = [], torch.linspace(0, time, steps + 1).tolist()
    A, B = torch.randn(2, starts, n, n, generator=generator, dtype=torch.double)
    W_p = 0.1 * (A + A.mT) + 0.5 * torch.eye(n, dtype=torch.double)
    F = B @ B.mT / n
    for eta, color in ((0.0, "C0"), (0.05, "C2")):
        states = simulate(symmetrized(sigma2, eta=eta), (W_p, F), time, steps)
        W_t, F_t = (torch.stack(x) for x in zip(*states))                   # [T, starts, n, n]
        commutator = (F_t @ W_t - W_t @ F_t).norm(dim=(2, 3))
        apart = commutator / F_t.norm(dim=(2, 3)) / W_t.norm(dim=(2, 3))    # [T, starts]
        above = (apart > 1e-3).double().sum(0).mean().item()      # steps until it is below
        rows += [(f"eta = {eta}: F W_p - W_p F, relative, at the end, largest of {starts}",
                  apart[-1].max().item(), "< 1e-6"),
                 (f"eta = {eta}: time until it is below 1e-3, mean", time / steps * above, "")]
        axis.plot(t, apart.clamp(min=1e-17).tolist(), color=color, lw=0.8)
        axis.plot([], color=color, label=f"η = {eta}, {starts} random starts")
    axis.set(title="2  ‖F W$_p$ - W$_p$ F‖ / ‖F‖‖W$_p$‖ falls to 0", xlabel="time t", yscale="log")
    axis.legend()
    return rows


def modes(axis, sigma2=0.2, eta=0.04, beta=0.4, time=150.0, steps=1000):
    """Eigenvalues p of W_p, with a slow target: strong ones rise to p+, and a weak one dies."""
    s = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.003], dtype=torch.double)
    p, tau = torch.full_like(s, 0.02), torch.zeros_like(s)
    states = simulate(decoupled(sigma2, 1.0, eta, beta), (p, s, tau), time, steps)
    p, t = torch.stack([p for p, _, _ in states]), torch.linspace(0, time, steps + 1).tolist()
    high = fixed_points(sigma2, eta)[1]
    axis.plot(t, p.tolist(), label=[f"s(0) = {value:g}" for value in s])
    axis.axhline(high, color="k", ls=":", label="p+")
    axis.set(title=f"3  eigenvalues p of W$_p$ (η = {eta}, β = {beta})", xlabel="time t")
    axis.legend(fontsize=8)
    return [("mode with s(0) = 0.03: p at the end", p[-1, 3].item(), round(high, 6)),
            ("mode with s(0) = 0.003: p at the end", p[-1, 4].item(), "< 0.01")]


def three_fixed_points(axis, sigma2=0.2):
    """The speed dp/dt at each p.  Where it is 0, p stays; near an unstable point p moves away."""
    grid = torch.linspace(0, 0.95, 400, dtype=torch.double)
    for eta in (0.02, 0.1, 0.25):
        line, = axis.plot(grid.tolist(), one_dimensional(sigma2, eta)(grid)[0].tolist(),
                          label=f"η = {eta}")
        low, high = fixed_points(sigma2, eta)                # for 0.25 nan, which is not drawn
        axis.plot([0, high], [0, 0], "o", color=line.get_color())
        axis.plot(low, 0, "o", mfc="w", color=line.get_color())
    axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    axis.set(title="4  speed dp/dt (dots: 0; empty: unstable)", xlabel="p", ylim=(-0.15, 0.11))
    axis.legend(fontsize=8)
    low, high = fixed_points(sigma2, 0.02)
    start = (torch.tensor([0.0204, 0.0206], dtype=torch.double),)
    below, above = simulate(one_dimensional(sigma2, 0.02), start, 1500.0, 1500)[-1][0].tolist()
    return [("p-", low, 0.02050), ("p+", high, 0.81283),
            ("from p = 0.0204 to", below, 0), ("from p = 0.0206 to", above, round(high, 6))]


def basin(axis, sigma2=0.2):
    """The smallest s(0) that escapes collapse, for values of alpha_p, eta and beta."""
    starts = torch.logspace(-5, -0.5, 300, dtype=torch.double)
    rows = []
    for name, label, values in (("alpha_p", "predictor's rate α$_p$", (0.1, 0.3, 1.0, 3.0, 10.0)),
                                ("eta", "weight decay η", (0.005, 0.02, 0.08, 0.2)),
                                ("beta", "target's rate β", (0.02, 0.1, 0.5, 2.0))):
        settings, p, tau = {"alpha_p": 1.0, "eta": 0.02, "beta": math.inf}, 0.0, 1.0
        if name == "beta":
            # A slow target matters only if it does not start as a copy of the net: tau from 0.
            settings["eta"], p, tau = 0.05, 0.05, 0.0
        settings[name] = torch.tensor(values, dtype=torch.double)[:, None]
        s = starts.repeat(len(values), 1)
        state = (torch.full_like(s, p), s, torch.full_like(s, tau))
        escapes = simulate(decoupled(sigma2, **settings), state, 600.0, 1500)[-1][0] > 0.1
        least = starts[escapes.int().argmax(1)].tolist()                    # argmax: the first True
        axis.plot(values, least, "o-", label=label)
        rows += [(f"least s(0) that escapes, {name} = {value}", s0, "")
                 for value, s0 in zip(values, least)]
    axis.set(title="5  smallest s(0) that escapes collapse", xlabel="value of the parameter",
             xscale="log", yscale="log")
    axis.legend(fontsize=8)
    return rows


def directset_limit(alpha, eta, sigma2):
    """The end of w from a large start.  It is 0 if eta is over 1 / (4 (1 + sigma2))."""
    root = 1 - 4 * eta * (1 + sigma2)
    if root < 0:
        return 0.0
    return ((1 + math.sqrt(root)) / (2 * (1 + sigma2))) ** (1 / (2 * alpha))


def directset_thresholds(axis, sigma2=1.0):
    """DirectSet(alpha): more weight decay kills the nuisance first, and then the signal."""
    rows, etas = [], torch.linspace(0, 0.3, 13, dtype=torch.double)
    grid = torch.linspace(0, 0.3, 601).tolist()
    for alpha, color in ((0.25, "C0"), (1.0, "C3")):
        for name, variance, style in (("signal", 0.0, "-"), ("nuisance", sigma2, "--")):
            start = torch.full_like(etas, 0.9)
            end = simulate(directset(alpha, etas, variance), (start,), 1000.0, 1500)[-1][0].tolist()
            axis.plot(grid, [directset_limit(alpha, eta, variance) for eta in grid], style,
                      color=color, label=f"{name}, α = {alpha:g}")
            axis.plot(etas.tolist(), end, "o", color=color, ms=4)
            rows += [(f"DirectSet({alpha:g}), eta = {eta}: w of {name}", end[i],
                      round(directset_limit(alpha, eta, variance), 6))
                     for i, eta in ((4, 0.1), (8, 0.2), (12, 0.3))]
    axis.set(title="6  DirectSet(α): w at the end (lines: theory)", xlabel="weight decay η")
    axis.legend(fontsize=8, loc=(0.02, 0.31))
    return rows


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random matrices")
    parser.add_argument("--out", default="runs", help="the run makes its own folder in this one")
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(args.seed)
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    axes = figure.subplots(2, 3).flat
    table = collapse(axes[0], generator)
    table += alignment(axes[1], generator)
    table += modes(axes[2])
    table += three_fixed_points(axes[3])
    table += basin(axes[4])
    table += directset_thresholds(axes[5])

    for what, found, theory in table:
        print(f"{what:72} {found:<12.5g} {theory}")
    rows = [{"what": what, "measured": found, "theory": theory} for what, found, theory in table]
    folder = common.new_folder(args.out, f"toy_dynamics-s{args.seed}")
    common.write_csv(folder / "toy_dynamics.csv", rows)
    figure.savefig(folder / "toy_dynamics.png")
    print(f"{folder}: toy_dynamics.csv, toy_dynamics.png")


if __name__ == "__main__":
    common.cli(main)

"""Six panels: the loss of a linear net close to W = 0 tells which dimensions collapse.

Ziyin et al. 2023, "What Shapes the Loss Landscape of Self-supervised Learning?", arXiv 2210.00638.

The net is f(x) = W x, with W [K, D].  If W is 0, the collapse is complete.  Images have covariance
A0, and a view is an image plus noise with covariance C, so views have Sigma = A0 + C.  Near W = 0
InfoNCE, spectral contrastive loss and Barlow Twins are, each with a matrix B and number kappa,
    L = const - Tr[W B W^T] + kappa Tr[(W Sigma W^T)^2] + ...
B weighs how much images differ against what augmentation changes.  For InfoNCE, whose pull between
the two views of an image has the weight a, B is A0 + (1 - a) C.

    python toy_landscape.py

The six panels, as measured with seed 0 (20 seconds on two CPU cores):
1. The loss along eigenvectors of B.  If the eigenvalue b is positive, W = 0 is a hilltop: training
   leaves it, and the dimension lives.  If b is negative or 0, it is a valley: the dimension dies.
2. The curvature at W = 0 is -2 b for all three losses, so b alone decides.
3. After SGD as many dimensions live (rank of W) as b are positive.  A stronger pull a leaves fewer.
4. From a small W one dimension is learnt after the other, at times that b predicts (to 2 %).
5. If E|f|^2 is kept at 1, one dimension or more live on, unless a bias can carry that length.
6. Collapse can help: once the nuisance is dead (a > 2), a classifier with few labels gets better.

We had only the paper's abstract and introduction, so the formulas are our own derivations, which
the tests check.  Barlow Twins has A0 in place of Sigma, and does not divide by standard deviations.
"""
import math
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import torch
from matplotlib.figure import Figure

import common

EIG_A0 = (3.0, 1.5, 1.0, 0.5, 0.2)          # eigenvalues of A0: how much images differ
EIG_C = (0.3, 0.3, 2.0, 0.2, 0.6)           # eigenvalues of C, along the same directions
EIG_SIGMA = (3.3, 1.8, 3.0, 0.7, 0.8)       # their sums
WEIGHTS = (1.0, 1.4, 2.0, 4.0, 8.0, 12.0)   # a, how strongly views attract each other
KAPPA = 0.75                                # of InfoNCE: factor of the term with (W Sigma W^T)^2


# ----------------------------------------------------------------------------- three losses, and B
# A loss gets the outputs f, f2 [N, K] for two views and returns a scalar.  Its B gets the views
# x, x2 [N, D] themselves, and returns the matrix [D, D] of the loss on this very batch.

def infonce(f, f2, a=1.0):
    """mean_i [a d_ii^2 / 2 + log mean_j e^{-d_ij^2 / 2}] with d_ij = |f_i - f2_j|"""
    d2 = f.square().sum(1)[:, None] + f2.square().sum(1) - 2 * f @ f2.T     # [N, N]
    return (a * d2.diagonal() / 2 + (-d2 / 2).logsumexp(1) - math.log(len(f))).mean()


def B_infonce(x, x2, a=1.0):
    """(S_neg - a S_pos) / 2 with S the mean outer product of differences: in S_neg of all pairs,
    in S_pos of the two views of an image.  The expectation is A0 + (1 - a) C."""
    mean, mean2 = x.mean(0), x2.mean(0)
    S_neg = (x.T @ x + x2.T @ x2) / len(x) - torch.outer(mean, mean2) - torch.outer(mean2, mean)
    return (S_neg - a * (x - x2).T @ (x - x2) / len(x)) / 2


def spectral(f, f2):
    """Spectral contrastive loss: -2 E f.f2 + E (f_i.f2_j)^2, the last over all pairs i, j"""
    return -2 * (f * f2).sum(1).mean() + (f @ f2.T).square().mean()


def B_spectral(x, x2):
    """The symmetric part of 2 E x x2^T, also for Barlow Twins.  The expectation is 2 A0."""
    M = x.T @ x2 / len(x)
    return M + M.T


def barlow(f, f2):
    """Barlow Twins: ||M - I||^2, where M is the symmetric part of E f f2^T"""
    cross = (f.T @ f2 + f2.T @ f) / (2 * len(f))
    return (cross - torch.eye(len(cross), dtype=f.dtype)).square().sum()


LOSSES = {                                  # loss, its B, options of both
    "InfoNCE, a = 4": (infonce, B_infonce, {"a": 4.0}),
    "spectral contrastive": (spectral, B_spectral, {}),
    "Barlow Twins": (barlow, B_spectral, {}),
}


# ------------------------------------------------------------------------------ formulas of minima

def eigenvalues_of_B(a):
    """The eigenvalues of InfoNCE's B = A0 + (1 - a) C."""
    return [A_k + (1 - a) * c for A_k, c in zip(EIG_A0, EIG_C)]


def rank_of_theory(a):
    """How many dimensions training keeps: as many as B has positive eigenvalues."""
    return len([b for b in eigenvalues_of_B(a) if b > 0])


def infonce_spectrum(a, eig_A0=EIG_A0, eig_C=EIG_C):
    """Eigenvalues of W Sigma W^T at the minimum of InfoNCE for Gaussian data.  A dimension has
    max(1/u - 1, 0) with u = (sqrt(1 + 8 a c / sigma) - 1) / 2."""
    return [max(2 / (math.sqrt(1 + 8 * a * c / (A_k + c)) - 1) - 1, 0.0)
            for A_k, c in zip(eig_A0, eig_C)]


def water_filling(rho, kappa, bias):
    """Shares of the norm, descending: s_k = max(0, (rho_k - nu) / (2 kappa)).  The level nu is such
    that they add up to 1.  With a bias they may add up to less, and nu is not negative."""
    rho = sorted(rho, reverse=True)
    # This is the level if the first k have shares.  With too few or too many of them it is lower.
    nu = max((sum(rho[:k]) - 2 * kappa) / k for k in range(1, len(rho) + 1))
    if bias:
        nu = max(nu, 0.0)
    return [max(0.0, (r - nu) / (2 * kappa)) for r in rho]


def population_quartic(W, B, Sigma, kappa, norm=1.0):
    """-Tr[W B W^T] / q + kappa Tr[(W Sigma W^T)^2] / q^2; norm is q: E|f|^2 if f is normalised"""
    return -(W @ B * W).sum() / norm + kappa * (W @ Sigma @ W.T).square().sum() / norm**2


# ---------------------------------------------------------------------------------------- training

def simulate(a, A0, C, steps=1500, batch_size=128, lr=0.1, generator=None, K=5):
    """Train by SGD on InfoNCE from a small W, with new Gaussian images each step.  -> W [K, D]"""
    half, half_aug = torch.linalg.cholesky(A0), torch.linalg.cholesky(C)
    W = (0.05 * torch.randn(K, len(A0), generator=generator, dtype=A0.dtype)).requires_grad_()
    for _ in range(steps):
        noise = torch.randn(3, batch_size, len(A0), generator=generator, dtype=A0.dtype)
        x = noise[0] @ half.T
        f = (x + noise[1] @ half_aug.T) @ W.T
        f2 = (x + noise[2] @ half_aug.T) @ W.T
        grad, = torch.autograd.grad(infonce(f, f2, a), W)
        with torch.no_grad():
            W -= lr / (1 + a) * grad                       # a larger a makes the loss steeper
    return W.detach()


# --------------------------------------------------------------------------------- the six panels
# Each function draws on an axis and returns rows (what, measured, theory) of the table.

def wells_and_bowls(axis):
    """The loss without its higher terms, along four eigenvectors of B, for a = 4."""
    w = torch.linspace(-1, 1, 201, dtype=torch.double)
    b = eigenvalues_of_B(4)
    for k, color in ((0, "C0"), (1, "C2"), (3, "C1"), (2, "C3")):
        fate = "lives" if b[k] > 0 else "collapses"
        axis.plot(w.tolist(), (-b[k] * w**2 + KAPPA * EIG_SIGMA[k] ** 2 * w**4).tolist(),
                  color=color, lw=2, label=f"b = {b[k]:+.1f}: {fate}")
    axis.set(title="1  loss: W = 0 is a hilltop or a valley", xlabel="size of W", ylim=(-0.3, 0.4))
    axis.legend(fontsize=8, loc="lower center", ncols=2)


def second_derivatives(axis, A0, C, generator, n=1000):
    """For K = 1, where W is one row: the eigenvalues of the Hessian at W = 0 are -2 b."""
    noise = torch.randn(3, n, 5, generator=generator, dtype=torch.double)
    image = noise[0] @ torch.linalg.cholesky(A0).T
    x, x2 = (image + e @ torch.linalg.cholesky(C).T for e in noise[1:])
    rows = []
    for (name, (loss, B, options)), mark in zip(LOSSES.items(), "os^"):
        H = torch.autograd.functional.hessian(
            lambda w: loss(x @ w[:, None], x2 @ w[:, None], **options), torch.zeros(5).double())
        b, found = torch.linalg.eigvalsh(B(x, x2, **options)).flip(0), torch.linalg.eigvalsh(H)
        axis.plot(b.tolist(), found.tolist(), mark, label=name)
        rows.append((f"{name}: directions downhill from W = 0", int((found < 0).sum()),
                     int((b > 0).sum())))
    axis.axline((0, 0), slope=-2, color="0.7", ls=":", label="-2 b")
    axis.set(title="2  curvature at W = 0, measured", xlabel="eigenvalue b of B")
    axis.legend(fontsize=8)
    return rows


def ranks(axis, A0, C, generator):
    """InfoNCE: the larger the weight a, the fewer dimensions live."""
    nets = [simulate(a, A0, C, generator=generator) for a in WEIGHTS]
    found = [int((torch.linalg.eigvalsh(W @ (A0 + C) @ W.T) > 1e-2).sum()) for W in nets]
    grid = torch.logspace(-0.05, 1.12, 400).tolist()
    axis.plot(grid, [rank_of_theory(a) for a in grid], "k--", label="positive eigenvalues of B")
    axis.plot(WEIGHTS, found, "o", label="rank of W after SGD")
    axis.set(title="3  how many dimensions live", xlabel="pull a between the views", xscale="log",
             xticks=WEIGHTS, xticklabels=[f"{a:g}" for a in WEIGHTS])
    axis.minorticks_off()
    axis.legend()
    return [(f"a = {a:g}: rank after SGD", rank, rank_of_theory(a))
            for a, rank in zip(WEIGHTS, found)]


def one_after_the_other(axis, generator, h=0.002, time=25.0):
    """Gradient flow of the loss without its higher terms, for a = 1, from a small W.  |W v|^2 along
    eigenvector v is half of its end, b / (2 kappa sigma^2), at time ln(end / start - 1) / (4 b).
    It starts without what earlier dimensions take.  (Also Simon et al. 2023, arXiv 2303.15438.)"""
    b, sigma = torch.tensor((EIG_A0, EIG_SIGMA), dtype=torch.double)
    W = 1e-3 * torch.randn(5, 5, generator=generator, dtype=torch.double)
    start, end = torch.linalg.qr(W)[1].diagonal().square(), b / (2 * KAPPA * sigma**2)
    expected = ((end / start - 1).log() / (4 * b)).tolist()
    sizes = []
    for _ in range(round(time / h)):
        sizes.append(W.square().sum(0) / end)              # |W v_k|^2, which goes to 1
        W = W + h * (2 * W * b - 4 * KAPPA * (W * sigma) @ W.T @ (W * sigma))
    sizes = torch.stack(sizes)                             # [T, 5]
    rows, t = [], [h * i for i in range(0, len(sizes), 20)]
    for k in range(5):
        axis.plot(t, sizes[::20, k].tolist(), color=f"C{k}", label=f"b = {EIG_A0[k]:g}")
        axis.axvline(expected[k], color=f"C{k}", ls=":")
        half = h * int((sizes[:, k] > 0.5).int().argmax())                  # argmax: the first True
        rows.append((f"b = {b[k]:g}: time when half is learnt", half, f"about {expected[k]:.3f}"))
    axis.set(title="4  |W v|² / its end (dotted: half, by theory)", xlabel="time t",
             xscale="log", xlim=(0.3, time))
    axis.legend(fontsize=8)
    return rows


def normalisation(axis, A0, C, generator):
    """The shares of E|f|^2 (plus |bias|^2) = 1 that the dimensions and the bias carry."""
    Sigma = A0 + C
    rows, parts, ticks = [], [], []
    for a, with_bias, name in ((4, False, "no bias"), (4, True, "with bias"),
                               (12, False, "no bias"), (12, True, "with bias")):
        W = 0.3 * torch.randn(5, 5, generator=generator, dtype=torch.double)
        bias = torch.tensor(0.3, dtype=torch.double)
        optimizer = torch.optim.SGD([W.requires_grad_(), bias.requires_grad_()], 0.05, 0.9)
        for _ in range(2000):
            norm = (W @ Sigma * W).sum() + with_bias * bias**2
            loss = population_quartic(W, A0 + (1 - a) * C, Sigma, KAPPA, norm)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        share = (torch.linalg.eigvalsh(W @ Sigma @ W.T).flip(0) / norm).tolist()
        rho = [b / sigma for b, sigma in zip(eigenvalues_of_B(a), EIG_SIGMA)]
        theory = water_filling(rho, KAPPA, with_bias)
        rows += [(f"normalised, a = {a}, {name}: dimension {k + 1}", share[k], round(theory[k], 6))
                 for k in range(3)]
        parts.append([*share, 1 - sum(share)])
        ticks.append(f"a = {a}\n{name}")
    bottom = [0.0] * 4
    labels = ("dimension 1", "dimension 2", "dimension 3", None, None, "bias")
    for heights, label, color in zip(zip(*parts), labels, ("C0", "C1", "C2", "C3", "C4", "0.8")):
        axis.bar(ticks, heights, bottom=bottom, color=color, edgecolor="w", label=label)
        bottom = [x + y for x, y in zip(bottom, heights)]
    axis.set_title("5  normalised: who carries the length?")
    axis.legend(fontsize=8, loc="lower right", framealpha=1)
    return rows


def beneficial_collapse(axis, generator, trials=200):
    """A linear classifier (probe) with 10, 30, 300 labels.  4 dimensions of signal tell the class
    and die at a = 11.  12 of nuisance, which augmentation changes more, die at a = 2."""
    A0 = torch.tensor([1.0] * 4 + [1.5] * 12, dtype=torch.double)
    C = torch.tensor([0.1] * 4 + [1.5] * 12, dtype=torch.double)
    weights = (1.0, 1.5, 1.9, 2.1, 3.0, 5.0, 8.0, 10.5, 12.0)
    truth = torch.randn(trials, 4, 1, generator=generator, dtype=torch.double)
    image = torch.randn(trials, 1300, 16, generator=generator, dtype=torch.double) * A0.sqrt()
    y = (image[..., :4] @ truth).sign()                                     # [trials, 1300, 1]
    x = image + torch.randn(image.shape, generator=generator, dtype=torch.double) * C.sqrt()
    rows = []
    for n in (10, 30, 300):
        found = []
        for a in weights:
            e = torch.tensor(infonce_spectrum(a, A0.tolist(), C.tolist()), dtype=torch.double)
            f = x * (e / (A0 + C)).sqrt()                                   # the trained net
            train, test = f[:, :n], f[:, 300:]
            ridge = 1e-3 * (train.square().sum((1, 2), keepdim=True) + 1e-9 * n) * torch.eye(16)
            probe = torch.linalg.solve(train.mT @ train + ridge, train.mT @ y[:, :n])
            right = test @ probe * y[:, 300:]
            # After complete collapse every output is 0, which counts as half right.
            found.append(((right > 0).double() + (right == 0).double() / 2).mean().item())
            rows.append((f"a = {a:g}, {n} labels: probe", found[-1], ""))
        axis.plot(weights, found, "o-", label=f"{n} labels")
    axis.axvspan(2, 11, color="0.93", zorder=0, label="only the signal lives")
    axis.set(title="6  accuracy of a linear probe", xlabel="pull a between the views", xscale="log",
             xticks=[1, 2, 4, 8, 11], xticklabels=[1, 2, 4, 8, 11])
    axis.minorticks_off()
    axis.legend(fontsize=8, loc="lower left")
    return rows


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of matrices, images and W")
    parser.add_argument("--out", default="runs", help="the run makes its own folder in this one")
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(args.seed)
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    axes = figure.subplots(2, 3).flat
    Q = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.double))[0]
    A0, C = (Q * torch.tensor(values, dtype=torch.double) @ Q.T for values in (EIG_A0, EIG_C))
    wells_and_bowls(axes[0])
    table = second_derivatives(axes[1], A0, C, generator)
    table += ranks(axes[2], A0, C, generator)
    table += one_after_the_other(axes[3], generator)
    table += normalisation(axes[4], A0, C, generator)
    table += beneficial_collapse(axes[5], generator)

    for what, found, theory in table:
        print(f"{what:72} {found:<12.5g} {theory}")
    rows = [{"what": what, "measured": found, "theory": theory} for what, found, theory in table]
    folder = common.new_folder(args.out, f"toy_landscape-s{args.seed}")
    common.write_csv(folder / "toy_landscape.csv", rows)
    figure.savefig(folder / "toy_landscape.png")
    print(f"{folder}: toy_landscape.csv, toy_landscape.png")


if __name__ == "__main__":
    common.cli(main)

"""The loss landscape of linear self-supervised learning: when is collapse the minimum, and of
which dimensions?

Ziyin et al., "What Shapes the Loss Landscape of Self-supervised Learning?", 2023
(arXiv 2210.00638).  f(x) = W x; an image x^ with covariance A0, views x = x^ + e with augmentation
covariance C, Sigma = A0 + C.  Every loss is, near W = 0,
    L = const - Tr[W B W^T] + kappa Tr[(W Sigma W^T)^2] + ...,
(Barlow Twins: A0 for Sigma), so the Hessian at the origin is -2 I (x) B, and training keeps as many
dimensions as B has positive eigenvalues, K at most: complete collapse where it has none.  Only the
paper's abstract and introduction were at hand: the formulas here are derived, and checked below.

    python toy_landscape.py     every number beside the formula's; toy_landscape.png and .csv

It takes 17 s on two CPU cores (torch 2.14); every Hessian agrees to 1e-14, every spectrum to 1e-6,
every time at which a dimension is learnt to 2 %.
"""
import math

import torch

import common

EIG_A0 = (3.0, 1.5, 1.0, 0.5, 0.2)          # eigenvalues of A0, what images differ in
EIG_C = (0.3, 0.3, 2.0, 0.2, 0.6)           # of C, same directions: what augmentation changes
EIG_SIGMA = tuple(A_k + c for A_k, c in zip(EIG_A0, EIG_C))
WEIGHTS = (1.0, 1.4, 2.0, 4.0, 8.0, 12.0)   # a, of the alignment term of InfoNCE


# ----------------------------------------------------------------------------------- six losses
# f, f2: the two views' embeddings, [N, K] -> scalar.
# x, x2: the views, [N, D] -> B of this very batch, [D, D].

def squared_distances(f, f2):
    """[..., N, K] -> [..., N, N]"""
    return f.square().sum(-1)[..., :, None] + f2.square().sum(-1)[..., None, :] - 2 * f @ f2.mT


def infonce_distance(f, f2, a=1.0):
    """mean_i [a d_ii^2 / 2 + log mean_j e^{-d_ij^2 / 2}], d_ij = |f_i - f2_j|; a weighs the
    alignment of positives."""
    d2 = squared_distances(f, f2)
    return (a * d2.diagonal() / 2 + (-d2 / 2).logsumexp(1) - math.log(len(f))).mean()


def infonce_dot(f, f2):
    """mean_i [-f_i.f2_i + log mean_j e^{f_i.f2_j}]"""
    dot = f @ f2.T
    return (-dot.diagonal() + dot.logsumexp(1) - math.log(len(f))).mean()


def nt_xent(f, f2):
    """InfoNCE by dot product with both views of all images but itself in the denominator."""
    both, n = torch.cat([f, f2]), len(f)
    dot = both @ both.T
    positive = torch.cat([dot.diagonal(n), dot.diagonal(-n)])
    itself = torch.eye(2 * n, dtype=bool, device=f.device)
    others = dot.masked_fill(itself, -math.inf)
    return (others.logsumexp(1) - math.log(2 * n - 1) - positive).mean()


def spectral(f, f2):
    """-2 E f.f2 + E (f_i.f2_j)^2"""
    return -2 * (f * f2).sum(1).mean() + (f @ f2.T).square().mean()


def barlow(f, f2):
    """||E f f2^T - I||^2, without division by the standard deviations and with weight 1 off the
    diagonal."""
    cross = (f.T @ f2 + f2.T @ f) / (2 * len(f))
    return (cross - torch.eye(len(cross), dtype=f.dtype, device=f.device)).square().sum()


def vicreg(f, f2, s=1.0, mu=1.0):
    """s E |f - f2|^2 + mu ||Cov f - I||^2, with (1 - variance)^2 for the hinge."""
    both = torch.cat([f, f2])
    both = both - both.mean(0)
    cov = both.T @ both / len(both)
    invariance = (f - f2).square().sum(1).mean()
    rest = cov - torch.eye(len(cov), dtype=f.dtype, device=f.device)
    return s * invariance + mu * rest.square().sum()


def B_infonce_distance(x, x2, a=1.0):
    """(S_neg - a S_pos) / 2, S the mean outer product of differences"""
    mean, mean2 = x.mean(0), x2.mean(0)
    S_neg = (x.T @ x + x2.T @ x2) / len(x) - torch.outer(mean, mean2) - torch.outer(mean2, mean)
    return (S_neg - a * (x - x2).T @ (x - x2) / len(x)) / 2


def B_infonce_dot(x, x2):
    """sym E x x2^T - sym mean x mean x2^T"""
    M = x.T @ x2 / len(x) - torch.outer(x.mean(0), x2.mean(0))
    return (M + M.T) / 2


def B_nt_xent(x, x2):
    both, M, n = torch.cat([x, x2]), x.T @ x2 / len(x), len(x)
    total = both.sum(0)
    pairs = torch.outer(total, total) - both.T @ both
    return (M + M.T) / 2 - pairs / (2 * n * (2 * n - 1))


def B_spectral(x, x2):
    """sym of 2 E x x2^T, for Barlow Twins as well"""
    M = x.T @ x2 / len(x)
    return M + M.T


def B_vicreg(x, x2, s=1.0, mu=1.0):
    both = torch.cat([x, x2])
    both = both - both.mean(0)
    return 2 * mu * both.T @ both / len(both) - s * (x - x2).T @ (x - x2) / len(x)


LOSSES = {
    "InfoNCE, distance": (infonce_distance, B_infonce_distance),
    "InfoNCE, dot product": (infonce_dot, B_infonce_dot),
    "NT-Xent": (nt_xent, B_nt_xent),
    "spectral contrastive": (spectral, B_spectral),
    "Barlow Twins": (barlow, B_spectral),
    "VICReg": (vicreg, B_vicreg),
}


def hessian_error(loss, B, generator, n=24, D=5, K=3):
    """Largest difference of the autograd Hessian at W = 0, of this batch, from -2 I (x) B."""
    x = torch.randn(n, D, generator=generator, dtype=torch.double)
    x2 = x + 0.7 * torch.randn(n, D, generator=generator, dtype=torch.double)

    H = torch.autograd.functional.hessian(
        lambda w: loss(x @ w.view(K, D).T, x2 @ w.view(K, D).T), torch.zeros(K * D).double())
    expected = -2 * torch.kron(torch.eye(K, dtype=torch.double), B(x, x2))
    return (H - expected).abs().max().item()


# ---------------------------------------------------------------------- population and training

def spectrum(W, M):
    """Eigenvalues of W M W^T, descending.  W: [..., K, D] -> [..., K]"""
    return torch.linalg.eigvalsh(W @ M @ W.mT).flip(-1)


def population_infonce(W, A0, C, a=1.0):
    """InfoNCE by distance for Gaussian data and N -> infinity, any W:
    a Tr[W C W^T] - sum_k (log(1 + e_k) + e_k / (1 + e_k)) / 2, e the eigenvalues of W Sigma W^T.
    W: [S, K, D], a: number or [S] -> [S]"""
    e = torch.linalg.eigvalsh(W @ (A0 + C) @ W.mT)
    return a * (W @ C * W).sum((-1, -2)) - (torch.log1p(e) + e / (1 + e)).sum(-1) / 2


def population_quartic(W, B, Sigma, kappa, norm=1.0):
    """-Tr[W B W^T] / q + kappa Tr[(W Sigma W^T)^2] / q^2.
    W: [S, K, D]; norm: q = E|f|^2 where f is normalised, else 1 -> [S]"""
    quadratic = -(W @ B * W).sum((-1, -2))                                  # the trace
    quartic = (W @ Sigma @ W.mT).square().sum((-1, -2))
    return quadratic / norm + kappa * quartic / norm**2


def quartic_flow(W, B, Sigma, kappa):
    """Minus the gradient of population_quartic, not normalised.  W: [K, D]"""
    f = W @ Sigma
    return 2 * W @ B - 4 * kappa * f @ W.T @ f


def eigenvalues_of_B(a):
    """Of InfoNCE by distance: B = A0 + (1 - a) C."""
    return [A_k + (1 - a) * c for A_k, c in zip(EIG_A0, EIG_C)]


def rank_of_theory(a):
    """How many dimensions training keeps: those with a positive eigenvalue of B."""
    return len([b for b in eigenvalues_of_B(a) if b > 0])


def infonce_spectrum(a, eig_A0=EIG_A0, eig_C=EIG_C):
    """Eigenvalues of W Sigma W^T at the minimum of population_infonce, one a mode:
    max(1/u - 1, 0), u = (sqrt(1 + 8 a c / sigma) - 1) / 2."""
    return [max(2 / (math.sqrt(1 + 8 * a * c / (A_k + c)) - 1) - 1, 0.0)
            for A_k, c in zip(eig_A0, eig_C)]


def water_filling(rho, kappa, bias):
    """s_k = max(0, (rho_k - nu) / 2 kappa) with sum 1; with a bias the sum may be less, and nu is
    not negative."""
    def fill(nu):
        return [max(0.0, (r - nu) / (2 * kappa)) for r in rho]

    low, high = min(rho) - 2 * kappa, max(rho)
    if bias:
        low = 0.0                           # where bisection ends if even nu = 0 does not fill 1
    for _ in range(200):                                                    # bisection for nu
        nu = (low + high) / 2
        if sum(fill(nu)) > 1:
            low = nu
        else:
            high = nu
    return fill(high)


def spectrum_error(found, formula):
    """The largest difference of two spectra.  found: descending; formula: in any order"""
    return max(abs(x - y) for x, y in zip(found, sorted(formula, reverse=True)))


def descend(loss, *variables, steps=2000, lr=0.05):
    """Gradient descent with momentum on losses [S], each with its own slice of the variables
    [S, ...] -> the variables at the end"""
    variables = [v.clone().requires_grad_() for v in variables]
    optimizer = torch.optim.SGD(variables, lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(*variables).sum().backward()
        optimizer.step()
    return [v.detach() for v in variables]


def simulate(weights, A0, C, steps=1500, batch_size=128, lr=0.1, generator=None, K=5):
    """SGD on InfoNCE (distance) with fresh Gaussian batches, one net for every alignment weight a,
    rate lr / (1 + a) -> W [S, K, D]"""
    half, half_aug = torch.linalg.cholesky(A0), torch.linalg.cholesky(C)
    a = torch.tensor(weights, dtype=A0.dtype)
    W = 0.05 * torch.randn(1, K, len(A0), generator=generator, dtype=A0.dtype)
    W = W.repeat(len(weights), 1, 1).requires_grad_()
    for _ in range(steps):
        noise = torch.randn(3, batch_size, len(A0), generator=generator, dtype=A0.dtype)
        x = noise[0] @ half.T
        f = (x + noise[1] @ half_aug.T) @ W.mT                              # [S, N, K]
        f2 = (x + noise[2] @ half_aug.T) @ W.mT
        d2 = squared_distances(f, f2)                                       # [S, N, N]
        positive = a[:, None] * d2.diagonal(dim1=1, dim2=2) / 2
        loss = (positive + (-d2 / 2).logsumexp(2)).mean(1)                  # [S]
        grad = torch.autograd.grad(loss.sum(), W)[0]
        with torch.no_grad():
            W -= lr / (1 + a.view(-1, 1, 1)) * grad                     # the larger a, the steeper
    return W.detach()


# ---------------------------------------------------------------------------------- experiments
# Each returns rows of (what, measured, theory) and functions that draw on an axis.

def rotated(generator):
    """-> A0, C with the eigenvalues above along common random directions"""
    Q = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.double))[0]
    return tuple(Q * torch.tensor(values, dtype=torch.double) @ Q.T for values in (EIG_A0, EIG_C))


def log_axis(axis, ticks):
    axis.set(xlabel="a", xscale="log", xticks=ticks, xticklabels=ticks)
    axis.minorticks_off()


def hessians(generator):
    rows = []
    for name, (loss, B) in LOSSES.items():
        rows.append((f"{name}: Hessian at 0 against -2 I (x) B",
                     hessian_error(loss, B, generator), "< 1e-10"))
    return (rows,)                                                          # no panel


def landscape(_, kappa=0.75):
    """The quartic along single eigen-directions of B (a = 4): a well where the eigenvalue of B is
    positive, a bowl where it is negative."""
    b = eigenvalues_of_B(4)
    w = torch.linspace(-1, 1, 201, dtype=torch.double)

    def draw(axis):
        for k, color in ((0, "C0"), (1, "C2"), (3, "C1"), (2, "C3")):
            loss = -b[k] * w**2 + kappa * EIG_SIGMA[k] ** 2 * w**4
            fate = "lives" if b[k] > 0 else "collapses"
            axis.plot(w.tolist(), loss.tolist(), color=color, lw=2,
                      label=f"b = {b[k]:+.1f}: {fate}")
        axis.axhline(0, color="0.8", lw=0.8, zorder=0)
        axis.set(title="loss along eigen-directions of B: well or bowl", xlabel="w",
                 ylim=(-0.2, 0.4))
        axis.legend(fontsize=8, loc="lower left")

    return [], draw


def ranks(generator):
    """Stronger alignment, or stronger augmentation, kills one dimension after the other; the last
    one is complete collapse."""
    A0, C = rotated(generator)
    start = 0.05 * torch.randn(1, 5, 5, generator=generator, dtype=torch.double)
    start, weights = start.repeat(len(WEIGHTS), 1, 1), torch.tensor(WEIGHTS)
    W_sgd = simulate(WEIGHTS, A0, C, generator=generator)
    W_gd = descend(lambda W: population_infonce(W, A0, C, weights), start)[0]
    rank_sgd = (spectrum(W_sgd, A0 + C) > 1e-2).sum(1).tolist()             # [weights]
    e_gd = spectrum(W_gd, A0 + C)                                           # [weights, 5]
    rank_gd = (e_gd > 1e-3).sum(1).tolist()
    rows = []
    for i, a in enumerate(WEIGHTS):
        rows.append((f"a = {a:g}: rank after SGD (population GD: {rank_gd[i]})",
                     rank_sgd[i], rank_of_theory(a)))
        rows.append((f"a = {a:g}: largest error of the spectrum by population GD",
                     spectrum_error(e_gd[i].tolist(), infonce_spectrum(a)), "< 1e-4"))

    def draw(axis):
        grid = torch.logspace(-0.05, 1.12, 400).tolist()
        axis.plot(grid, [rank_of_theory(a) for a in grid], "k--", label="positive eigenvalues of B")
        axis.plot(WEIGHTS, rank_sgd, "o", label="rank after SGD")
        axis.set_title("InfoNCE: rank against alignment weight")
        log_axis(axis, [1, 2, 4, 8, 12])
        axis.legend()
    return rows, draw


def spectra(generator):
    """Minima of the other losses, eigenvalue by eigenvalue: their population forms are exact."""
    A0, C = rotated(generator)
    Sigma, s = A0 + C, 2.0
    start = 0.3 * torch.randn(1, 5, 5, generator=generator, dtype=torch.double)
    B = 2 * A0 + 2 * (1 - s) * C                                            # of VICReg
    of_spectral = [A_k / sigma for A_k, sigma in zip(EIG_A0, EIG_SIGMA)]
    of_vicreg = [max(1 - s * c / sigma, 0.0) for c, sigma in zip(EIG_C, EIG_SIGMA)]
    cases = (                                           # loss, M, eigenvalues of W M W^T
        ("spectral contrastive", lambda W: population_quartic(W, 2 * A0, Sigma, 1.0),
         Sigma, of_spectral),
        ("Barlow Twins", lambda W: population_quartic(W, 2 * A0, A0, 1.0), A0, [1.0] * 5),
        ("VICReg, s = 2", lambda W: population_quartic(W, B, Sigma, 1.0), Sigma, of_vicreg),
    )
    rows = []
    for name, loss, M, formula in cases:
        W = descend(loss, start, lr=0.01)[0]
        error = spectrum_error(spectrum(W[0], M).tolist(), formula)
        rows.append((f"{name}: largest error of the spectrum", error, "< 1e-4"))
    return (rows,)                                                          # no panel


def saddles(generator, K=4, kappa=0.75):
    """Every stationary point that keeps fewer of the possible dimensions is a strict saddle:
    downhill directions of the Hessian there."""
    b = torch.tensor([2.1, 0.6, -5.0, 0.2, -1.6], dtype=torch.double)
    sigma = torch.tensor([3.3, 1.8, 3.0, 0.7, 0.8], dtype=torch.double)
    rows = []
    for kept, expected in (((), 12), ((0,), 6), ((0, 1), 2), ((1, 3), 4), ((0, 1, 3), 0)):
        W = torch.zeros(K, 5, dtype=torch.double)
        for row, k in enumerate(kept):
            W[row, k] = (b[k] / (2 * kappa * sigma[k] ** 2)).sqrt()
        H = torch.autograd.functional.hessian(lambda w: population_quartic(
            w.view(K, 5), b.diag(), sigma.diag(), kappa), W.flatten())
        downhill = int((torch.linalg.eigvalsh(H) < -1e-9).sum())
        rows.append((f"dimensions kept {kept}: downhill directions", downhill, expected))
    return (rows,)                                                          # no panel


def normalisation(generator, kappa=0.75):
    """E|f|^2 = 1 forbids complete collapse, not that of dimensions (water-filling); a bias, which
    can carry the norm, allows it again."""
    A0, C = rotated(generator)
    cases = ((4.0, False), (4.0, True), (12.0, False), (12.0, True))        # a, with a bias?
    a, has_bias = torch.tensor(cases, dtype=torch.double).T
    B, Sigma = A0 + (1 - a[:, None, None]) * C, A0 + C
    start = 0.3 * torch.randn(5, 5, generator=generator, dtype=torch.double).repeat(4, 1, 1)
    start_bias = torch.full((4,), 0.3, dtype=torch.double)

    def norm(W, bias):
        return (W @ Sigma * W).sum((1, 2)) + has_bias * bias**2

    def loss(W, bias):
        return population_quartic(W, B, Sigma, kappa, norm(W, bias))

    W, bias = descend(loss, start, start_bias, steps=5000, lr=0.02)
    shares = (spectrum(W, Sigma) / norm(W, bias)[:, None]).tolist()
    of_bias = [1 - sum(share) for share in shares]
    rows = []
    for (weight, with_bias), share, rest in zip(cases, shares, of_bias):
        rho = [b / sigma for b, sigma in zip(eigenvalues_of_B(weight), EIG_SIGMA)]
        formula = sorted(water_filling(rho, kappa, with_bias), reverse=True)
        name = "normalised, with bias" if with_bias else "normalised"
        rows.append((f"a = {weight:g}, {name}: largest error of the spectrum",
                     spectrum_error(share, formula), "< 1e-4"))
        if with_bias:
            rows.append((f"a = {weight:g}: share of the bias", rest, 1 - sum(formula)))

    def draw(axis):
        heights = [*zip(*shares), of_bias]                          # of the six parts of the bars
        colors = ("C0", "C1", "C2", "C3", "C4", "0.8")
        labels = ("dimension 1", "dimension 2", "dimension 3", None, None, "bias")
        bottom = [0.0] * 4
        for height, color, label in zip(heights, colors, labels):
            axis.bar(range(4), height, bottom=bottom, color=color, edgecolor="w", label=label)
            bottom = [x + y for x, y in zip(bottom, height)]
        axis.set(title="normalised: who carries E|f|²", xticks=range(4), xticklabels=[
            "a = 4\nno bias", "a = 4\nwith bias", "a = 12\nno bias", "a = 12\nwith bias"])
        axis.legend(fontsize=8, loc="lower right")
    return rows, draw


def beneficial_collapse(generator, trials=200):
    """A probe with few labels, as nuisance dimensions (12, strongly augmented) collapse before the
    signal (4): it gets better at a = 2."""
    A_k = torch.tensor([1.0] * 4 + [1.5] * 12, dtype=torch.double)
    c = torch.tensor([0.1] * 4 + [1.5] * 12, dtype=torch.double)
    sigma = A_k + c
    weights, labels = (1.0, 1.5, 1.9, 2.1, 3.0, 5.0, 8.0, 10.5, 12.0), (10, 30, 300)
    truth = torch.randn(trials, 4, 1, generator=generator, dtype=torch.double)
    x = torch.randn(trials, 1300, 16, generator=generator, dtype=torch.double) * A_k.sqrt()
    y = (x[..., :4] @ truth).sign()                                         # [trials, 1300, 1]
    x = x + torch.randn(x.shape, generator=generator, dtype=torch.double) * c.sqrt()
    accuracy = {}
    for a in weights:
        e = (2 / ((1 + 8 * a * c / sigma).sqrt() - 1) - 1).clamp(min=0)     # infonce_spectrum
        f = x * (e / sigma).sqrt()
        for n in labels:
            train, test = f[:, :n], f[:, 300:]
            size = train.square().sum((1, 2), keepdim=True) / n
            ridge = 1e-3 * n * (size + 1e-9) * torch.eye(16, dtype=torch.double)
            probe = torch.linalg.solve(train.mT @ train + ridge, train.mT @ y[:, :n])
            right = (test @ probe * y[:, 300:]).squeeze(2)
            # after complete collapse every output is 0: right by chance
            accuracy[a, n] = ((right > 0).double() + (right == 0).double() / 2).mean().item()
    rows = [(f"a = {a:g}, {n} labels: probe", value, "") for (a, n), value in accuracy.items()]

    def draw(axis):
        for n in labels:
            axis.plot(weights, [accuracy[a, n] for a in weights], "o-", label=f"{n} labels")
        for a in (2, 11):
            axis.axvline(a, color="0.7", ls=":")
        axis.set_title("probe accuracy: nuisance dies at 2, signal at 11")
        log_axis(axis, [1, 2, 4, 8, 11])
        axis.legend()
    return rows, draw


def imbalance(generator, c=0.1):
    """Two features, in q and 1 - q of the images: how strongly is the rare one represented?"""
    shares = (0.03, 0.05, 0.1, 0.2, 0.35, 0.5)
    q = torch.tensor(shares, dtype=torch.double)
    A0 = torch.diag_embed(torch.stack([q, 1 - q], 1))                       # [S, 2, 2]
    C = c * torch.eye(2, dtype=torch.double)
    start = torch.tensor([[0.5, 0.1], [-0.1, 0.5]], dtype=torch.double).repeat(len(shares), 1, 1)
    at, noise = (0.1, 0.9), (c, c)                      # q = 0.1: eigenvalues of W Sigma W^T there
    losses = {
        "InfoNCE": (lambda W: population_infonce(W, A0, C), infonce_spectrum(1.0, at, noise)),
        "InfoNCE, a = 3": (lambda W: population_infonce(W, A0, C, 3.0),
                           infonce_spectrum(3.0, at, noise)),
        "spectral contrastive, VICReg": (                                   # s = mu = 1
            lambda W: population_quartic(W, 2 * A0, A0 + C, 1.0),
            (0.1 / (0.1 + c), 0.9 / (0.9 + c))),
        "Barlow Twins": (lambda W: population_quartic(W, 2 * A0, A0, 1.0),
                         ((0.1 + c) / 0.1, (0.9 + c) / 0.9)),
    }
    rows, curves = [], {}
    for name, (loss, (e_rare, e_common)) in losses.items():
        W = descend(loss, start, steps=2500)[0]
        M = W.mT @ W
        curves[name] = (M[:, 0, 0] / M[:, 1, 1]).tolist()
        rows.append((f"{name}: |W v_rare|^2 / |W v_common|^2 at q = 0.1", curves[name][2],
                     e_rare / (0.1 + c) / (e_common / (0.9 + c))))

    def draw(axis):
        for name, curve in curves.items():
            axis.plot(shares, curve, "o-", label=name)
        axis.axhline(1, color="0.7", ls=":")
        axis.set(title="|W v|² of a rare feature over the common one's",
                 xlabel="q, share of images with it", yscale="symlog", ylim=(0, 50))
        axis.legend(fontsize=7)
    return rows, draw


def stepwise(generator, kappa=0.75, h=0.002, time=25.0):
    """From a small W the gradient flow of the quartic (a = 1, B = A0) learns a mode at a time (also
    Simon et al. 2023, arXiv 2303.15438).  |W v_k|^2 is logistic, rate 4 b_k, and at half its end,
    b_k / (2 kappa sigma_k^2), after ln(end / start - 1) / (4 b_k); start: of the part of W v_k
    across the earlier modes, since later the rest is theirs."""
    b, sigma = torch.tensor((EIG_A0, EIG_SIGMA), dtype=torch.double)     # of B, along its v_k
    W = 1e-3 * torch.randn(5, 5, generator=generator, dtype=torch.double)
    start, end = torch.linalg.qr(W)[1].diagonal().square(), b / (2 * kappa * sigma**2)
    expected = ((end / start - 1).log() / (4 * b)).tolist()
    curves = []
    for _ in range(round(time / h)):
        curves.append(W.square().sum(0) / end)                              # |W v_k|^2, to 1
        W = W + h * quartic_flow(W, b.diag(), sigma.diag(), kappa)
    curves = torch.stack(curves)                                            # [T, 5]
    rows = [(f"b = {b_k:g}: time when half is learnt", h * i, f"about {t:.3f}")
            for b_k, i, t in zip(EIG_A0, (curves > 0.5).double().argmax(0).tolist(), expected)]

    def draw(axis):
        for k in range(5):
            t = [h * i for i in range(0, len(curves), 20)]
            axis.plot(t, curves[::20, k].tolist(), color=f"C{k}", label=f"b = {EIG_A0[k]:g}")
            axis.axvline(expected[k], color=f"C{k}", ls=":")
        axis.set(title="small W: one mode after the other (dotted: theory)", xlabel="t",
                 xscale="log", xlim=(0.3, time), ylabel="|W v|² over its end")
        axis.legend(fontsize=8)
    return rows, draw


# ----------------------------------------------------------------------------------------- main

PARTS = {"Hessian": hessians, "landscape": landscape, "rank": ranks, "spectrum": spectra,
         "saddles": saddles, "normalised": normalisation, "probe": beneficial_collapse,
         "imbalance": imbalance, "stepwise": stepwise}


def main(argv=None):
    common.run_parts(__file__, __doc__, argv, PARTS, (2, 3))


if __name__ == "__main__":
    main()

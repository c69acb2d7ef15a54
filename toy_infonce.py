"""Seven panels: two reasons why contrastive learning loses dimensions, and what works against it.

Jing, Vincent, LeCun & Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised
Learning", 2021 (arXiv 2110.09348).  Panel 7: Zhang et al., 2022 (arXiv 2203.16262, Fig. 5c).

A net turns an input of 16 numbers into an embedding z of 16.  The loss, InfoNCE, pulls the two
views of an input (noisy copies) together and pushes different inputs apart.  An eigenvalue of the
covariance of z says how much z varies along a direction.  If it is close to 0, z has collapsed
along this direction.  That is dimensional collapse.

    python toy_infonce.py

The seven panels, as measured with seed 0 (80 seconds on two CPU cores):
1. Reason one: strong augmentation.  The views get noise in 8 of the 16 inputs.  The stronger it is,
   the smaller are 8 eigenvalues: eigenvalue 9 is 96 % of eigenvalue 8 with noise 0.01, 4 % with 2.
2. The theorem explains it.  One layer W follows dW/dt = W X, where X is Sigma_0, how much inputs
   differ, minus Sigma_1, how much views differ.  On the noisy inputs X is negative here.
3. If X is negative, W shrinks to 0 along these inputs, as eigenvalue 9 shows.  Else it lives.
4. Reason two: implicit regularisation.  Noise is tiny, but layers start with small singular values.
   1, 2 and 3 layers keep 16, 12 and 7 eigenvalues over 1e-3 (with ReLUs 2 and 3 keep 15 and 9).
5. A layer's gradient is multiplied by the other layers, so what starts small grows slowly or never.
6. Two layers turn until they share directions.  Then their singular values multiply one by one.
7. Against it: r_e, a part of InfoNCE's gradient, points where a loss would go that de-correlates
   dimensions, best at temperature 0.2 in 2048 dimensions, as in the paper (higher in fewer).

Where we differ.  We train for 4000 and 6000 steps and without biases, the paper's code for 10 000.
In panel 1 both views are noisy, so Sigma_0 has the noise too, and X is never negative: dimensions
get small, but stay.  If only one view is noisy, X is negative from noise 1.4 on.  Panels 2 and 3
show it with the theorem's loss, which uses distances.
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cosine_similarity, normalize

import common

# DIM to TEMPERATURE are as in the paper's code.
DIM, NOISY, BATCH, TEMPERATURE = 16, 8, 128, 0.1
NOISE = (0.01, 0.5, 1.0, 1.5, 2.0)
LAYERS = {1: ("1 layer", "16"), 2: ("2 layers", "fewer"), 3: ("3 layers", "fewer still")}
TAUS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5)                 # our choice: the paper lists none


# ------------------------------------------------------------------------------- InfoNCE, and nets
# S nets are trained side by side: the first axis of each tensor counts the nets.

def info_nce(z1, z2, temperature):
    """Cross-entropy of the dot products, not normalised, of view 1 with view 2.  The diagonal holds
    the two views of the same input.  z1, z2: [S, B, D] -> [S], each net's mean"""
    logits = z1 @ z2.mT / temperature                                       # [S, B, B]
    return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean(1)


def net(weights, x, relu=False):
    """W_L ... W_1 x; with relu, a ReLU after every layer except the last.

    weights: list of [S, D, D], a layer each; x: [S, B, D] -> [S, B, D]"""
    for W in weights[:-1]:
        x = x @ W.mT
        if relu:
            x = x.relu()
    return x @ weights[-1].mT


def simulate(weights, noise, steps, lr, generator=None, every=50, relu=False):
    """Train S nets by SGD on InfoNCE.  -> a list of weights, before training and every few steps

    weights: list of [S, D, D], the layers at the start; noise: [S], the standard deviation
    of the views' noise, which is in the last 8 inputs"""
    weights = [W.clone().requires_grad_() for W in weights]
    dtype = weights[0].dtype
    data = torch.randn(10_000, DIM, generator=generator, dtype=dtype)
    scale = torch.zeros(len(noise), 1, DIM, dtype=dtype)
    scale[:, :, -NOISY:] = noise.view(-1, 1, 1)
    trajectory = []
    for step in range(steps + 1):
        if step % every == 0:
            trajectory.append([W.detach().clone() for W in weights])
        x = data[torch.randint(len(data), (BATCH,), generator=generator)]
        e = torch.randn(2, len(noise), BATCH, DIM, generator=generator, dtype=dtype)
        x1, x2 = x + scale * e
        losses = info_nce(net(weights, x1, relu), net(weights, x2, relu), TEMPERATURE)  # [S]
        # A net's loss depends on no other net, so the sum's gradient is each net's own.
        grads = torch.autograd.grad(losses.sum(), weights)
        with torch.no_grad():
            for W, grad in zip(weights, grads):
                W -= lr * grad
    return trajectory


def spectrum(weights):
    """Eigenvalues of W W^T, descending, with W the product of the layers.  For inputs N(0, I) it is
    the embeddings' covariance.  weights: list of [S, D, D] -> [S, D]"""
    W = weights[0]
    for layer in weights[1:]:
        W = layer @ W
    return torch.linalg.svdvals(W) ** 2


def spectrum_relu(weights, generator, n=20_000):
    """The same of a net with ReLUs, measured on n inputs.  -> [S, D]"""
    x = torch.randn(1, n, DIM, generator=generator, dtype=weights[0].dtype)
    z = net(weights, x, relu=True)
    z = z - z.mean(1, keepdim=True)
    return torch.linalg.eigvalsh(z.mT @ z / n).flip(-1)


# --------------------------------------------------------------------------------- the theorem

def loss_of_theorem(W, x, x2):
    """-sum_i log  e^{-|z_i - z'_i|^2 / 2}
                / (e^{-|z_i - z'_i|^2 / 2} + sum_{j != i} e^{-|z_i - z_j|^2 / 2}).  x, x2: [N, d]
    -> the loss, and alpha [N, N]: the share of j in the denominator of i"""
    to_positive = (x - x2) @ W.T                                            # [N, k]
    among = (x[:, None] - x[None]) @ W.T                                    # [N, N, k]
    logits = -among.square().sum(2) / 2
    positive = -to_positive.square().sum(1)[:, None] / 2
    logits = torch.where(torch.eye(len(x), dtype=bool), positive, logits)
    return (logits.logsumexp(1) - logits.diagonal()).sum(), logits.softmax(1)


def gradient_of_theorem(W, x, x2):
    """dW/dt = W (Sigma_0 - Sigma_1) with
    Sigma_0 = sum_ij alpha_ij (x_i - x_j)(x_i - x_j)^T over j != i,
    Sigma_1 = sum_i (1 - alpha_ii) (x_i - x'_i)(x_i - x'_i)^T"""
    _, alpha = loss_of_theorem(W, x, x2)
    apart, positive = x[:, None] - x[None], x - x2                          # [N, N, d], [N, d]
    sigma_0 = torch.einsum("ij,ija,ijb->ab", alpha, apart, apart)           # 0 where j = i
    sigma_1 = torch.einsum("i,ia,ib->ab", 1 - alpha.diagonal(), positive, positive)
    return W @ (sigma_0 - sigma_1)


def flow_of_theorem(noise, clean, generator, steps=1000, lr=0.2, n=64, every=50):
    """Follow dW/dt = W X, with a new batch of n inputs in each step.  clean: x_i has no noise.
    -> eigenvalues of X, first on the quiet inputs and then on the noisy ones, [T, D], and the
    spectrum of the embedding, [T, D]"""
    def batch():
        x, e, e2 = torch.randn(3, n, DIM, generator=generator, dtype=torch.double)
        e[:, :-NOISY] = e2[:, :-NOISY] = 0
        if clean:
            e = 0 * e
        return x + noise * e, x + noise * e2

    W = 0.003 * torch.randn(DIM, DIM, generator=generator, dtype=torch.double)
    of_X, of_z = [], []
    for step in range(steps + 1):
        if step % every == 0:
            G = sum(gradient_of_theorem(W, *batch()) for _ in range(40)) / 40      # mean of 40
            X = torch.linalg.solve(W, G) / n
            blocks = torch.stack([X[:-NOISY, :-NOISY], X[-NOISY:, -NOISY:]])
            of_X.append(torch.linalg.eigvalsh(blocks).flatten())
            of_z.append(spectrum([W[None]])[0])
        W = W + lr / n * gradient_of_theorem(W, *batch())
    return torch.stack(of_X), torch.stack(of_z)


def cosine_with_decorrelation(Za, Zb, tau):
    """Mean cosine of r_e, the residual part of InfoNCE's gradient, with minus the gradient of the
    de-correlation loss (squared covariances of different dimensions, summed), both for Za.

    Za, Zb: [N, D], the two views with rows of length 1 -> float"""
    Za = Za.clone().requires_grad_()
    centred = Za - Za.mean(0)
    covariance = centred.T @ centred / (len(Za) - 1)                        # [D, D]
    loss = covariance.square().sum() - covariance.diagonal().square().sum()
    downhill = -torch.autograd.grad(loss, Za)[0]
    Za = Za.detach()
    weights = (Za @ Zb.T / tau).softmax(1)                                  # lambda, [N, N]
    # The extra gradient is G_e = -weights Zb, and r_e is G_e without its centre, minus the mean Z.
    r_e = torch.cat([Za, Zb]).mean(0) - weights @ Zb
    return cosine_similarity(r_e, downhill, dim=1).mean().item()


# ------------------------------------------------------------------------------- the seven panels
# Each function draws, and returns rows (what, measured, theory) of the table.

def strong_augmentation(axis, generator, steps=4000):
    """Five nets that start alike and get noise of five strengths; learning rate 1e-3."""
    start = torch.empty(1, DIM, DIM, dtype=torch.double)
    start.uniform_(-0.25, 0.25, generator=generator)                        # as nn.Linear does
    start = start.repeat(len(NOISE), 1, 1)
    noise = torch.tensor(NOISE, dtype=torch.double)
    found = spectrum(simulate([start], noise, steps, 1e-3, generator)[-1])
    rows, claims = [], {0.01: "> 0.8", 1.5: "< 0.15"}
    for noise, s in zip(NOISE, found):
        axis.plot(range(1, DIM + 1), s.tolist(), "o-", ms=3, label=f"noise {noise}")
        rows.append((f"noise {noise}: eigenvalue 9 over eigenvalue 8", (s[8] / s[7]).item(),
                     claims.get(noise, "")))
    axis.set(title="1  eigenvalues of z: 8 noisy inputs", yscale="log", xlabel="eigenvalue number")
    return rows


def negative_X(of_X, of_z, generator, steps=1000, every=50):
    """The theorem's flow with noise in both views or in one.  Dimensions die if X is negative."""
    rows, t = [], range(0, steps + 1, every)
    cases = {"noise 2 in both views": (2.0, False, "C2", "about 2", "> 1e-2"),
             "noise 1 in one view": (1.0, True, "C0", "about 1", "> 1e-2"),
             "noise 2 in one view": (2.0, True, "C3", "about -2", "< 1e-9")}
    for name, (noise, clean, color, at_0, end) in cases.items():
        X, z = flow_of_theorem(noise, clean, generator, steps, every=every)
        of_z.plot(t, z[:, 8].tolist(), color=color, label=name)
        rows += [(f"{name}: X on noisy inputs at the start, mean eigenvalue",
                  X[0, -NOISY:].mean().item(), at_0),
                 (f"{name}: eigenvalue 9 of the embedding", z[-1, 8].item(), end)]
    of_X.plot(t, X[:, :-NOISY].tolist(), color="0.6", lw=1)[0].set_label("on quiet inputs")
    of_X.plot(t, X[:, -NOISY:].tolist(), color="C3", lw=1)[0].set_label("on noisy inputs")
    of_X.axhline(0, color="k", lw=0.8)
    of_X.set(title=f"2  theorem: X, {name}", xlabel="step", xlim=(0, 400))
    of_X.set_yscale("symlog", linthresh=1e-3)
    of_z.set(title="3  theorem: does eigenvalue 9 of z live?", xlabel="step", yscale="log")
    return rows


def train_depths(depths, generator, steps, relu=False):
    """Train nets of several depths, with noise 1e-3 and learning rate 0.01.  -> {depth: trajectory}
    Every layer starts as U diag(e^{-0.35 k}) V^T with U and V of a random matrix."""
    noise = torch.tensor([1e-3], dtype=torch.double)
    s = torch.exp(-0.35 * torch.arange(DIM, dtype=torch.double))
    runs = {}
    for depth in depths:
        layers = []
        for _ in range(depth):
            random = torch.rand(1, DIM, DIM, generator=generator, dtype=torch.double)
            U, _, Vh = torch.linalg.svd(random)
            layers.append(U * s @ Vh)
        runs[depth] = simulate(layers, noise, steps, 0.01, generator, relu=relu)
    return runs


def alignment(trajectory, large=0.3):
    """Do the layers W1 = U1 S1 V1^T and W2 = U2 S2 V2^T of a net share singular vectors?

    Equal singular values do not fix their vectors, only the space that these span, so we compare
    spaces, of the k values that are large in both layers.  How much of U1's space lies in V2's?
    -> a list of (this overlap, ||V2^T U1||^2 / k, and k / 16, which random spaces have)"""
    out = []
    for W1, W2 in trajectory:
        U1, s1, _ = torch.linalg.svd(W1[0])
        _, s2, Vh2 = torch.linalg.svd(W2[0])
        k = int((torch.minimum(s1, s2) > large).sum())
        overlap = (Vh2[:k] @ U1[:, :k]).square().sum().item() / max(k, 1)
        out.append((overlap, k / DIM))
    return out


def deeper_nets(deep, sizes, aligned, generator, steps=6000):
    """1 to 3 layers with hardly any noise; with 2 layers also singular values and their vectors."""
    linear = train_depths((1, 2, 3), generator, steps)
    spectra = {depth: spectrum(run[-1])[0] for depth, run in linear.items()}
    relu = train_depths((2, 3), generator, steps, relu=True)
    with_relu = {depth: spectrum_relu(run[-1], generator)[0] for depth, run in relu.items()}
    rows, two = [], linear[2]
    for end, found, style in (("", spectra, "o-"), (" with ReLU", with_relu, "o--")):
        for depth, s in found.items():
            name, theory = LAYERS[depth]
            live = int((s > 1e-3).sum())
            deep.plot(range(1, DIM + 1), s.clamp(min=1e-14).tolist(), style, ms=3,
                      color=f"C{depth - 1}", label=f"{name}{end}: {live} live")
            rows.append((f"{name}{end}: dimensions with an eigenvalue over 1e-3", live, theory))
    deep.set(title="4  eigenvalues of z: more layers", yscale="log", xlabel="eigenvalue number")
    t = [50 * i for i in range(len(two))]
    for layer, style in ((0, "-"), (1, ":")):
        values = torch.stack([torch.linalg.svdvals(W[layer][0]) for W in two])          # [T, D]
        lines = sizes.plot(t, values.tolist(), style, color=f"C{layer}", lw=1)
        lines[0].set_label(f"layer {layer + 1}")
    sizes.set(title="5  2 layers: small stays small", xlabel="step", yscale="log", ylim=(1e-4, 2))
    overlap, random = zip(*alignment(two))
    aligned.plot(t, overlap, label="overlap of live singular vectors")
    aligned.plot(t, random, ":", label="as many random vectors")
    aligned.set(title="6  2 layers share live directions", xlabel="step", ylim=(0, 1.05))
    rows.append(("2 layers: overlap of the live spans at the end", overlap[-1],
                 f"> {random[-1]:.2f} (random)"))
    return rows


def decorrelation(axis, generator, n=256, noise=0.6):
    """Does r_e point where de-correlation would go?  Z uses all of its D dimensions."""
    rows = []
    for D in (16, 64, 2048):
        x, e, e2 = torch.randn(3, n, D, generator=generator, dtype=torch.double)
        Za, Zb = normalize(x + noise * e, dim=1), normalize(x + noise * e2, dim=1)
        cosines = [cosine_with_decorrelation(Za, Zb, tau) for tau in TAUS]
        axis.plot(TAUS, cosines, "o-", ms=3, label=f"{D} dimensions")
        rows.append((f"{D} dimensions: tau of the best cosine", TAUS[cosines.index(max(cosines))],
                     "about 0.1 or 0.2" if D == 2048 else ""))
    axis.set(title="7  cosine of r_e with de-correlation", xscale="log", xlabel="temperature tau",
             ylim=(0, 1))
    return rows


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of inputs, noise and weights")
    parser.add_argument("--out", default="runs", help="the run makes its own folder in this one")
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(args.seed)

    figure = Figure(figsize=(16, 7), layout="constrained")
    axes = list(figure.subplots(2, 4).flat)
    axes.pop().remove()                                                     # there are seven
    table = strong_augmentation(axes[0], generator)
    table += negative_X(axes[1], axes[2], generator)
    table += deeper_nets(*axes[3:6], generator)
    table += decorrelation(axes[6], generator)
    for axis in axes:
        axis.legend(fontsize=8)

    for what, found, theory in table:
        print(f"{what:72} {found:<12.5g} {theory}")
    rows = [{"what": what, "measured": found, "theory": theory} for what, found, theory in table]
    folder = common.new_folder(args.out, f"toy_infonce-s{args.seed}")
    common.write_csv(folder / "toy_infonce.csv", rows)
    figure.savefig(folder / "toy_infonce.png")
    print(f"{folder}: toy_infonce.csv, toy_infonce.png")


if __name__ == "__main__":
    common.cli(main)

"""Why does contrastive learning lose dimensions?  Jing et al.'s two reasons, in linear nets.

Jing, Vincent, LeCun & Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised
Learning", 2021 (arXiv 2110.09348).
1. Strong augmentation: half of a layer's inputs noisy; the noisier, the smaller their part of the
   embedding, but never 0, as Sigma_0 has the views' noise too.  With the theorem's loss and clean
   anchors x_i, X = Sigma_0 - Sigma_1 is (1 - alpha_ii)(2 - noise^2) along a small noisy dimension:
   where that is negative it dies, which is the theorem's exact low rank.
2. Implicit regularization: hardly any augmentation, but 1 to 3 layers; the deeper, the fewer live,
   without or with ReLUs between them.
Shorter than in the paper's code, 4000 and 6000 steps for 10 000; no bias; in 2 noise on half of the
inputs.

    python toy_infonce.py       both, and the gradient formula; toy_infonce.png and .csv

It takes a minute on two CPU cores (torch 2.14): 16, 12 and 7 of 16 dimensions live with 1 to 3
layers.
"""
import torch
from matplotlib.figure import Figure

import common

DIM, NOISY, BATCH, TEMPERATURE = 16, 8, 128, 0.1                            # the paper's code
NOISE = (0.01, 0.5, 1.0, 1.5, 2.0)
LAYERS = {1: "1 layer", 2: "2 layers", 3: "3 layers"}


def info_nce(z1, z2, temperature):
    """Cross-entropy of the dot products, not normalised, of view 1 with view 2, positives on the
    diagonal; S nets, each its own mean.  z1, z2: [S, B, D] -> [S]"""
    logits = z1 @ z2.mT / temperature                                       # [S, B, B]
    return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean(1)


def net(weights, x, relu=False):
    """W_L ... W_1 x; relu: of all layers but the last.  weights: list of [S, D, D], x: [S, B, D]"""
    for W in weights[:-1]:
        x = x @ W.mT
        if relu:
            x = x.relu()
    return x @ weights[-1].mT


def simulate(weights, noise, steps, lr, generator=None, every=50, relu=False):
    """S nets at once, plain SGD.  weights: list of [S, D, D]; noise: [S], standard deviation of the
    augmentation of the last 8 dimensions
    -> list of snapshots, one every `every` steps, each a list like weights"""
    weights = [W.clone().requires_grad_() for W in weights]
    kind = {"dtype": weights[0].dtype, "device": weights[0].device}
    data = torch.randn(10_000, DIM, generator=generator, **kind)
    scale = torch.zeros(len(noise), 1, DIM, **kind)
    scale[:, :, -NOISY:] = noise.view(-1, 1, 1)
    seen = []
    for step in range(steps + 1):
        if step % every == 0:
            seen.append([W.detach().clone() for W in weights])
        x = data[torch.randint(len(data), (BATCH,), generator=generator, device=data.device)]
        x1, x2 = x + scale * torch.randn(2, len(noise), BATCH, DIM, generator=generator, **kind)
        loss = info_nce(net(weights, x1, relu), net(weights, x2, relu), TEMPERATURE)    # [S]
        # no net's loss depends on another net's weights: the sum's gradient is each one's own
        grads = torch.autograd.grad(loss.sum(), weights)
        with torch.no_grad():
            for W, grad in zip(weights, grads):
                W -= lr * grad
    return seen


def spectrum(weights):
    """Eigenvalues, descending, of the embeddings' covariance for inputs N(0, I): of W W^T with W
    the product of all layers.  -> [S, D]"""
    W = weights[0]
    for layer in weights[1:]:
        W = layer @ W
    return torch.linalg.svdvals(W) ** 2


def spectrum_relu(weights, generator, n=20_000):
    """The same of a net with ReLUs, from n inputs.  -> [S, D]"""
    kind = {"dtype": weights[0].dtype, "device": weights[0].device}
    z = net(weights, torch.randn(1, n, DIM, generator=generator, **kind), relu=True)
    z = z - z.mean(1, keepdim=True)
    return torch.linalg.eigvalsh(z.mT @ z / n).flip(-1)


def live(eigenvalues):
    """How many dimensions are left."""
    return int((eigenvalues > 1e-4).sum())


def loss_of_theorem(W, x, x2):
    """-sum_i log  e^{-|z_i - z'_i|^2 / 2}
                / (e^{-|z_i - z'_i|^2 / 2} + sum_{j != i} e^{-|z_i - z_j|^2 / 2}).  x, x2: [N, d]
    -> the loss, and alpha [N, N]: how much of i's denominator is j"""
    to_positive = (x - x2) @ W.T                                            # [N, k]
    among = (x[:, None] - x[None]) @ W.T                                    # [N, N, k]
    logits = -among.square().sum(2) / 2
    positive = -to_positive.square().sum(1)[:, None] / 2
    logits = torch.where(torch.eye(len(x), dtype=bool, device=x.device), positive, logits)
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


# ---------------------------------------------------------------------------------- experiments

def strong_augmentation(generator, steps=4000):
    """-> spectra [noise, D], trained with SGD as in the paper's code, rate 1e-3"""
    noise = torch.tensor(NOISE, dtype=torch.double)
    start = torch.empty(len(noise), DIM, DIM, dtype=torch.double)
    start.uniform_(-0.25, 0.25, generator=generator)                        # nn.Linear's own
    same = start[:1].expand_as(start)                                       # for every noise
    return spectrum(simulate([same], noise, steps, 1e-3, generator)[-1])


def implicit_regularization(generator, depths=(1, 2, 3), steps=6000, relu=False):
    """-> {depth: trajectory}.  Every layer starts as U diag(e^{-0.35 k}) V^T, U and V from a random
    matrix's SVD; noise 1e-3, rate 0.01"""
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


def flow_of_theorem(noise, clean, generator, steps=1000, lr=0.2, n=64, every=50):
    """dW/dt = W X, X = Sigma_0 - Sigma_1, one layer, a fresh batch of n a step; clean: noise in the
    positives x'_i alone, not in the anchors x_i.
    -> X's eigenvalues, over 40 batches, on the quiet inputs and then on the noisy ones, [T, D],
    and the spectrum of the embedding, [T, D]"""
    def batch():
        x, e, e2 = torch.randn(3, n, DIM, generator=generator, dtype=torch.double)
        e[:, :-NOISY] = e2[:, :-NOISY] = 0
        return x + (not clean) * noise * e, x + noise * e2

    W = 0.003 * torch.randn(DIM, DIM, generator=generator, dtype=torch.double)
    of_X, of_z = [], []
    for step in range(steps + 1):
        if step % every == 0:
            G = sum(gradient_of_theorem(W, *batch()) for _ in range(40)) / 40
            X = torch.linalg.solve(W, G) / n
            of_X.append(torch.linalg.eigvalsh(torch.stack([X[:-NOISY, :-NOISY],
                                                           X[-NOISY:, -NOISY:]])).flatten())
            of_z.append(spectrum([W[None]])[0])
        W = W + lr / n * gradient_of_theorem(W, *batch())
    return torch.stack(of_X), torch.stack(of_z)


def singular_value_law(generator, aligned, steps=300, h=0.002, n=64):
    """Two layers, gradient flow of the theorem's loss on one batch: d sigma_1/dt = sigma_1
    sigma_2^2 (v_1^T X v_1), and 1 and 2 exchanged, against finite differences along the flow.
    aligned: W1 W1^T = W2^T W2 at the start, which the flow conserves.  -> relative error"""
    kind = {"generator": generator, "dtype": torch.double}
    U, V, R = torch.linalg.qr(torch.randn(3, DIM, DIM, **kind))[0]
    s = torch.exp(-0.1 * torch.arange(DIM, dtype=torch.double))
    W1, W2 = U * s @ V.T, R * s @ (U if aligned else V).T
    x, e = torch.randn(2, n, DIM, **kind)
    sizes, law = [], []
    for _ in range(steps):
        G = gradient_of_theorem(W2 @ W1, x, x + 0.5 * e) / n
        X = torch.linalg.solve(W2 @ W1, G)
        _, s1, Vh1 = torch.linalg.svd(W1)
        s2 = torch.linalg.svdvals(W2)
        sizes.append(torch.cat([s1, s2]))
        law.append(torch.cat([s1 * s2**2, s2 * s1**2]) * (Vh1 @ X * Vh1).sum(1).repeat(2))
        W1, W2 = W1 + h * W2.T @ G, W2 + h * G @ W1.T
    sizes, law = torch.stack(sizes), torch.stack(law)[1:-1]
    return (((sizes[2:] - sizes[:-2]) / (2 * h) - law).norm() / law.norm()).item()


def theorem_error(generator, n=12, dim=7):
    """Largest difference between the formula of the theorem and autograd, relative."""
    W = torch.randn(dim, dim, generator=generator, dtype=torch.double).requires_grad_()
    x, x2 = torch.randn(2, n, dim, generator=generator, dtype=torch.double)
    loss, _ = loss_of_theorem(W, x, x2)
    by_autograd = -torch.autograd.grad(loss, W)[0]
    difference = gradient_of_theorem(W.detach(), x, x2) - by_autograd
    return (difference.abs().max() / by_autograd.abs().max()).item()


def alignment(trajectory, large=0.3):
    """Do the layers of a two-layer net share singular vectors?  Block-wise, since equal singular
    values leave the vectors within their block free: how much of the span of U1's large singular
    vectors lies in that of V2's, ||V2^T U1||^2 / k over the k that are large in both layers.
    -> [(overlap, that of random spans, k / 16)] of every snapshot"""
    out = []
    for W1, W2 in trajectory:
        U1, s1, _ = torch.linalg.svd(W1[0])
        _, s2, Vh2 = torch.linalg.svd(W2[0])
        k = int((torch.minimum(s1, s2) > large).sum())
        overlap = (Vh2[:k] @ U1[:, :k]).square().sum().item() / max(k, 1)
        out.append((overlap, k / DIM))
    return out


# ----------------------------------------------------------------------------------------- main

def draw(strong, flows, spectra, nonlinear, trajectory, overlap, random):
    """strong: [noise, D]; spectra, nonlinear: {depth: [D]}; trajectory, overlap, random: of two
    layers"""
    figure = Figure(figsize=(16, 7.5), layout="constrained")
    left, of_X, dying, deep, sizes, aligned = axes = figure.subplots(2, 3).flat
    ranks, steps = range(1, DIM + 1), [50 * t for t in range(len(trajectory))]
    for noise, s in zip(NOISE, strong):
        left.plot(ranks, s.tolist(), "o-", ms=3, label=f"noise {noise}")
    left.set(title="1: strong augmentation of 8 of 16 inputs", yscale="log",
             xlabel="eigenvalue of the embedding, sorted")
    for (name, (X, z)), color in zip(flows.items(), ("C2", "C0", "C3")):
        dying.plot(steps[:len(z)], z[:, 8].tolist(), color=color, label=name)
        dying.plot(steps[:len(z)], z[:, 7].tolist(), ":", color=color)
    X, _ = flows["noise 2, anchors clean"]
    of_X.plot(steps[:len(X)], X[:, :-NOISY].tolist(), color="0.6", lw=1)
    of_X.plot(steps[:len(X)], X[:, -NOISY:].tolist(), color="C3", lw=1)
    of_X.set(title="1: X, noise 2, clean anchors; red: noisy inputs", xlabel="step", xlim=(0, 400))
    of_X.set_yscale("symlog", linthresh=1e-3)
    dying.set(title="1: eigenvalue 9 (dotted: 8) of the embedding", xlabel="step", yscale="log")
    for depth, s in spectra.items():
        deep.plot(ranks, s.clamp(min=1e-14).tolist(), "o-", ms=3,
                  label=f"{LAYERS[depth]}: {live(s)} live")
    for depth, s in nonlinear.items():
        deep.plot(ranks, s.clamp(min=1e-14).tolist(), "o--", ms=3, color=f"C{depth - 1}",
                  label=f"with ReLU: {live(s)} live")
    deep.set(title="2: hardly any augmentation, deeper nets", yscale="log",
             xlabel="eigenvalue of the embedding, sorted")
    for layer, style in ((0, "-"), (1, ":")):
        values = torch.stack([torch.linalg.svdvals(W[layer][0]) for W in trajectory])   # [T, D]
        lines = sizes.plot(steps, values.tolist(), style, color=f"C{layer}", lw=1)
        lines[0].set_label(f"W{layer + 1}")
    sizes.set(title="2 layers: small singular values stay small", xlabel="step", yscale="log",
              ylim=(1e-6, 2))
    aligned.plot(steps, overlap, "-", label="of W1's large singular vectors in W2's span")
    aligned.plot(steps, random, ":", label="of random ones")
    aligned.set(title="2 layers align: overlap of their live spans", xlabel="step",
                ylim=(-0.02, 1.05))
    for axis in (left, dying, deep, sizes, aligned):
        axis.legend(fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def main(argv=None):
    args = common.parse_toy(__file__, __doc__, {}, argv)
    device = common.setup(args)
    if device.type != "cpu":
        torch.set_default_device(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    strong = strong_augmentation(generator)
    runs = implicit_regularization(generator)
    flows = {"noise 2, anchors noisy": flow_of_theorem(2.0, False, generator),
             "noise 1, anchors clean": flow_of_theorem(1.0, True, generator),
             "noise 2, anchors clean": flow_of_theorem(2.0, True, generator)}
    spectra = {depth: spectrum(run[-1])[0] for depth, run in runs.items()}
    overlap, random = zip(*alignment(runs[2]))
    nonlinear = {depth: spectrum_relu(run[-1], generator)[0] for depth, run in
                 implicit_regularization(generator, (2, 3), relu=True).items()}

    table = [("gradient W (Sigma_0 - Sigma_1) against autograd, relative",
              theorem_error(generator), "< 1e-10")]
    of_noise = {0.01: "> 0.8", 1.5: "< 0.15"}
    for noise, s in zip(NOISE, strong):
        table.append((f"noise {noise}: eigenvalue 9 over eigenvalue 8",
                      (s[8] / s[7]).item(), of_noise.get(noise, "")))
    theories = ((2, "> 1e-2"), (1, "> 1e-2"), (-2, "< 1e-9"))
    for (name, (X, z)), (rate, end) in zip(flows.items(), theories):
        table.append((f"{name}: X of noisy inputs at W = 0, mean eigenvalue",
                      X[0, -NOISY:].mean().item(), f"about {rate}"))
        table.append((f"{name}: eigenvalue 9 of the embedding", z[-1, 8].item(), end))
    for (depth, s), expected in zip(spectra.items(), ("16", "fewer", "fewer still")):
        table.append((f"{LAYERS[depth]}: dimensions with an eigenvalue over 1e-4",
                      live(s), expected))
    for (depth, s), expected in zip(nonlinear.items(), ("fewer", "fewer still")):
        table.append((f"{LAYERS[depth]} with ReLU: dimensions with an eigenvalue over 1e-4",
                      live(s), expected))
    for aligned, theory in ((True, "< 0.01"), (False, "large: no law")):
        table.append((f"2 layers, aligned {aligned}: d sigma/dt against the law, relative",
                      singular_value_law(generator, aligned), theory))
    table.append(("2 layers: overlap of the live spans at the end",
                  overlap[-1], f"> {random[-1]:.2f} (random)"))
    rows = [{"what": what, "measured": measured, "theory": theory}
            for what, measured, theory in table]
    figure = draw(strong, flows, spectra, nonlinear, runs[2], overlap, random)
    common.finish_toy(args, device, rows, figure)


if __name__ == "__main__":
    main()

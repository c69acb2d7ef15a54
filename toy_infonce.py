"""Why does contrastive learning lose dimensions although it pushes everything apart?  Jing et al.'s two reasons, in linear nets.

Jing, Vincent, LeCun & Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", 2021 (arXiv 2110.09348).
1. Strong augmentation: one linear layer, half of its input dimensions noisy; the noisier, the smaller their part of the embedding.
2. Implicit regularization: hardly any augmentation, but 1, 2 or 3 linear layers; the deeper, the fewer dimensions live.

    python toy_infonce.py                            prints both with the gradient formula; toy_infonce.png and .csv

It takes 28 s on two CPU cores (torch 2.15): 16, 12 and 7 of 16 dimensions live with 1, 2 and 3 layers.
"""
import torch

import common

DIM, NOISY, BATCH, TEMPERATURE = 16, 8, 128, 0.1                           # the paper's code
NOISE = (0.01, 0.5, 1.0, 1.5, 2.0)


def info_nce(z1, z2, temperature):
    """Cross-entropy of the dot products of the two views, positives on the diagonal.  z1, z2: [S, B, D] -> [S]"""
    logits = z1 @ z2.mT / temperature                                                                       # [S, B, B]
    return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean(1)


def net(weights, x):
    """W_L ... W_1 x.  weights: list of [S, D, D], x: [S, B, D]"""
    for W in weights:
        x = x @ W.mT
    return x


def simulate(weights, noise, steps, lr, generator=None, every=50):
    """S nets at once, plain SGD.  weights: list of [S, D, D]; noise: [S], standard deviation of the augmentation of the last 8
    dimensions -> list of snapshots, one every `every` steps, each a list like weights"""
    weights = [W.clone().requires_grad_() for W in weights]
    data = torch.randn(10_000, DIM, generator=generator, dtype=weights[0].dtype, device=weights[0].device)
    scale = torch.zeros(len(noise), 1, DIM, dtype=data.dtype, device=data.device)
    scale[:, :, -NOISY:] = noise.view(-1, 1, 1)
    seen = []
    for step in range(steps + 1):
        if step % every == 0:
            seen.append([W.detach().clone() for W in weights])
        x = data[torch.randint(len(data), (BATCH,), generator=generator, device=data.device)]
        views = x + scale * torch.randn(2, len(noise), BATCH, DIM, generator=generator, dtype=data.dtype, device=data.device)
        loss = info_nce(net(weights, views[0]), net(weights, views[1]), TEMPERATURE)
        for W, grad in zip(weights, torch.autograd.grad(loss.sum(), weights)):
            W.data -= lr * grad
    return seen


def spectrum(weights):
    """Eigenvalues, descending, of the embeddings' covariance for inputs N(0, I): of W W^T with W the product of all layers.  -> [S, D]"""
    W = weights[0]
    for layer in weights[1:]:
        W = layer @ W
    return torch.linalg.svdvals(W) ** 2


def loss_of_theorem(W, x, x2):
    """-sum_i log e^{-|z_i - z'_i|^2 / 2} / (e^{-|z_i - z'_i|^2 / 2} + sum_{j != i} e^{-|z_i - z_j|^2 / 2}).  x, x2: [N, d]"""
    to_positive, among = (x - x2) @ W.T, (x[:, None] - x[None]) @ W.T
    d = -among.square().sum(2) / 2
    d = torch.where(torch.eye(len(x), dtype=bool, device=x.device), -to_positive.square().sum(1)[:, None] / 2, d)
    return (d.logsumexp(1) - d.diagonal()).sum(), d.softmax(1)


def gradient_of_theorem(W, x, x2):
    """dW/dt = W (Sigma_0 - Sigma_1) with Sigma_0 = sum_ij alpha_ij (x_i - x_j)(x_i - x_j)^T over j != i, Sigma_1 = sum_i (1 - alpha_ii)
    (x_i - x'_i)(x_i - x'_i)^T; alpha: how much of i's denominator is j"""
    alpha = loss_of_theorem(W, x, x2)[1]
    apart, positive = x[:, None] - x[None], x - x2                                                          # [N, N, d], [N, d]
    sigma_0 = torch.einsum("ij,ija,ijb->ab", alpha, apart, apart)
    sigma_1 = torch.einsum("i,ia,ib->ab", 1 - alpha.diagonal(), positive, positive)
    return W @ (sigma_0 - sigma_1)


# ------------------------------------------------------------------------------------------------------------- experiments

def strong_augmentation(generator, steps=4000):
    """-> spectra [noise, D], trained with SGD as in the paper's code, rate 1e-3"""
    noise = torch.tensor(NOISE, dtype=torch.double)
    start = torch.empty(len(noise), DIM, DIM, dtype=torch.double).uniform_(-0.25, 0.25, generator=generator)      # nn.Linear's own
    return spectrum(simulate([start[:1].expand_as(start)], noise, steps, 1e-3, generator)[-1])


def implicit_regularization(generator, depths=(1, 2, 3), steps=6000):
    """-> {depth: trajectory}.  Every layer starts as U diag(e^{-0.35 k}) V^T, U and V from a random matrix's SVD; noise 1e-3, rate 0.01"""
    runs = {}
    for depth in depths:
        layers = []
        for _ in range(depth):
            U, _, Vh = torch.linalg.svd(torch.rand(1, DIM, DIM, generator=generator, dtype=torch.double))
            layers.append(U * torch.exp(-0.35 * torch.arange(DIM, dtype=torch.double)) @ Vh)
        runs[depth] = simulate(layers, torch.tensor([1e-3], dtype=torch.double), steps, 0.01, generator)
    return runs


def theorem_error(generator, n=12, dim=7):
    """Largest difference between the formula of the theorem and autograd, relative."""
    W, x, x2 = (torch.randn(*shape, generator=generator, dtype=torch.double) for shape in ((dim, dim), (n, dim), (n, dim)))
    W.requires_grad_()
    by_autograd = -torch.autograd.grad(loss_of_theorem(W, x, x2)[0], W)[0]
    return ((gradient_of_theorem(W.detach(), x, x2) - by_autograd).abs().max() / by_autograd.abs().max()).item()


def conservation_error(weights, generator):
    """d(W1 W1^T - W2^T W2)/dt for the gradient of one batch, over that of W1 W1^T: 0 whatever the loss, so the layers grow in pairs."""
    W1, W2 = (W.clone().requires_grad_() for W in weights)
    z1, z2 = (net([W1, W2], torch.randn(1, BATCH, DIM, generator=generator, dtype=W1.dtype)) for _ in range(2))
    d1, d2 = torch.autograd.grad(info_nce(z1, z2, TEMPERATURE).sum(), (W1, W2))
    grows = [dW @ W.mT + W @ dW.mT for dW, W in ((d1, W1.detach()), (d2.mT, W2.detach().mT))]
    return ((grows[0] - grows[1]).norm() / grows[0].norm()).item()


def alignment(trajectory, large=0.3):
    """Do the layers of a two-layer net share singular vectors?  Block-wise, since equal singular values leave the vectors within their
    block free: how much of the span of U1's large singular vectors lies in that of V2's, ||V2^T U1||^2 / k over the k that are large
    in both layers.  -> [(overlap, that of random spans, k / 16)] of every snapshot"""
    out = []
    for W1, W2 in trajectory:
        U1, s1, _ = torch.linalg.svd(W1[0])
        _, s2, V2 = torch.linalg.svd(W2[0])
        k = int((torch.minimum(s1, s2) > large).sum())
        out.append(((V2[:k] @ U1[:, :k]).square().sum().item() / max(k, 1), k / DIM))
    return out


# ------------------------------------------------------------------------------------------------------------------- main

def main(argv=None):
    args = common.parse_toy(__file__, __doc__, {}, argv)
    device = common.setup(args)
    torch.set_default_device(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    strong, runs = strong_augmentation(generator), implicit_regularization(generator)
    spectra = {depth: spectrum(run[-1])[0] for depth, run in runs.items()}

    rows = [("gradient W (Sigma_0 - Sigma_1) against autograd, relative", theorem_error(generator), "< 1e-10")]
    rows += [(f"noise {noise}: eigenvalue 9 over eigenvalue 8", (s[8] / s[7]).item(), {0.01: "> 0.8", 1.5: "< 0.15"}.get(noise, ""))
             for noise, s in zip(NOISE, strong)]
    rows += [(f"{depth} layer{'s' * (depth > 1)}: dimensions with an eigenvalue over 1e-4", int((s > 1e-4).sum()), known)
             for (depth, s), known in zip(spectra.items(), ("16", "fewer", "fewer still"))]
    rows.append(("2 layers: d/dt of W1 W1' - W2' W2 along the gradient, relative", conservation_error(runs[2][-1], generator), "< 1e-10"))
    overlap, random = zip(*alignment(runs[2]))
    rows.append(("2 layers: overlap of the live spans at the end", overlap[-1], f"> {random[-1]:.2f} (random)"))

    from matplotlib.figure import Figure
    figure = Figure(figsize=(16, 3.9), layout="constrained")
    left, deep, sizes, aligned = figure.subplots(1, 4)
    for noise, s in zip(NOISE, strong):
        left.plot(range(1, DIM + 1), s.tolist(), "o-", ms=3, label=f"noise {noise}")
    left.set(title="1: strong augmentation of 8 of 16 inputs", xlabel="eigenvalue of the embedding, sorted", yscale="log")
    for depth, s in spectra.items():
        deep.plot(range(1, DIM + 1), s.clamp(min=1e-14).tolist(), "o-", ms=3,
                  label=f"{depth} layer{'s' * (depth > 1)}: {int((s > 1e-4).sum())} live")
    deep.set(title="2: hardly any augmentation, deeper nets", xlabel="eigenvalue of the embedding, sorted", yscale="log")
    steps = [50 * t for t in range(len(runs[2]))]
    for layer, style in ((0, "-"), (1, ":")):
        values = torch.stack([torch.linalg.svdvals(W[layer][0]) for W in runs[2]])                          # [T, D]
        for k in range(DIM):
            sizes.plot(steps, values[:, k].tolist(), style, color=f"C{layer}", lw=1, label=f"W{layer + 1}" if k == 0 else None)
    sizes.set(title="2 layers: small singular values stay small", xlabel="step", yscale="log", ylim=(1e-6, 2))
    for values, style, label in zip(zip(*alignment(runs[2])), ("-", ":"), ("of W1's large singular vectors in W2's span", "of random ones")):
        aligned.plot(steps, values, style, label=label)
    aligned.set(title="2 layers align: overlap of their live spans", xlabel="step", ylim=(-0.02, 1.05))
    for axis in (left, deep, sizes, aligned):
        axis.legend(fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
    common.finish_toy(args, device, [dict(zip(("what", "measured", "theory"), row)) for row in rows], figure)


if __name__ == "__main__":
    main()

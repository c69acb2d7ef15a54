"""How an identity-initialised prediction head lets a net learn the weak feature too: Wen & Li's patch data.

Wen & Li, "The Mechanism of Prediction Head in Non-contrastive Self-supervised Learning", 2022 (arXiv 2205.06226).  An image is a set
of patches; some carry a strong feature v1 or a weak one v2, the rest is noise.  phi_j(X) = sum_p <w_j, X_p>^3, m neurons, a head
A = I + E with trainable off-diagonals E that start at 0; loss = E sum_j (BN[A phi(X1)]_j - sg BN[phi(X2)]_j)^2 over two views.
With E frozen at 0 every neuron learns v1.  With E trained, neuron 2 borrows v1 through E_21 from neuron 1 (substitution) and is free
to learn v2 (acceleration); then E_21 falls again.

    python toy_patch.py                              trained and frozen side by side; toy_patch.png and .csv
    python toy_patch.py --random-init 48             how often does it work from random weights?
    python toy_patch.py --scan                       over the head's rate and the noise

The first takes 16 s on two CPU cores (torch 2.15): cos(w2, v2) = 0.97 with E trained, cos(w2, v1) = 0.88 with E frozen.  Only the
poster was at hand, without its formulas: how patches and views are drawn, and the rates, are a reconstruction.
"""
import torch

import common

FLAGS = {"m": (2, "neurons"), "d": (20, "dimension of a patch"), "alpha1": (2.0, "length of v1; v2 has 1"),
         "sigma": (0.4, "noise of a patch"), "eta_w": (0.05, "rate of the net"), "eta_e": (0.05, "rate of the head"),
         "steps": (2600, "of SGD, a fresh batch each"),
         "batch_size": (256, "images a step"), "random_init": (0, "this many runs from random weights, and what became of them"),
         "scan": (False, "success over the head's rate and the noise")}
NOISE_PATCHES, FEATURE_PATCHES = 6, 2                                      # of the 8 patches in each of the two halves of an image


def batch_norm(x):
    """x: [S, N, m], over N."""
    return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-8).sqrt()


def phi(W, sign, feature, noise, length):
    """The cubic conv net on one view.  -> [S, N, m]

    W: [S, m, d]; sign, feature (0 or 1): [S, N]; noise: [S, N, patches, d - 2]; length: [2]"""
    on_feature = (W[:, :, :2] * length).mT.gather(1, feature[..., None].expand(-1, -1, W.shape[1])) * sign[..., None]       # <w, s v>
    on_noise = torch.einsum("snpd,smd->snpm", noise, W[:, :, 2:])
    return FEATURE_PATCHES * on_feature**3 + (on_noise**3).sum(2)


def simulate(W, trained, steps, eta_w=0.05, eta_e=0.05, sigma=0.4, alpha1=2.0, batch_size=256, generator=None, every=10):
    """S runs at once.  W: start [S, m, d]; trained: bool [S], whether E is; eta_e, sigma: a number, or [S]

    -> dict of trajectories, one entry every `every` steps: W [T, S, m, d], E [T, S, m, m], loss [T, S]"""
    S, m, d = W.shape
    W, E = W.clone().requires_grad_(), torch.zeros(S, m, m, dtype=W.dtype, device=W.device, requires_grad=True)
    eye, length = torch.eye(m, dtype=W.dtype, device=W.device), torch.tensor([alpha1, 1.0], dtype=W.dtype, device=W.device)
    eta_e = (torch.as_tensor(eta_e, dtype=W.dtype, device=W.device) * trained).view(-1, 1, 1) * (1 - eye)          # the diagonal stays
    sigma = torch.as_tensor(sigma, dtype=W.dtype, device=W.device).view(-1, 1, 1, 1)
    seen = {"W": [], "E": [], "loss": []}
    for step in range(steps + 1):
        feature = torch.randint(2, (S, batch_size), generator=generator, device=W.device)
        sign = 2.0 * torch.randint(2, (S, batch_size), generator=generator, device=W.device).to(W.dtype) - 1
        noise = sigma[None] * torch.randn(2, S, batch_size, NOISE_PATCHES, d - 2, generator=generator, dtype=W.dtype, device=W.device)
        online = batch_norm(phi(W, sign, feature, noise[0], length) @ (eye + E).mT)
        target = batch_norm(phi(W, sign, feature, noise[1], length))
        loss = (online - target.detach()).square().sum(2).mean(1)                                                    # [S]
        if step % every == 0:
            for key, value in (("W", W), ("E", E), ("loss", loss)):
                seen[key].append(value.detach().clone())
        grad_W, grad_E = torch.autograd.grad(loss.sum(), (W, E))
        with torch.no_grad():
            W -= eta_w * grad_W
            E -= eta_e * grad_E
    return {key: torch.stack(value) for key, value in seen.items()}


def start(kind, S, m, d, generator=None):
    """Weights at the start, [S, m, d].  "random": N(0, I/d).  "controlled": neuron 1 has a head start towards v1, the others towards
    none; whether random weights have it in low dimension is luck, see --random-init."""
    W = torch.randn(S, m, d, generator=generator, dtype=torch.double)
    if kind == "random":
        return W / d**0.5
    W /= W.norm(dim=2, keepdim=True)
    W[:, :, :2] = torch.tensor([0.12, 0.18], dtype=torch.double)
    W[:, 0, :2] = torch.tensor([0.30, 0.12], dtype=torch.double)
    return W


def shares(W, E, sigma, alpha1):
    """Share of each neuron's output variance after the head that is due to v1, v2 and noise, in closed form.  -> [..., m, 3]

    Cov((a n)^3, (b n)^3) of a Gaussian n with covariance sigma^2 I is 9 |a|^2 |b|^2 (a b) + 6 (a b)^3, times sigma^6."""
    A = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device) + E
    signal = (A @ (W[..., :2] * W.new_tensor([alpha1, 1.0])) ** 3) ** 2 * FEATURE_PATCHES**2 / 2                # each of half the images
    G = W[..., 2:] @ W[..., 2:].mT
    v = G.diagonal(dim1=-2, dim2=-1)
    cov = NOISE_PATCHES * sigma**6 * (9 * v[..., None] * v[..., None, :] * G + 6 * G**3)
    noise = (A @ cov @ A.mT).diagonal(dim1=-2, dim2=-1)[..., None]
    parts = torch.cat([signal, noise], -1)
    return parts / parts.sum(-1, keepdim=True)


def cosines(W):
    """|cos| of each neuron with v1 and v2.  -> [..., m, 2]"""
    return W[..., :2].abs() / W.norm(dim=-1, keepdim=True)


def phases(W, E, every):
    """Steps at which the phases of Wen & Li end, for neurons 1 and 2 of one run: measured events.  W: [T, m, d], E: [T, m, m] -> 4 steps

    I    neuron 1 has done 90 % of its rise towards v1
    II   substitution: E_21 is at its largest
    III  acceleration: neuron 2 has done half of its rise towards v2
    IV   E_21 has fallen under a tenth of its largest"""
    w11, w22, e21 = W[:, 0, 0].abs(), W[:, 1, 1].abs(), E[:, 1, 0].abs()

    def first(condition, after=0):
        hits = condition[after:].nonzero().flatten().tolist()
        return after + hits[0] if hits else len(W) - 1
    top = int(e21.argmax())
    one = first(w11 >= w11[0] + 0.9 * (w11.max() - w11[0]))
    three = first(w22 >= w22[0] + 0.5 * (w22.max() - w22[0]), top)
    return [every * t for t in (one, top, three, first(e21 < 0.1 * e21.max(), top))]


def outcome(W):
    """What the first two neurons learnt by the end: the feature with the larger cosine, if that is over 0.6.

    W: [S, m, d] -> a name each: both features, only v1, only v2, unfinished"""
    names = []
    for neurons in cosines(W)[:, :2].tolist():
        one, two = ("" if max(cos) < 0.6 else "v1" if cos[0] > cos[1] else "v2" for cos in neurons)
        names.append("unfinished" if not one or not two else "both features" if one != two else f"only {one}")
    return names


# --------------------------------------------------------------------------------------------------------------- commands

def side_by_side(args, generator):
    """Trained and frozen E from the same weights -> table, figure"""
    W = start("controlled", 1, args.m, args.d, generator).repeat(2, 1, 1)
    seen = simulate(W, torch.tensor([True, False]), args.steps, args.eta_w, args.eta_e, args.sigma, args.alpha1, args.batch_size, generator)
    W, E, every = seen["W"], seen["E"], 10
    ends = phases(W[:, 0], E[:, 0], every)
    cos, e21 = cosines(W[-1]).tolist(), E[:, 0, 1, 0]
    table = [("trained: cos(w1, v1)", cos[0][0][0], "> 0.8"), ("trained: cos(w2, v2)", cos[0][1][1], "> 0.8"),
             ("trained: largest E_21", e21.max().item(), "> 0.2"), ("trained: |E_21| at the end", e21[-1].abs().item(), "< 0.05"),
             ("trained: largest |E_12|", E[:, 0, 0, 1].abs().max().item(), "< 0.1"),
             ("frozen: cos(w1, v1)", cos[1][0][0], "> 0.8"), ("frozen: cos(w2, v1)", cos[1][1][0], "> 0.8")]
    table += [(f"trained: phase {name} ends at step", step, "") for name, step in zip(("I", "II", "III", "IV"), ends)]

    from matplotlib.figure import Figure
    figure, steps = Figure(figsize=(16, 6.5), layout="constrained"), [every * t for t in range(len(W))]
    axes = figure.subplots(2, 4, sharex=True)
    share = shares(W, E, args.sigma, args.alpha1)                                                           # [T, 2, m, 3]
    for run, (name, row) in enumerate(zip(("E trained", "E = 0, frozen"), axes)):
        for j, color in ((0, "C0"), (1, "C3")):
            for k, style in ((0, "-"), (1, "--")):
                row[0].plot(steps, W[:, run, j, k].abs().tolist(), style, color=color, label=f"|⟨w$_{j + 1}$, v$_{k + 1}$⟩|")
            row[2 + j].stackplot(steps, share[:, run, j].T.tolist(), colors=("#4575b4", "#fdae61", "0.8"), labels=("v1", "v2", "noise"))
            row[2 + j].set(title=f"{name}: variance of neuron {j + 1}", ylim=(0, 1))
            row[2 + j].legend(fontsize=8, loc="lower right")
        row[0].set(title=name, ylim=(0, None))
        row[0].legend(fontsize=8)
    for end, begin, name in zip(ends, [every, *ends], ("I", "II", "III", "IV")):
        for axis in axes[0, :2]:
            axis.axvline(end, color="0.6", lw=0.8, ls=":", zorder=0)
        axes[0, 1].text((begin * end) ** 0.5, 0.03, name, ha="center" if name != "IV" else "left", color="0.4")
    axes[0, 1].plot(steps, E[:, 0, 1, 0].tolist(), label="E$_{21}$: neuron 2 borrows from 1")
    axes[0, 1].plot(steps, E[:, 0, 0, 1].tolist(), label="E$_{12}$")
    axes[0, 1].set_title("head: rise and fall")
    axes[1, 1].plot(steps, seen["loss"].clamp(min=1e-5).tolist(), label=("E trained", "E frozen"))
    axes[1, 1].set(title="loss: low in both", yscale="log")
    for axis in axes[:, 1]:
        axis.legend(fontsize=8)
    for axis in axes[1]:
        axis.set(xlabel="step", xscale="log", xlim=(every, args.steps))
    return table, figure


def random_starts(args, generator):
    """Many runs from random weights, each with E trained and frozen -> table, figure.  The theorem's "with high probability" is for
    high dimension and a strong feature; in low dimension it often depends on luck, and this counts it."""
    W = start("random", args.random_init, args.m, args.d, generator)
    trained = torch.arange(2 * len(W)) < len(W)
    seen = simulate(W.repeat(2, 1, 1), trained, args.steps, args.eta_w, args.eta_e, args.sigma, args.alpha1, args.batch_size, generator,
                    every=args.steps)
    names, kinds = outcome(seen["W"][-1]), ("both features", "only v1", "only v2", "unfinished")
    halves = {"trained": names[:len(W)], "frozen": names[len(W):]}
    table = [(f"E {run}: {kind}, of {len(W)} runs", half.count(kind), "") for run, half in halves.items() for kind in kinds]
    table.append(("only v1 when frozen, both when trained", sum(a == kinds[0] and b == kinds[1] for a, b in zip(*halves.values())), ""))

    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis, left = figure.subplots(), [0, 0]
    for kind, color in zip(kinds, ("#1a9850", "#4575b4", "#fdae61", "0.8")):
        values = [half.count(kind) for half in halves.values()]
        axis.barh(["E trained", "E frozen"], values, left=left, color=color, label=kind)
        left = [x + y for x, y in zip(left, values)]
    axis.set(xlabel=f"runs from random weights (d = {args.d}, |v1| = {args.alpha1:g}, σ = {args.sigma:g})")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return table, figure


def scan(args, generator, ratios=(0.25, 0.5, 1.0, 2.0, 4.0), sigmas=(0.2, 0.3, 0.4, 0.5), repeats=3):
    """In how many of `repeats` runs are both features learnt, over eta_e / eta_w and the noise? -> table, figure"""
    ratio, sigma, _ = (x.flatten() for x in torch.meshgrid(torch.tensor(ratios), torch.tensor(sigmas), torch.zeros(repeats), indexing="ij"))
    W = torch.cat([start("controlled", 1, args.m, args.d, generator) for _ in ratio])
    seen = simulate(W, torch.ones(len(W)), args.steps, args.eta_w, args.eta_w * ratio, sigma, args.alpha1, args.batch_size, generator,
                    every=args.steps)
    success = torch.tensor([x == "both features" for x in outcome(seen["W"][-1])]).view(len(ratios), len(sigmas), repeats).sum(2)
    table = [(f"eta_e / eta_w = {r:g}, sigma = {s:g}: both features, of {repeats} runs", int(success[i, j]), "")
             for i, r in enumerate(ratios) for j, s in enumerate(sigmas)]

    from matplotlib.figure import Figure
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(success.tolist(), origin="lower", aspect="auto", cmap="RdYlGn", vmin=0, vmax=repeats)
    axis.set(xticks=range(len(sigmas)), xticklabels=sigmas, yticks=range(len(ratios)), yticklabels=ratios, xlabel="noise σ",
             ylabel="η$_E$ / η$_W$", title=f"runs of {repeats} that learn both features")
    figure.colorbar(image, ticks=range(repeats + 1))
    return table, figure


def main(argv=None):
    args = common.parse_toy(__file__, __doc__, FLAGS, argv)
    for name, least in (("m", 2), ("d", 3), ("batch_size", 2)):
        if getattr(args, name) < least:
            common.fail(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    args.label = "scan" if args.scan else "random" if args.random_init else ""
    device = common.setup(args)
    torch.set_default_device(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    table, figure = (scan if args.scan else random_starts if args.random_init else side_by_side)(args, generator)
    common.finish_toy(args, device, [dict(zip(("what", "measured", "theory"), row)) for row in table], figure)


if __name__ == "__main__":
    main()

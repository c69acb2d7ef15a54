"""How an identity-initialised prediction head lets a net learn the weak feature too: patch data.

Wen & Li, "The Mechanism of Prediction Head in Non-contrastive Self-supervised Learning", 2022
(arXiv 2205.06226).  An image is a set of patches; some carry a strong feature v1 or a weak one v2,
the rest is noise.  phi_j(X) = sum_p <w_j, X_p>^3, m neurons, a head A = I + E with trainable
off-diagonals E that start at 0; over two views
    loss = sum_j (BN[A phi(X1)]_j - sg BN[phi(X2)]_j)^2, mean over images.
With E frozen at 0 every neuron learns v1.  With E trained, neuron 2 borrows v1 through E_21 from
neuron 1 (substitution) and is free to learn v2 (acceleration); then E_21 falls again.  The paper
needs all three for it: the head, the stop-gradient sg and the normalisation BN of the outputs.

    python toy_patch.py                      trained and frozen side by side; toy_patch.png and .csv
    python toy_patch.py --ablate             without stop-gradient, without BN, without head
    python toy_patch.py --random-init 48     how often does it work from random weights?
    python toy_patch.py --scan               over the head's rate and the noise

The first takes 15 s on two CPU cores (torch 2.14): cos(w2, v2) = 0.97 with E trained,
cos(w2, v1) = 0.88 with E frozen.  The second takes 25 s: without stop-gradient neuron 2 learns v1
and E_21 stays; without BN neuron 2 learns nothing, only its noise shrinks.  Just the poster was at
hand, without its formulas: how patches and views are drawn, and the rates, are a reconstruction.
"""
import torch
from matplotlib.figure import Figure

import common

FLAGS = {
    "m": (2, "neurons"),
    "d": (20, "dimension of a patch"),
    "alpha1": (2.0, "length of v1; v2 has 1"),
    "sigma": (0.4, "noise of a patch"),
    "eta_w": (0.05, "rate of the net"),
    "eta_e": (0.05, "rate of the head"),
    "steps": (2600, "of SGD, a fresh batch each"),
    "batch_size": (256, "images a step"),
    "ablate": (False, "take away stop-gradient, BN or head, one at a time"),
    "random_init": (0, "this many runs from random weights, and what became of them"),
    "scan": (False, "success over the head's rate and the noise"),
}
NOISE_PATCHES, FEATURE_PATCHES = 6, 2      # of the 8 patches in each of the two halves of an image
PHASES = ("I", "II", "III", "IV")
ARMS = {                                                # is E trained? stop-gradient? BN?
    "all three": (True, True, True),
    "no stop-gradient": (True, False, True),
    "no BN": (True, True, False),
    "no head (E = 0)": (False, True, True),
}


def batch_norm(x):
    """x: [S, N, m], over N; 1e-8 is added to the variance, which is over N."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (x.var(1, unbiased=False, keepdim=True) + 1e-8).sqrt()


def phi(W, sign, feature, noise, length):
    """The cubic conv net on one view: FEATURE_PATCHES patches sign * length[k] v_k+1, k = feature,
    and the noise.  -> [S, N, m]

    v1 and v2 are the first two unit vectors, and the noise lives in the other d - 2 dimensions.
    W: [S, m, d]; sign, feature (0 or 1): [S, N]; noise: [S, N, patches, d - 2]; length: [2]"""
    on_both = (W[:, :, :2] * length).mT                                     # [S, 2, m]
    which = feature[..., None].expand(-1, -1, W.shape[1])                   # [S, N, m]
    on_feature = on_both.gather(1, which) * sign[..., None]                 # <w, s v>
    on_noise = torch.einsum("snpd,smd->snpm", noise, W[:, :, 2:])
    return FEATURE_PATCHES * on_feature**3 + (on_noise**3).sum(2)


def simulate(W, trained, steps, eta_w=0.05, eta_e=0.05, sigma=0.4, alpha1=2.0, batch_size=256,
             generator=None, every=10, stopgrad=True, normalised=True):
    """S runs at once.  W: start [S, m, d]; trained: bool [S], whether E is; eta_e, sigma: a number,
    or [S]; stopgrad, normalised: bool or [S], False takes the stop-gradient or BN away

    -> dict of trajectories, one entry every `every` steps: W [T, S, m, d], E [T, S, m, m],
    loss [T, S]"""
    S, m, d = W.shape
    kind = {"dtype": W.dtype, "device": W.device}
    length = torch.tensor([alpha1, 1.0], **kind)
    stopgrad = torch.as_tensor(stopgrad, device=W.device).view(-1, 1, 1)
    normalised = torch.as_tensor(normalised, device=W.device).view(-1, 1, 1)
    sigma = torch.as_tensor(sigma, **kind).view(-1, 1, 1, 1)
    eye = torch.eye(m, **kind)
    # a rate for every entry of E: 0 on the diagonal, which stays, and for the runs with E frozen
    eta_e = (torch.as_tensor(eta_e, **kind) * trained).view(-1, 1, 1) * (1 - eye)
    W = W.clone().requires_grad_()
    E = torch.zeros(S, m, m, requires_grad=True, **kind)
    seen = {"W": [], "E": [], "loss": []}
    for step in range(steps + 1):
        feature = torch.randint(2, (S, batch_size), generator=generator, device=W.device)
        sign = torch.randint(2, (S, batch_size), generator=generator, device=W.device)
        sign = 2.0 * sign.to(W.dtype) - 1
        noise = torch.randn(2, S, batch_size, NOISE_PATCHES, d - 2, generator=generator, **kind)
        noise = sigma * noise
        # the views share their feature and its sign, so that nothing else can be matched
        online = phi(W, sign, feature, noise[0], length) @ (eye + E).mT
        target = phi(W, sign, feature, noise[1], length)
        online = torch.where(normalised, batch_norm(online), online)
        target = torch.where(normalised, batch_norm(target), target)
        target = torch.where(stopgrad, target.detach(), target)
        loss = (online - target).square().sum(2).mean(1)                    # [S]
        if step % every == 0:
            seen["W"].append(W.detach().clone())
            seen["E"].append(E.detach().clone())
            seen["loss"].append(loss.detach())
        # no run's loss depends on another run's weights: the sum's gradient is each one's own
        grad_W, grad_E = torch.autograd.grad(loss.sum(), (W, E))
        with torch.no_grad():
            W -= eta_w * grad_W
            E -= eta_e * grad_E
    return {key: torch.stack(values) for key, values in seen.items()}


def start(kind, S, m, d, generator=None):
    """Weights at the start, [S, m, d].  "random": N(0, I/d).  "controlled": neuron 1 has a head
    start towards v1, the others a lesser one towards v2, without which they would learn v1 too;
    whether random weights have it in low dimension is luck, see --random-init."""
    W = torch.randn(S, m, d, generator=generator, dtype=torch.double)
    if kind == "random":
        return W / d**0.5
    W /= W.norm(dim=2, keepdim=True)
    W[:, :, :2] = torch.tensor([0.12, 0.18], dtype=torch.double)
    W[:, 0, :2] = torch.tensor([0.30, 0.12], dtype=torch.double)
    return W


def shares(W, E, sigma, alpha1):
    """Share of each neuron's output variance after the head that is due to v1, v2 and noise, in
    closed form.  -> [..., m, 3]

    Cov((a n)^3, (b n)^3) of a Gaussian n with covariance sigma^2 I is
    9 |a|^2 |b|^2 (a b) + 6 (a b)^3, times sigma^6."""
    A = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device) + E
    of_features = A @ (W[..., :2] * W.new_tensor([alpha1, 1.0])) ** 3
    signal = of_features**2 * FEATURE_PATCHES**2 / 2                    # each of half the images
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
    """Steps at which the phases of Wen & Li end, for neurons 1 and 2 of one run: measured events.
    W: [T, m, d], E: [T, m, m] -> 4 steps

    I    neuron 1 has done 90 % of its rise towards v1
    II   substitution: E_21 is at its largest
    III  acceleration: neuron 2 has done half of its rise towards v2
    IV   E_21 has fallen under a tenth of its largest"""
    w11, w22, e21 = W[:, 0, 0].abs(), W[:, 1, 1].abs(), E[:, 1, 0].abs()

    def first(condition, after=0):
        """The first entry from `after` on where it holds; the last entry where it never does."""
        hits = condition[after:].nonzero().flatten().tolist()
        if hits:
            return after + hits[0]
        return len(W) - 1

    one = first(w11 >= w11[0] + 0.9 * (w11.max() - w11[0]))
    two = int(e21.argmax())
    three = first(w22 >= w22[0] + 0.5 * (w22.max() - w22[0]), after=two)
    four = first(e21 < 0.1 * e21.max(), after=two)
    return [every * t for t in (one, two, three, four)]


def outcome(W):
    """What the first two neurons learnt by the end: the feature with the larger cosine, if that is
    over 0.6.

    W: [S, m, d] -> a name each: both features, only v1, only v2, unfinished"""
    def learnt(v1, v2):
        if max(v1, v2) < 0.6:
            return "nothing"
        if v1 > v2:
            return "v1"
        return "v2"

    names = []
    for neurons in cosines(W)[:, :2].tolist():
        one, two = learnt(*neurons[0]), learnt(*neurons[1])
        if "nothing" in (one, two):
            names.append("unfinished")
        elif one != two:
            names.append("both features")
        else:
            names.append(f"only {one}")
    return names


# ------------------------------------------------------------------------------------- commands
# Each returns rows of (what, measured, theory) and a figure.

def side_by_side(args, generator):
    """Trained and frozen E from the same weights -> table, figure"""
    every = 10
    W = start("controlled", 1, args.m, args.d, generator).repeat(2, 1, 1)
    seen = simulate(W, torch.tensor([True, False]), args.steps, args.eta_w, args.eta_e, args.sigma,
                    args.alpha1, args.batch_size, generator, every)
    W, E = seen["W"], seen["E"]
    ends = phases(W[:, 0], E[:, 0], every)
    trained, frozen = cosines(W[-1]).tolist()
    e12, e21 = E[:, 0, 0, 1], E[:, 0, 1, 0]
    table = [("trained: cos(w1, v1)", trained[0][0], "> 0.8"),
             ("trained: cos(w2, v2)", trained[1][1], "> 0.8"),
             ("trained: largest E_21", e21.max().item(), "> 0.2"),
             ("trained: |E_21| at the end", e21[-1].abs().item(), "< 0.05"),
             ("trained: largest |E_12|", e12.abs().max().item(), "< 0.1"),
             ("frozen: cos(w1, v1)", frozen[0][0], "> 0.8"),
             ("frozen: cos(w2, v1)", frozen[1][0], "> 0.8")]
    for name, step in zip(PHASES, ends):
        table.append((f"trained: phase {name} ends at step", step, ""))

    figure = Figure(figsize=(16, 6.5), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True)
    steps = [every * t for t in range(len(W))]
    share = shares(W, E, args.sigma, args.alpha1)                           # [T, 2, m, 3]
    for run, name in enumerate(("E trained", "E = 0, frozen")):
        weights = axes[run, 0]
        for j, color in ((0, "C0"), (1, "C3")):
            for k, style in ((0, "-"), (1, "--")):
                weights.plot(steps, W[:, run, j, k].abs().tolist(), style, color=color,
                             label=f"|⟨w$_{j + 1}$, v$_{k + 1}$⟩|")
            variance = axes[run, 2 + j]
            variance.stackplot(steps, share[:, run, j].T.tolist(), labels=("v1", "v2", "noise"),
                               colors=("#4575b4", "#fdae61", "0.8"))
            variance.set(title=f"{name}: variance of neuron {j + 1}", ylim=(0, 1))
            variance.legend(fontsize=8, loc="lower right")
        weights.set(title=name, ylim=(0, None))
        weights.legend(fontsize=8)
    head, losses = axes[:, 1]
    for begin, end, name in zip([every, *ends], ends, PHASES):
        axes[0, 0].axvline(end, color="0.6", lw=0.8, ls=":", zorder=0)
        head.axvline(end, color="0.6", lw=0.8, ls=":", zorder=0)
        align = "left" if name == "IV" else "center"
        head.text((begin * end) ** 0.5, 0.03, name, ha=align, color="0.4")
    head.plot(steps, e21.tolist(), label="E$_{21}$: neuron 2 borrows from 1")
    head.plot(steps, e12.tolist(), label="E$_{12}$")
    head.set_title("head: rise and fall")
    losses.plot(steps, seen["loss"].clamp(min=1e-5).tolist(), label=("E trained", "E frozen"))
    losses.set(title="loss: low in both", yscale="log")
    head.legend(fontsize=8)
    losses.legend(fontsize=8)
    for axis in axes[1]:
        axis.set(xlabel="step", xscale="log", xlim=(every, args.steps))
    return table, figure


def ablations(args, generator):
    """The trained head without one of its three conditions at a time, from the same weights
    -> table, figure: which feature does each neuron end with?"""
    every = 10
    trained, stopgrad, normalised = torch.tensor(list(ARMS.values())).T
    W = start("controlled", 1, args.m, args.d, generator).repeat(len(ARMS), 1, 1)
    seen = simulate(W, trained, args.steps, args.eta_w, args.eta_e, args.sigma, args.alpha1,
                    args.batch_size, generator, every, stopgrad, normalised)
    W, e21 = seen["W"][-1], seen["E"][:, :, 1, 0]                           # [S, m, d], [T, S]
    cos, lengths = cosines(W).tolist(), W.norm(dim=2).tolist()
    table = []
    for run, name in enumerate(ARMS):
        table += [(f"{name}: cos(w2, v1)", cos[run][1][0], ""),
                  (f"{name}: cos(w2, v2)", cos[run][1][1], "> 0.8" if run == 0 else "< 0.8"),
                  (f"{name}: <w2, v2>, 0.18 at the start", W[run, 1, 1].item(), ""),
                  (f"{name}: largest E_21", e21[:, run].max().item(), ""),
                  (f"{name}: E_21 at the end", e21[-1, run].item(), "")]

    figure = Figure(figsize=(15, 3.2), layout="constrained")
    *matrices, head = figure.subplots(1, len(ARMS) + 1, width_ratios=[1] * len(ARMS) + [2])
    for run, (name, axis) in enumerate(zip(ARMS, matrices)):
        image = axis.imshow(cos[run], vmin=0, vmax=1, cmap="Blues")
        labels = [f"w$_{j + 1}$\nlength\n{r:.2f}" for j, r in enumerate(lengths[run])]
        axis.set(title=name, xticks=(0, 1), xticklabels=("v1", "v2"), yticks=range(args.m),
                 yticklabels=labels)
        for j, row in enumerate(cos[run]):
            for k, value in enumerate(row):
                color = "w" if value > 0.6 else "k"
                axis.text(k, j, f"{value:.2f}", ha="center", va="center", color=color)
        head.plot([every * t for t in range(len(e21))], e21[:, run].tolist(), label=name)
    figure.colorbar(image, ax=matrices, label="|cos(w, v)| at the end", location="left")
    head.set(title="E$_{21}$: neuron 2 borrows from 1", xlabel="step", xscale="log",
             xlim=(every, args.steps), ylim=(-0.05, 0.6))
    head.legend(fontsize=8, loc="upper left", ncols=2)
    return table, figure


def random_starts(args, generator):
    """Many runs from random weights, each with E trained and frozen -> table, figure.  The
    theorem's "with high probability" is for high dimension and a strong feature; in low dimension
    it often depends on luck, and this counts it."""
    runs = args.random_init
    W = start("random", runs, args.m, args.d, generator).repeat(2, 1, 1)
    seen = simulate(W, torch.arange(2 * runs) < runs, args.steps, args.eta_w, args.eta_e,
                    args.sigma, args.alpha1, args.batch_size, generator, every=args.steps)
    names = outcome(seen["W"][-1])
    trained, frozen = names[:runs], names[runs:]
    colors = {"both features": "#1a9850", "only v1": "#4575b4", "only v2": "#fdae61",
              "unfinished": "0.8"}
    table = []
    for head, half in (("trained", trained), ("frozen", frozen)):
        for kind in colors:
            table.append((f"E {head}: {kind}, of {runs} runs", half.count(kind), ""))
    turned = list(zip(frozen, trained)).count(("only v1", "both features"))
    table.append(("only v1 when frozen, both when trained", turned, ""))

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    left = [0, 0]
    for kind, color in colors.items():
        counts = [trained.count(kind), frozen.count(kind)]
        axis.barh(["E trained", "E frozen"], counts, left=left, color=color, label=kind)
        left = [left[0] + counts[0], left[1] + counts[1]]
    axis.set(xlabel=f"runs from random weights (d = {args.d}, |v1| = {args.alpha1:g}, "
                    f"σ = {args.sigma:g})")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return table, figure


def scan(args, generator, ratios=(0.25, 0.5, 1.0, 2.0, 4.0), sigmas=(0.2, 0.3, 0.4, 0.5),
         repeats=3):
    """In how many of `repeats` runs are both features learnt, over eta_e / eta_w and the noise?
    -> table, figure"""
    runs = [(ratio, sigma) for ratio in ratios for sigma in sigmas for _ in range(repeats)]
    ratio, sigma = torch.tensor(runs).T
    W = torch.cat([start("controlled", 1, args.m, args.d, generator) for _ in runs])
    seen = simulate(W, torch.ones(len(W)), args.steps, args.eta_w, args.eta_w * ratio, sigma,
                    args.alpha1, args.batch_size, generator, every=args.steps)
    both = torch.tensor([name == "both features" for name in outcome(seen["W"][-1])])
    success = both.view(len(ratios), len(sigmas), repeats).sum(2).tolist()
    table = []
    for r, row in zip(ratios, success):
        for s, count in zip(sigmas, row):
            what = f"eta_e / eta_w = {r:g}, sigma = {s:g}: both features, of {repeats} runs"
            table.append((what, count, ""))

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(success, origin="lower", aspect="auto", cmap="RdYlGn", vmin=0, vmax=repeats)
    axis.set(title=f"runs of {repeats} that learn both features",
             xlabel="noise σ", xticks=range(len(sigmas)), xticklabels=sigmas,
             ylabel="η$_E$ / η$_W$", yticks=range(len(ratios)), yticklabels=ratios)
    figure.colorbar(image, ticks=range(repeats + 1))
    return table, figure


def main(argv=None):
    args = common.parse_toy(__file__, __doc__, FLAGS, argv)
    for name, least in (("m", 2), ("d", 3), ("batch_size", 2)):
        value = getattr(args, name)
        if value < least:
            common.fail(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if args.scan:
        args.label, command = "scan", scan
    elif args.ablate:
        args.label, command = "ablate", ablations
    elif args.random_init:
        args.label, command = "random", random_starts
    else:
        args.label, command = "", side_by_side
    device = common.setup(args)
    if device.type != "cpu":
        torch.set_default_device(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    table, figure = command(args, generator)
    rows = [{"what": what, "measured": measured, "theory": theory}
            for what, measured, theory in table]
    common.finish_toy(args, device, rows, figure)


if __name__ == "__main__":
    main()

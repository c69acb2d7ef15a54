"""A picture of two neurons that learn a strong and a weak feature, or the strong one twice.

Wen & Li, "The Mechanism of Prediction Head in Non-contrastive Self-supervised Learning", 2022
(arXiv 2205.06226).

Data.  An image is a set of patches.  Two of them carry the image's feature, which is either the
strong one, v1 (length 2), or the weak one, v2 (length 1).  The others are noise.  The two views of
an image share its feature, and each view has noise of its own.

Net.  Neuron j has the weights w_j and gives phi_j(X) = sum_p <w_j, X_p>^3, a sum over the patches
X_p.  The prediction head (predictor) is the matrix I + E.  The diagonal of E is 0, and the rest
starts at 0.  The head's output for neuron 2 is phi_2 + E_21 phi_1: neuron 2 borrows from neuron 1.

Loss.  View 1 goes through the head.  BN (BatchNorm) gives outputs mean 0 and variance 1 in a batch.
The stop-gradient sg lets no gradient flow into view 2:
    loss = mean over images of sum_j (BN[(I + E) phi(X1)]_j - sg BN[phi(X2)]_j)^2

    python toy_patch.py                     E trained and E frozen
    python toy_patch.py --ablate            also without stop-gradient, and without BN

A row of the picture is a run, measured with seed 0 in 15 seconds on two CPU cores (seeds 0 to 12
agree).  The panels "neuron 1" and "neuron 2" show how large w_j is along v1 and along v2.
    frozen   E stays 0.  Both neurons learn v1 (|cos(w2, v1)| = 0.88), and v2 is lost: dimensional
             collapse.  The loss ends as low as with E trained, so it does not show this.
    trained  Neuron 2 learns v2 (|cos(w2, v2)| = 0.97), in the four phases that the paper proves:
             I    Neuron 1 learns v1.
             II   Substitution: E_21 rises to 0.44.  Neuron 2 borrows v1 and need not learn it.
             III  Acceleration: neuron 2, which borrows v1, now learns v2 quickly.
             IV   E_21 falls back to 0.  Each neuron has a feature of its own.
    --ablate Without stop-gradient neuron 2 learns v1, and E_21 stays.  Without BN neuron 2 learns
             nothing, and its output shrinks.

Where we differ.  Only the paper's poster was at hand, without its formulas, so how we draw patches
and the learning rates are our own.  Phases I and II overlap here.  The theorem is about random
weights in high dimension.  In low dimension these are often unlucky, so we choose the start.
"""
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import torch
from matplotlib.figure import Figure

import common

FEATURE_PATCHES, NOISE_PATCHES = 2, 6                      # of each view
PHASES = ("I", "II", "III", "IV")

RUNS = {"trained": {}, "frozen": {"train_head": False}}    # options of simulate
ABLATIONS = {"no stop-gradient": {"stop_gradient": False}, "no BN": {"normalise": False}}
CLAIMS = {                                                 # bounds that stand for the theorems
    "trained: cos(w1, v1)": "> 0.8", "trained: cos(w2, v2)": "> 0.8",
    "trained: largest E_21": "> 0.2", "trained: |E_21| at the end": "< 0.05",
    "trained: largest |E_12|": "< 0.1",
    "frozen: cos(w1, v1)": "> 0.8", "frozen: cos(w2, v1)": "> 0.8",
}


# -------------------------------------------------------------------------------- data and network

def two_views(n, d, alpha1, sigma, generator):
    """Two views of n new images.  -> X1, X2: [n, patches, d]

    v1 and v2 lie along the first two axes, and the noise in the other d - 2 dimensions."""
    features = torch.zeros(2, d, dtype=torch.double)
    features[0, 0], features[1, 1] = alpha1, 1.0           # v1, v2
    which = torch.randint(2, (n,), generator=generator)    # does the image have v1 (0) or v2 (1)?
    sign = 2 * torch.randint(2, (n,), generator=generator) - 1
    signal = sign[:, None] * features[which]               # [n, d]

    # The views share the feature and its sign alone, so a net can match nothing else.
    views = []
    for _ in range(2):
        X = torch.zeros(n, FEATURE_PATCHES + NOISE_PATCHES, d, dtype=torch.double)
        X[:, :FEATURE_PATCHES] = signal[:, None]
        noise = torch.randn(n, NOISE_PATCHES, d - 2, generator=generator, dtype=torch.double)
        X[:, FEATURE_PATCHES:, 2:] = sigma * noise
        views.append(X)
    return views


def phi(W, X):
    """The net: neuron j cubes its products with all patches and adds them, sum_p <w_j, X_p>^3.

    W: [m, d], a neuron a row; X: [N, patches, d] -> [N, m]"""
    return ((X @ W.T) ** 3).sum(1)


def batch_norm(x):
    """Each neuron's output minus its mean, divided by its standard deviation over the N images.

    x: [N, m] -> [N, m].  The variance has 1/N, not 1/(N-1), and 1e-8 is added before the root."""
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-8).sqrt()


def chosen_start(d, generator):
    """The weights of two neurons at the start, [2, d]: neuron 1 is ahead in v1.

    Neuron 2 has less of v1 than neuron 1, and a little more of v2.  If it had more of v1, it would
    learn v1 before it can borrow it."""
    W = torch.randn(2, d, generator=generator, dtype=torch.double)
    W /= W.norm(dim=1, keepdim=True)
    W[:, :2] = torch.tensor([[0.30, 0.12], [0.12, 0.18]])  # parts along v1, v2
    return W


# ----------------------------------------------------------------------------------------- training

def simulate(W, steps=2600, eta_w=0.05, eta_e=0.05, alpha1=2.0, sigma=0.4, batch_size=256,
             generator=None, train_head=True, stop_gradient=True, normalise=True):
    """Train by SGD from the weights W [m, d].

    -> W [T, m, d], E [T, m, m] and the loss [T], before each step and at the end"""
    m, d = W.shape
    identity = torch.eye(m, dtype=torch.double)
    W = W.clone().requires_grad_()
    E = torch.zeros(m, m, dtype=torch.double, requires_grad=True)
    trajectory = []
    for step in range(steps + 1):
        X1, X2 = two_views(batch_size, d, alpha1, sigma, generator)
        online = phi(W, X1) @ (identity + E).T             # [N, m]: view 1 through the head
        target = phi(W, X2)                                # [N, m]: view 2 without it
        if normalise:
            online, target = batch_norm(online), batch_norm(target)
        if stop_gradient:
            target = target.detach()
        loss = (online - target).square().sum(1).mean()
        trajectory.append((W.detach().clone(), E.detach().clone(), loss.detach()))

        grad_W, grad_E = torch.autograd.grad(loss, (W, E))
        with torch.no_grad():
            W -= eta_w * grad_W
            if train_head:
                E -= eta_e * grad_E * (1 - identity)       # the diagonal of the head stays 1
    return [torch.stack(values) for values in zip(*trajectory)]


# ----------------------------------------------------------------------------- what has been learnt

def cosines(W):
    """|cos| of a neuron's angles with v1 and v2: 1 if it has learnt only that.  [m, d] -> [m, 2]"""
    return W[:, :2].abs() / W.norm(dim=1, keepdim=True)


def phases(W, E):
    """The steps at which phases I, II and III end.  W: [T, m, d], E: [T, m, m] -> 3 numbers

    Phase I ends when neuron 1 has done 90 % of its rise towards v1, phase II when E_21 is at its
    largest, and phase III when neuron 2 has then done half of its rise towards v2.  Phase IV lasts
    until the end.  II and III mean little if neuron 2 does not learn v2."""
    w1, w2 = W[:, 0, 0].abs(), W[:, 1, 1].abs()
    one = (w1 >= w1[0] + 0.9 * (w1.max() - w1[0])).int().argmax()          # argmax: the first True
    two = E[:, 1, 0].argmax()
    three = two + (w2[two:] >= w2[0] + 0.5 * (w2.max() - w2[0])).int().argmax()
    return [int(step) for step in (one, two, three)]


def measure(name, W, E):
    """The rows of the table for one run."""
    (cos11, cos12), (cos21, cos22) = cosines(W[-1]).tolist()
    found = {"cos(w1, v1)": cos11, "cos(w1, v2)": cos12, "cos(w2, v1)": cos21, "cos(w2, v2)": cos22,
             "|<w2, v2>|, 0.18 at the start": W[-1, 1, 1].abs().item(),
             "largest E_21": E[:, 1, 0].max().item(),
             "|E_21| at the end": E[-1, 1, 0].abs().item(),
             "largest |E_12|": E[:, 0, 1].abs().max().item()}
    if name == "trained":
        for phase, step in zip(PHASES, phases(W, E)):
            found[f"phase {phase} ends at step"] = step
    found = {f"{name}: {what}": value for what, value in found.items()}
    return [{"what": what, "measured": value, "theory": CLAIMS.get(what, "")}
            for what, value in found.items()]


# ------------------------------------------------------------------------------ table and figure

def draw(panels, name, W, E, loss):
    """Draw one run in a row of four panels, with dotted lines where phases end."""
    for j in (0, 1):
        panels[j].plot(W[:, j, 0].abs().tolist(), label="size along v1 (strong)")
        panels[j].plot(W[:, j, 1].abs().tolist(), label="size along v2 (weak)")
    panels[2].plot(E[:, 1, 0].tolist(), "C2", label="E$_{21}$: neuron 2 borrows")
    panels[2].plot(E[:, 0, 1].tolist(), "C5", label="E$_{12}$: neuron 1 borrows")
    panels[3].plot(loss.tolist(), "k")
    panels[0].set_ylabel(name, fontsize=13, fontweight="bold")
    if name == "trained":
        ends = phases(W, E)
        for panel in panels:
            for end in ends:
                panel.axvline(end, color="0.7", lw=1, ls=":", zorder=0)
        for phase, begin, end in zip(PHASES, (1, *ends), (*ends, len(W))):
            panels[2].text((begin * end) ** 0.5, 0.5, phase, ha="center", color="0.4")


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for flag, default, text in (("--d", 20, "how many numbers a patch has"),
                                ("--alpha1", 2.0, "length of v1; v2 has length 1"),
                                ("--sigma", 0.4, "standard deviation of the noise in a patch"),
                                ("--eta-w", 0.05, "learning rate of the weights W"),
                                ("--eta-e", 0.05, "learning rate of the head's E"),
                                ("--steps", 2600, "steps of SGD, each with new images"),
                                ("--batch-size", 256, "images in a step"),
                                ("--seed", 0, "seed of the first weights and the images"),
                                ("--out", "runs", "the run makes its own folder in this one")):
        parser.add_argument(flag, type=type(default), default=default, help=f"{text} ({default})")
    parser.add_argument("--ablate", action="store_true", help="two more runs, described above")
    args = parser.parse_args(argv)
    if args.d < 3 or args.steps < 2 or args.batch_size < 2:
        common.fail("--d has to be at least 3, and --steps and --batch-size at least 2")
    runs, name = RUNS, f"toy_patch-s{args.seed}"
    if args.ablate:
        runs, name = RUNS | ABLATIONS, f"toy_patch-ablate-s{args.seed}"

    table = []
    figure = Figure(figsize=(13, 2.4 * len(runs) + 0.6), layout="constrained")
    axes = figure.subplots(len(runs), 4, sharex=True, sharey="col")
    for panels, (run, change) in zip(axes, runs.items()):
        generator = torch.Generator().manual_seed(args.seed)               # the same for all runs
        start = chosen_start(args.d, generator)
        W, E, loss = simulate(start, args.steps, args.eta_w, args.eta_e, args.alpha1, args.sigma,
                              args.batch_size, generator, **change)
        table += measure(run, W, E)
        draw(panels, run, W, E, loss)
    axes[0, 0].set(title="neuron 1", ylim=(0, 1.2))
    axes[0, 1].set(title="neuron 2", ylim=(0, 1.2))
    axes[0, 2].set(title="the head", ylim=(-0.05, 0.55))
    axes[0, 3].set(title="loss", yscale="log")
    for panel in axes[1, :3]:
        panel.legend()
    for panel in axes[-1]:
        panel.set(xlabel="step", xscale="log", xlim=(1, args.steps))

    for row in table:
        print(f"{row['what']:48} {row['measured']:<12.5g} {row['theory']}")
    folder = common.new_folder(args.out, name)
    common.write_csv(folder / "toy_patch.csv", table)
    figure.savefig(folder / "toy_patch.png")
    print(f"{folder}: toy_patch.csv, toy_patch.png")


if __name__ == "__main__":
    common.cli(main)

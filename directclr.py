"""SimCLR and DirectCLR learn features by contrast, and the run shows which features are lost.

Jing, Vincent, LeCun & Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised
Learning", 2021 (arXiv 2110.09348); SimCLR: Chen et al., 2020 (arXiv 2002.05709).  A contrastive
loss pulls two views of an image (random crops in other colours) together and pushes different
images apart.  Still, the space that the loss sees loses dimensions, and with them features.  What
we keep is r, the output of the backbone, the main net.  SimCLR puts a projector, a small net,
between r and the loss, to spare r.  DirectCLR has no projector: its loss sees only the first d0
dimensions of r, and the layers that all dimensions share train the others too.

    python directclr.py                       DirectCLR; makes spectrum.csv and spectrum.png too
    python directclr.py --projector none      the loss sees all of r; also mlp, linear
    python directclr.py --data patches        a counter-example, see below

In `strong_weak` every image carries a strong and a weak pattern, each with a label.  After two
minutes on two CPU cores a linear probe, one linear layer on r, finds the strong one in 98 or 99 %
of the test images with any projector.  It finds the weak one in 46 % with a linear projector, 42 %
with DirectCLR, 34 % with none, 26 % before training, 20 % by guessing (means of three seeds).  In
`patches` there is one pattern, and the order is reversed: without a projector r is best, because
nothing useful is left to lose.  Where we differ from the paper: SGD at batch 64 or 128 replaces
LARS at 4096.  On made images the temperature tau is 0.3, not 0.1.  d0 is 17 of 96 or 90 of 512, in
the ratio of the paper's 360 of 2048.  The last BatchNorm of `mlp` has no trained scale and shift.
"""
import time
from itertools import zip_longest

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
RECIPES = {
    "strong_weak": dict(                                   # We chose these, for `patches` too.
        arch="small", epochs=16, batch_size=64, lr=1.0, weight_decay=1e-4, warmup_epochs=0,
        proj_hidden=256, proj_dim=128, temperature=0.3, d0=17, min_scale=0.2),
    # lightly's benchmark of SimCLR has these, but temperature and heads are as in the paper.
    "cifar10": dict(
        arch="resnet18", epochs=200, batch_size=128, lr=0.12, weight_decay=5e-4, warmup_epochs=0,
        proj_hidden=512, proj_dim=128, temperature=0.1, d0=90, min_scale=0.08),
}
RECIPES["cifar100"] = RECIPES["cifar10"]
RECIPES["other"] = RECIPES["strong_weak"] | dict(epochs=70, temperature=0.2)
CHOICES = {"arch": common.ARCHS, "projector": ("mlp", "linear", "none", "direct"),
           "direct_mode": ("prefix", "random", "orthogonal"), "negatives": ("other", "both")}
FLAGS = {"projector": ("direct", "what is between r and the loss: mlp (two layers), linear (one "
                                 "matrix), none, or direct (a choice of d0 dimensions: DirectCLR)"),
         "direct_mode": ("prefix", "which dimensions of r the loss sees: the first d0 (prefix), d0 "
                                   "others at each step (random), or the first d0 after a random "
                                   "rotation that stays fixed (orthogonal)"),
         "d0": (None, "how many dimensions of r DirectCLR's loss sees"),
         "negatives": ("other", "push an image away from images of the other view, or of both")}


# -------------------------------------------------------------------------------------------- loss

def info_nce(z1, z2, temperature, negatives="other"):
    """InfoNCE is the mean of both directions of one_way, for rows divided by their length.
    z1, z2: [B, dim], where row i of both is of image i -> scalar, float32 or better
    negatives: with "other" the other B - 1 rows of the other view push row i away.  With "both"
    the other rows of its own view do so too (SimCLR's NT-Xent)."""
    Z1 = F.normalize(z1.to(torch.promote_types(z1.dtype, torch.float)), dim=1)
    Z2 = F.normalize(z2.to(torch.promote_types(z2.dtype, torch.float)), dim=1)
    return (one_way(Z1, Z2, temperature, negatives) + one_way(Z2, Z1, temperature, negatives)) / 2


def one_way(Za, Zb, temperature, negatives):
    """mean_i -log e^(Za_i.Zb_i / tau) / sum_j e^(Za_i.Zb_j / tau) is small if Za_i is near Zb_i
    and far from the other Zb_j.  With "both" the sum also has e^(Za_i.Za_j / tau) for j != i."""
    logits = Za @ Zb.T / temperature                       # [B, B]; the pairs are on the diagonal.
    if negatives == "both":
        own = (Za @ Za.T / temperature).fill_diagonal_(-torch.inf)
        logits = torch.cat([logits, own], 1)               # [B, 2B]
    return F.cross_entropy(logits, torch.arange(len(Za), device=Za.device))


# ----------------------------------------------------------------------------------------- network

class Direct(nn.Module):
    """DirectCLR's choice of dimensions: r [B, width] -> [B, d0].  It has no weights to train.
    A rotation of all of r would change no inner product, and so no loss.  What counts in
    `orthogonal` is that d0 dimensions are kept (the paper's "fixed low-rank" projector)."""

    def __init__(self, width, d0, mode):
        super().__init__()
        self.width, self.d0, self.mode = width, d0, mode
        if mode == "random":
            self.register_buffer("chosen", torch.arange(d0))
        elif mode == "orthogonal":
            Q = torch.linalg.qr(torch.randn(width, width))[0]
            self.register_buffer("Q", Q[:, :d0].contiguous())

    def forward(self, r):
        """r: [B, width] -> [B, d0]: its first columns, those in `chosen`, or r @ Q ([width, d0])"""
        if self.mode == "random":
            return r[:, self.chosen]
        if self.mode == "orthogonal":
            return r @ self.Q
        return r[:, :self.d0]

    def draw(self, step):
        """Choose the dimensions for a step of `random`, the same ones for both views."""
        device = self.chosen.device
        generator = torch.Generator(device).manual_seed(step)
        order = torch.randperm(self.width, generator=generator, device=device)
        self.chosen.copy_(order[:self.d0])


class DirectCLR(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        hidden, dim = args.proj_hidden, args.proj_dim
        if args.projector == "mlp":
            projector = nn.Sequential(
                nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                nn.Linear(hidden, dim, bias=False), nn.BatchNorm1d(dim, affine=False))
        elif args.projector == "linear":
            projector = nn.Linear(width, dim, bias=False)
        elif args.projector == "none":
            projector = nn.Identity()
        else:
            projector = Direct(width, args.d0, args.direct_mode)
        self.encoder = nn.Sequential()                     # f: the backbone, then the projector
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)

    def forward(self, x1, x2):
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        return self.encoder(x1), self.encoder(x2)          # [B, dim]


build = DirectCLR                              # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    if args.d0 > common.ARCHS[args.arch]:
        common.fail(f"--d0 {args.d0}: r has no more than {common.ARCHS[args.arch]} dimensions")
    args.label = args.projector                            # It becomes part of the folder's name.
    if args.projector == "direct" and args.direct_mode != "prefix":
        args.label = f"direct-{args.direct_mode}"
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = DirectCLR(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    lr = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9,
                                weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    if not log.history:                                    # Row 0 is of the untrained net.
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42; images' indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate
            if args.label == "direct-random":
                model.encoder.projector.draw((epoch - 1) * log.steps + len(losses))
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]; no labels
            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale)
            with common.autocast(device):                  # A GPU uses bfloat16, the loss does not.
                z1, z2 = net(x1, x2)
            # No stop-gradient (.detach()) is needed: images that are pushed apart stay apart.
            loss = info_nce(z1, z2, args.temperature, args.negatives)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would wait for the GPU.
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat([z1, z2])                            # Has the last batch's z collapsed?
        log.row(epoch, mean_loss, seconds, **common.measure(model.encoder, data, args, epoch, z))
    found = common.evaluate(model.encoder, data, args, epochs=100)         # trains a linear probe
    found |= report(model.encoder, data, args, log)
    log.finish(**found)
    if data.more:                                          # strong_weak has a second label.
        print(f"linear probe of r: strong label {found['linear']:.0f} %, weak label "
              f"{found['linear_weak']:.0f} % (untrained {found['linear_untrained_weak']:.0f} %)")
    return model


# ------------------------------------------------------------------------------------------ report

def spectrum(x):
    """x [N, D] -> [D], the eigenvalues of the covariance (over N - 1) of the rows of x, after each
    was divided by its length.  They are float64, sorted from the largest, and none is below 0."""
    x = F.normalize(x, dim=1).cpu().double()
    return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp(min=0)


def report(encoder, data, args, log):
    """Make spectrum.csv and spectrum.png from the test images.  -> entries of result.json
    linear_first, linear_rest   a linear probe of r[:d0] and one of r[d0:], for each label
    linear_untrained            a linear probe of r before training
    test_rank, alive            of r, z: effective rank; eigenvalues over 1/1000 of the largest"""
    def features(net):                                     # -> those of training and test images
        return [common.extract_features(net, x, data.mean, data.std)
                for x in (data.train_x[:n], data.test_x)]

    found, d0, n = {}, args.d0, 64 if args.dry_run else None
    torch.manual_seed(args.seed)                           # The weights are as before training.
    untrained = features(build(args).to(data.train_x.device).encoder.backbone)
    (train_r, r), z = features(encoder.backbone), features(encoder)[1]
    parts = {"linear_first": (train_r[:, :d0], r[:, :d0]),
             "linear_rest": (train_r[:, d0:], r[:, d0:]), "linear_untrained": untrained}
    labels = {"": (data.train_y, data.test_y), **data.more} if data.classes else {}
    for name, (train, test) in parts.items():
        for label, (y, y2) in labels.items():
            if test.numel():                               # r[d0:] is empty if d0 is its width.
                found[name + label] = common.linear_probe(train, y[:n], test, y2)
    figure, shares = Figure(figsize=(10, 3.8), layout="constrained"), {}
    for axis, (name, x) in zip(figure.subplots(1, 2), (("r", r), ("z", z))):
        s, rank = spectrum(x), common.collapse_metrics(x)["effective_rank"]
        found |= {f"test_rank_{name}": rank, f"alive_{name}": int((s > 1e-3 * s[0]).sum())}
        shares[name] = (s / s[0]).tolist()
        axis.plot(range(1, len(s) + 1), shares[name])
        axis.set(yscale="log", ylim=(1e-8, 2), xlabel="number of the eigenvalue, by size",
                 title=f"{name}: effective rank {rank:.1f} of {len(s)}")
    figure.axes[0].set_ylabel("eigenvalue of the covariance (largest: 1)")
    figure.savefig(log.folder / "spectrum.png")
    pairs = enumerate(zip_longest(shares["r"], shares["z"], fillvalue=""), start=1)
    common.write_csv(log.folder / "spectrum.csv", [{"index": i, "r": r, "z": z}
                                                   for i, (r, z) in pairs])
    return found


if __name__ == "__main__":
    common.cli(main)

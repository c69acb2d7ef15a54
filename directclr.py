"""DirectCLR, and SimCLR with and without a projector: where contrastive learning loses features.

Jing, Vincent, LeCun & Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised
Learning", 2021 (arXiv 2110.09348); SimCLR: Chen et al., 2020 (arXiv 2002.05709).

A contrastive loss pulls the two views of an image together and pushes all images apart.  Still the
space that the loss sees loses dimensions, and with them features.  What we keep is r, the output of
the backbone.  SimCLR puts a projector, a small net, between r and the loss, and r is spared.
DirectCLR has no projector: its loss sees only the first d0 dimensions of r, and the shared layers
before them train the other dimensions too.

    python directclr.py                       DirectCLR; also spectrum.csv and spectrum.png
    python directclr.py --projector none      the loss sees all of r; also mlp, linear
    python directclr.py --data patches        a counter-example, see below

In `strong_weak` every image carries a strong and a weak pattern, each with a label.  At the end a
linear classifier on r finds the strong one in about 99 % of the images with any projector.  The
weak one it finds in 45 % with an MLP, 42 % with DirectCLR and 34 % without a projector (an
untrained net: 26 %, guessing: 20 %; means of three seeds, two minutes each on two CPU cores).

In `patches` there is only one pattern to find, and the order is reversed: no projector is best,
because nothing useful is left to lose.  Where we differ from the paper: SGD in place of LARS at
batch 4096; tau is 0.3 on made images, not 0.1; d0 is 17 of 96 or 90 of 512, in the ratio of the
paper's 360 of 2048; the last BatchNorm of `mlp` is without affine.
"""
import time
from itertools import zip_longest

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import common

# The settings for each data set.  Every entry is also a flag (--help says what it is), and a flag
# that is given wins.
RECIPES = {
    "strong_weak": dict(                                                    # ours; also for patches
        arch="small", epochs=16, batch_size=64, lr=1.0, weight_decay=1e-4, warmup_epochs=0,
        proj_hidden=256, proj_dim=128, temperature=0.3, d0=17, min_scale=0.2),
    # lightly's benchmark of SimCLR on CIFAR-10; temperature and heads are the paper's
    "cifar10": dict(
        arch="resnet18", epochs=200, batch_size=128, lr=0.12, weight_decay=5e-4, warmup_epochs=0,
        proj_hidden=512, proj_dim=128, temperature=0.1, d0=90, min_scale=0.08),
}
RECIPES["cifar100"] = RECIPES["cifar10"]
RECIPES["other"] = RECIPES["strong_weak"] | dict(epochs=70, temperature=0.2)
CHOICES = {"arch": common.ARCHS, "projector": ("mlp", "linear", "none", "direct"),
           "direct_mode": ("prefix", "random", "orthogonal"), "negatives": ("other", "both")}
FLAGS = {"projector": ("direct", "between r and the loss: two layers, one matrix, nothing, or d0 "
                                 "dimensions chosen directly"),
         "direct_mode": ("prefix", "the first d0, d0 others each step, or the first d0 after a "
                                   "fixed random rotation"),
         "d0": (None, "how many dimensions of r DirectCLR's loss sees"),
         "negatives": ("other", "the other view's images, or NT-Xent's 2N - 2 of both views")}


# -------------------------------------------------------------------------------------------- loss

def info_nce(z1, z2, temperature, negatives="other"):
    """InfoNCE of the l2-normalised rows, the mean of both directions, in float32 or better.

    z1, z2: [B, D], row i of one being the other view of row i of the other -> scalar
    negatives: "other", the B - 1 rows of the other view that are not i; "both", those of the own
    view too (SimCLR's NT-Xent)."""
    Z1 = F.normalize(z1.to(torch.promote_types(z1.dtype, torch.float)), dim=1)
    Z2 = F.normalize(z2.to(torch.promote_types(z2.dtype, torch.float)), dim=1)
    return (one_way(Z1, Z2, temperature, negatives) + one_way(Z2, Z1, temperature, negatives)) / 2


def one_way(Za, Zb, temperature, negatives):
    """mean_i -log e^(Za_i.Zb_i / tau) / sum_j e^(Za_i.Zb_j / tau).

    With "both" the sum has e^(Za_i.Za_j / tau), j != i, as well."""
    logits = Za @ Zb.T / temperature                       # [B, B], positives on the diagonal
    if negatives == "both":
        own = (Za @ Za.T / temperature).fill_diagonal_(-torch.inf)
        logits = torch.cat([logits, own], 1)               # [B, 2B]
    return F.cross_entropy(logits, torch.arange(len(Za), device=Za.device))


# ----------------------------------------------------------------------------------------- network

class Direct(nn.Module):
    """r [B, width] -> d0 of its dimensions [B, d0].  Nothing in it is trained.

    A rotation of all of r would change no inner product, and so nothing at all: what counts in
    `orthogonal` is that d0 are kept (the paper's "fixed low-rank" projector)."""

    def __init__(self, width, d0, mode):
        super().__init__()
        self.width, self.d0, self.mode = width, d0, mode
        if mode == "random":
            self.register_buffer("chosen", torch.arange(d0))
        elif mode == "orthogonal":
            Q = torch.linalg.qr(torch.randn(width, width))[0]
            self.register_buffer("Q", Q[:, :d0].contiguous())

    def forward(self, r):
        """r: [B, width] -> the first d0 columns; those in `chosen`; r in the basis Q [width, d0]"""
        if self.mode == "random":
            return r[:, self.chosen]
        if self.mode == "orthogonal":
            return r @ self.Q
        return r[:, :self.d0]

    def draw(self, step):
        """Before a step of `random`: other dimensions, the same for both views."""
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
        self.encoder = nn.Sequential()                     # f: the projector after the backbone
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)

    def forward(self, x1, x2):
        # One call per view, so that BatchNorm uses each view's own mean and variance.
        return self.encoder(x1), self.encoder(x2)          # [B, D]


build = DirectCLR


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    if args.d0 > common.ARCHS[args.arch]:
        common.fail(f"--d0 {args.d0}: r has no more than {common.ARCHS[args.arch]} dimensions")
    args.label = args.projector
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
    log = common.Log(args, model, optimizer, data)         # makes the run's folder, or resumes it
    if not log.history:                                    # row 0: the untrained net's score
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42 epochs; indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate
            if args.label == "direct-random":
                model.encoder.projector.draw((epoch - 1) * log.steps + len(losses))
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size], no labels
            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale)
            with common.autocast(device):                  # bfloat16 on CUDA, but not in the loss
                z1, z2 = net(x1, x2)
            # no stop-gradient: the negatives prevent the collapse to one point
            loss = info_nce(z1, z2, args.temperature, args.negatives)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would make a GPU wait
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat([z1, z2])                            # of the last batch, to look for collapse
        log.row(epoch, mean_loss, seconds, **common.measure(model.encoder, data, args, epoch, z))
    found = common.evaluate(model.encoder, data, args, epochs=100)
    found |= report(model.encoder, data, args, log)
    log.finish(**found)
    if data.more:                                          # a second label: strong_weak
        print(f"features in r: strong {found['linear']:.0f} %, weak {found['linear_weak']:.0f} % "
              f"(untrained {found['linear_untrained_weak']:.0f} %)")
    return model


# ------------------------------------------------------------------------------------------ report

def spectrum(x):
    """Eigenvalues of the covariance (over N - 1) of the l2-normalised rows of x [N, D], in float64,
    descending, none below 0.  -> [D]"""
    x = F.normalize(x, dim=1).cpu().double()
    return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp(min=0)


def report(encoder, data, args, log):
    """spectrum.csv and spectrum.png, of the test set.  -> what goes into result.json

    linear_first, linear_rest   linear probe of r[:d0] and of r[d0:], of each label
    linear_untrained            linear probe of the net before training
    test_rank, alive            of r and z: effective rank, eigenvalues over a thousandth of the
                                largest"""
    def features(net):                                     # of training and of test images
        return [common.extract_features(net, x, data.mean, data.std)
                for x in (data.train_x[:n], data.test_x)]

    found, d0, n = {}, args.d0, 64 if args.dry_run else None
    torch.manual_seed(args.seed)                           # the same weights as before training
    untrained = features(build(args).to(data.train_x.device).encoder.backbone)
    (train_r, r), z = features(encoder.backbone), features(encoder)[1]
    parts = {"linear_first": (train_r[:, :d0], r[:, :d0]),
             "linear_rest": (train_r[:, d0:], r[:, d0:]), "linear_untrained": untrained}
    labels = {"": (data.train_y, data.test_y), **data.more} if data.classes else {}
    for name, (train, test) in parts.items():
        for label, (y, y2) in labels.items():
            if test.numel():                               # r[d0:] is empty if d0 is all of r
                found[name + label] = common.linear_probe(train, y[:n], test, y2)
    figure, shares = Figure(figsize=(10, 3.8), layout="constrained"), {}
    for axis, (name, x) in zip(figure.subplots(1, 2), (("r", r), ("z", z))):
        s, rank = spectrum(x), common.collapse_metrics(x)["effective_rank"]
        found |= {f"test_rank_{name}": rank, f"alive_{name}": int((s > 1e-3 * s[0]).sum())}
        shares[name] = (s / s[0]).tolist()
        axis.plot(range(1, len(s) + 1), shares[name])
        axis.set(yscale="log", ylim=(1e-8, 2), xlabel="eigenvalue of the covariance, sorted",
                 title=f"{name}: effective rank {rank:.1f} of {len(s)}")
    figure.axes[0].set_ylabel("its size, largest = 1")
    figure.savefig(log.folder / "spectrum.png")
    pairs = enumerate(zip_longest(shares["r"], shares["z"], fillvalue=""), start=1)
    common.write_csv(log.folder / "spectrum.csv", [{"index": i, "r": r, "z": z}
                                                   for i, (r, z) in pairs])
    return found


if __name__ == "__main__":
    common.cli(main)

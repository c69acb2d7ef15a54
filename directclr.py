"""DirectCLR, and SimCLR with and without a projector: where contrastive learning loses dimensions.

Jing, Vincent, LeCun & Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised
Learning", 2021 (arXiv 2110.09348); SimCLR: Chen et al., 2020 (arXiv 2002.05709).  With Z the
l2-normalised embeddings of two views, InfoNCE is -log e^(Z1_i.Z2_i / tau) / sum_j e^(Z1_i.Z2_j /
tau), averaged over i and both directions.  It pushes all images apart, and still the space it sees
loses dimensions.  A projector between r, the representation, and the loss spares r.  DirectCLR has
none: its loss sees the first d0 dimensions of r alone; the others learn through the layers below.

    python directclr.py                       DirectCLR; also spectrum.csv and spectrum.png
    python directclr.py --projector none      the loss on all of r; also mlp, linear

On `patches` a run takes 70 s on two CPU cores.  Without a projector r ends with nine large
eigenvalues and a cliff, with DirectCLR without one; but the nine are all that the labels ask for,
so having none is as good as any, unlike in the paper.  Where we differ: SGD, not LARS at batch
4096; on `patches` tau 0.3, not 0.1; the paper's d0 is 360 of 2048, the ratio that 17 of 96 and 90
of 512 keep; the last BN of `mlp` is without affine.
"""
from itertools import zip_longest

import torch
from torch import nn
from torch.nn import functional as F

import common

# One dict a data set; every entry is also a flag, and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.  d0: of r, for the loss.
RECIPES = {
    "patches": dict(                                                                          # ours
        arch="small", epochs=16, batch_size=64, lr=1.0, weight_decay=1e-4, warmup_epochs=0,
        proj_hidden=256, proj_dim=128, temperature=0.3, d0=17, min_scale=0.2),
    # lightly's benchmark of SimCLR on CIFAR-10; temperature and heads are the paper's
    "cifar10": dict(
        arch="resnet18", epochs=200, batch_size=128, lr=0.12, weight_decay=5e-4, warmup_epochs=0,
        proj_hidden=512, proj_dim=128, temperature=0.1, d0=90, min_scale=0.08),
}
RECIPES["cifar100"] = RECIPES["cifar10"]
RECIPES["other"] = RECIPES["patches"] | dict(epochs=70, temperature=0.2)
CHOICES = {"arch": common.ARCHS, "projector": ("mlp", "linear", "none", "direct"),
           "direct_mode": ("prefix", "random", "orthogonal"), "negatives": ("other", "both")}
FLAGS = {"projector": ("direct", "between r and the loss: two layers, one matrix, nothing, or d0 "
                                 "dimensions chosen directly"),
         "direct_mode": ("prefix", "the first d0, d0 others each step, or the first d0 after a "
                                   "fixed random rotation"),
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
        """Before a step of `random`: other dimensions, the same for both views and on all ranks."""
        device = self.chosen.device
        generator = torch.Generator(device).manual_seed(step)
        order = torch.randperm(self.width, generator=generator, device=device)
        self.chosen.copy_(order[:self.d0])


class DirectCLR(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        hidden, dim = args.proj_hidden, args.proj_dim
        self.encoder = nn.Sequential()                     # f = projector after backbone
        self.encoder.backbone = backbone
        if args.projector == "mlp":
            self.encoder.projector = nn.Sequential(
                nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                nn.Linear(hidden, dim, bias=False), nn.BatchNorm1d(dim, affine=False))
        elif args.projector == "linear":
            self.encoder.projector = nn.Linear(width, dim, bias=False)
        elif args.projector == "none":
            self.encoder.projector = nn.Identity()
        else:
            self.encoder.projector = Direct(width, args.d0, args.direct_mode)

    def forward(self, x1, x2):
        r1, r2 = self.encoder.backbone(x1), self.encoder.backbone(x2)      # [B, width]
        z1, z2 = self.encoder.projector(r1), self.encoder.projector(r2)    # [B, D]
        return z1, z2, r1, r2


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
    lr = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9,
                                weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        for x in run.batches():                            # uint8 [B, 3, S, S]
            rate = common.cosine_lr(lr, run.progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate
            if args.projector == "direct" and args.direct_mode == "random":
                model.encoder.projector.draw(run.step)
            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale)
            with common.autocast(device):                  # bfloat16 on CUDA, but not in the loss
                z1, z2, r1, r2 = net(x1, x2)
            all_z1, all_z2 = common.gather(z1), common.gather(z2)          # of all ranks
            loss = info_nce(all_z1, all_z2, args.temperature, args.negatives)  # no stop-gradient
            optimizer.zero_grad()
            (loss * common.world_size()).backward()        # see common.gather; alone it is times 1
            optimizer.step()
            run.log(loss, z=(z1, z2), r=(r1, r2))
        run.end_epoch()
    found = report(run)
    run.finish(**found)
    return model


# ------------------------------------------------------------------------------------------ report

def spectrum(x):
    """Eigenvalues of the covariance (over N - 1) of the l2-normalised rows of x [N, D], in float64,
    descending, none below 0.  -> [D]"""
    x = F.normalize(x, dim=1).cpu().double()
    return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp(min=0)


def report(run):
    """spectrum.csv, spectrum.png of the test set.  -> what goes into result.json

    linear_first, linear_rest   linear probe of r[:d0] and of r[d0:], of each label
    test_rank, alive, dims      of r and z: effective rank, eigenvalues over a thousandth of the
                                largest, dimensions"""
    if not run.is_first:
        return {}
    d0, encoder, epochs = run.args.d0, run.model.encoder, 2 if run.args.dry_run else 100
    train_r, train_y, r, y = common.labelled_features(encoder.backbone, run.data, run.args.dry_run)
    found, parts = {}, {"linear_first": slice(d0), "linear_rest": slice(d0, None)}
    labels = {"": (train_y, y)} | {f"_{name}": pair for name, pair in run.data.more.items()}
    for name, part in parts.items():
        if run.data.classes and r[:, part].numel():
            for label, (of_train, of_test) in labels.items():
                probe = common.linear_probe(train_r[:, part], of_train[:len(train_r)],
                                            r[:, part], of_test[:len(r)], epochs)
                found[name + label] = probe[0]
    with torch.no_grad():
        z = encoder.projector.eval()(r)
    encoder.projector.train()
    spectra = {"r": spectrum(r), "z": spectrum(z)}
    for name, x in (("r", r), ("z", z)):
        s = spectra[name]
        found |= {f"test_rank_{name}": common.collapse_metrics(x)["effective_rank"],
                  f"alive_{name}": int((s > 1e-3 * s[0]).sum()), f"dims_{name}": len(s)}
    shares = {name: (s / s[0]).tolist() for name, s in spectra.items()}
    rows = [{"epoch": run.epoch, "index": i + 1, "r": r_share, "z": z_share} for
            i, (r_share, z_share) in enumerate(zip_longest(*shares.values(), fillvalue=""))]
    (run.folder / "spectrum.csv").unlink(missing_ok=True)
    common.append_csv(run.folder / "spectrum.csv", rows)

    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, (name, share) in zip(figure.subplots(1, 2), shares.items()):
        rank = found[f"test_rank_{name}"]
        axis.plot(range(1, len(share) + 1), share)
        axis.set(yscale="log", ylim=(1e-8, 2), xlabel="eigenvalue of the covariance, sorted",
                 title=f"{name}: effective rank {rank:.1f} of {len(share)}")
    figure.axes[0].set_ylabel("its size, largest = 1")
    common.save_figure(figure, run.folder / "spectrum.png")
    return found


if __name__ == "__main__":
    main()

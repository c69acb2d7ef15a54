"""DirectCLR, and SimCLR with and without a projector: where contrastive learning loses its dimensions.

Jing, Vincent, LeCun & Tian, "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", 2021 (arXiv 2110.09348);
SimCLR: Chen et al., 2020 (arXiv 2002.05709).  With Z the l2-normalised embeddings of two views, InfoNCE is
-log e^(Z1_i.Z2_i / tau) / sum_j e^(Z1_i.Z2_j / tau), averaged over i and over both directions.  It pushes all images apart, and still
the space it sees loses dimensions.  A projector between r, the representation, and the loss spares r.  DirectCLR has none: its loss
sees the first d0 dimensions of r alone, and the others learn through the layers below.

    python directclr.py                              DirectCLR; a run folder as simsiam.py leaves it, and spectrum.csv, spectrum.png
    python directclr.py --projector none             the loss on all of r;  also mlp, linear
    python directclr.py --all                        all four in one table and one figure
    python directclr.py --sweep d0                   also temperature, mode

On `patches` a run trains for 70 s on two CPU cores (torch 2.15).  Without a projector r ends with nine large eigenvalues and a cliff,
with DirectCLR without one (effective rank 10.4 and 14.2 of 96, seeds 0, 1, 2).  There the nine are all that the labels ask for, so the
paper's order of accuracies is reversed (linear probe 99.1 % without a projector, 97.1 % with DirectCLR); see the README.
"""
import csv
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import common

# One dict per data set; every entry is also a flag (--temperature 0.2), and a flag that is given wins.  lr is for a batch of 256.
# d0: the dimensions of r that DirectCLR's loss sees; in the paper 360 of 2048, the ratio that 90 of 512 and 17 of 96 keep.
RECIPES = {
    "patches": dict(arch="small", epochs=16, batch_size=64, lr=1.0, weight_decay=1e-4, warmup_epochs=0,       # ours
                    proj_hidden=256, proj_dim=128, temperature=0.3, d0=17, min_scale=0.2),
    # lightly's benchmark of SimCLR on CIFAR-10, but for the temperature and the heads, which are the paper's
    "cifar10": dict(arch="resnet18", epochs=200, batch_size=128, lr=0.12, weight_decay=5e-4, warmup_epochs=0,
                    proj_hidden=512, proj_dim=128, temperature=0.1, d0=90, min_scale=0.08),
    "other": dict(arch="small", epochs=70, batch_size=64, lr=1.0, weight_decay=1e-4, warmup_epochs=0,         # ours
                  proj_hidden=256, proj_dim=128, temperature=0.2, d0=17, min_scale=0.2),
}
RECIPES["cifar100"] = RECIPES["cifar10"]
CHOICES = {"arch": common.ARCHS, "projector": ("mlp", "linear", "none", "direct"), "direct_mode": ("prefix", "random", "orthogonal"),
           "negatives": ("other", "both"), "sweep": ("", "d0", "temperature", "mode")}
FLAGS = {"projector": ("direct", "what lies between r and the loss: two layers, one matrix, nothing, or d0 dimensions chosen directly"),
         "direct_mode": ("prefix", "the first d0, d0 others each step, or the first d0 after a fixed random rotation"),
         "negatives": ("other", "the other view's images alone, or NT-Xent's 2N - 2 of both views"),
         "all": (False, "train all four projectors, one table and one figure"),
         "sweep": ("", "train a whole table: d0, temperature (of SimCLR with its mlp) or mode")}


# ------------------------------------------------------------------------------------------------------------- network

class Direct(nn.Module):
    """r [B, width] -> d0 of its dimensions [B, d0].  Nothing in it is trained.

    A rotation of all of r would change no inner product, and so nothing at all: what counts in `orthogonal` is that d0 are kept."""

    def __init__(self, width, d0, mode):
        super().__init__()
        self.width, self.d0, self.mode = width, d0, mode
        if mode == "random":
            self.register_buffer("chosen", torch.arange(d0))
        if mode == "orthogonal":
            self.register_buffer("Q", torch.linalg.qr(torch.randn(width, width))[0][:, :d0].contiguous())

    def forward(self, r):
        return r[:, :self.d0] if self.mode == "prefix" else r[:, self.chosen] if self.mode == "random" else r @ self.Q

    def draw(self, step):
        """Before step number `step`: other dimensions, the same for both views and on all ranks."""
        if self.mode == "random":
            self.chosen.copy_(torch.randperm(self.width, generator=torch.Generator().manual_seed(step))[:self.d0])


class DirectCLR(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        if args.d0 > width:
            common.fail(f"--d0 {args.d0}: r has no more than {width} dimensions")
        hidden, dim = args.proj_hidden, args.proj_dim
        self.encoder = nn.Sequential()                                     # f = projector after backbone
        self.encoder.backbone = backbone
        self.encoder.projector = (
            nn.Sequential(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
                          nn.Linear(hidden, dim, bias=False), nn.BatchNorm1d(dim, affine=False)) if args.projector == "mlp" else
            nn.Linear(width, dim, bias=False) if args.projector == "linear" else
            Direct(width, args.d0, args.direct_mode) if args.projector == "direct" else nn.Identity())

    def forward(self, x1, x2):
        r1, r2 = self.encoder.backbone(x1), self.encoder.backbone(x2)      # [B, width]; each view has its own BN statistics
        z1, z2 = self.encoder.projector(r1), self.encoder.projector(r2)    # [B, D]
        return z1, z2, r1, r2


build = DirectCLR


# ---------------------------------------------------------------------------------------------------------------- loss

def info_nce(z1, z2, temperature, negatives="other"):
    """InfoNCE of both directions.  z1, z2: [B, D], row i of one being the other view of row i of the other -> scalar, at least float32

    negatives: "other", the B - 1 rows of the other view that are not i; "both", those of the own view too (SimCLR's NT-Xent)."""
    Z1, Z2 = (F.normalize(z.to(torch.promote_types(z.dtype, torch.float)), dim=1) for z in (z1, z2))
    return one_way(Z1, Z2, temperature, negatives) / 2 + one_way(Z2, Z1, temperature, negatives) / 2


def one_way(Za, Zb, temperature, negatives):
    """mean_i -log e^(Za_i.Zb_i / tau) / sum_j e^(Za_i.Zb_j / tau); for "both" the sum has e^(Za_i.Za_j / tau), j != i, as well."""
    logits = Za @ Zb.T / temperature                                       # [B, B], positives on the diagonal
    if negatives == "both":
        logits = torch.cat([logits, (Za @ Za.T / temperature).fill_diagonal_(-torch.inf)], 1)                # [B, 2B]
    return F.cross_entropy(logits, torch.arange(len(Za), device=Za.device))


# --------------------------------------------------------------------------------------------------------------- train

def train(args, device, data):
    """-> the trained model; leaves spectrum.csv, spectrum.png and result.json beside what every run leaves."""
    model = DirectCLR(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        losses = []
        for t, x in run.batches():                                         # epochs done so far; uint8 [B, 3, S, S]
            optimizer.param_groups[0]["lr"] = common.cosine_lr(lr, t, args.epochs, args.warmup_epochs)
            if args.projector == "direct":
                model.encoder.projector.draw(int(t * run.steps))

            x1, x2 = (common.augment(x, data.mean, data.std, args.min_scale) for _ in range(2))
            with common.autocast(device):                                  # bfloat16 on CUDA, but not in the loss
                z1, z2, r1, r2 = net(x1, x2)
            loss = info_nce(common.gather(z1), common.gather(z2), args.temperature, args.negatives)         # no stop-gradient
            losses.append(loss.detach())
            if epoch == 0:                                                 # the untrained net: measured, not trained
                break

            optimizer.zero_grad()
            (loss * common.world_size()).backward()                        # see common.gather; alone it is times 1
            optimizer.step()
        rank_r = common.collapse_metrics(torch.cat([r1, r2]).detach())["effective_rank"]
        run.end_epoch(losses, lr=optimizer.param_groups[0]["lr"], z=torch.cat([z1, z2]).detach(), rank_r=rank_r)
    report(run)
    return model


# -------------------------------------------------------------------------------------------------------------- report

def spectrum(x):
    """Eigenvalues of the covariance of the l2-normalised rows of x [N, D], descending.  -> [D], on the CPU"""
    return torch.linalg.eigvalsh(torch.cov(F.normalize(x, dim=1).cpu().double().T)).flip(0).clamp(min=0)


def report(run):
    """result.json, spectrum.csv, spectrum.png, of the test set: how many dimensions r and z have, and what r has beyond the first d0."""
    if not run.is_first:
        return
    args, d0, encoder, epochs = run.args, run.args.d0, run.model.encoder, 2 if run.args.dry_run else 100
    train_r, train_y, r, y = common.labelled_features(encoder.backbone, run.data, args.dry_run)
    found = {"linear_first": common.linear_probe(train_r[:, :d0], train_y, r[:, :d0], y, epochs)[0]}
    if d0 < r.shape[1]:
        found["linear_rest"] = common.linear_probe(train_r[:, d0:], train_y, r[:, d0:], y, epochs)[0]
    with torch.no_grad():
        spectra, table = {"r": r, "z": encoder.projector.eval()(r)}, []
    encoder.projector.train()
    for name, x in spectra.items():
        spectra[name] = s = spectrum(x)
        found |= {f"test_rank_{name}": common.collapse_metrics(x)["effective_rank"], f"alive_{name}": (s > 1e-3 * s[0]).sum().item(),
                  f"dims_{name}": len(s)}
        table += [{"space": name, "index": i + 1, "eigenvalue": value} for i, value in enumerate(s.tolist())]
    common.write_csv(run.folder / "spectrum.csv", table)
    result = run.finish(projector=args.projector, **found)
    common.write(run.folder / "spectrum.png", lambda f: draw({args.label: run.folder}).savefig(f, dpi=110, format="png"))
    print(f"{args.label}: effective rank {found['test_rank_r']:.1f} of {found['dims_r']} in r, {found['test_rank_z']:.1f} of {found['dims_z']} in z; "
          f"linear probe {result['linear']:.1f} %")


def draw(folders):
    """The spectra of r and of z, a line for each run.  folders: {label: run folder}"""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, key, title in ((left, "r", "representation r, after the backbone"), (right, "z", "embedding z, what the loss sees")):
        for i, (label, folder) in enumerate(folders.items()):
            s = [float(row["eigenvalue"]) for row in csv.DictReader(open(folder / "spectrum.csv")) if row["space"] == key]
            axis.plot(range(1, len(s) + 1), [x / s[0] for x in s], color=f"C{i}", label=label)
        axis.set(yscale="log", ylim=(1e-8, 2), xlabel="eigenvalue of the covariance, sorted", title=title)
    left.set_ylabel("its size, largest = 1")
    left.legend()
    return figure


def draw_sweep(what, results):
    """Accuracy against d0 or the temperature, and beside it what changes with it."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [float(r["name"].split()[1]) for r in results]
    curves = {"linear": "linear probe of r", "knn": "kNN of r"} | ({"linear_first": "linear probe of r[:d0]"} if what == "d0" else {})
    for key, label in curves.items():
        left.plot(x, [r[key] for r in results], "o-", label=label)
    key, title = ("test_rank_r", "effective rank of r") if what == "d0" else ("covariance", "covariance of Z (Zhang et al., Algorithm 5)")
    right.plot(x, [r[key] for r in results], "o-")
    left.set_title("accuracy (%)")
    right.set_title(title)
    left.legend()
    for axis in (left, right):
        axis.set(xscale="log", xlabel={"d0": "d0, dimensions of r that the loss sees", "temperature": "temperature τ"}[what],
                 xticks=x, xticklabels=[f"{v:g}" for v in x])
        axis.minorticks_off()
    return figure


COLUMNS = {"name": ("", None), "paper": ("paper", None), "knn": ("kNN", 1), "linear": ("linear", 1), "linear_first": ("on r[:d0]", 1),
           "linear_rest": ("on r[d0:]", 1), "test_rank_r": ("rank of r", 1), "alive_r": ("alive in r", 0), "test_rank_z": ("rank of z", 1),
           "alive_z": ("alive in z", 0), "dims_z": ("dims of z", 0), "m_o": ("m_o", 2), "covariance": ("covariance", 4)}


def sweep_rows(args):
    """-> [(name, flags, ImageNet top-1 in the paper)], a row each of the table"""
    if args.all:
        return [("mlp", "--projector mlp", "66.5"), ("linear", "--projector linear", "61.1"), ("direct", "--projector direct", "62.7"),
                ("none", "--projector none", "51.5")]
    if args.sweep == "mode":
        return [(mode, f"--projector direct --direct-mode {mode}", paper)
                for mode, paper in (("prefix", "62.7"), ("random", "43.0"), ("orthogonal", "62.3"))]
    if args.sweep == "temperature":
        return [(f"tau {t:g}", f"--projector mlp --temperature {t}", "") for t in (0.05, 0.1, 0.2, 0.5, 1, 5)]
    width = common.make_backbone(args.arch)[1]
    return [(f"d0 {d}", f"--projector direct --d0 {d}", "") for d in sorted({args.d0, *(width // n for n in (1, 2, 4, 8, 16))})]


def run_all(args, argv, device, data):
    """One run a row, then the table (over all seeds that lie beside) and the figures."""
    folder, rows = Path(args.out) / common.run_name(args), sweep_rows(args)
    folders = common.run_jobs([parse([*argv, *flags.split(), "--out", str(folder)], name) for name, flags, _ in rows],
                              lambda job: train(job, device, data))
    results = [json.loads((f / "result.json").read_text()) | {"name": name, "paper": paper} for (name, _, paper), f in zip(rows, folders)]
    text = common.write_table(args, results, COLUMNS)
    common.write(folder / "spectra.png", lambda f: draw(dict(zip((r["name"] for r in results), folders))).savefig(f, dpi=110, format="png"))
    if args.sweep in ("d0", "temperature"):
        common.write(folder / "sweep.png", lambda f: draw_sweep(args.sweep, results).savefig(f, dpi=110, format="png"))
    print(f"\n{text}\n{folder}: table.csv, table.md and pictures")


# ---------------------------------------------------------------------------------------------------------------- main

def parse(argv, job=""):
    """job: the name of a row of --all or --sweep"""
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    kind = args.projector + f"-{args.direct_mode}" * (args.projector == "direct" and args.direct_mode != "prefix")
    args.label = job.replace(" ", "_") or ("all" if args.all else f"sweep-{args.sweep}" if args.sweep else kind)
    if job:
        args.all, args.sweep = False, ""
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.all and args.sweep:
        common.fail("--all and --sweep are two tables: give one of them")
    if (args.all or args.sweep) and args.resume:
        common.fail("--all and --sweep go on where they stopped by themselves: leave --resume away")
    device = common.setup(args)
    if (args.all or args.sweep) and common.world_size() > 1:
        common.fail("--all and --sweep need a single process: run them without torchrun")
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    return run_all(args, argv, device, data) if args.all or args.sweep else train(args, device, data)


if __name__ == "__main__":
    main()

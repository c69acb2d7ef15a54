"""DirectPred, DirectSet and DirectCopy: BYOL with a linear predictor W_p that is set from the data's correlations, not trained.

Tian, Chen & Ganguli, "Understanding Self-supervised Learning Dynamics without Contrastive Pairs", 2021 (arXiv 2102.06810);
Wang, Chen, Du & Tian, "Towards Demystifying Representation Learning with Non-contrastive Self-supervision", 2021 (arXiv 2110.04947).
Trained by gradient, W_p comes to share its eigenvectors with F = E[z z^T], its eigenvalues p_j close to sqrt(s_j); so why not set it so?

    python directpred.py                             DirectPred; a run folder as byol.py leaves it, and spectrum.csv, spectrum.png
    python directpred.py --predictor sgd             the same net with W_p trained
    python directpred.py --sweep predictor           all of them in one table; also alpha, weight-decay, symmetric

On `patches` a run trains for 100 s on two CPU cores (torch 2.15): kNN 81.7 +- 1.9 % with DirectPred, 79.8 +- 1.3 % with DirectCopy,
78.8 +- 3.7 % with a trained W_p (seeds 0, 1, 2); the trained W_p comes to a mean cosine of 0.60 +- 0.10 with F's eigenvectors.
Where we differ: on `patches` a bias is trained beside W_p, set or not, without which the mean of Z grows and the net learns little;
a trained W_p is 10 times as fast as the encoder, the projector ends with a BN, and F remembers 0.9 of itself, not 0.3.
torch.linalg.eigh makes a GPU wait for the host, once a step.
"""
import copy
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import common

# One dict per data set; every entry is also a flag (--rho 0.3), and a flag that is given wins.  lr is for a batch of 256.
# pred_lr: rate of a trained W_p over the encoder's (alpha_p).  rho: memory of F.  eps: floor of W_p's eigenvalues, alpha: of DirectSet.
TIAN = dict(arch="resnet18", epochs=100, batch_size=128, lr=0.06, schedule="constant", weight_decay=4e-4, warmup_epochs=0,
            proj_hidden=512, proj_dim=128, pred_hidden=512, final_bn="none", predictor_bias=False, pred_lr=1.0, bias_lr=1.0,
            pred_weight_decay=4e-4, ema=0.996, rho=0.3, eps=0.1, alpha=0.5, min_scale=0.08)             # their code; rho, eps: their tables
OURS = dict(arch="small", epochs=17, batch_size=64, lr=0.1, schedule="cosine", weight_decay=1e-3, warmup_epochs=0,
            proj_hidden=256, proj_dim=128, pred_hidden=256, final_bn="noaffine", predictor_bias=True, pred_lr=10.0, bias_lr=100.0,
            pred_weight_decay=0.01, ema=0.95, rho=0.9, eps=0.1, alpha=0.5, min_scale=0.2)
RECIPES = {"patches": OURS, "cifar10": TIAN, "cifar100": TIAN, "stl10": TIAN, "other": OURS | dict(epochs=70)}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"), "schedule": ("constant", "cosine"), "predictor_layers": (1, 2),
           "predictor": ("directpred", "directset", "directcopy", "optimal", "sgd", "symmetric"),
           "sweep": ("", "predictor", "alpha", "weight-decay", "symmetric")}
FLAGS = {"predictor": ("directpred", "set from F (the first four), or trained: sgd, symmetric (kept symmetric after each step)"),
         "freq": (1, "W_p is set after every so many steps, and trained in between"),
         "predictor_layers": (1, "of a trained predictor: 1, linear, or 2 with BN and ReLU"),
         "sweep": ("", "train a whole table: predictor, alpha, weight-decay or symmetric")}


# ------------------------------------------------------------------------------------------------------- the predictors
# F = E[z z^T], [D, D] -> W_p, [D, D].  F = U diag(s) U^T.  The loss ignores the length of p, so the largest s may as well be 1.

def directset_weight(F, alpha, eps):
    """DirectSet(alpha): F^alpha / ||F^alpha|| + eps I, with the spectral norm (the slide names none)."""
    s, U = torch.linalg.eigh(F)                                            # ascending
    p = (s.clamp(min=0) / s[-1]) ** alpha + eps
    return U * p @ U.T                                                     # U diag(p) U^T


def directpred_weight(F, eps):
    """DirectPred: p_j = sqrt(s_j / max s) + eps.  The paper prints sqrt(s_j) + eps max s; its code normalises first, as here."""
    return directset_weight(F, 0.5, eps)


def directcopy_weight(F, eps):
    """DirectCopy: DirectSet(1), which needs no eigendecomposition; the norm comes from G = F^4096, where only the largest s is left."""
    G = F
    for _ in range(12):
        G = G / G.norm()
        G = G @ G
    return F / ((F * G).sum() / G.trace()) + eps * torch.eye(len(F), device=F.device, dtype=F.dtype)


def optimal_weight(F, C):
    """The least-squares predictor, argmin E||W_p z - t||^2 = C F^-1 with C = E[t z^T]; with a hundredth of the mean s as ridge."""
    ridge = 0.01 * F.trace() / len(F) * torch.eye(len(F), device=F.device, dtype=F.dtype)
    return torch.linalg.solve_ex(F + ridge, C.T)[0].T


SET = {"directpred": lambda F, C, args: directpred_weight(F, args.eps), "directcopy": lambda F, C, args: directcopy_weight(F, args.eps),
       "directset": lambda F, C, args: directset_weight(F, args.alpha, args.eps), "optimal": lambda F, C, args: optimal_weight(F, C)}


# ------------------------------------------------------------------------------------------------------------- network

class DirectPred(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args, dim, bias = args, args.proj_dim, args.predictor_bias
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                                     # f = projector after backbone, the online net
        self.encoder.backbone = backbone
        self.encoder.projector = nn.Sequential(
            nn.Linear(width, args.proj_hidden), nn.BatchNorm1d(args.proj_hidden, affine=False), nn.ReLU(inplace=True),
            nn.Linear(args.proj_hidden, dim))
        if args.final_bn != "none":
            self.encoder.projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.predictor = nn.Linear(dim, dim, bias) if args.predictor_layers == 1 else nn.Sequential(                      # W_p
            nn.Linear(dim, args.pred_hidden, bias), nn.BatchNorm1d(args.pred_hidden), nn.ReLU(inplace=True),
            nn.Linear(args.pred_hidden, dim, bias))
        if args.predictor in SET and args.freq == 1:
            self.predictor.weight.requires_grad_(False)                    # set after every step: no gradient at all
        if args.predictor == "symmetric":
            self.symmetrize()
        self.target = copy.deepcopy(self.encoder).requires_grad_(False) if args.ema else None       # f', a copy at the start
        self.register_buffer("FC", torch.zeros(2, dim, dim))               # F = E[z z^T], not centred; C = E[t z^T]
        self.register_buffer("started", torch.zeros(()))

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)                        # [B, D]; each view has its own BN statistics
        p1, p2 = self.predictor(z1), self.predictor(z2)                    # [B, D]
        t1, t2 = (self.target(x1), self.target(x2)) if self.target else (z1, z2)     # without EMA the target is the net itself
        return p1, p2, z1, z2, t1, t2

    @torch.no_grad()
    def update_correlations(self, z1, z2, t1, t2):
        """F <- rho F + (1 - rho) E[z z^T] over both views; the first batch is all of F.  C likewise, with t of the other view."""
        z, t = torch.cat([z1, z2]).float(), torch.cat([t2, t1]).float()                                    # [2B, D]
        now = common.mean_of_ranks(torch.stack([z.T @ z, t.T @ z]) / len(z))
        self.FC.lerp_(now, 1 - self.args.rho * self.started)
        self.started.fill_(1)

    @torch.no_grad()
    def update_predictor(self, step):
        """After step number `step`, counted from 1: set W_p, or do what `symmetric` needs."""
        if self.args.predictor == "symmetric":
            self.symmetrize()
        elif self.args.predictor in SET and step % self.args.freq == 0:
            F, C = self.FC.cpu() if self.FC.device.type == "mps" else self.FC                               # which has no eigh
            self.predictor.weight.copy_(SET[self.args.predictor](F, C, self.args))

    @torch.no_grad()
    def symmetrize(self):
        """W_p <- (W_p + W_p^T) / 2; for two layers W_1 <- (W_1 + W_2^T) / 2, W_2 <- W_1^T."""
        first, last = (self.predictor,) * 2 if self.args.predictor_layers == 1 else (self.predictor[0], self.predictor[3])
        W = (first.weight + last.weight.T) / 2
        first.weight.copy_(W)
        last.weight.copy_(W.T)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f, in one call for all weights and BatchNorm averages."""
        if self.target:
            old, new = ([t for t in net.state_dict().values() if t.is_floating_point()] for net in (self.target, self.encoder))
            torch._foreach_lerp_(old, new, 1 - m)


build = DirectPred


# ---------------------------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Negative cosine similarity, mean over the batch.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -cosine_similarity(p, z, dim=1).mean()


# --------------------------------------------------------------------------------------------------------------- train

@torch.no_grad()
def eigenspace(net):
    """How W_p lies to F.  -> columns for the epoch's row; one row a mode for spectrum.csv (none for a predictor of two layers)

    s, p, cos     eigenvalue of F; u^T W_p u and cos(u, W_p u) of its eigenvector u
    w             eigenvalue of the symmetric part of W_p, sorted by itself
    align         mean of cos over the eigenvectors that carry 99 % of F's trace
    commutator    ||F W_p - W_p F|| / ||F|| ||W_p||, Frobenius norms: 0 when all eigenvectors are shared
    asymmetry     ||W_p - W_p^T|| / ||W_p||"""
    F = net.FC[0].cpu().double()
    s, U = torch.linalg.eigh(F)
    s, U = s.flip(0), U.flip(1)
    table = {"s": s}
    columns = {"align": "", "commutator": "", "asymmetry": ""}
    if isinstance(net.predictor, nn.Linear):
        W = net.predictor.weight.cpu().double()
        table |= {"p": (U * (W @ U)).sum(0), "cos": (U * (W @ U)).sum(0) / (W @ U).norm(dim=0),
                  "w": torch.linalg.eigvalsh((W + W.T) / 2).flip(0)}
        top = s.cumsum(0) - s < 0.99 * s.sum()
        columns = {"align": table["cos"][top].mean().item(), "commutator": ((F @ W - W @ F).norm() / F.norm() / W.norm()).item(),
                   "asymmetry": ((W - W.T).norm() / W.norm()).item()}
    return columns, [dict(zip(table, row)) for row in zip(*(v.tolist() for v in table.values()))]


def train(args, device, data):
    """-> the trained model; leaves spectrum.csv, spectrum.png and result.json beside what every run leaves."""
    model = DirectPred(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    W_p, b = ([p for name, p in model.predictor.named_parameters() if (name == "bias") == is_bias] for is_bias in (False, True))
    optimizer = torch.optim.SGD([{"params": model.encoder.parameters()},
                                 {"params": W_p, "lr": lr * args.pred_lr, "weight_decay": args.pred_weight_decay},
                                 {"params": b, "lr": lr * args.bias_lr, "weight_decay": 0.0}],
                                lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        losses = []
        for t, x in run.batches():                                         # epochs done so far; uint8 [B, 3, S, S]
            if args.schedule == "cosine":
                optimizer.param_groups[0]["lr"] = common.cosine_lr(lr, t, args.epochs, args.warmup_epochs)

            x1, x2 = (common.augment(x, data.mean, data.std, args.min_scale) for _ in range(2))
            with common.autocast(device):                                  # bfloat16 on CUDA
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
            losses.append(loss.detach())
            model.update_correlations(z1, z2, t1, t2)
            if epoch == 0:                                                 # the untrained net: measured, not trained
                break

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target(args.ema)
            model.update_predictor(int(t * run.steps) + 1)                 # counted from 1 over the whole run
        columns, modes = eigenspace(model)
        run.log("spectrum.csv", modes)
        run.end_epoch(losses, lr=optimizer.param_groups[0]["lr"], z=torch.cat([z1, z2]).detach(), **columns)
    if run.finish():
        common.write(run.folder / "spectrum.png", lambda f: draw(run.folder, args).savefig(f, dpi=110, format="png"))
    return model


def draw(folder, args):
    """spectrum.png: the eigenvalues of F over training, those of W_p against them, and how well the two matrices align."""
    from matplotlib.figure import Figure
    modes, history = common.read_csv(folder / "spectrum.csv"), common.read_csv(folder / "metrics.csv")
    linear = "cos" in modes[0]                                             # a predictor of two layers has no W_p
    figure = Figure(figsize=(13, 3.9) if linear else (4.5, 3.9), layout="constrained")
    left, *others = figure.subplots(1, 3 if linear else 1, squeeze=False)[0]
    draw_spectrum(left, modes)
    left.set(ylabel="share of F's trace", title="eigenvalues of F = E[z z$^T$], sorted")
    if linear:
        middle, right = others
        for epoch, color in ((1, "0.75"), (history[-1]["epoch"], "C3")):
            here = [row for row in modes if row["epoch"] == epoch and row["s"] > 0]
            most = max(abs(row["p"]) for row in here)
            middle.plot([(row["s"] / here[0]["s"]) ** 0.5 for row in here], [row["p"] / most for row in here], ".", color=color,
                        label=f"epoch {epoch:.0f}")
        middle.axline((0, 0), (1, 1), color="k", ls="--", lw=1, label="invariance: p = √s")
        middle.set(xlabel="√s of F's eigenvector u, largest = 1", ylabel="p = u$^T$ W$_p$ u, largest = 1",
                   title=f"eigenvalues of W$_p$ ({args.label})")
        middle.legend()
        for key, text in (("align", "cos(u, W$_p$u), mean"), ("commutator", "‖FW$_p$ − W$_p$F‖ / ‖F‖‖W$_p$‖"),
                          ("asymmetry", "‖W$_p$ − W$_p^T$‖ / ‖W$_p$‖")):
            right.plot([row["epoch"] for row in history], [row[key] for row in history], label=text)
        right.set(xlabel="epoch", title="do W$_p$ and F share eigenvectors?")
        right.xaxis.get_major_locator().set_params(integer=True)
        right.legend()
    return figure


def draw_spectrum(axis, modes):
    """Every eigenvalue of F over training, the largest yellow, the smallest violet."""
    from matplotlib import colormaps
    epochs = sorted({row["epoch"] for row in modes})
    s = [[max(row["s"], 0) for row in modes if row["epoch"] == epoch] for epoch in epochs]                  # [epoch][j]
    for j in range(len(s[0])):
        axis.plot(epochs, [line[j] / sum(line) for line in s], color=colormaps["viridis"](1 - j / len(s[0])), lw=0.8)
    axis.set(yscale="log", ylim=(1e-6, 1.5), xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


# ------------------------------------------------------------------------------------------------------------- --sweep

COLUMNS = {"predictor": ("predictor", None), "paper": ("paper", None), "knn": ("kNN", 1), "linear": ("linear", 1),
           "std": ("std", 2), "m_o": ("m_o", 2), "effective_rank": ("rank", 1), "align": ("align", 3),
           "commutator": ("commutator", 3), "asymmetry": ("asymmetry", 3)}


def sweep_rows(args):
    """-> [(name, flags, top-1 in the papers)].  All of the papers' are linear evaluations; CIFAR-10 or STL-10, ResNet-18, 100 epochs."""
    if args.sweep == "predictor":
        return [("DirectPred", "--predictor directpred", "85.21"), ("DirectPred, freq 5", "--predictor directpred --freq 5", "84.93"),
                ("DirectCopy", "--predictor directcopy", "84.02"), ("trained", "--predictor sgd", "84.49"),
                ("least squares", "--predictor optimal", "40.67 (STL-10)"), ("DirectPred, no EMA", "--predictor directpred --ema 0", "")]
    if args.sweep == "alpha":
        return [(f"alpha {a}", f"--predictor directset --alpha {a}", paper)
                for a, paper in ((2, "82.96"), (1, "84.02"), (0.5, "84.88"), (0.25, "84.78"))]
    if args.sweep == "weight-decay":
        return [(f"decay {d}", f"--predictor directcopy --weight-decay {d}", paper)
                for d, paper in ((0, "79.15"), (0.0004, "84.02"), (0.001, "83.91"), (0.01, "65.31"))]
    paper = {(1, False): (75.09, 74.51, 36.62, 72.85), (1, True): (74.52, 74.16, 36.04, 72.13),                       # STL-10
             (2, False): (71.58, 78.85, 35.59, 65.98), (2, True): (77.64, 78.53, 41.92, 65.59)}
    paper = iter(paper[args.predictor_layers, args.predictor_bias])
    return [(f"{kind}, {ema}", f"--predictor {predictor}" + flag, f"{next(paper)} (STL-10)")
            for ema, flag in (("EMA", ""), ("no EMA", " --ema 0")) for kind, predictor in (("symmetric", "symmetric"), ("regular", "sgd"))]


def run_sweep(args, argv, device, data):
    """One run a row, then the table (over all seeds that lie beside) and the spectra."""
    folder, rows = Path(args.out) / common.run_name(args), sweep_rows(args)
    jobs = [parse([*argv, *flags.split(), "--out", str(folder)], name) for name, flags, _ in rows]
    folders = common.run_jobs(jobs, lambda job: train(job, device, data))
    results = [json.loads((f / "result.json").read_text()) | {"predictor": name, "paper": paper}
               for (name, _, paper), f in zip(rows, folders)]
    text = common.write_table(args, results, COLUMNS)

    from matplotlib.figure import Figure
    figure = Figure(figsize=(3.1 * len(rows), 3.3), layout="constrained")
    for axis, result, f in zip(figure.subplots(1, len(rows), sharey=True), results, folders):
        draw_spectrum(axis, common.read_csv(f / "spectrum.csv"))
        axis.set_title(f"{result['predictor']}: kNN {result['knn']:.1f}")
    figure.axes[0].set_ylabel("eigenvalues of F, share of its trace")
    common.write(folder / "spectra.png", lambda f: figure.savefig(f, dpi=100, format="png"))
    print(f"\n{text}\n{folder}: table.csv, table.md, spectra.png")


# ---------------------------------------------------------------------------------------------------------------- main

def parse(argv, job=""):
    """job: the name of a row of --sweep"""
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    if args.predictor_layers == 2 and (args.sweep != "symmetric" if args.sweep else args.predictor in SET):
        common.fail("--predictor-layers 2 is for predictors that are trained: --predictor sgd or symmetric, or --sweep symmetric")
    kind = ("-2layers" * (args.predictor_layers == 2) + ("-bias" if args.predictor_bias else "-nobias")) * (args.sweep == "symmetric")
    args.label = job.replace(", ", "-").replace(" ", "_") or (f"sweep-{args.sweep}{kind}" if args.sweep else args.predictor)
    if job:
        args.sweep = ""
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.sweep and (args.predictor != "directpred" or args.resume):
        common.fail("--sweep chooses the predictors and goes on where it stopped by itself: leave --predictor and --resume away")
    device = common.setup(args)
    if args.sweep and common.world_size() > 1:
        common.fail("--sweep needs a single process: run it without torchrun")
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    return (run_sweep(args, argv, device, data) if args.sweep else train(args, device, data))


if __name__ == "__main__":
    main()

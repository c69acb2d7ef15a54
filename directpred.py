"""DirectPred, DirectSet, DirectCopy: BYOL with a linear predictor W_p that is set, not trained.

Tian, Chen & Ganguli, "Understanding Self-supervised Learning Dynamics without Contrastive Pairs",
2021 (arXiv 2102.06810); Wang, Chen, Du & Tian, "Towards Demystifying Representation Learning with
Non-contrastive Self-supervision", 2021 (arXiv 2110.04947).  A W_p that is trained by gradient comes
to share its eigenvectors with F = E[z z^T], and its eigenvalues p_j come close to sqrt(s_j), with
s_j those of F.  So the papers compute W_p from F after every step, without a gradient.

    python directpred.py                     DirectPred; also spectrum.csv and spectrum.png
    python directpred.py --predictor sgd     the same net with W_p trained

On `patches` a run trains for two minutes on two CPU cores.  Where we differ from the papers: the
target starts as a copy of the net; the norm of F^alpha, which the slides do not name, is the
spectral one.  On `patches` z ends with a BatchNorm, F remembers 0.9 of itself, not 0.3, a bias is
trained beside W_p, without which the mean of Z grows, and a trained W_p is 10 times as fast as the
encoder, with 10 times its weight decay.  torch.linalg.eigh makes a GPU wait once a step.
"""
import copy
import time

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cosine_similarity

import common

# The settings for each data set.  Every entry is also a flag (--help says what it is), and a flag
# that is given wins.
TIAN = dict(                    # their code; rho and eps from their tables
    arch="resnet18", epochs=100, batch_size=128, lr=0.06, schedule="constant", weight_decay=4e-4,
    warmup_epochs=0, proj_hidden=512, proj_dim=128, pred_hidden=512, final_bn="none",
    predictor_bias=False, pred_lr=1.0, bias_lr=1.0, pred_weight_decay=4e-4, ema=0.996, rho=0.3,
    eps=0.1, alpha=0.5, min_scale=0.08)
OURS = dict(
    arch="small", epochs=17, batch_size=64, lr=0.1, schedule="cosine", weight_decay=1e-3,
    warmup_epochs=0, proj_hidden=256, proj_dim=128, pred_hidden=256, final_bn="noaffine",
    predictor_bias=True, pred_lr=10.0, bias_lr=100.0, pred_weight_decay=0.01, ema=0.95, rho=0.9,
    eps=0.1, alpha=0.5, min_scale=0.2)
RECIPES = {"patches": OURS, "cifar10": TIAN, "cifar100": TIAN, "other": OURS | dict(epochs=70)}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "schedule": ("constant", "cosine"), "predictor_layers": (1, 2),
           "predictor": ("directpred", "directset", "directcopy", "optimal", "sgd", "symmetric")}
FLAGS = {"predictor": ("directpred", "set from F (the first four), or trained: sgd, symmetric "
                                     "(kept symmetric after each step)"),
         "center": (False, "F and C of z and t minus their means"),
         "predictor_bias": (None, "train a vector that is added to W_p z"),
         "rho": (None, "how much of F is kept at a step; the rest is of the new batch"),
         "eps": (None, "floor that is added to W_p's eigenvalues"),
         "alpha": (None, "exponent of DirectSet"),
         "freq": (1, "W_p is set after every so many steps, and trained in between"),
         "predictor_layers": (1, "of --predictor sgd: 1, linear, or 2 with BN and ReLU")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Minus the mean cosine similarity.  p, z: [B, dim] -> scalar.  Who calls it detaches z."""
    return -cosine_similarity(p, z, dim=1).mean()


# ---------------------------------------------------------------------------------- the predictors
# F = E[z z^T] = U diag(s) U^T, [D, D] -> W_p, [D, D].  The loss ignores the length of p, so the
# largest s may as well be 1.

def directset_weight(F, alpha, eps):
    """DirectSet(alpha): F^alpha / ||F^alpha|| + eps I, with the spectral norm."""
    # float64, because in float32 eigh may fail to converge once the net has collapsed
    s, U = torch.linalg.eigh(F.double().nan_to_num(0, 0, 0))       # ascending; nan would raise
    p = (s.clamp(min=0) / s[-1]) ** alpha + eps
    return (U * p @ U.T).to(F.dtype)                       # U diag(p) U^T


def directpred_weight(F, eps):
    """DirectPred: p_j = sqrt(s_j / max s) + eps, as in its code (paper: sqrt(s_j) + eps max s)."""
    return directset_weight(F, 0.5, eps)


def directcopy_weight(F, eps):
    """DirectCopy: DirectSet(1) without an eigendecomposition.  The norm, the largest s, is
    tr(F G) / tr(G) with G = F^4096, of which only that eigenvalue is left."""
    G = F
    for _ in range(12):
        G = G / G.norm()
        G = G @ G
    identity = torch.eye(len(F), device=F.device, dtype=F.dtype)
    return F / ((F * G).sum() / G.trace()) + eps * identity


def optimal_weight(F, C):
    """The least-squares predictor, argmin E||W_p z - t||^2, from F and C = E[t z^T], with a
    hundredth of the mean s added to F."""
    identity = torch.eye(len(F), device=F.device, dtype=F.dtype)
    return torch.linalg.solve_ex(F + 0.01 * F.trace() / len(F) * identity, C.T)[0].T


# ----------------------------------------------------------------------------------------- network

class DirectPred(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args, dim, bias = args, args.proj_dim, args.predictor_bias
        backbone, width = common.make_backbone(args.arch)
        projector = nn.Sequential(
            nn.Linear(width, args.proj_hidden), nn.BatchNorm1d(args.proj_hidden, affine=False),
            nn.ReLU(), nn.Linear(args.proj_hidden, dim))
        if args.final_bn != "none":                        # it may hide a collapse: see README
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the projector after the backbone
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        if args.predictor_layers == 1:
            self.predictor = nn.Linear(dim, dim, bias)     # W_p
        else:
            self.predictor = nn.Sequential(
                nn.Linear(dim, args.pred_hidden, bias),
                nn.BatchNorm1d(args.pred_hidden, affine=False), nn.ReLU(),
                nn.Linear(args.pred_hidden, dim, bias))
        self.is_set = args.predictor not in ("sgd", "symmetric")
        if self.is_set and args.freq == 1:
            self.predictor.weight.requires_grad_(False)    # set after every step: no gradient
        if args.predictor == "symmetric":
            self.symmetrize()
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)                      # f'
        self.register_buffer("correlations", torch.zeros(2, dim, dim))     # F, C = E[t z^T]
        self.register_buffer("started", torch.zeros(()))

    def forward(self, x1, x2):
        # One call per view, so that BatchNorm uses each view's own mean and variance.
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, D]
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, D]
        return p1, p2, z1, z2, self.target(x1), self.target(x2)

    @torch.no_grad()
    def update_correlations(self, z1, z2, t1, t2):
        """F <- rho F + (1 - rho) E[z z^T] over the 2B rows of both views; likewise C of E[t z^T],
        with t of the other view.  The first batch is all of F: `started` is 0 before it."""
        z, t = torch.cat([z1, z2]).float(), torch.cat([t2, t1]).float()                  # [2B, D]
        if self.args.center:
            z, t = z - z.mean(0), t - t.mean(0)
        now = torch.stack([z.T @ z, t.T @ z]) / len(z)
        self.correlations.lerp_(now, 1 - self.args.rho * self.started)
        self.started.fill_(1)

    @torch.no_grad()
    def set_predictor(self):
        """W_p from F and C."""
        args, (F, C) = self.args, self.correlations
        if F.device.type == "mps":                         # which has no eigh
            F, C = F.cpu(), C.cpu()
        if args.predictor == "directpred":
            W_p = directpred_weight(F, args.eps)
        elif args.predictor == "directset":
            W_p = directset_weight(F, args.alpha, args.eps)
        elif args.predictor == "directcopy":
            W_p = directcopy_weight(F, args.eps)
        else:
            W_p = optimal_weight(F, C)
        self.predictor.weight.copy_(W_p)

    @torch.no_grad()
    def symmetrize(self):
        """W_p <- (W_p + W_p^T) / 2"""
        self.predictor.weight.copy_((self.predictor.weight + self.predictor.weight.T) / 2)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f in place: weights and BatchNorm's averages, but no counters."""
        target = self.target.state_dict()
        for name, new in self.encoder.state_dict().items():
            if new.is_floating_point():
                target[name].lerp_(new, 1 - m)


build = DirectPred


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS,
                             zero=["ema", "rho", "eps", "pred_weight_decay"])
    if args.ema > 1 or args.rho >= 1 or args.min_scale > 1:
        common.fail("--ema and --min-scale must be at most 1, and --rho below 1")
    if args.predictor_layers == 2 and args.predictor != "sgd":
        common.fail("--predictor-layers 2 is for --predictor sgd")
    args.label = args.predictor
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = DirectPred(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    lr = args.lr * args.batch_size / 256
    weights = [p for name, p in model.predictor.named_parameters() if "bias" not in name]
    biases = [p for name, p in model.predictor.named_parameters() if "bias" in name]
    groups = [{"params": model.encoder.parameters()},
              {"params": weights, "lr": lr * args.pred_lr, "weight_decay": args.pred_weight_decay},
              {"params": biases, "lr": lr * args.bias_lr, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # makes the run's folder, or resumes it
    if not log.history:                                    # row 0: the untrained net's score
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42 epochs; indices
            if args.schedule == "cosine":
                rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
                optimizer.param_groups[0]["lr"] = rate     # the encoder's; the others stay constant
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size], no labels
            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale)
            with common.autocast(device):                  # bfloat16 on CUDA
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                # detach is the stop-gradient: without it p and z move towards one point together
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would make a GPU wait
            model.update_target(args.ema)                  # after the step, so that it follows
            model.update_correlations(z1, z2, t1, t2)
            steps = (epoch - 1) * log.steps + len(losses)
            if args.predictor == "symmetric":
                model.symmetrize()
            elif model.is_set and steps % args.freq == 0:
                model.set_predictor()                      # in place of a gradient step for W_p
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        columns, modes = eigenspace(model)
        log.tables.setdefault("spectrum", []).extend({"epoch": epoch, **mode} for mode in modes)
        z = torch.cat([z1, z2])                            # of the last batch, to look for collapse
        metrics = common.measure(model.encoder, data, args, epoch, z)
        log.row(epoch, mean_loss, seconds, **metrics, **columns)
    ranks = [row["effective_rank"] for row in log.history]           # do they fall and bounce back?
    log.finish(effective_rank_lowest=min(ranks),
               **common.evaluate(model.encoder, data, args, epochs=100))
    if args.epochs:
        draw(log.tables["spectrum"]).savefig(log.folder / "spectrum.png")
    return model


# ------------------------------------------------------------------------------------------ report

@torch.no_grad()
def eigenspace(net):
    """How W_p lies to F.  -> columns for the epoch's row; a row a mode for spectrum.csv
    s, p, cos     eigenvalue of F; u^T W_p u and cos(u, W_p u) of its eigenvector u
    align         mean of cos over the eigenvectors that carry 99 % of F's trace
    commutator    ||F W_p - W_p F|| / ||F|| ||W_p||: 0 when all eigenvectors are shared
    asymmetry     ||W_p - W_p^T|| / ||W_p||
    Nothing but s if the predictor has two layers."""
    F = net.correlations[0].cpu().double().nan_to_num(0, 0, 0)     # nan: log.row says so
    s, U = torch.linalg.eigh(F)
    s, U = s.flip(0), U.flip(1)
    if not isinstance(net.predictor, nn.Linear):
        return {}, [{"s": value} for value in s.tolist()]
    W = net.predictor.weight.cpu().double().nan_to_num(0, 0, 0)
    p = (U * (W @ U)).sum(0)
    cos = p / (W @ U).norm(dim=0)
    top = s.cumsum(0) - s < 0.99 * s.sum()
    columns = {"align": cos[top].mean().item(), "asymmetry": ((W - W.T).norm() / W.norm()).item(),
               "commutator": ((F @ W - W @ F).norm() / F.norm() / W.norm()).item()}
    table = torch.stack([s, p, cos], 1).tolist()
    return columns, [dict(zip(("s", "p", "cos"), row)) for row in table]


def draw(modes):
    """spectrum.png: eigenvalues of F over training, and at its end those of W_p against them."""
    epochs = sorted({row["epoch"] for row in modes})
    spectra = [[row for row in modes if row["epoch"] == epoch] for epoch in epochs]
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for j in range(len(spectra[0])):                       # the largest yellow, the smallest violet
        share = [max(rows[j]["s"], 0) / sum(row["s"] for row in rows) for rows in spectra]
        left.plot(epochs, share, color=colormaps["viridis"](1 - j / len(spectra[0])), lw=0.8)
    left.set(yscale="log", ylim=(1e-6, 1.5), xlabel="epoch", ylabel="share of F's trace",
             title="eigenvalues s of F = E[z z$^T$]")
    if "p" in modes[0]:                                    # one layer: there is a W_p
        largest = max(spectra[-1], key=lambda row: row["s"])
        for row in spectra[-1]:
            right.plot((max(row["s"], 0) / largest["s"]) ** 0.5, row["p"] / largest["p"], "C3.")
        right.axline((0, 0), (1, 1), color="k", ls="--", lw=1, label="invariance: p = √s")
        right.set(xlabel="√s of F's eigenvector u, of the largest 1",
                  ylabel="p = u$^T$ W$_p$ u, of the same 1", title="W$_p$ at the end")
        right.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    common.cli(main)

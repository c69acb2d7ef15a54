"""This is BYOL with a predictor that is computed, not trained: DirectPred, DirectSet, DirectCopy.

Tian, Chen & Ganguli, "Understanding Self-supervised Learning Dynamics without Contrastive Pairs",
2021 (arXiv 2102.06810); Wang, Chen, Du & Tian, "Towards Demystifying Representation Learning with
Non-contrastive Self-supervision", 2021 (arXiv 2110.04947).  The encoder f (a backbone, then a small
net, the projector) makes z of a view, a random crop of an image in other colours.  The target f', a
slow average of f, makes t of another view.  The predictor, here a matrix W_p, guesses t from z.  A
trained W_p comes to share its eigenvectors with F, the mean of z z^T, and its eigenvalues come near
the square roots of those of F.  So the papers compute W_p from F at every step, without a gradient.

    python directpred.py                     DirectPred; makes spectrum.csv and spectrum.png too
    python directpred.py --predictor sgd     the same net, but W_p is trained

Each takes two minutes on `patches` with two CPU cores.  A linear probe, one linear layer on the
backbone's features, then finds the class of 91 % of the test images (three seeds).  Where we differ
from the papers: the target starts as a copy of f.  F^alpha is divided by its largest eigenvalue,
because the slides do not name the norm.  On `patches` z ends with a BatchNorm, F keeps 0.9 of
itself at a step, not 0.3, and a bias is trained beside W_p, because the mean of z / |z| grows
without it.  There a trained W_p has 10 times the learning rate and 10 times the weight decay of f.
"""
import copy
import time

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cosine_similarity

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
TIAN = dict(                    # Tian et al.'s code has these; rho and eps are in their tables.
    arch="resnet18", epochs=100, batch_size=128, lr=0.06, schedule="constant", weight_decay=4e-4,
    warmup_epochs=0, proj_hidden=512, proj_dim=128, pred_hidden=512, final_bn="none",
    predictor_bias=False, pred_lr=1.0, bias_lr=1.0, pred_weight_decay=4e-4, ema=0.996, rho=0.3,
    eps=0.1, alpha=0.5, min_scale=0.08)
OURS = dict(                    # We chose these.
    arch="small", epochs=17, batch_size=64, lr=0.1, schedule="cosine", weight_decay=1e-3,
    warmup_epochs=0, proj_hidden=256, proj_dim=128, pred_hidden=256, final_bn="noaffine",
    predictor_bias=True, pred_lr=10.0, bias_lr=100.0, pred_weight_decay=0.01, ema=0.95, rho=0.9,
    eps=0.1, alpha=0.5, min_scale=0.2)
RECIPES = {"patches": OURS, "cifar10": TIAN, "cifar100": TIAN, "other": OURS | dict(epochs=70)}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "schedule": ("constant", "cosine"), "predictor_layers": (1, 2),
           "predictor": ("directpred", "directset", "directcopy", "optimal", "sgd", "symmetric")}
FLAGS = {"predictor": ("directpred", "how W_p is found: the first four compute it from F (optimal "
                       "is least squares), sgd trains it, symmetric keeps a trained one symmetric"),
         "center": (False, "compute F and C (the mean of t z^T) from z and t minus their means"),
         "predictor_bias": (None, "train a bias, a vector that is added to W_p z"),
         "rho": (None, "share of F that is kept at a step; the new batch gives the rest"),
         "eps": (None, "number added to the eigenvalues of W_p; before that the largest is 1"),
         "alpha": (None, "exponent of F in DirectSet; 0.5 is DirectPred, and 1 is DirectCopy"),
         "freq": (1, "steps from one computing of W_p to the next; W_p is trained in between"),
         "predictor_layers": (1, "layers of the predictor; 2, with BatchNorm and ReLU, need sgd")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Minus the mean cosine similarity of p and z, [B, dim] -> scalar.  The caller detaches z."""
    return -cosine_similarity(p, z, dim=1).mean()


# ---------------------------------------------------------------------------------- the predictors
# F = E[z z^T], [dim, dim], is a mean over images and views.  It is U diag(s) U^T, with eigenvectors
# in the columns of U and eigenvalues s.  W_p, [dim, dim], gets eigenvectors U and eigenvalues p_j.
# The loss ignores the length of W_p z, so all s_j may be divided by the largest.

def directset_weight(F, alpha, eps):
    """DirectSet's W_p is F^alpha / ||F^alpha|| + eps I.  The norm is the largest eigenvalue."""
    # After a collapse, when all z are alike, eigh may fail in float32.  It also fails with a nan.
    s, U = torch.linalg.eigh(F.double().nan_to_num(0, 0, 0))       # The largest s is the last.
    p = (s.clamp(min=0) / s[-1]) ** alpha + eps
    return (U * p @ U.T).to(F.dtype)                       # This is U diag(p) U^T.


def directpred_weight(F, eps):
    """DirectPred's p_j is sqrt(s_j / max s) + eps, as in its code (paper: sqrt(s_j) + eps max s)"""
    return directset_weight(F, 0.5, eps)


def directcopy_weight(F, eps):
    """DirectCopy's W_p is F / ||F|| + eps I and needs no eigenvectors.  The norm, the largest s,
    is tr(F G) / tr(G) with G = F^4096: in so high a power the other eigenvalues do not count."""
    G = F
    for _ in range(12):
        G = G / G.norm()
        G = G @ G
    identity = torch.eye(len(F), device=F.device, dtype=F.dtype)
    return F / ((F * G).sum() / G.trace()) + eps * identity


def optimal_weight(F, C):
    """The least-squares W_p makes E||W_p z - t||^2 smallest.  It follows from F and C = E[t z^T].
    A hundredth of the mean s is added to F's diagonal, so that F can be inverted."""
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
        if args.final_bn != "none":                        # It can hide a collapse (see README).
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the backbone, then the projector
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        if args.predictor_layers == 1:
            self.predictor = nn.Linear(dim, dim, bias)     # Its weight is W_p.
        else:
            self.predictor = nn.Sequential(
                nn.Linear(dim, args.pred_hidden, bias),
                nn.BatchNorm1d(args.pred_hidden, affine=False), nn.ReLU(),
                nn.Linear(args.pred_hidden, dim, bias))
        self.is_set = args.predictor not in ("sgd", "symmetric")
        if self.is_set and args.freq == 1:
            self.predictor.weight.requires_grad_(False)    # It needs no gradient.
        if args.predictor == "symmetric":
            self.symmetrize()
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)                      # f'
        self.register_buffer("correlations", torch.zeros(2, dim, dim))     # F and C = E[t z^T]
        self.register_buffer("started", torch.zeros(()))

    def forward(self, x1, x2):
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, dim]
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, dim]
        return p1, p2, z1, z2, self.target(x1), self.target(x2)

    @torch.no_grad()
    def update_correlations(self, z1, z2, t1, t2):
        """F <- rho F + (1 - rho) E[z z^T], where E is the mean over the 2B rows of both views.
        C moves towards E[t z^T] in the same way; z and t are of different views of an image.
        F and C of the first batch are taken whole: before it `started` is 0, after it 1."""
        z, t = torch.cat([z1, z2]).float(), torch.cat([t2, t1]).float()                # [2B, dim]
        if self.args.center:
            z, t = z - z.mean(0), t - t.mean(0)
        now = torch.stack([z.T @ z, t.T @ z]) / len(z)
        self.correlations.lerp_(now, 1 - self.args.rho * self.started)
        self.started.fill_(1)

    @torch.no_grad()
    def set_predictor(self):
        """Compute W_p from F and C.  The eigh of DirectPred and DirectSet makes the CPU wait."""
        args, (F, C) = self.args, self.correlations
        if F.device.type == "mps":                         # eigh does not run there.
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
        """Make W_p symmetric: W_p <- (W_p + W_p^T) / 2."""
        self.predictor.weight.copy_((self.predictor.weight + self.predictor.weight.T) / 2)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f in place, for weights and BatchNorm's averages, not counters"""
        target = self.target.state_dict()
        for name, new in self.encoder.state_dict().items():
            if new.is_floating_point():
                target[name].lerp_(new, 1 - m)


build = DirectPred                             # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS,
                             zero=["ema", "rho", "eps", "pred_weight_decay"])
    if args.ema > 1 or args.rho >= 1 or args.min_scale > 1:
        common.fail("--ema and --min-scale must be at most 1, and --rho must be below 1")
    if args.predictor_layers == 2 and args.predictor != "sgd":
        common.fail("--predictor-layers 2 needs --predictor sgd")
    args.label = args.predictor                            # It becomes part of the folder's name.
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
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    if not log.history:                                    # Row 0 is of the untrained net.
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42; images' indices
            if args.schedule == "cosine":
                rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
                optimizer.param_groups[0]["lr"] = rate     # The other groups' rates stay constant.
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]; no labels
            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale)
            with common.autocast(device):                  # A GPU uses 16-bit floats (bfloat16).
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                # .detach() is the stop-gradient: the target stays where it is, and only p moves.
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would wait for the GPU.
            model.update_target(args.ema)                  # The target follows after the step.
            model.update_correlations(z1, z2, t1, t2)
            steps = (epoch - 1) * log.steps + len(losses)
            if args.predictor == "symmetric":
                model.symmetrize()
            elif model.is_set and steps % args.freq == 0:
                model.set_predictor()                      # This replaces W_p's gradient step.
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        columns, modes = eigenspace(model)
        log.tables.setdefault("spectrum", []).extend({"epoch": epoch, **mode} for mode in modes)
        z = torch.cat([z1, z2])                            # Has the last batch's z collapsed?
        metrics = common.measure(model.encoder, data, args, epoch, z)
        log.row(epoch, mean_loss, seconds, **metrics, **columns)
    ranks = [row["effective_rank"] for row in log.history]           # They may fall and rise again.
    log.finish(effective_rank_lowest=min(ranks),
               **common.evaluate(model.encoder, data, args, epochs=100))   # trains the linear probe
    if args.epochs:
        draw(log.tables["spectrum"]).savefig(log.folder / "spectrum.png")
    return model


# ------------------------------------------------------------------------------------------ report

@torch.no_grad()
def eigenspace(net):
    """Compare W_p with F.  -> columns of the epoch's row; rows of spectrum.csv (s, p, cos)
    s, p, cos     of an eigenvector u of F: its eigenvalue; u^T W_p u; the cosine of u and W_p u
    align         the mean of cos over the largest s that make up 99 % of F's trace
    commutator    ||F W_p - W_p F|| / ||F|| ||W_p||: it is 0 if all eigenvectors are shared
    asymmetry     ||W_p - W_p^T|| / ||W_p||
    A predictor with two layers is not a matrix.  Then there is nothing but s."""
    F = net.correlations[0].cpu().double().nan_to_num(0, 0, 0)     # log.row reports a nan.
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
    """Draw spectrum.png: F's eigenvalues s at every epoch, and at the end W_p's p against s."""
    epochs = sorted({row["epoch"] for row in modes})
    spectra = [[row for row in modes if row["epoch"] == epoch] for epoch in epochs]
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for j in range(len(spectra[0])):                       # from yellow (largest) to violet
        share = [max(rows[j]["s"], 0) / sum(row["s"] for row in rows) for rows in spectra]
        left.plot(epochs, share, color=colormaps["viridis"](1 - j / len(spectra[0])), lw=0.8)
    left.set(yscale="log", ylim=(1e-6, 1.5), xlabel="epoch", ylabel="share of F's trace",
             title="eigenvalues s of F = E[z z$^T$]")
    if "p" in modes[0]:                                    # With one layer there is a W_p.
        largest = max(spectra[-1], key=lambda row: row["s"])
        for row in spectra[-1]:
            right.plot((max(row["s"], 0) / largest["s"]) ** 0.5, row["p"] / largest["p"], "C3.")
        right.axline((0, 0), (1, 1), color="k", ls="--", lw=1, label="theory: p = √s")
        right.set(xlabel="√s of each eigenvector u of F (the largest is 1)",
                  ylabel="p = u$^T$ W$_p$ u (1 for the largest s)", title="W$_p$ at the end")
        right.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    common.cli(main)

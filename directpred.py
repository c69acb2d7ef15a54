"""DirectPred, DirectSet, DirectCopy: BYOL with a linear predictor W_p that is set, not trained.

Tian, Chen & Ganguli, "Understanding Self-supervised Learning Dynamics without Contrastive Pairs",
2021 (arXiv 2102.06810); Wang, Chen, Du & Tian, "Towards Demystifying Representation Learning with
Non-contrastive Self-supervision", 2021 (arXiv 2110.04947).  Trained by gradient, W_p comes to share
its eigenvectors with F = E[z z^T], its eigenvalues p_j close to sqrt(s_j); so why not set it so?

    python directpred.py                     DirectPred; also spectrum.csv and spectrum.png
    python directpred.py --predictor sgd     the same net with W_p trained

On `patches` a run trains for two minutes on two CPU cores; a trained W_p's mean cosine with F's
eigenvectors comes to 0.6.  Where we differ: the target starts as a copy of the net; on `patches` a
bias is trained beside W_p, set or not, 100 times as fast as the encoder, without which the mean of
Z grows and the net learns little, a trained W_p is 10 times as fast, with 10 times the weight
decay, the projector ends with a BN, and F remembers 0.9 of itself, not 0.3.  The slides name no
norm of F^alpha: here it is the spectral one.  torch.linalg.eigh makes a GPU wait for the host, once
a step.
"""
import copy

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import common

# One dict a data set; every entry is also a flag, and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.  pred_lr: a trained W_p's over
# the encoder's (alpha_p), bias_lr: that of h's biases, which do not decay.  rho: memory of F.  eps:
# floor of W_p's eigenvalues, alpha: of DirectSet.
TIAN = dict(                    # their code; rho, eps: their tables.  Their STL-10 is 96 x 96
    arch="resnet18", epochs=100, batch_size=128, lr=0.06, schedule="constant", weight_decay=4e-4,
    warmup_epochs=0, proj_hidden=512, proj_dim=128, pred_hidden=512, final_bn="none",
    predictor_bias=False, pred_lr=1.0, bias_lr=1.0, pred_weight_decay=4e-4, ema=0.996, rho=0.3,
    eps=0.1, alpha=0.5, min_scale=0.08)
OURS = dict(
    arch="small", epochs=17, batch_size=64, lr=0.1, schedule="cosine", weight_decay=1e-3,
    warmup_epochs=0, proj_hidden=256, proj_dim=128, pred_hidden=256, final_bn="noaffine",
    predictor_bias=True, pred_lr=10.0, bias_lr=100.0, pred_weight_decay=0.01, ema=0.95, rho=0.9,
    eps=0.1, alpha=0.5, min_scale=0.2)
RECIPES = {"patches": OURS, "cifar10": TIAN, "cifar100": TIAN, "stl10": TIAN,
           "other": OURS | dict(epochs=70)}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "schedule": ("constant", "cosine"), "predictor_layers": (1, 2),
           "predictor": ("directpred", "directset", "directcopy", "optimal", "sgd", "symmetric")}
FLAGS = {"predictor": ("directpred", "set from F (the first four), or trained: sgd, symmetric "
                                     "(kept symmetric after each step)"),
         "center": (False, "F and C less the means of z and t: collapses without a final BN"),
         "freq": (1, "W_p is set after every so many steps, and trained in between"),
         "predictor_layers": (1, "of a trained predictor: 1, linear, or 2 with BN and ReLU")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Negative cosine similarity.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -cosine_similarity(p, z, dim=1).mean()


# ---------------------------------------------------------------------------------- the predictors
# F = E[z z^T] = U diag(s) U^T, [D, D] -> W_p, [D, D].  The loss ignores the length of p, so the
# largest s may as well be 1.

def directset_weight(F, alpha, eps):
    """DirectSet(alpha): F^alpha / ||F^alpha|| + eps I, with the spectral norm.

    An eigenvalue that rounding made negative counts as 0.  In float32 eigh may fail to converge
    once the net has collapsed."""
    s, U = torch.linalg.eigh(F.double().nan_to_num(0, 0, 0))       # ascending; nan would raise
    p = (s.clamp(min=0) / s[-1]) ** alpha + eps
    return (U * p @ U.T).to(F.dtype)                       # U diag(p) U^T


def directpred_weight(F, eps):
    """DirectPred: p_j = sqrt(s_j / max s) + eps.

    The paper prints sqrt(s_j) + eps max s; its code normalises first, as here."""
    return directset_weight(F, 0.5, eps)


def directcopy_weight(F, eps):
    """DirectCopy: DirectSet(1), which needs no eigendecomposition.

    The norm, the largest s, is tr(F G) / tr(G) of G = F^4096, where only that one is left."""
    G = F
    for _ in range(12):
        G = G / G.norm()
        G = G @ G
    identity = torch.eye(len(F), device=F.device, dtype=F.dtype)
    return F / ((F * G).sum() / G.trace()) + eps * identity


def optimal_weight(F, C):
    """The least-squares predictor, argmin E||W_p z - t||^2, from F and C = E[t z^T].

    With a ridge: F + r I for F, r = tr(F) / 100 D, a hundredth of the mean s."""
    identity = torch.eye(len(F), device=F.device, dtype=F.dtype)
    return torch.linalg.solve_ex(F + 0.01 * F.trace() / len(F) * identity, C.T)[0].T


# ----------------------------------------------------------------------------------------- network

class DirectPred(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args, dim, bias = args, args.proj_dim, args.predictor_bias
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                     # f = projector after backbone
        self.encoder.backbone = backbone
        self.encoder.projector = nn.Sequential(
            nn.Linear(width, args.proj_hidden), nn.BatchNorm1d(args.proj_hidden, affine=False),
            nn.ReLU(), nn.Linear(args.proj_hidden, dim))
        if args.final_bn != "none":
            self.encoder.projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
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
        self.target = None                                 # f', a copy at the start
        if args.ema:
            self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("correlations", torch.zeros(2, dim, dim))     # F, C = E[t z^T]
        self.register_buffer("started", torch.zeros(()))

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, D]; BN statistics are a view's own
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, D]
        if self.target is None:                            # without EMA the net is its own target
            return p1, p2, z1, z2, z1, z2
        return p1, p2, z1, z2, self.target(x1), self.target(x2)

    @torch.no_grad()
    def update_correlations(self, z1, z2, t1, t2):
        """F <- rho F + (1 - rho) E[z z^T] over the 2B rows of both views, not centred but with
        --center; likewise C of E[t z^T], t of the other view.  Both in `correlations`.

        The first batch is all of F: `started` is 0 before it and 1 after."""
        z, t = torch.cat([z1, z2]).float(), torch.cat([t2, t1]).float()                  # [2B, D]
        if self.args.center:
            z, t = z - common.mean_of_ranks(z.mean(0)), t - common.mean_of_ranks(t.mean(0))
        now = common.mean_of_ranks(torch.stack([z.T @ z, t.T @ z]) / len(z))
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
        """W_p <- (W_p + W_p^T) / 2; two layers: W_1 <- (W_1 + W_2^T) / 2, W_2 <- W_1^T."""
        first, last = self.predictor, self.predictor
        if self.args.predictor_layers == 2:
            first, last = self.predictor[0], self.predictor[3]
        W = (first.weight + last.weight.T) / 2
        first.weight.copy_(W)
        last.weight.copy_(W.T)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f in place, BatchNorm's averages too (nothing reads those), its
        integer counter not.  Nothing where there is no target."""
        if self.target is None:
            return
        new = [v for v in self.encoder.state_dict().values() if v.is_floating_point()]
        old = [v for v in self.target.state_dict().values() if v.is_floating_point()]
        torch._foreach_lerp_(old, new, 1 - m)


build = DirectPred


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    if args.predictor_layers == 2 and args.predictor not in ("sgd", "symmetric"):
        common.fail("--predictor-layers 2 is for a trained predictor: --predictor sgd or symmetric")
    args.label = args.predictor
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = DirectPred(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    weights = [p for name, p in model.predictor.named_parameters() if "bias" not in name]
    biases = [p for name, p in model.predictor.named_parameters() if "bias" in name]
    groups = [{"params": model.encoder.parameters()},
              {"params": weights, "lr": lr * args.pred_lr, "weight_decay": args.pred_weight_decay},
              {"params": biases, "lr": lr * args.bias_lr, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        for x in run.batches():                            # uint8 [B, 3, S, S]
            if args.schedule == "cosine":
                rate = common.cosine_lr(lr, run.progress, args.epochs, args.warmup_epochs)
                optimizer.param_groups[0]["lr"] = rate     # the encoder's
            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale)
            with common.autocast(device):                  # bfloat16 on CUDA
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target(args.ema)
            model.update_correlations(z1, z2, t1, t2)
            if args.predictor == "symmetric":
                model.symmetrize()
            elif model.is_set and (run.step + 1) % args.freq == 0:
                model.set_predictor()
            run.log(loss, z=(z1, z2))
        columns, modes = eigenspace(model)
        run.log_rows("spectrum.csv", modes)
        run.end_epoch(**columns)
    ranks = [row["effective_rank"] for row in run.history]           # they fall, and bounce back?
    run.finish(effective_rank_lowest=min(ranks, default=0))
    if run.is_first and run.epoch:
        common.save_figure(draw(run), run.folder / "spectrum.png")
    return model


# ------------------------------------------------------------------------------------------ report

@torch.no_grad()
def eigenspace(net):
    """How W_p lies to F.  -> columns for the epoch's row; a row a mode for spectrum.csv

    s, p, cos     eigenvalue of F; u^T W_p u and cos(u, W_p u) of its eigenvector u
    w             eigenvalue of the symmetric part of W_p, sorted by itself
    align         mean of cos over the eigenvectors that carry 99 % of F's trace
    commutator    ||F W_p - W_p F|| / ||F|| ||W_p||: 0 when all eigenvectors are shared
    asymmetry     ||W_p - W_p^T|| / ||W_p||
    Nothing but s where the predictor has two layers."""
    F = net.correlations[0].cpu().double().nan_to_num(0, 0, 0)     # nan: end_epoch says so
    s, U = torch.linalg.eigh(F)
    s, U = s.flip(0), U.flip(1)
    if not isinstance(net.predictor, nn.Linear):
        return {}, [{"s": value} for value in s.tolist()]
    W = net.predictor.weight.cpu().double().nan_to_num(0, 0, 0)
    p = (U * (W @ U)).sum(0)
    cos = p / (W @ U).norm(dim=0)
    w = torch.linalg.eigvalsh((W + W.T) / 2).flip(0)
    table = torch.stack([s, p, cos, w], 1).tolist()
    top = s.cumsum(0) - s < 0.99 * s.sum()
    columns = {"align": cos[top].mean(), "asymmetry": (W - W.T).norm() / W.norm(),
               "commutator": (F @ W - W @ F).norm() / F.norm() / W.norm()}
    columns = {name: value.item() for name, value in columns.items()}
    return columns, [dict(zip(("s", "p", "cos", "w"), row)) for row in table]


def draw(run):
    """spectrum.png: eigenvalues of F over training, those of W_p against them, the alignment."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    modes, history = common.read_csv(run.folder / "spectrum.csv"), run.history[1:]
    epochs = [row["epoch"] for row in history]
    spectra = [[row for row in modes if row["epoch"] == epoch] for epoch in epochs]
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for j in range(len(spectra[0])):                       # the largest yellow, the smallest violet
        share = [max(rows[j]["s"], 0) / sum(row["s"] for row in rows) for rows in spectra]
        left.plot(epochs, share, color=colormaps["viridis"](1 - j / len(spectra[0])), lw=0.8)
    left.set(yscale="log", ylim=(1e-6, 1.5), xlabel="epoch", ylabel="share of F's trace",
             title="eigenvalues of F = E[z z$^T$], sorted")
    if "cos" not in modes[0]:                              # two layers: there is no W_p
        figure.delaxes(middle)
        figure.delaxes(right)
        return figure

    for rows, color in ((spectra[0], "0.75"), (spectra[-1], "C3")):
        rows = [row for row in rows if row["s"] > 0]
        root = [(row["s"] / rows[0]["s"]) ** 0.5 for row in rows]
        largest = max(abs(row["p"]) for row in rows)
        middle.plot(root, [row["p"] / largest for row in rows], ".", color=color,
                    label=f"epoch {rows[0]['epoch']:.0f}")
    middle.axline((0, 0), (1, 1), color="k", ls="--", lw=1, label="invariance: p = √s")
    middle.set(xlabel="√s of F's eigenvector u, largest = 1",
               ylabel="p = u$^T$ W$_p$ u, largest = 1", title=f"W$_p$ ({run.args.predictor})")
    names = {"align": "cos(u, W$_p$u), mean", "asymmetry": "‖W$_p$ − W$_p^T$‖ / ‖W$_p$‖",
             "commutator": "‖FW$_p$ − W$_p$F‖ / ‖F‖‖W$_p$‖"}
    for key, text in names.items():
        right.plot(epochs, [row[key] for row in history], label=text)
    right.set(xlabel="epoch", title="do W$_p$ and F share eigenvectors?")
    middle.legend()
    right.legend()
    return figure


if __name__ == "__main__":
    main()

"""This trains SimSiam without a part of its gradient, to see which part prevents collapse.

Zhang et al., "How Does SimSiam Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262),
section 3.  The encoder makes z_a and z_b of two views of an image (random crops in other colours),
and the predictor h, a small net, makes p_a of z_a.  Z, P are z, p divided by their length.  The
loss is -P_a . sg(Z_b): the stop-gradient sg lets numbers pass, but no gradient.  As -X . sg(t) has
the gradient -t with respect to X, whoever writes t chooses the gradient.  Here t = Z_b = P_b + G_e.
With P_b alone, the basic part, all images become one point (collapse).  The extra part G_e is a
centre o_e, the same for all images, plus a residual r_e.  Which of the two may be left out?

    python gradient_components.py                               SimSiam; makes steps.csv, steps.png
    python gradient_components.py --without r_e                 t = P_b + o_e; also o_e, both
    python gradient_components.py --loss triplet                Table 3; infonce: Fig. 5c and 6
    python gradient_components.py --loss simsiam:3+centre:1     one loss after another, with epochs
    python results/reproduce.py simsiam-components              Table 4; results/zhang.md has more

On `patches` a run takes under a minute on two CPU cores, and either part keeps P from collapsing to
one point.  Where we differ from the paper: Table 4 is measured on P, where its gradient acts, and h
learns from the encoder's loss, as in Algorithm 3.  A negative, an image that is pushed away, is the
one before in a random order.  InfoNCE's Z_i are all Z_b of the batch.  Algorithm 5 has a weight and
is applied to z, because on the paper's Z it does nothing after a collapse.  A.8 has cos(P_a, Z_b)
here, because with the paper's cos(Z_a, Z_b) the gradient is not zero.
"""
import time
from collections import namedtuple

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
RECIPES = {                                                # CIFAR: as in simsiam.py, 200 epochs
    "patches": dict(                                       # We chose these.
        arch="small", epochs=10, batch_size=64, lr=1.0, weight_decay=1e-3, warmup_epochs=1,
        schedule="cosine", proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="affine",
        pred_weight_decay=0.0, bias_lr=50.0, temperature=0.3),
    "cifar10": dict(                                       # from Chen & He, appendix D
        arch="resnet18", epochs=200, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,
        schedule="cosine", proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine",
        pred_weight_decay=5e-4, bias_lr=1.0, temperature=0.2),
    "cifar100": dict(                                      # from Zhang et al., A.1
        arch="resnet18", epochs=200, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,
        schedule="cosine", proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="noaffine",
        pred_weight_decay=1e-5, bias_lr=1.0, temperature=0.2),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=20, weight_decay=5e-4, temperature=0.2)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "schedule": ("constant", "cosine"), "without": ("none", "o_e", "r_e", "both"),
           "predictor_loss": ("surrogate", "simsiam")}
FLAGS = {"loss": ("simsiam", "the loss, or several, each with its epochs, as in simsiam:5+naive:1 "
                             "(the names are in the file, in LOSSES and SURROGATES)"),
         "without": ("none", "leave out this part of the gradient (simsiam, triplet, infonce)"),
         "predictor_loss": ("surrogate", "what the predictor learns from if --without leaves out a "
                                         "part: surrogate (the encoder's loss), or simsiam")}
TAUS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0)                # for Fig. 5c; the paper lists no values


# ------------------------------------------------------------------------------------------ losses

# These are the paper's letters, [B, dim].  A capital letter says that rows have length 1.  View a
# learns, and b is the other.  o_z and o_p, [dim], are the centres: means of Z and P in both.
Letters = namedtuple("Letters", "za Za Zb Pa Pb o_z o_p")


def letters(z1, z2, p1, p2):
    """-> two Letters: view 1 is a in the first, view 2 in the second; float32, nothing detached"""
    Z1, Z2, P1, P2 = (F.normalize(v.float(), dim=1) for v in (z1, z2, p1, p2))
    o_z, o_p = torch.cat([Z1, Z2]).mean(0), torch.cat([P1, P2]).mean(0)
    return (Letters(z1.float(), Z1, Z2, P1, P2, o_z, o_p),
            Letters(z2.float(), Z2, Z1, P2, P1, o_z, o_p))


def components(kind, v, tau):
    """Minus the gradient of a loss on X is basic + o_e + r_e.  -> these three, [B, dim] each
    simsiam: X is P_a, basic is P_b, and G_e = o_e + r_e is Z_b - P_b.
    triplet: X is Z_a, basic is Z_b, and G_e is -Z_n, with Z_n the row of Z_b before.
    infonce: X is Z_a, basic is Z_b / tau, and G_e is -sum_i lambda_i Z_i / tau.  lambda is the
    softmax of Z_a . Z_i / tau over all rows Z_i of Z_b, the positive among them.
    o_e is the same in every row: o_z - o_p, -o_z, -o_z / tau (as if all lambda were equal)."""
    if kind == "simsiam":
        basic, G_e, o_e = v.Pb, v.Zb - v.Pb, v.o_z - v.o_p
    elif kind == "triplet":
        Z_n = v.Zb.roll(1, 0)
        basic, G_e, o_e = v.Zb, -Z_n, -v.o_z
    else:                                                  # infonce, where Z_i are all Z_b
        lam = (v.Za @ v.Zb.T / tau).softmax(1)             # [B, B]
        basic, G_e, o_e = v.Zb / tau, -lam @ v.Zb / tau, -v.o_z / tau
    return basic, o_e.expand_as(basic), G_e - o_e


def surrogate(kind, v, tau, without="none"):
    """-X . sg(t), averaged over the rows -> scalar.  X is P_a for simsiam, and Z_a for triplet and
    infonce.  t is basic + o_e + r_e minus the part that `without` names."""
    basic, o_e, r_e = components(kind, v, tau)
    t = basic
    if without in ("none", "r_e"):
        t = t + o_e
    if without in ("none", "o_e"):
        t = t + r_e
    X = v.Pa if kind == "simsiam" else v.Za
    return -(X * t.detach()).sum(1).mean()


def decorrelation_loss(z):
    """Algorithm 5 of z [N, D]: off-diagonal covariances (over N - 1), squared, summed, over D."""
    r = z - z.mean(0)
    cov = r.T @ r / (len(z) - 1)
    return (cov.square().sum() - cov.diagonal().square().sum()) / z.shape[1]


def standardised(z):
    return (z - z.mean(0)) / (z.std(0) + 1e-4)


LOSSES = {
    "naive": lambda v: -(v.Za * v.Zb.detach()).sum(1).mean(),              # It collapses.
    "mirror": lambda v: -(v.Za * v.Pb).sum(1).mean(),      # p_b = h(sg(z_b)), and h learns too.
    "bias": lambda v: -(v.Pa * v.Zb.detach()).sum(1).mean(),               # p_a = Z_a + b
    "centre": lambda v: -(v.Za * v.o_z.detach()).sum(1).mean(),
    "residual": lambda v: -(v.Za * (v.Za - v.o_z).detach()).sum(1).mean(),           # t is r_a
    "residual_b": lambda v: -(v.Za * (v.Zb - v.o_z).detach()).sum(1).mean(),         # t is r_b
    "random": lambda v: -(v.Za * F.normalize(torch.randn_like(v.Za), dim=1)).sum(1).mean(),
    # The first two have weights, because they are large after a collapse, unless z is small.
    "decorrelate": lambda v: 0.1 * decorrelation_loss(v.za),
    "decorrelate_standardised": lambda v: 0.01 * decorrelation_loss(standardised(v.za)),
    "decorrelate_normalised": lambda v: decorrelation_loss(v.Za),
}
SURROGATES = ("simsiam", "triplet", "infonce")


def predict(name, net, z1, z2, args):
    """-> p1, p2; if h learns from a loss of its own, also the predictions of detached z for it"""
    h = net.predictor
    if name == "bias":
        return F.normalize(z1, dim=1) + net.bias, F.normalize(z2, dim=1) + net.bias
    if name == "mirror":
        return h(z1.detach()), h(z2.detach())
    if name == "simsiam" and args.without != "none" and args.predictor_loss == "simsiam":
        fixed = {key: p.detach() for key, p in h.named_parameters()}       # f's loss spares h.
        return (functional_call(h, fixed, z1), functional_call(h, fixed, z2),
                h(z1.detach()), h(z2.detach()))
    return h(z1), h(z2)


def loss_of(name, args, z1, z2, p1, p2, *own):
    """A loss in both directions, plus SimSiam's loss of h's own predictions.  -> scalar, Letters"""
    v, w = letters(z1, z2, p1, p2)
    if name in SURROGATES:
        tau, without = args.temperature, args.without
        loss = surrogate(name, v, tau, without) / 2 + surrogate(name, w, tau, without) / 2
    else:
        loss = LOSSES[name](v) / 2 + LOSSES[name](w) / 2
    for u in letters(z1.detach(), z2.detach(), *own) if own else ():
        loss = loss + surrogate("simsiam", u, args.temperature) / 2        # It moves h alone.
    return loss, v


# ----------------------------------------------------------------------------------------- network

class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim, hidden = args.proj_dim, args.pred_hidden
        projector = nn.Sequential()
        for i in range(args.proj_layers):
            projector.append(nn.Linear(dim if i else width, dim, bias=False))
            if i < args.proj_layers - 1:
                projector.extend([nn.BatchNorm1d(dim), nn.ReLU()])
        if args.final_bn != "none":                        # It can hide a collapse (see README).
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the backbone, then the projector
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        self.predictor = nn.Sequential(                                                      # h
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, dim))
        self.bias = nn.Parameter(torch.zeros(dim))         # `bias` predicts Z + b.

    def forward(self, x1, x2):
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        return self.encoder(x1), self.encoder(x2)          # [B, dim]


build = Siamese                                # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

def read_losses(text, epochs):
    """-> the loss of each epoch: of "simsiam:5+naive:1" ["simsiam"] * 5 + ["naive"]"""
    loss_names, parts = [], text.split("+")
    for part in parts:
        name, _, n = part.partition(":")
        names = (*SURROGATES, *LOSSES)
        if name not in names:
            common.fail(f"--loss {text}: there is no {name!r}; the losses are {', '.join(names)}")
        if len(parts) == 1 and not n:
            return [name] * epochs
        if not n.isdecimal() or int(n) == 0:
            common.fail(f"--loss {text}: give every loss its epochs, as in simsiam:5+naive:1")
        loss_names += [name] * int(n)
    return loss_names


def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS,
                             zero=["pred_weight_decay"])
    if args.epochs < 1:
        common.fail("--epochs must be 1 or more")
    loss_names = read_losses(args.loss, args.epochs)
    if not args.dry_run:
        args.epochs = len(loss_names)
    args.label = args.loss.replace(":", "").replace("+", "-")              # for the folder's name
    if args.without != "none":
        args.label += f"-without_{args.without}"
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters(), "weight_decay": args.pred_weight_decay},
              {"params": [model.bias], "lr": lr * args.bias_lr, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    loss_names = read_losses(args.loss, args.epochs)[:args.epochs]     # A dry run has one epoch.
    if not log.history:                                    # Row 0 is of the untrained net.
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        name = loss_names[epoch - 1]
        start, losses, seen = time.time(), [], []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42; images' indices
            if args.schedule == "cosine":
                rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
                optimizer.param_groups[0]["lr"] = rate     # The other groups' rates stay constant.
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]; no labels
            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                  # A GPU uses bfloat16, the loss does not.
                z1, z2 = net(x1, x2)
                p1, p2, *own = predict(name, model, z1, z2, args)
            loss, v = loss_of(name, args, z1, z2, p1, p2, *own)
            seen.append(measure(loss_names, model, v))     # It is measured before the step.
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would wait for the GPU.
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        values = torch.stack([torch.stack(list(row.values())) for row in seen]).tolist()
        first = (epoch - 1) * log.steps
        log.tables.setdefault("steps", []).extend(
            {"epoch": epoch, "step": first + i, **dict(zip(seen[0], row))}
            for i, row in enumerate(values))
        z, of_P = torch.cat([z1, z2]), common.collapse_metrics(torch.cat([p1, p2]))
        metrics = common.measure(model.encoder, data, args, epoch, z)
        log.row(epoch, mean_loss, seconds, **metrics, std_P=of_P["std"], m_o_P=of_P["m_o"],
                effective_rank_P=of_P["effective_rank"], dead_P=of_P["dead"])
    others = [i for i, name in enumerate(loss_names) if name != loss_names[-1]]
    first = max(others, default=-1) + 1                    # epochs before the last loss begins
    draw(log, first).savefig(log.folder / "steps.png")
    log.finish(**summary(log, first), **common.evaluate(model.encoder, data, args, epochs=100))
    return model


# ------------------------------------------------------------------------------------------ report

def eta(o_e, o):
    """eta is how much of o is in o_e: o_e - eta o is orthogonal to o (Fig. 5a).  -> scalar"""
    return o_e @ o / (o @ o)


@torch.no_grad()
def measure(loss_names, net, v):
    """What steps.csv records of every step.  -> {column: scalar tensor on the device}
    m_o, m_r, covariance    as common.collapse_metrics has them, of Z; m_o_P, m_r_P: of P
    eta_p, eta_z            how much of o_p is in SimSiam's o_e = o_z - o_p; how much of o_z is in
                            Mirror SimSiam's o_e = o_p - o_z
    cos_r_0.1, cos_o_0.1 .. infonce, tau 0.1: cosine of r_e, o_e with minus Algorithm 5's gradient
    b, b_theory, b_cos      bias: length of b, length of (1 - m) / m o (A.8), cosine of the two"""
    Z, P = torch.cat([v.Za, v.Zb]), torch.cat([v.Pa, v.Pb])
    found = {"m_o": v.o_z.norm(), "m_r": (Z - v.o_z).norm(dim=1).mean(),
             "m_o_P": v.o_p.norm(), "m_r_P": (P - v.o_p).norm(dim=1).mean(),
             "covariance": decorrelation_loss(Z), "eta_p": eta(v.o_z - v.o_p, v.o_p),
             "eta_z": eta(v.o_p - v.o_z, v.o_z)}
    if "infonce" in loss_names:
        R = v.Za - v.Za.mean(0)
        C = R.T @ R
        downhill = -R @ (C - C.diag().diag())              # Algorithm 5's direction
        for tau in TAUS:
            _, o_e, r_e = components("infonce", v, tau)
            found[f"cos_r_{tau}"] = F.cosine_similarity(r_e, downhill, dim=1).mean()
            found[f"cos_o_{tau}"] = F.cosine_similarity(o_e, downhill, dim=1).mean()
    if "bias" in loss_names:
        m = ((v.Pa * v.Zb).sum(1) / (v.Za + net.bias).norm(dim=1)).mean()
        theory = (1 - m) / m * v.o_z
        found |= {"b": net.bias.norm(), "b_theory": theory.norm(),
                  "b_cos": F.cosine_similarity(net.bias, theory, dim=0)}
    return found


def summary(log, first):
    """-> means of steps.csv over the last epoch; and of the last loss, which begins after epoch
    `first`, m_o_before, m_r_before and effective_rank_before it begins, and m_r_highest since."""
    rows, last = log.tables["steps"], log.history[-1]
    end = [row for row in rows if row["epoch"] == last["epoch"]]
    names = [key for key in end[0] if key not in last and key != "step"]
    found = {key: sum(row[key] for row in end) / len(end) for key in names}
    phase = rows[log.steps * first:]
    of_P = {name: last.get(f"{name}_P", 0) for name in ("m_o", "effective_rank", "dead")}
    return found | {
        "m_o_before": phase[0]["m_o"], "m_r_before": phase[0]["m_r"],
        "m_r_highest": max(row["m_r"] for row in phase),
        "effective_rank_before": log.history[first]["effective_rank"],
        "verdict_P": common.verdict(of_P)}


def draw(log, first):
    """Draw m_o, m_r and a third panel over the steps.  The last loss starts at the dotted line."""
    rows = log.tables["steps"]
    third = {"how much of the centre is in o$_e$": ("eta_p", "eta_z")}                   # Fig. 5a
    if "b" in rows[0]:
        third = {"length of the bias, and what A.8 predicts": ("b", "b_theory")}
    elif "cos_r_0.1" in rows[0]:
        third = {"Fig. 5c: cosine of r$_e$ with the de-correlation gradient, by τ":
                 [f"cos_r_{tau}" for tau in TAUS]}
    panels = {"m_o (1: complete collapse)": ("m_o", "m_o_P"),
              "m_r (0: complete collapse)": ("m_r", "m_r_P"), **third}
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axis, (title, keys) in zip(figure.subplots(1, 3), panels.items()):
        for key in keys:
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], label=key)
        axis.axvline(first * log.steps, color="0.5", ls=":")
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    common.cli(main)

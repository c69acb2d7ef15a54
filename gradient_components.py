"""Which half of the gradient prevents collapse?  Section 3 of Zhang et al., one experiment per figure or table.

Zhang et al., "How Does SimSiam Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262).  The gradient of -X . sg(t) with
respect to X is -t, so that the detached target t chooses the gradient.  SimSiam's t is Z_b = P_b + G_e: the basic gradient P_b of a net
that collapses, and an extra one, split into its centre o_e and its residual r_e = G_e - o_e.  Which of the two may be left out?

    python gradient_components.py --experiment conjecture    Fig. 4   what do o and r do to m_o and m_r?
                                               triplet       Table 3  with one random negative, o_e prevents collapse
                                               simsiam       Table 4  in SimSiam, either does
                                               center        Fig. 5a  how much of -o is in o_e?  some in SimSiam, none in Mirror SimSiam
                                               recover       Fig. 5b  de-correlation alone undoes a collapse
                                               infonce       Fig. 5c, 6  InfoNCE's r_e de-correlates
                                               bias          A.8      where a predictor that is only a bias comes to rest
    python gradient_components.py --all                      all of them
    python gradient_components.py --phases simsiam:5,naive:1 any loss after any other, for so many epochs
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import common

# One dict per data set; every entry is also a flag, and a flag that is given wins.  lr is for a batch of 256.  pred_lr, bias_lr: rates
# of h and of the bias over the encoder's; both stay constant.  The CIFAR recipes are the papers', those of SimSiam.
RECIPES = {
    "patches": dict(arch="small", epochs=10, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=1,      # ours
                    proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="none", pred_lr=10.0, bias_lr=50.0, temperature=0.3),
    "cifar10": dict(arch="resnet18", epochs=200, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,  # Chen & He, app. D
                    proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0, bias_lr=50.0, temperature=0.2),
    "cifar100": dict(arch="resnet18", epochs=200, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,  # Zhang et al., A.1
                     proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="affine", pred_lr=1.0, bias_lr=50.0, temperature=0.2),
    "other": dict(arch="small", epochs=20, batch_size=64, lr=0.4, weight_decay=5e-4, warmup_epochs=1,        # ours
                  proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="none", pred_lr=10.0, bias_lr=50.0, temperature=0.2),
}
# Experiment -> its arms: name, phases, what the paper says (linear top-1 on CIFAR-100, or its figure's message).
EXPERIMENTS = {
    "conjecture": [(f"{loss}, {start}", before + loss + ":1", says) for start, before in (("from init", ""), ("from SimSiam", "simsiam:3,"))
                   for loss, says in (("centre", "m_o rises"), ("residual", "m_o falls"), ("random", "little"))],
    "triplet": [("Z_b + o_e + r_e", "triplet", "36.21"), ("Z_b + o_e", "triplet-r_e", "47.41"),
                ("Z_b + r_e", "triplet-o_e", "1, collapse")],
    "simsiam": [("P_b + o_e + r_e", "simsiam", "66.62"), ("P_b + o_e", "simsiam-r_e", "48.08"), ("P_b + r_e", "simsiam-o_e", "66.15"),
                ("P_b", "simsiam-o_e-r_e", "1, collapse")],
    "center": [("SimSiam", "simsiam:5", "eta_p about -0.5"), ("Mirror SimSiam", "mirror:3", "eta_z about 0.2")],
    "recover": [(name, f"simsiam:5,naive:1,{loss}:2", says) for name, loss, says in (
        ("of z", "decorrelate", "m_r rises fast"), ("of z, standardised", "decorrelate_standardised", ""),
        ("of z, normalised", "decorrelate_normalised", ""))],
    "infonce": [("SimSiam", "simsiam", "covariance falls"), ("InfoNCE", "infonce", "covariance falls"),
                ("InfoNCE, Z_b + o_e", "infonce-r_e", "covariance high, accuracy drops")],
    "bias": [("bias", "bias", "b parallel to o")],
}
TAUS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0)                                # Fig. 5c; the paper does not list its values
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"), "experiment": tuple(EXPERIMENTS),
           "predictor_loss": ("surrogate", "simsiam")}
FLAGS = {"experiment": ("simsiam", "train its arms, write its table and its figure"), "all": (False, "all experiments"),
         "phases": ("", "train this alone: losses and epochs, as in simsiam:5,naive:1; or one loss, for --epochs"),
         "predictor_loss": ("surrogate", "what h learns from where o_e or r_e is left out: the same loss as f, or SimSiam's")}


# ------------------------------------------------------------------------------------------------------------- network

class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                                     # f = projector after backbone
        self.encoder.backbone = backbone
        dim, layers = args.proj_dim, []
        for i in range(args.proj_layers):
            layers += [nn.Linear(dim if i else width, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
        self.encoder.projector = nn.Sequential(*layers[:-2])               # no BN and ReLU after the last, but
        if args.final_bn != "none":
            self.encoder.projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.predictor = nn.Sequential(nn.Linear(dim, args.pred_hidden, bias=False), nn.BatchNorm1d(args.pred_hidden),      # h
                                       nn.ReLU(inplace=True), nn.Linear(args.pred_hidden, dim))
        self.bias = nn.Parameter(torch.zeros(dim))                         # the predictor of `bias`: Z + b

    def forward(self, x1, x2):
        return self.encoder(x1), self.encoder(x2)                          # [B, D]; each view has its own BN statistics


build = Siamese


# -------------------------------------------------------------------------------------------------------------- losses

@dataclass
class Letters:
    """The paper's letters.  [B, D] with rows of length 1 (capital), a: the view that learns, b: the other; centres [D] of both views"""
    za: torch.Tensor
    Za: torch.Tensor
    Zb: torch.Tensor
    Pa: torch.Tensor
    Pb: torch.Tensor
    o_z: torch.Tensor
    o_p: torch.Tensor


def letters(z1, z2, p1, p2):
    """-> Letters with view 1 as a, and with view 2 as a"""
    Z1, Z2, P1, P2 = (F.normalize(v.float(), dim=1) for v in (z1, z2, p1, p2))
    o_z, o_p = torch.cat([Z1, Z2]).mean(0), torch.cat([P1, P2]).mean(0)
    return Letters(z1.float(), Z1, Z2, P1, P2, o_z, o_p), Letters(z2.float(), Z2, Z1, P2, P1, o_z, o_p)


def components(kind, v, tau):
    """Minus the gradient of a loss is basic + o_e + r_e, with respect to P_a (simsiam) or Z_a (triplet, infonce).  -> [B, D] each"""
    if kind == "simsiam":
        basic, G_e, o_e = v.Pb, v.Zb - v.Pb, v.o_z - v.o_p
    elif kind == "triplet":
        Z_n = v.Zb.roll(1, 0)                                              # another image's; the batch is in random order
        basic, G_e, o_e = v.Zb, -Z_n, -v.o_z
    else:                                                                  # infonce; all Z_b, the own one too, are its Z_i
        lam = (v.Za @ v.Zb.T / tau).softmax(1)                             # [B, B]
        basic, G_e, o_e = v.Zb / tau, -lam @ v.Zb / tau, -v.o_z / tau
    return basic, o_e.expand_as(basic), G_e - o_e


def surrogate(name, v, tau):
    """simsiam, triplet or infonce; "-o_e" or "-r_e" in the name takes that component of the gradient away"""
    kind = name.split("-")[0]
    basic, o_e, r_e = components(kind, v, tau)
    t = basic + ("-o_e" not in name) * o_e + ("-r_e" not in name) * r_e
    return -((v.Pa if kind == "simsiam" else v.Za) * t.detach()).sum(1).mean()


def decorrelation_loss(z):
    """Algorithm 5: the squared off-diagonal covariances, summed, over D.  z: [N, D] -> scalar"""
    r = z - z.mean(0)
    cov = r.T @ r / (len(z) - 1)
    return (cov.square().sum() - cov.diagonal().square().sum()) / z.shape[1]


LOSSES = {
    "naive": lambda v: -(v.Za * v.Zb.detach()).sum(1).mean(),                               # collapses
    "mirror": lambda v: -(v.Za * v.Pb).sum(1).mean(),                                       # with P_b = h(sg(z_b)), which learns too
    "centre": lambda v: -(v.Za * v.o_z.detach()).sum(1).mean(),
    "residual": lambda v: -(v.Za * (v.Za - v.o_z).detach()).sum(1).mean(),
    "random": lambda v: -(v.Za * F.normalize(torch.randn_like(v.Za), dim=1)).sum(1).mean(),
    "decorrelate": lambda v: decorrelation_loss(v.za),
    "decorrelate_standardised": lambda v: decorrelation_loss((v.za - v.za.mean(0)) / (v.za.std(0) + 1e-4)),
    "decorrelate_normalised": lambda v: decorrelation_loss(v.Za),
}
SURROGATES = ("simsiam", "simsiam-o_e", "simsiam-r_e", "simsiam-o_e-r_e", "triplet", "triplet-o_e", "triplet-r_e",
              "infonce", "infonce-o_e", "infonce-r_e")


def loss_of(name, net, z1, z2, args):
    """Both directions of a loss.  -> scalar, Letters of the first"""
    h, Z1, Z2 = net.predictor, F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    if name == "bias":                                                     # p = Z + b
        p1, p2 = Z1 + net.bias, Z2 + net.bias
        name = "simsiam"
    elif name == "mirror":
        p1, p2 = h(z1.detach()), h(z2.detach())
    elif name.startswith("simsiam-") and args.predictor_loss == "simsiam":
        fixed = {key: p.detach() for key, p in h.named_parameters()}       # h as it is, for f's loss
        p1, p2 = functional_call(h, fixed, z1), functional_call(h, fixed, z2)
    else:
        p1, p2 = h(z1), h(z2)
    both = letters(z1, z2, p1, p2)
    a, b = (LOSSES[name](v) if name in LOSSES else surrogate(name, v, args.temperature) for v in both)
    loss = a / 2 + b / 2
    if name.startswith("simsiam-") and args.predictor_loss == "simsiam":   # and SimSiam's, which moves h alone
        a, b = (surrogate("simsiam", v, args.temperature) for v in letters(z1.detach(), z2.detach(), h(z1.detach()), h(z2.detach())))
        loss = loss + a / 2 + b / 2
    return loss, both[0]


# ------------------------------------------------------------------------------------------------------------- measure

def eta(o_e, o):
    """How much of o is in o_e: the eta at which o_e - eta o is orthogonal to o (Fig. 5a).  -> scalar tensor"""
    return o_e @ o / (o @ o)


@torch.no_grad()
def measure(name, net, v, tau):
    """What is drawn against the step.  -> {column: scalar tensor on the device}

    m_o, m_r, m_o_P, m_r_P   of Z and of P, both views
    covariance               Algorithm 5 of Z
    eta_p, eta_z             amount of o_p in SimSiam's o_e = o_z - o_p; of o_z in Mirror SimSiam's o_e = o_p - o_z
    cos_r, cos_o tau         infonce: cosine of r_e, o_e with minus the de-correlation gradient on Z_a, mean over the batch
    b, b_theory, b_cos       bias: length of b, of (1 - m) / m o, m = mean of cos(P_a, Z_b) / |p_a|; cosine of the two (A.8)"""
    out = {}
    for suffix, X, o in (("", torch.cat([v.Za, v.Zb]), v.o_z), ("_P", torch.cat([v.Pa, v.Pb]), v.o_p)):
        out |= {"m_o" + suffix: o.norm(), "m_r" + suffix: (X - o).norm(dim=1).mean()}
    out |= {"covariance": decorrelation_loss(torch.cat([v.Za, v.Zb])), "o_z.o_p": v.o_z @ v.o_p,
            "eta_p": eta(v.o_z - v.o_p, v.o_p), "eta_z": eta(v.o_p - v.o_z, v.o_z)}
    if name.startswith("infonce"):
        R = v.Za - v.Za.mean(0)
        C = R.T @ R
        decorrelate = -R @ (C - C.diag().diag())                           # minus the gradient of Algorithm 5, up to its length
        for t in TAUS:
            _, o_e, r_e = components("infonce", v, t)
            out |= {f"cos_{k} {t}": F.cosine_similarity(e, decorrelate, dim=1).mean() for k, e in (("r", r_e), ("o", o_e))}
    if name == "bias":
        length = (v.Za + net.bias).norm(dim=1)                             # |p_a|
        m = ((v.Pa * v.Zb).sum(1) / length).mean()
        theory = (1 - m) / m * v.o_z
        out |= {"b": net.bias.norm(), "b_theory": theory.norm(), "b_cos": F.cosine_similarity(net.bias, theory, dim=0)}
    return out


# --------------------------------------------------------------------------------------------------------------- train

def train(args, device, data):
    """Phase after phase.  -> the trained model; leaves steps.csv and result.json beside what every run leaves."""
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD([{"params": model.encoder.parameters()},
                                 {"params": model.predictor.parameters(), "lr": lr * args.pred_lr, "weight_decay": 0.0},
                                 {"params": [model.bias], "lr": lr * args.bias_lr, "weight_decay": 0.0}],
                                lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net, phases = run.parallel(), [name for name, epochs in read_phases(args) for _ in range(epochs)]       # a loss for every epoch

    for epoch in run.epochs():
        name, losses, seen = phases[max(epoch - 1, 0)], [], []
        for t, x in run.batches():                                         # epochs done so far; uint8 [B, 3, S, S]
            constant = lr * min(1, t / max(args.warmup_epochs, 1e-9))      # where one loss follows another
            optimizer.param_groups[0]["lr"] = constant if "," in args.phases else common.cosine_lr(lr, t, args.epochs, args.warmup_epochs)

            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                                  # bfloat16 on CUDA
                z1, z2 = net(x1, x2)
                loss, v = loss_of(name, model, z1, z2, args)
            losses.append(loss.detach())
            seen.append(measure(name, model, v, args.temperature))
            if epoch == 0:                                                 # the untrained net: measured, not trained
                break

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        table = torch.stack([torch.stack(list(row.values())) for row in seen]).tolist()                     # waits for the device, once
        run.log("steps.csv", [{"step": (epoch - 1) * run.steps + i} | dict(zip(seen[0], row)) for i, row in enumerate(table)] * (epoch > 0))
        P = common.collapse_metrics(torch.cat([v.Pa, v.Pb]).detach())
        run.end_epoch(losses, lr=optimizer.param_groups[0]["lr"], z=torch.cat([z1, z2]).detach(),
                      **{key + "_P": P[key] for key in ("std", "m_o", "m_r", "effective_rank")})
    if run.is_first:
        last, steps = run.history[-1], common.read_csv(run.folder / "steps.csv")[-run.steps:]               # of the last epoch
        run.finish(arm=args.label, verdict=common.verdict(last["m_o"], last["effective_rank"]),
                   verdict_P=common.verdict(last["m_o_P"], last["effective_rank_P"]),
                   **{key: sum(row[key] for row in steps) / len(steps) for key in steps[0] if key not in last})
    return model


# ------------------------------------------------------------------------------------------------------------- figures
# folders: {arm: its run folder} -> figure

def steps_of(folders):
    return {name: common.read_csv(folder / "steps.csv") for name, folder in folders.items()}


def new_figure(columns, width=4.4):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width * columns, 3.6), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def plot(axis, arms, key, title, **settings):
    for name, rows in arms.items():
        axis.plot([row["step"] for row in rows], [row[key] for row in rows], label=name)
    axis.set(title=title, xlabel="step", **settings)
    axis.legend(fontsize=8)


def draw_conjecture(folders):
    (figure, axes), arms = new_figure(4, 3.7), steps_of(folders)
    for i, start in enumerate(("from init", "from SimSiam")):
        here = {name.split(",")[0]: rows[-len(arms["random, from init"]):] for name, rows in arms.items() if name.endswith(start)}
        for axis, key in zip(axes[2 * i:], ("m_o", "m_r")):
            plot(axis, here, key, f"{start}: {key}", ylim=(-0.03, 1.05))
    return figure


def draw_collapse(folders):
    figure, axes = new_figure(2)
    plot(axes[0], steps_of(folders), "m_o", "m_o of Z (1: complete collapse)", ylim=(-0.03, 1.05))
    plot(axes[1], steps_of(folders), "m_o_P", "m_o of P", ylim=(-0.03, 1.05))
    return figure


def scan(etas, o_z2, o_p2, dot, mirror=False):
    """cos(o_e - eta o, o) for many eta, from the lengths squared and the product of the centres"""
    o2, other2 = (o_z2, o_p2) if mirror else (o_p2, o_z2)                  # o_e = other - o
    return [(dot - (1 + e) * o2) / max(o2 * (other2 - 2 * (1 + e) * dot + (1 + e) ** 2 * o2), 1e-24) ** 0.5 for e in etas]


def draw_center(folders):
    figure, (left, right) = new_figure(2)
    etas = [i / 100 for i in range(-200, 201)]
    for i, ((name, rows), key, letter) in enumerate(zip(steps_of(folders).items(), ("eta_p", "eta_z"), "pz")):
        left.plot([row["step"] for row in rows], [row[key] for row in rows], color=f"C{i}", label=f"{name}: η$_{letter}$")
        last = rows[-1]
        right.plot(etas, scan(etas, last["m_o"]**2, last["m_o_P"]**2, last["o_z.o_p"], key == "eta_z"), color=f"C{i}", label=name)
        right.axvline(last[key], color=f"C{i}", ls=":", label=f"η$_{letter}$ = {last[key]:.2f}, closed form")
    left.axhline(0, color="0.5", lw=0.8)
    right.axhline(0, color="0.5", lw=0.8)
    left.set(title="share of the centre in o$_e$ over training", xlabel="step")
    right.set(title="cos(o$_e$ − η o, o) at the end", xlabel="η")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def draw_recover(folders):
    figure, axes = new_figure(2)
    arms = steps_of(folders)
    for axis, key in zip(axes, ("m_r", "m_o")):
        plot(axis, arms, key, f"{key}: SimSiam, collapse, de-correlation", ylim=(-0.03, 1.05))
        rows = next(iter(arms.values()))
        for epoch in (6, 7):
            axis.axvline(next((row["step"] for row in rows if row["epoch"] >= epoch), 0), color="0.5", ls=":")
    return figure


def draw_infonce(folders):
    figure, (left, middle, right) = new_figure(3)
    arms = steps_of(folders)
    rows = [row for row in arms["InfoNCE"] if row["epoch"] == arms["InfoNCE"][-1]["epoch"]]
    for key, label in (("r", "r$_e$"), ("o", "o$_e$")):
        left.plot(TAUS, [sum(row[f"cos_{key} {t}"] for row in rows) / len(rows) for t in TAUS], "o-", label=label)
    left.set(title="cosine with the de-correlation gradient", xlabel="τ", xscale="log")
    left.axhline(0, color="0.5", lw=0.8)
    left.legend()
    plot(middle, arms, "covariance", "covariance of Z (Algorithm 5)", yscale="log")
    for name, folder in folders.items():
        known = [(row["epoch"], row["knn"]) for row in common.read_csv(folder / "metrics.csv") if row["knn"] == row["knn"]]
        right.plot(*zip(*known), "o-", label=name)
    right.set(title="kNN accuracy (%)", xlabel="epoch", ylim=(0, 100))
    right.legend(fontsize=8)
    return figure


def draw_bias(folders):
    figure, (left, right) = new_figure(2)
    rows, = steps_of(folders).values()
    plot(left, {"‖b‖ measured": [{"step": r["step"], "y": r["b"]} for r in rows],
                "‖(1−m)/m · o‖ predicted": [{"step": r["step"], "y": r["b_theory"]} for r in rows]}, "y", "length of the bias")
    plot(right, {"cos(b, o)": rows}, "b_cos", "direction of the bias", ylim=(-0.03, 1.05))
    return figure


DRAW = {"conjecture": draw_conjecture, "triplet": draw_collapse, "simsiam": draw_collapse, "center": draw_center, "recover": draw_recover,
        "infonce": draw_infonce, "bias": draw_bias}
SHARED = {"arm": ("", None), "paper": ("paper", None), "m_o": ("m_o", 2), "m_r": ("m_r", 2)}
SCORES = {"std": ("std", 2), "effective_rank": ("rank", 1), "m_o_P": ("m_o of P", 2), "verdict": ("collapse", None),
          "knn": ("kNN", 1), "linear": ("linear", 1)}
COLUMNS = {"conjecture": SHARED, "triplet": SHARED | SCORES, "simsiam": SHARED | SCORES | {"verdict_P": ("collapse of P", None)},
           "center": SHARED | {"eta_p": ("eta_p", 2), "eta_z": ("eta_z", 2)}, "recover": SHARED | {"effective_rank": ("rank", 1)},
           "infonce": SHARED | SCORES | {"covariance": ("covariance", 5)},
           "bias": SHARED | {"b": ("length of b", 3), "b_theory": ("predicted", 3), "b_cos": ("cosine", 3)}}


def run_experiment(args, argv, device, data):
    """One run an arm, then the table (over all seeds that lie beside) and the figure."""
    folder, arms = Path(args.out) / common.run_name(args), EXPERIMENTS[args.experiment]
    jobs = [parse([*argv, "--phases", phases, "--out", str(folder)], name) for name, phases, _ in arms]
    folders = common.run_jobs(jobs, lambda job: train(job, device, data))
    results = [json.loads((f / "result.json").read_text()) | {"arm": name, "paper": says} for (name, _, says), f in zip(arms, folders)]
    text = common.write_table(args, results, COLUMNS[args.experiment])
    figure = DRAW[args.experiment](dict(zip((name for name, *_ in arms), folders)))
    common.write(folder / "figure.png", lambda f: figure.savefig(f, dpi=100, format="png"))
    print(f"\n{args.experiment}\n{text}\n{folder}: table.csv, table.md, figure.png")


# ---------------------------------------------------------------------------------------------------------------- main

def read_phases(args):
    """"simsiam:5,naive:1" -> [("simsiam", 5), ("naive", 1)]"""
    phases = []
    for part in args.phases.split(","):
        name, _, epochs = part.partition(":")
        if name not in (*LOSSES, *SURROGATES, "bias"):
            common.fail(f"--phases {args.phases}: there is no loss {name!r}; the losses are {', '.join((*LOSSES, *SURROGATES, 'bias'))}")
        if not epochs and "," in args.phases or epochs and not (epochs.isdecimal() and int(epochs)):
            common.fail(f"--phases {args.phases}: give every loss its epochs, as in simsiam:5,naive:1")
        phases.append((name, 1 if args.dry_run else int(epochs or args.epochs)))
    return phases


def parse(argv, job=""):
    """job: the name of an arm of an experiment"""
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    if args.phases:
        args.all, args.label = False, job.replace(" ", "_").replace(",", "") or args.phases.replace(":", "").replace(",", "-")
        args.epochs = sum(epochs for _, epochs in read_phases(args))
    else:
        kind = "-simsiam_h" * (args.experiment == "simsiam" and args.predictor_loss == "simsiam")
        args.label = args.experiment + kind
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.resume and not args.phases:
        common.fail("an experiment goes on where it stopped by itself: leave --resume away")
    device = common.setup(args)
    if common.world_size() > 1:
        common.fail("the components need the whole batch in a single process: run it without torchrun")
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    if args.phases:
        return train(args, device, data)
    for experiment in EXPERIMENTS if args.all else [args.experiment]:
        flags = [*(a for a in argv if a != "--all"), "--experiment", experiment]
        run_experiment(parse(flags), flags, device, data)


if __name__ == "__main__":
    main()

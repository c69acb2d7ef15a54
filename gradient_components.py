"""Which half of the gradient prevents collapse?  Section 3 of Zhang et al., one experiment per figure or table.

Zhang et al., "How Does SimSiam Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262).  The gradient of -X . sg(t) with
respect to X is -t, so that the detached target t chooses the gradient.  SimSiam's t is Z_b = P_b + G_e: the basic gradient P_b of a net
that collapses, and an extra one, split into its centre o_e and its residual r_e = G_e - o_e.  Which of the two may be left out?

    python gradient_components.py --experiment conjecture    Fig. 4   what do o and r do to m_o and m_r?
                                               triplet       Table 3  with one random negative, o_e prevents collapse
                                               simsiam       Table 4  in SimSiam, either does
                                               center        Fig. 5a  is -o in o_e?  in SimSiam; in Mirror SimSiam it is +o
                                               recover       Fig. 5b  de-correlation alone undoes a collapse
                                               infonce       Fig. 5c, 6  InfoNCE's r_e de-correlates
                                               bias          A.8      where a predictor that is only a bias comes to rest
    python gradient_components.py --all                      all of them
    python gradient_components.py --phases simsiam:5,naive:1 any loss after any other, for so many epochs

On `patches` and two CPU cores (torch 2.15) an experiment takes one to four minutes, --all 16 minutes, and shows what the paper
concludes, but for three things: triplet's accuracy does not clearly rise without r_e, r_e of InfoNCE is not nearest to de-correlation
at the smallest temperatures, and SimSiam's covariance falls on CIFAR-10 only.  The README has the tables over three seeds.  The
temperatures of Fig. 8 are in `directclr.py --sweep temperature`; --epochs is for the arms that train with one loss throughout.

Where we differ from the paper.  All rates on `patches` are ours.  Table 4 is measured on P, where that gradient acts; h learns from the
same loss as f, as in the paper's Algorithm 3 (--predictor-loss has the other reading).  conjecture, recover and bias have no final BN.
The paper says neither from where Fig. 4 starts nor how a negative is drawn: here the next image of the random batch; InfoNCE's Z_i
are all Z_b of the batch.  Algorithm 5 is applied to z, with a weight; on the paper's Z it does nothing after a collapse (shown).
A.8's m is cos(P_a, Z_b) / |p_a|: the paper's, with cos(Z_a, Z_b), is not the gradient's zero.
"""
import json
import sys
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import common

# One dict per data set; every entry is also a flag, and a flag that is given wins.  lr is for a batch of 256.  bias_lr: the bias's rate
# over the encoder's; that and h's are constant.  The CIFAR recipes are the papers', those of SimSiam.
RECIPES = {
    "patches": dict(arch="small", epochs=10, batch_size=64, lr=1.0, weight_decay=1e-3, warmup_epochs=1,      # ours
                    proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="affine", bias_lr=50.0, temperature=0.3),
    "cifar10": dict(arch="resnet18", epochs=200, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,  # Chen & He, app. D
                    proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine", bias_lr=50.0, temperature=0.2),
    "cifar100": dict(arch="resnet18", epochs=200, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,  # Zhang et al., A.1
                     proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="affine", bias_lr=50.0, temperature=0.2),
    "other": dict(arch="small", epochs=20, batch_size=64, lr=1.0, weight_decay=5e-4, warmup_epochs=1,        # ours
                  proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="affine", bias_lr=50.0, temperature=0.2),
}
# What an experiment brings: without a final BN, Z has a centre from the first step on, and collapses in less than an epoch.
NO_BN = {"final_bn": "none", "lr": 0.4}
SETTINGS = {"conjecture": NO_BN, "triplet": {}, "simsiam": {}, "center": {}, "recover": NO_BN, "infonce": {}, "bias": NO_BN}
# Experiment -> its arms: name, phases, what the paper says (linear top-1 on CIFAR-100, or its figure's message).
EXPERIMENTS = {
    "conjecture": [(f"{loss}, {start}", before + loss + ":1", says) for start, before in (("from init", ""), ("from SimSiam", "simsiam:3,"))
                   for loss, says in (("centre", "m_o rises"), ("residual", "m_o falls"), ("random", "little"))],
    "triplet": [("Z_b + o_e + r_e", "triplet", "36.21"), ("Z_b + o_e", "triplet-r_e", "47.41"),
                ("Z_b + r_e", "triplet-o_e", "1, collapse")],
    "simsiam": [("P_b + o_e + r_e", "simsiam", "66.62"), ("P_b + o_e", "simsiam-r_e", "48.08"), ("P_b + r_e", "simsiam-o_e", "66.15"),
                ("P_b", "simsiam-o_e-r_e", "1, collapse")],
    "center": [("SimSiam", "simsiam:5", "eta_p about -0.5"), ("Mirror SimSiam", "mirror:3", "eta_z about 0.2")],
    "recover": [(f"of z{kind.replace('_', ', ')}", f"simsiam:5,naive:1,decorrelate{kind}:2", says) for kind, says in (
        ("", "m_r rises fast"), ("_standardised", ""), ("_normalised", ""))],
    "infonce": [("SimSiam", "simsiam", "covariance falls"), ("InfoNCE", "infonce", "covariance falls"),
                ("InfoNCE, Z_b + o_e", "infonce-r_e", "covariance high, accuracy drops")],
    "bias": [("bias", "bias:5", "b parallel to o")],
}
TAUS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0)                                # Fig. 5c; the paper does not list its values
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"), "predictor_loss": ("surrogate", "simsiam")}
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

# The paper's letters, [B, D]; capital: rows of length 1.  a: the view that learns, b: the other.  o_z, o_p: centres of both views, [D]
Letters = namedtuple("Letters", "za Za Zb Pa Pb o_z o_p")


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
    "bias": lambda v: -(v.Pa * v.Zb.detach()).sum(1).mean(),                                # with p_a = Z_a + b
    "centre": lambda v: -(v.Za * v.o_z.detach()).sum(1).mean(),
    "residual": lambda v: -(v.Za * (v.Za - v.o_z).detach()).sum(1).mean(),
    "random": lambda v: -(v.Za * F.normalize(torch.randn_like(v.Za), dim=1)).sum(1).mean(),
    "decorrelate": lambda v: 0.1 * decorrelation_loss(v.za),                                # weighted: after a collapse it is large
    "decorrelate_standardised": lambda v: 0.01 * decorrelation_loss((v.za - v.za.mean(0)) / (v.za.std(0) + 1e-4)),
    "decorrelate_normalised": lambda v: decorrelation_loss(v.Za),
}
SURROGATES = ("simsiam", "simsiam-o_e", "simsiam-r_e", "simsiam-o_e-r_e", "triplet", "triplet-o_e", "triplet-r_e",
              "infonce", "infonce-o_e", "infonce-r_e")


def predict(name, net, z1, z2, predictor_loss):
    """-> p1, p2; where f learns from a part of SimSiam's loss and h from all of it, also h's own, of the detached z1, z2"""
    h = net.predictor
    if name == "bias":
        return F.normalize(z1, dim=1) + net.bias, F.normalize(z2, dim=1) + net.bias
    if name == "mirror":
        return h(z1.detach()), h(z2.detach())
    if name.startswith("simsiam-") and predictor_loss == "simsiam":
        fixed = {key: p.detach() for key, p in h.named_parameters()}       # h as it is, for f's loss
        return functional_call(h, fixed, z1), functional_call(h, fixed, z2), h(z1.detach()), h(z2.detach())
    return h(z1), h(z2)


def loss_of(name, tau, z1, z2, p1, p2, *own):
    """Both directions of a loss, and SimSiam's for h's own predictions.  -> scalar, Letters of the first"""
    both = letters(z1, z2, p1, p2)
    a, b = (LOSSES[name](v) if name in LOSSES else surrogate(name, v, tau) for v in both)
    loss = a / 2 + b / 2
    if own:                                                                # this one moves h alone
        a, b = (surrogate("simsiam", v, tau) for v in letters(z1.detach(), z2.detach(), *own))
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
                                 {"params": model.predictor.parameters(), "weight_decay": 0.0},
                                 {"params": [model.bias], "lr": lr * args.bias_lr, "weight_decay": 0.0}],
                                lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()
    schedule = [(phase, name) for phase, (name, epochs) in enumerate(read_phases(args)) for _ in range(epochs)]

    for epoch in run.epochs():
        (phase, name), losses, seen = schedule[max(epoch - 1, 0)], [], []
        for t, x in run.batches():                                         # epochs done so far; uint8 [B, 3, S, S]
            constant = lr * min(1, t / max(args.warmup_epochs, 1e-9))      # where one loss follows another
            optimizer.param_groups[0]["lr"] = constant if "," in args.phases else common.cosine_lr(lr, t, args.epochs, args.warmup_epochs)

            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                                  # bfloat16 on CUDA, but not in the loss
                z1, z2 = net(x1, x2)
                p = predict(name, model, z1, z2, args.predictor_loss)
            loss, v = loss_of(name, args.temperature, z1, z2, *p)
            losses.append(loss.detach())
            seen.append(measure(name, model, v, args.temperature))
            if epoch == 0:                                                 # the untrained net: measured, not trained
                break

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        table = torch.stack([torch.stack(list(row.values())) for row in seen]).tolist()                     # waits for the device, once
        first = (epoch - 1) * run.steps
        run.log("steps.csv", [{"step": first + i, "phase": phase} | dict(zip(seen[0], row)) for i, row in enumerate(table)] * (epoch > 0))
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

ETA = {"SimSiam": "eta_p", "Mirror SimSiam": "eta_z"}                      # whose o_e, and how much of which centre


def scan(etas, o_z2, o_p2, dot, mirror=False):
    """cos(o_e - eta o, o) for many eta, from the lengths squared and the product of the centres"""
    o2, other2 = (o_z2, o_p2) if mirror else (o_p2, o_z2)                  # o_e = other - o
    return [(dot - (1 + e) * o2) / max(o2 * (other2 - 2 * (1 + e) * dot + (1 + e) ** 2 * o2), 1e-24) ** 0.5 for e in etas]


def draw_eta(axis, arms):
    for name, key in ETA.items():
        axis.plot([row["step"] for row in arms[name]], [row[key] for row in arms[name]], label=f"{key} of {name}")
    axis.set(xlabel="step", ylim=(-1.1, 1.1))


def draw_scan(axis, arms, etas=torch.linspace(-2, 2, 401).tolist()):
    for i, (name, key) in enumerate(ETA.items()):
        last = arms[name][-1]
        axis.plot(etas, scan(etas, last["m_o"]**2, last["m_o_P"]**2, last["o_z.o_p"], key == "eta_z"), color=f"C{i}", label=name)
        axis.axvline(last[key], color=f"C{i}", ls=":", label=f"closed form: {key} = {last[key]:.2f}")
    axis.axhline(0, color="0.5", lw=0.8)
    axis.set(xlabel="η")


def draw_taus(axis, arms):
    rows = [row for row in arms["InfoNCE"] if row["epoch"] == arms["InfoNCE"][-1]["epoch"]]                 # the last epoch
    for letter in "ro":
        axis.plot(TAUS, [sum(row[f"cos_{letter} {t}"] for row in rows) / len(rows) for t in TAUS], "o-", label=f"{letter}$_e$")
    axis.set(xlabel="τ", xscale="log")


PANELS = {                                           # title; the arms with this in their name; columns of steps.csv, or what draws
    "conjecture": [(f"{key} of Z, {start}", start, key) for start in ("from init", "from SimSiam") for key in ("m_o", "m_r")],
    "triplet": [("m_o of Z (1: complete collapse)", "", "m_o"), ("m_r of Z", "", "m_r")],
    "simsiam": [("m_o of Z (1: complete collapse)", "", "m_o"), ("m_o of P", "", "m_o_P")],
    "center": [("how much of the centre is in o$_e$", "", draw_eta), ("cos(o$_e$ − η o, o) at the end", "", draw_scan)],
    "recover": [("m_r of Z", "", "m_r"), ("m_o of Z", "", "m_o")],
    "infonce": [("covariance of Z (Algorithm 5)", "", "covariance"), ("InfoNCE: cosine with the Algorithm's gradient", "", draw_taus)],
    "bias": [("length of the bias", "", "b_theory b"), ("cosine of b and o", "", "b_cos")],
}
LABELS = {"b": "measured", "b_theory": "predicted: (1 − m) / m · o"}


def draw_columns(axis, arms, columns):
    for name, rows in arms.items():
        for key in columns.split():
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], label=LABELS.get(key, name))
        for before, row in pairwise(rows):
            if row["phase"] > before["phase"]:                             # from here on another loss
                axis.axvline(row["step"], color="0.5", ls=":")
    axis.set(xlabel="step", yscale="log" if columns == "covariance" else "linear")
    if columns.startswith("m_"):
        axis.set_ylim(-0.03, 1.05)


def draw(experiment, folders):
    """folders: {arm: its run folder} -> figure"""
    from matplotlib.figure import Figure
    panels, arms = PANELS[experiment], {name: common.read_csv(folder / "steps.csv") for name, folder in folders.items()}
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    for axis, (title, part, what) in zip(figure.subplots(1, len(panels)), panels):
        if callable(what):
            what(axis, arms)
        else:
            draw_columns(axis, {name.removesuffix(", " + part): rows for name, rows in arms.items() if part in name}, what)
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)
    return figure


ARM = {"arm": ("arm", None), "paper": ("paper", None)}
SHARED = ARM | {"m_o": ("m_o", 2), "m_r": ("m_r", 2)}
BEFORE = ARM | {"m_o_before": ("m_o before", 2), "m_o": ("m_o", 2), "m_r_before": ("m_r before", 2), "m_r_highest": ("highest m_r", 2),
                "m_r": ("m_r", 2)}                                         # before: at the start of the last phase
SCORES = {"std": ("std", 2), "effective_rank": ("rank", 1), "m_o_P": ("m_o of P", 2), "verdict": ("collapse", None),
          "knn": ("kNN", 1), "linear": ("linear", 1)}
COLUMNS = {"conjecture": BEFORE, "triplet": SHARED | SCORES, "simsiam": SHARED | SCORES | {"verdict_P": ("collapse of P", None)},
           "center": SHARED | {"eta_p": ("eta_p", 2), "eta_z": ("eta_z", 2)}, "recover": BEFORE | {"effective_rank": ("rank", 1)},
           "infonce": SHARED | SCORES | {"covariance": ("covariance", 4), "cos_r 0.1": ("cos r_e, τ 0.1", 2),
                                         "cos_r 1.0": ("cos r_e, τ 1", 2), "cos_o 0.1": ("cos o_e, τ 0.1", 2)},
           "bias": SHARED | {"b": ("length of b", 3), "b_theory": ("predicted", 3), "b_cos": ("cosine", 3)}}


def run_experiment(args, argv, device, data):
    """One run an arm, then the table (over all seeds that lie beside) and the figure."""
    folder, arms = Path(args.out) / common.run_name(args), EXPERIMENTS[args.experiment]
    jobs = [parse([*argv, "--phases", phases, "--out", str(folder)], name) for name, phases, _ in arms]
    folders = common.run_jobs(jobs, lambda job: train(job, device, data))
    results = []
    for (name, _, says), f in zip(arms, folders):
        steps = common.read_csv(f / "steps.csv")
        last = [row for row in steps if row["phase"] == steps[-1]["phase"]]
        more = {"m_o_before": last[0]["m_o"], "m_r_before": last[0]["m_r"], "m_r_highest": max(row["m_r"] for row in last)}
        results.append(json.loads((f / "result.json").read_text()) | {"arm": name, "paper": says} | more)
    text = common.write_table(args, results, COLUMNS[args.experiment])
    figure = draw(args.experiment, dict(zip((name for name, *_ in arms), folders)))
    common.write(folder / "figure.png", lambda f: figure.savefig(f, dpi=100, format="png"))
    print(f"\n{args.experiment}\n{text}\n{folder}: table.csv, table.md, figure.png")


# ---------------------------------------------------------------------------------------------------------------- main

def read_phases(args):
    """"simsiam:5,naive:1" -> [("simsiam", 5), ("naive", 1)]"""
    phases = []
    for part in args.phases.split(","):
        name, _, epochs = part.partition(":")
        if name not in (*LOSSES, *SURROGATES):
            common.fail(f"--phases {args.phases}: there is no loss {name!r}; the losses are {', '.join((*LOSSES, *SURROGATES))}")
        if not epochs and "," in args.phases or epochs and not (epochs.isdecimal() and int(epochs)):
            common.fail(f"--phases {args.phases}: give every loss its epochs, as in simsiam:5,naive:1")
        phases.append((name, 1 if args.dry_run else int(epochs or args.epochs)))
    return phases


def parse(argv, job=""):
    """job: the name of an arm of an experiment"""
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS, {"experiment": SETTINGS})
    if args.phases:
        args.all, args.label = False, job.replace(" ", "_").replace(",", "") or args.phases.replace(":", "").replace(",", "-")
        args.epochs = sum(epochs for _, epochs in read_phases(args))
    else:
        args.label = args.experiment + "-simsiam_h" * (args.experiment == "simsiam" and args.predictor_loss == "simsiam")
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

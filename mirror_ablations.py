"""Which part of SimSiam prevents collapse?  Every Siamese variant of Zhang et al. and Wen & Li's identity-initialised heads.

Zhang et al., "How Does SimSiam Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262): Tables 1, 2, 5 and 6, Fig. 3,
Algorithms 1 to 4.  Wen & Li, "The Mechanism of Prediction Head in Non-contrastive Self-supervised Learning", 2022 (arXiv 2205.06226).

    python mirror_ablations.py --variant mirror      one of them; a run folder as simsiam.py leaves it, and result.json
    python mirror_ablations.py --all                 all of them: table.md, table.csv and variants.png; goes on where it stopped
    python mirror_ablations.py --scan                how fast must an identity-initialised head be?  scan.csv and scan.png

On `patches` and two CPU cores (torch 2.15) a variant takes a minute, --all 21 minutes.  Without a predictor, without the
stop-gradient, or with the predictor on the wrong path or on both, std falls from 0.77 to 0.02 in one epoch; with SimSiam's
predictor, its inverse after it, two linear layers or a bias alone it does not.  The README has the table over three seeds.

Where we differ from the papers.  Our recipes end the projector without a BatchNorm, so that complete collapse shows as m_o -> 1;
simsiam_bn, inverse, moving_average, bn_before_l2, bn_after_l2, two_fc, tanh_fc and Wen & Li's heads have one, without affine.
`inverse` needs a second head ten times as fast as the first, a bias needs 50 times the encoder's rate, E 100 times; the MLP has
10 times.  Zhang et al. train for 1000 epochs on CIFAR-100, with a final BN; Wen & Li's settings are not known to us.
"""
import json
import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import common

# One dict per data set; every entry is also a flag, and a flag that is given wins.  lr is for a batch of 256.  pred_lr, inverse_lr:
# rate of the predictor and of `inverse`'s second head over the encoder's; both stay constant.  momentum: of the memory bank.
MORE = dict(inverse_lr=1.0, n_aug=10, momentum=0.8)
RECIPES = {
    "patches": dict(arch="small", epochs=12, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=1,      # ours
                    proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="none", pred_lr=10.0, pred_weight_decay=0.0) | MORE,
    "cifar10": dict(arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,  # Chen & He, app. D
                    proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0, pred_weight_decay=5e-4) | MORE,
    "cifar100": dict(arch="resnet18", epochs=1000, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,  # Zhang et al., A.1
                     proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="affine", pred_lr=1.0, pred_weight_decay=1e-5) | MORE,
    "other": dict(arch="small", epochs=20, batch_size=64, lr=0.4, weight_decay=5e-4, warmup_epochs=1,        # ours
                  proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="none", pred_lr=10.0, pred_weight_decay=0.0) | MORE,
}
HEAD = {"final_bn": "noaffine", "pred_lr": 100.0, "pred_weight_decay": 0.0}      # found with --scan: the head must be fast
VARIANTS = {                                                                      # the settings that a variant brings
    "simsiam": {}, "simsiam_bn": {"final_bn": "noaffine"}, "naive": {}, "mirror": {}, "symmetric": {}, "no_stopgrad": {},
    "inverse": {"final_bn": "noaffine", "pred_lr": 1.0, "inverse_lr": 10.0},      # h_inv must keep up with h
    "moving_average": {"final_bn": "noaffine"}, "same_batch": {},
    "bn_after_l2": {"final_bn": "noaffine"}, "bn_before_l2": {"final_bn": "noaffine"},
    "two_fc": {"final_bn": "noaffine", "pred_lr": 1.0}, "tanh_fc": {"final_bn": "noaffine", "pred_lr": 1.0}, "bias": {"pred_lr": 50.0},
    "linear": HEAD, "identity_full": HEAD, "identity": HEAD, "identity_symmetric": HEAD, "identity_frozen": HEAD,
}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine")}
FLAGS = {"variant": ("simsiam", "what to train"), "all": (False, "train all variants, write the table and the figure"),
         "only": ("", "with --all: these alone, as in simsiam,naive,same_batch25"),
         "scan": (False, "train `identity` at several rates and weight decays of the head")}


# ------------------------------------------------------------------------------------------------------------- network

def make_projector(width, layers, dim, final_bn):
    """Linear, BN, ReLU, ..., Linear, final BN.  The final BN hides complete collapse: see "Read the columns" in the README."""
    net = []
    for i in range(layers):
        net += [nn.Linear(width if i == 0 else dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
    net = net[:-2]                                                         # no BN and ReLU after the last layer, but
    if final_bn != "none":
        net += [nn.BatchNorm1d(dim, affine=final_bn == "affine")]
    return nn.Sequential(*net)


def make_mlp(dim, hidden):
    """SimSiam's predictor: no BN at its output."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


class Bias(nn.Module):
    """p = z + b"""
    def __init__(self, dim):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.bias


class IdentityHead(nn.Module):
    """p = E z with E = I at the start.  Wen & Li keep its diagonal at 1: neither a gradient nor weight decay reaches it.

    The parameter is E - I, so weight decay pulls towards I."""
    def __init__(self, dim, train_diagonal=False):
        super().__init__()
        self.change = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("mask", torch.ones(dim, dim) if train_diagonal else 1 - torch.eye(dim), persistent=False)

    @property
    def E(self):
        return torch.eye(len(self.change), device=self.change.device) + self.mask * self.change              # [D, D]

    def forward(self, z):
        return z @ self.E.T


def make_predictor(variant, dim, hidden):
    if variant in ("simsiam", "simsiam_bn", "mirror", "symmetric", "no_stopgrad", "inverse"):
        return make_mlp(dim, hidden)
    if variant == "two_fc":
        return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim))
    if variant in ("tanh_fc", "linear"):
        return nn.Linear(dim, dim, bias=False)
    if variant == "bias":
        return Bias(dim)
    if variant.startswith("identity"):
        return IdentityHead(dim, train_diagonal=variant == "identity_full").requires_grad_(variant != "identity_frozen")
    return None


class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.variant, self.momentum = args.variant, args.momentum
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                                     # f = projector after backbone
        self.encoder.backbone = backbone
        self.encoder.projector = make_projector(width, args.proj_layers, args.proj_dim, args.final_bn)
        self.predictor = make_predictor(args.variant, args.proj_dim, args.pred_hidden)                       # h
        self.inverse = make_mlp(args.proj_dim, args.pred_hidden) if args.variant == "inverse" else None      # h_inv
        if LOSSES[args.variant] in (bn_after_l2, wen_li):
            self.bn = nn.BatchNorm1d(args.proj_dim, affine=False)                       # right before the loss
        if args.variant == "moving_average":
            self.register_buffer("eta", F.normalize(torch.randn(args.n_images, args.proj_dim), dim=1))       # memory bank

    def forward(self, views, images):
        """views: list of [B, 3, S, S]; images: int64 [B], which images they are of -> loss, list of z, tuple of p (or none)"""
        self.images, z = images, [self.encoder(views[0])]                  # [B, D]; each view has its own BN statistics
        with torch.set_grad_enabled(self.variant != "same_batch"):         # which detaches all views but the first: no graph
            z += [self.encoder(x) for x in views[1:]]
        loss, *p = LOSSES[self.variant](self, *z)
        return loss, z, p


build = Siamese


# ---------------------------------------------------------------------------------------------------------------- loss
# net, z1, z2 -> loss, and p1, p2 where there is a predictor.  z: [B, D], p: [B, D].  Every detach is a stop-gradient.

def D(p, z):
    """Negative cosine similarity, mean over the batch.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -F.cosine_similarity(p, z, dim=1).mean()


def simsiam(net, z1, z2):
    """Equation 2."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


def no_stopgrad(net, z1, z2):
    """SimSiam, predictor and all, but for the stop-gradient."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2) / 2 + D(p2, z1) / 2, p1, p2


def naive(net, z1, z2):
    """Fig. 2 (a): no predictor.  A stop-gradient would only halve the gradient of this symmetric loss (Chen & He, section 4.2)."""
    return (D(z1, z2),)


def mirror(net, z1, z2):
    """Algorithm 2: SimSiam with its two paths exchanged.  f learns where the predictor is not; h learns as in SimSiam."""
    p1, p2 = net.predictor(z1.detach()), net.predictor(z2.detach())
    return D(z1, p2) / 2 + D(z2, p1) / 2, p1, p2


def symmetric(net, z1, z2):
    """Algorithm 3: the predictor on both paths, so that h(f(x)) is one encoder and the loss the naive one."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, p2.detach()) / 2 + D(p2, p1.detach()) / 2, p1, p2


def inverse(net, z1, z2):
    """Algorithm 4: the symmetric predictor, its target mapped back to z by a trained inverse.  That avoids collapse again.

    The paper prints the last term of loss_enc without its /2, which would weigh the second view twice; we take it as a slip."""
    h, h_inv = net.predictor, net.inverse
    p1, p2, sg_z1, sg_z2 = h(z1), h(z2), z1.detach(), z2.detach()
    loss_pred = D(h(sg_z1), sg_z2) / 2 + D(h(sg_z2), sg_z1) / 2                                             # trains h
    loss_inv = D(h_inv(p1.detach()), sg_z1) / 2 + D(h_inv(p2.detach()), sg_z2) / 2                          # trains h_inv
    loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2                                # trains f and h
    return loss_pred + loss_inv + loss_enc, p1, p2


def moving_average(net, z1, z2):
    """Table 1: no predictor; the target is the image's own mean over past epochs, from a memory bank eta.

    Not given by the papers: eta's rows start as random directions and stay normalised; the loss is not symmetric."""
    m, Z2 = net.momentum, F.normalize(z2.float(), dim=1)
    eta = net.eta[net.images] = F.normalize(m * net.eta[net.images] + (1 - m) * Z2.detach(), dim=1)
    return (D(z1, eta),)


def same_batch(net, z1, *others):
    """Table 1, A.3: no predictor; the target is the mean over n - 1 other views, the expectation that h is said to stand for."""
    z_mean = torch.stack(others).mean(0)
    return (D(z1, z_mean.detach()),)


def bn_after_l2(net, z1, z2):
    """Section 4: BN right before the MSE, after the l2 normalisation.  Over D as well, so that BN(Z) counts as of length 1.

    `bn_before_l2` is `naive` with BN (without affine) as the encoder's last layer."""
    Z1, Z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    return (F.mse_loss(net.bn(Z1), net.bn(Z2)) / 2,)


def simsiam_l2(net, z1, z2):
    """Section 4: equation 2, but the predictor, FC layers or a bias, sees the l2-normalised encoder output."""
    p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


def wen_li(net, z1, z2):
    """Wen & Li's objective ||BN[E phi(X1)] - sg BN[phi(X2)]||^2, both ways, over 4 D.

    z is BN[phi] already: the final BN, without affine, is f's last layer, and E sees it."""
    p1, p2 = net.bn(net.predictor(z1)), net.bn(net.predictor(z2))
    return F.mse_loss(p1, z2.detach()) / 4 + F.mse_loss(p2, z1.detach()) / 4, p1, p2


LOSSES = {"simsiam": simsiam, "simsiam_bn": simsiam, "naive": naive, "mirror": mirror, "symmetric": symmetric, "no_stopgrad": no_stopgrad,
          "inverse": inverse, "moving_average": moving_average, "same_batch": same_batch,
          "bn_after_l2": bn_after_l2, "bn_before_l2": naive, "two_fc": simsiam_l2, "tanh_fc": simsiam_l2, "bias": simsiam_l2,
          "identity": wen_li, "identity_full": wen_li, "identity_frozen": wen_li, "identity_symmetric": wen_li, "linear": wen_li}


@torch.no_grad()
def constrain(net):
    """What two of the heads are held to after every step."""
    if net.variant == "tanh_fc":
        net.predictor.weight.tanh_()                                       # W <- tanh(W): no entry beyond 1, decays towards 0
    if net.variant == "identity_symmetric":
        net.predictor.change.copy_((net.predictor.change + net.predictor.change.T) / 2)


# --------------------------------------------------------------------------------------------------------------- train

@torch.no_grad()
def head_metrics(net, z, p):
    """The columns of the predictor.  z, p: lists of [B, D], of the last batch

    std_P, m_o_P, m_r_P, rank_P   as for Z, of the predictions
    cos_bias                      cosine of the predictor's last bias with the centre o of Z (Table 6)
    E_max, E_mean, E_asym         largest and mean |off-diagonal| of a D x D head, ||E - E^T|| / ||E||"""
    h, out = net.predictor, {}
    if p:
        m = common.collapse_metrics(torch.cat(p))
        out = {"std_P": m["std"], "m_o_P": m["m_o"], "m_r_P": m["m_r"], "rank_P": m["effective_rank"]}
    bias = getattr(h[-1] if isinstance(h, nn.Sequential) else h, "bias", None)
    if bias is not None:
        out["cos_bias"] = F.cosine_similarity(bias, F.normalize(torch.cat(z).float(), dim=1).mean(0), dim=0).item()
    if net.variant.startswith("identity") or net.variant == "linear":
        E = h.weight if net.variant == "linear" else h.E
        off = (E - E.diag().diag()).abs()
        out |= {"E_max": off.max().item(), "E_mean": off.sum().item() / (len(E)**2 - len(E)),
                "E_asym": ((E - E.T).norm() / E.norm()).item()}
    return out


def train(args, device, data):
    """-> the trained model; writes result.json beside what every run leaves."""
    args.n_images = len(data.train_x)
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    lr, groups = args.lr * args.batch_size / 256, [{"params": list(model.encoder.parameters())}]
    for head, rate in ((model.predictor, args.pred_lr), (model.inverse, args.inverse_lr)):
        if head:
            groups.append({"params": list(head.parameters()), "lr": lr * rate, "weight_decay": args.pred_weight_decay})
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        losses = []
        for t, x in run.batches():                                         # epochs done so far; uint8 [B, 3, S, S]
            optimizer.param_groups[0]["lr"] = common.cosine_lr(lr, t, args.epochs, args.warmup_epochs)

            views = [common.augment(x, data.mean, data.std) for _ in range(args.n_aug if args.variant == "same_batch" else 2)]
            with common.autocast(device):                                  # bfloat16 on CUDA
                loss, z, p = net(views, run.chosen)
            losses.append(loss.detach())
            if epoch == 0:                                                 # the untrained net: measured, not trained
                break

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            constrain(model)
        run.end_epoch(losses, lr=optimizer.param_groups[0]["lr"], z=torch.cat(z).detach(), **head_metrics(model, z, p))
    if run.is_first:
        report(run)
    return model


# -------------------------------------------------------------------------------------------------------------- report

# Where a variant comes from, whether the paper says it collapses, and the paper's linear-probe accuracy (CIFAR-100, percent).
PAPER = {
    "simsiam": ("Table 2", "none, 66.62"), "simsiam_bn": ("Table 2", "none, 66.62"), "naive": ("Table 2", "collapse, 1"),
    "mirror": ("Table 2", "collapse, 1"), "symmetric": ("Table 2", "collapse, 1"), "no_stopgrad": ("Chen & He, 4.1", "collapse"),
    "inverse": ("Fig. 3", "none"), "moving_average": ("Table 1", "none, 46.57"), "same_batch10": ("Table 1", "collapse, 1"),
    "same_batch25": ("Table 1", "collapse, 1"), "bn_after_l2": ("section 4", "none"), "bn_before_l2": ("section 4", "collapse"),
    "two_fc": ("Table 5", "none, 66.7"), "tanh_fc": ("Table 5", "none, 64.82"), "bias": ("Table 5", "none, 49.82"),
    "linear": ("Wen & Li", "none"), "identity_full": ("Wen & Li", "none"), "identity": ("Wen & Li", "none"),
    "identity_symmetric": ("", ""), "identity_frozen": ("Wen & Li", "collapse"),
}
COLUMNS = {"variant": ("variant", None), "paper": ("paper", None), "paper_says": ("its verdict, top-1", None),
           "verdict": ("verdict here", None), "knn": ("kNN", 1), "linear": ("linear", 1), "std": ("std", 2), "m_o": ("m_o", 2),
           "m_r": ("m_r", 2), "effective_rank": ("rank", 1), "m_o_P": ("m_o of P", 2), "rank_P": ("rank of P", 1), "cos_bias": ("cos(b, o)", 3)}
GROUPS = {"Architectures (Table 2)": ["simsiam", "simsiam_bn", "no_stopgrad", "naive", "mirror", "symmetric"],
          "Targets (Fig. 3, Table 1)": ["inverse", "moving_average", "same_batch10", "same_batch25"],
          "BN and small predictors (section 4)": ["two_fc", "tanh_fc", "bias", "bn_after_l2", "bn_before_l2"],
          "Identity-initialised heads (Wen & Li)": ["linear", "identity_full", "identity", "identity_symmetric", "identity_frozen"]}


def report(run):
    """result.json, with the verdict on Z; on P for `symmetric`, whose loss compares P with P, so that h after f is the encoder."""
    last, on_P = run.history[-1], run.args.variant == "symmetric"
    found = common.verdict(last["m_o_P"], last["rank_P"]) if on_P else common.verdict(last["m_o"], last["effective_rank"])
    result = run.finish(variant=run.args.label, verdict=found)
    print(f"collapse of {run.args.label}{' (on P)' if on_P else ''}: {found}; linear probe {result['linear']:.1f} %")


# ------------------------------------------------------------------------------------------------------- --all, --scan

def run_all(args, argv, device, data):
    """Every variant, then the table (over all seeds that lie beside) and the figure."""
    folder = Path(args.out) / common.run_name(args)
    jobs = {v: ["--variant", v] for v in VARIANTS if v != "same_batch"}
    for n in (10, 25):                                                     # n views a step cost more, so these get fewer epochs
        jobs[f"same_batch{n}"] = ["--variant", "same_batch", "--n-aug", str(n), "--epochs", str(max(1, args.epochs * 5 // n))]
    only = args.only.split(",") if args.only else list(jobs)
    if unknown := set(only) - set(jobs):
        common.fail(f"--only {args.only}: there is no {unknown.pop()}; the variants are {', '.join(jobs)}")
    names = [name for group in GROUPS.values() for name in group if name in only]                              # the table's order
    jobs = [parse([*argv, *jobs[name], "--out", str(folder)], job=True) for name in names]
    runs = dict(zip(names, common.run_jobs(jobs, lambda job: train(job, device, data))))

    common.setup(args)
    feats = common.labelled_features(Siamese(args).to(device).encoder.backbone, data, args.dry_run)
    untrained = {"variant": "untrained", "linear": common.linear_probe(*feats, epochs=2 if args.dry_run else 100)[0]}
    start = common.read_csv(runs[names[0]] / "metrics.csv")[0]
    untrained |= {k: start[k] for k in ("knn", "std", "m_o", "m_r", "effective_rank")}
    results = {name: json.loads((f / "result.json").read_text()) for name, f in runs.items()}
    rows = [dict(zip(("paper", "paper_says"), PAPER[name])) | result for name, result in results.items()]
    text = common.write_table(args, [untrained, *rows], COLUMNS)
    common.write(folder / "variants.png", lambda f: draw(runs, results).savefig(f, dpi=100, format="png"))
    print(f"\n{text}\n{folder}: table.csv, table.md, variants.png")


def draw(runs, results):
    """Small multiples: a row a group of variants; solid and cool where nothing collapsed, dashed and warm where it did."""
    from matplotlib.figure import Figure
    groups = {title: here for title, names in GROUPS.items() if (here := [name for name in names if name in runs])}
    figure = Figure(figsize=(13, 0.8 + 2.8 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 3, sharex=True, squeeze=False)
    for (title, names), (left, middle, right) in zip(groups.items(), axes):
        cool = iter(("#08519c", "#1a9850", "#41b6c4", "#6a51a3", "#525252", "#08306b"))
        warm = iter(("#b10026", "#fd8d3c", "#e7298a", "#8c510a", "#fec44f", "#67001f"))
        for name in names:
            result, history = results[name], common.read_csv(runs[name] / "metrics.csv")
            style = dict(color=next(cool), lw=2) if result["verdict"] == "none" else dict(color=next(warm), ls="--", lw=1.6)
            P = "_P" if name == "symmetric" else ""
            epochs, m_o = [row["epoch"] for row in history], [row["m_o" + P] for row in history]
            left.plot(epochs, [row["std" + P] for row in history], label=f"{name}{' (of P)' * bool(P)}: {result['verdict']}", **style)
            rank = [row["rank_P" if P else "effective_rank"] for row in history]
            middle.plot(epochs, [r if m < 0.95 else math.nan for r, m in zip(rank, m_o)], **style)      # else the rank of noise
            known = [(row["epoch"], row["knn"]) for row in history if not math.isnan(row["knn"])]
            right.plot(*zip(*known), **style)
        middle.axhline(4, color="gray", ls=":")
        right.axhline(known[0][1], color="gray", ls=":")
        left.set(ylabel=title, ylim=(-0.03, 1.1))
        middle.set(yscale="log", ylim=(0.9, 40), yticks=[1, 2, 4, 8, 16, 32], yticklabels=[1, 2, 4, 8, 16, 32])
        middle.minorticks_off()
        right.set(ylim=(0, 100))
        right.legend(handles=left.lines, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, title="collapse")
    for axis, title in zip(axes[0], ("std\n0: complete collapse", "effective rank, where m_o < 0.95\nbelow the dots: dimensional collapse",
                                     "kNN accuracy (%)\ndots: untrained net")):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


SCAN = [(rate, decay) for decay in (0.0, 5e-4) for rate in (1.0, 10.0, 100.0, 1000.0)]                  # pred_lr, pred_weight_decay


def run_scan(args, argv, device, data):
    """`identity` at the head's rates and weight decays of SCAN: do the off-diagonals rise, do they fall, does it matter?"""
    folder = Path(args.out) / common.run_name(args)
    flags = [["--variant", "identity", "--pred-lr", str(rate), "--pred-weight-decay", str(decay),
              "--out", str(folder / f"rate{rate:g}-decay{decay:g}")] for rate, decay in SCAN]
    folders = common.run_jobs([parse([*argv, *job], job=True) for job in flags], lambda a: train(a, device, data))
    rows = [{"pred_lr": rate, "pred_weight_decay": decay, **row}
            for (rate, decay), f in zip(SCAN, folders) for row in common.read_csv(f / "metrics.csv")]
    common.write_csv(folder / "scan.csv", rows)
    last = [{"pred_lr": rate, "pred_weight_decay": decay, "E_mean_1": common.read_csv(f / "metrics.csv")[1]["E_mean"],
             **json.loads((f / "result.json").read_text())} for (rate, decay), f in zip(SCAN, folders)]
    text = common.write_table(args, last, {
        "pred_lr": ("head's rate ×", 0), "pred_weight_decay": ("decay", 4), "E_mean_1": ("mean off-diagonal after epoch 1", 4),
        "E_mean": ("at the end", 4), "E_asym": ("asymmetry", 2), "verdict": ("collapse", None), "m_o": ("m_o", 2),
        "effective_rank": ("rank", 1), "knn": ("kNN", 1), "linear": ("linear", 1)})

    from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    panels = {"E_max": "largest |off-diagonal of E|", "E_mean": "mean |off-diagonal of E|", "E_asym": "asymmetry ||E - E$^T$|| / ||E||",
              "m_o": "m_o of Z (1: complete collapse)", "effective_rank": "effective rank of Z", "knn": "kNN accuracy (%)"}
    for axis, (key, title) in zip(axes.flat, panels.items()):
        log = key in ("E_max", "E_mean")                                   # where epoch 0, E = I, cannot be drawn
        for i, (rate, decay) in enumerate(SCAN):
            here = [r for r in rows if (r["pred_lr"], r["pred_weight_decay"]) == (rate, decay) and not math.isnan(r[key])][int(log):]
            axis.plot([r["epoch"] for r in here], [r[key] for r in here], color=f"C{i % 4}", ls="--" if decay else "-",
                      label=f"head's rate ×{rate:g}, decay {decay:g}")
        axis.set(title=title, yscale="log" if log else "linear")
        axis.set_ylim(bottom=None if log else 0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.legend(handles=axes[0, 0].lines, loc="outside lower center", ncols=4, frameon=False)
    common.write(folder / "scan.png", lambda f: figure.savefig(f, dpi=100, format="png"))
    print(f"\n{text}\n{folder}: table.csv, table.md, scan.csv, scan.png")


# ---------------------------------------------------------------------------------------------------------------- main

def parse(argv, job=False):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS, {"variant": VARIANTS})
    if job:                                                                # one of the runs of --all or --scan
        args.all, args.scan, args.only = False, False, ""
    args.label = "all" if args.all else "scan" if args.scan else args.variant + str(args.n_aug) * (args.variant == "same_batch")
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if (args.all or args.scan) and (args.variant != "simsiam" or args.resume):
        common.fail("--all and --scan choose the variants and go on where they stopped by themselves: leave --variant and --resume away")
    if args.n_aug < 2:
        common.fail(f"--n-aug must be at least 2, a view and its target, not {args.n_aug}")
    device = common.setup(args)
    if common.world_size() > 1 and (args.all or args.scan or args.variant == "moving_average"):
        common.fail("--all, --scan and the memory bank of moving_average need a single process: run them without torchrun")
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    if args.all or args.scan:
        return (run_all if args.all else run_scan)(args, argv, device, data)
    return train(args, device, data)


if __name__ == "__main__":
    main()

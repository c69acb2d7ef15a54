"""Train one of nine Siamese nets, to see which part of SimSiam prevents collapse.

Two views are random changes of one image.  The encoder f, a backbone and a small net behind it, the
projector, turns a view into a vector z = f(x).  Another small net, the predictor or head h, turns z
into p = h(z).  The stop-gradient, sg or .detach(), lets numbers pass, but no gradient.  In a
complete collapse all images get the same z.  Most variants are of Zhang et al., "How Does SimSiam
Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262), two are of Wen & Li, "The
Mechanism of Prediction Head in Non-contrastive Self-supervised Learning", 2022 (arXiv 2205.06226).

    python mirror_ablations.py --variant mirror
    python results/reproduce.py mirror            trains all of them and shows them in one table

On `patches` and two CPU cores a variant takes one to four minutes.  naive, no_stopgrad and mirror
collapse completely in one epoch.  In symmetric all p become the same.  In most variants
f ends without a BatchNorm, because one could hide a collapse.  Where we differ from the papers: the
settings for `patches` are ours.  We do not know Wen & Li's for images.  Zhang et al. print the last
term of Algorithm 4 without /2, which would count the second view twice.
"""
import time
from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional as F

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
RECIPES = {
    "patches": dict(                                                                          # ours
        arch="small", epochs=12, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=1,
        proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="none", pred_lr=10.0,
        pred_weight_decay=0.0, inverse_lr=1.0),
    "cifar10": dict(                                                      # Chen & He, appendix D
        arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,
        proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0,
        pred_weight_decay=5e-4, inverse_lr=1.0),
    "cifar100": dict(                                                         # Zhang et al., A.1
        arch="resnet18", epochs=1000, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,
        proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0,
        pred_weight_decay=1e-5, inverse_lr=1.0),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=20, weight_decay=5e-4)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine")}
FLAGS = {"variant": ("simsiam", "the net to train; the docstring of its loss describes it"),
         "inverse_lr": (None, "constant rate of inverse's h_inv, as a multiple of the encoder's")}


# ---------------------------------------------------------------------------------------- variants
# A variant is a function loss(net, z1, z2) -> loss, p1, p2; without a predictor p1 and p2 are None.
# @variant(...) names its predictor, and the settings in which it differs from the recipe, with the
# reason.  These settings hold on `patches` and on your own images.  CIFAR has the papers' recipe.

Variant = namedtuple("Variant", "loss predictor why settings")
VARIANTS = {}                                              # {name of the loss: Variant}


def variant(predictor=None, why="", **settings):
    """Put the loss below into VARIANTS.  predictor: a function (dim, hidden) -> module"""
    def add(loss):
        VARIANTS[loss.__name__] = Variant(loss, predictor, why, settings)
        return loss
    return add


def D(p, z):
    """Minus the mean cosine similarity of p and z, [B, dim] -> scalar.  It detaches nothing."""
    return -F.cosine_similarity(p, z, dim=1).mean()


def make_mlp(dim, hidden):
    """SimSiam's predictor: two linear layers, with BatchNorm and ReLU between them."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


@variant(make_mlp)
def simsiam(net, z1, z2):
    """SimSiam (Chen & He, Algorithm 1; Zhang et al., equation 2).
    z2.detach() is a target that holds still.  The gradient reaches f through p1 = h(z1)."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


@variant()
def naive(net, z1, z2):
    """SimSiam without predictor and stop-gradient (Zhang et al., Fig. 2 a, Table 2).
    A stop-gradient alone, D(z1, z2.detach()) / 2 + D(z2, z1.detach()) / 2, does not help, because
    it only makes the gradient half as long (Chen & He, section 4.2)."""
    return D(z1, z2), None, None


@variant(make_mlp)
def no_stopgrad(net, z1, z2):
    """SimSiam with its predictor, but without the stop-gradient (Chen & He, 4)."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2) / 2 + D(p2, z1) / 2, p1, p2


@variant(make_mlp)
def mirror(net, z1, z2):
    """SimSiam with the gradient on the other path (Zhang et al., Algorithm 2, Table 2): it reaches
    f through z1, without h, and the target is p2.  h learns as in SimSiam."""
    p1, p2 = net.predictor(z1.detach()), net.predictor(z2.detach())
    return D(z1, p2) / 2 + D(z2, p1) / 2, p1, p2


@variant(make_mlp)
def symmetric(net, z1, z2):
    """SimSiam with h on both paths (Zhang et al., Algorithm 3, Table 2).  With h(f(x)) as encoder
    this is naive with half of the gradient."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, p2.detach()) / 2 + D(p2, p1.detach()) / 2, p1, p2


@variant(make_mlp, "h_inv has to keep up with h; p collapses if h has a pred_lr of 10, and on "
         "one seed of three without BatchNorm", final_bn="noaffine", pred_lr=1.0, inverse_lr=10.0)
def inverse(net, z1, z2):
    """As symmetric, but a second head, h_inv, learns to turn the target p back into z (Zhang et
    al., Algorithm 4, Fig. 3)."""
    h, h_inv = net.predictor, net.inverse
    p1, p2, sg_z1, sg_z2 = h(z1), h(z2), z1.detach(), z2.detach()
    loss_pred = D(h(sg_z1), sg_z2) / 2 + D(h(sg_z2), sg_z1) / 2                     # trains h
    loss_inv = D(h_inv(p1.detach()), sg_z1) / 2 + D(h_inv(p2.detach()), sg_z2) / 2  # trains h_inv
    loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2        # trains f and h
    return loss_pred + loss_inv + loss_enc, p1, p2


class Bias(nn.Module):
    """A predictor that only adds a trained vector b, which starts at 0: p = z + b"""

    def __init__(self, dim, _):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.bias


@variant(Bias)
def bias(net, z1, z2):
    """SimSiam, but the predictor only adds a vector, the same for all images, to z of length 1
    (Zhang et al., Table 5)."""
    p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


class IdentityHead(nn.Module):
    """p = E z, with a matrix E that starts as the identity I.  Only its off-diagonal entries are
    trained (Wen & Li).  The weights are E - I, so that weight decay pulls E towards I, not 0."""

    def __init__(self, dim, _):
        super().__init__()
        self.change = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("mask", 1 - torch.eye(dim), persistent=False)

    @property
    def E(self):
        identity = torch.eye(len(self.change), device=self.change.device)
        return identity + self.mask * self.change          # [dim, dim]

    def forward(self, z):
        return z @ self.E.T


@variant(IdentityHead, "f has to end in a BatchNorm, as in the theory, and weight decay pulls E "
         "back to I", final_bn="noaffine", pred_weight_decay=5e-4)
def identity(net, z1, z2):
    """SimSiam, but h is a matrix E that starts as I, and D a squared error behind a BatchNorm, BN
    (Wen & Li): ||BN[E z1] - sg(z2)||^2 / (4 dim), plus the same with the views exchanged.
    z is BN[phi(x)], where phi is f before its last BN.  In Wen & Li E sees phi(x) itself."""
    p1, p2 = net.bn(net.predictor(z1)), net.bn(net.predictor(z2))
    return F.mse_loss(p1, z2.detach()) / 4 + F.mse_loss(p2, z1.detach()) / 4, p1, p2


def frozen_head(dim, hidden):
    """identity_frozen: h stays I, untrained (Wen & Li, Theorem 3).  z has few dimensions left."""
    return IdentityHead(dim, hidden).requires_grad_(False)


VARIANTS["identity_frozen"] = VARIANTS["identity"]._replace(predictor=frozen_head)


# ----------------------------------------------------------------------------------------- network

class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim, variant = args.proj_dim, VARIANTS[args.variant]
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
        self.predictor, self.inverse = None, None          # h and h_inv
        if variant.predictor is not None:
            self.predictor = variant.predictor(dim, args.pred_hidden)
        if args.variant == "inverse":
            self.inverse = make_mlp(dim, args.pred_hidden)
        self.bn = nn.BatchNorm1d(dim, affine=False)        # Only identity needs it.

    def forward(self, x1, x2):
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        return self.encoder(x1), self.encoder(x2)          # [B, dim]


build = Siamese                                # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

@torch.no_grad()
def head_metrics(net, z, p1, p2):
    """The predictor's columns: collapse_metrics of p; cos_bias, the cosine of its last bias and the
    mean Z (Zhang et al., Table 6); E_max and E_mean, the largest and mean size of an off-diagonal
    entry; E_asym, ||E - E^T|| / ||E||.  z: [2B, dim] and p1, p2: [B, dim] are of the last batch."""
    if p1 is None:
        return {}
    of_P = common.collapse_metrics(torch.cat([p1, p2]))
    found = {f"{name}_P": of_P[name] for name in ("std", "m_o", "effective_rank")}
    last = net.predictor[-1] if isinstance(net.predictor, nn.Sequential) else net.predictor
    if isinstance(last, IdentityHead):
        E = last.E
        off = (E - E.diag().diag()).abs()
        return found | {
            "E_max": off.max().item(), "E_mean": off.sum().item() / (len(E)**2 - len(E)),
            "E_asym": ((E - E.T).norm() / E.norm()).item()}
    o = F.normalize(z.float(), dim=1).mean(0)
    return found | {"cos_bias": F.cosine_similarity(last.bias, o, dim=0).item()}


def parse(argv=None):
    settings = {name: variant.settings for name, variant in VARIANTS.items()}
    args = common.parse_args(
        __file__, __doc__, RECIPES, argv, CHOICES | {"variant": VARIANTS}, FLAGS,
        presets={"patches": settings, "other": settings}, zero=["pred_weight_decay"])
    args.label = args.variant
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    variant = VARIANTS[args.variant]
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    # The weights form several groups, because only the encoder's learning rate falls.  The heads'
    # rates stay constant, so the heads can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256                   # --lr is the rate for a batch of 256.
    groups = [{"params": model.encoder.parameters()}]
    for head, rate in ((model.predictor, args.pred_lr), (model.inverse, args.inverse_lr)):
        if head is not None:
            groups.append({"params": head.parameters(), "lr": lr * rate,
                           "weight_decay": args.pred_weight_decay})
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    own = [f"{name} {value}" for name, value in variant.settings.items()
           if getattr(args, name) == value]
    if own and args.data not in ("cifar10", "cifar100"):   # These have the papers' recipe.
        print(f"{args.variant} differs from the other variants in {', '.join(own)}: {variant.why}")
    if not log.history:                                    # Row 0 is of the untrained net.
        columns = {"E_mean": 0.0} if isinstance(model.predictor, IdentityHead) else {}
        log.row(0, **common.measure(model.encoder, data, args), **columns)

    for epoch in range(len(log.history), args.epochs + 1):  # A resumed run goes on where it ended.
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42; images' indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # Group 0 is the encoder.
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]; no labels
            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                  # A GPU uses 16-bit floats (bfloat16).
                z1, z2 = net(x1, x2)
                loss, p1, p2 = variant.loss(model, z1, z2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would wait for the GPU.
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat([z1, z2])                            # Has the last batch's z collapsed?
        columns = head_metrics(model, z, p1, p2)
        if args.variant == "symmetric":                    # Its loss compares only p.
            of_P = common.collapse_metrics(torch.cat([p1, p2]))
            columns["verdict_P"] = common.verdict(of_P)
        metrics = common.measure(model.encoder, data, args, epoch, z)
        log.row(epoch, mean_loss, seconds, **metrics, **columns)
    found = {}
    if "verdict_P" in log.history[-1]:
        found["verdict"] = log.history[-1]["verdict_P"]
    if "E_mean" in log.history[-1]:
        found["E_mean_1"] = log.history[1]["E_mean"]       # after the first epoch
    log.finish(**found, **common.evaluate(model.encoder, data, args, epochs=100))
    return model


if __name__ == "__main__":
    common.cli(main)

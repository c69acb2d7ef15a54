"""Which part of SimSiam prevents collapse?  Nine Siamese nets, each whole in one place.

Zhang et al., "How Does SimSiam Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262):
Tables 2, 5 and 6, Figs. 2, 3, Algorithms 1 to 4, which stand here without a name.  Wen & Li, "The
Mechanism of Prediction Head in Non-contrastive Self-supervised Learning", 2022 (arXiv 2205.06226):
heads, that is predictors, that start as the identity.  z = f(x) are the projections of a view, and
p = h(z) is what the predictor h makes of them, as in simsiam.py.

    python mirror_ablations.py --variant mirror
    python results/reproduce.py mirror            all of them in one table and one figure

On `patches` and two CPU cores a variant takes a minute.  naive, no_stopgrad and mirror collapse in
one epoch: all images are one point, and m_o, the length of the mean of the unit-length z, is 1.  In
symmetric it is p that collapses.  simsiam, inverse, bias and identity do not collapse so.

All variants share their settings, except for those that @variant(...) names with a reason.  f ends
without a BatchNorm, which would hide a complete collapse.  Where we differ from the papers: on
`patches` all rates are ours; Algorithm 4 prints its last term without /2, which would weigh the
second view twice; Wen & Li's settings for images are not known to us.
"""
import time
from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional as F

import common

# The settings for each data set.  Every entry is also a flag (--help says what it is), and a flag
# that is given wins.
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
FLAGS = {"variant": ("simsiam", "which of the Siamese nets"),
         "inverse_lr": (None, "constant learning rate of h_inv, the second head of inverse")}


# ---------------------------------------------------------------------------------------- variants
# A variant is a function loss(net, z1, z2) that returns the loss and p1, p2 (None without a
# predictor).  Above it stand the predictor that it needs, and the settings in which it differs from
# the recipe, with the reason.  These hold on `patches` and on your own images, not on CIFAR.

Variant = namedtuple("Variant", "loss predictor why settings")
VARIANTS = {}                                              # {name of the loss: Variant}


def variant(predictor=None, why="", **settings):
    """@variant(...) puts the loss that it stands above into VARIANTS.  predictor(dim, hidden)
    returns a module."""
    def add(loss):
        VARIANTS[loss.__name__] = Variant(loss, predictor, why, settings)
        return loss
    return add


def D(p, z):
    """Minus the mean cosine similarity.  p, z: [B, dim] -> scalar.  Who calls it detaches z."""
    return -F.cosine_similarity(p, z, dim=1).mean()


def make_mlp(dim, hidden):
    """SimSiam's predictor: two layers, without BatchNorm at the output."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


@variant(make_mlp)
def simsiam(net, z1, z2):
    """Equation 2.  z2.detach() is only a target; the gradient enters f through p1 = h(z1)."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


@variant()
def naive(net, z1, z2):
    """Fig. 2 (a): no predictor.

    With a stop-gradient, D(z1, z2.detach()) / 2 + D(z2, z1.detach()) / 2, the gradient would be
    half of this one: a stop-gradient alone changes nothing (Chen & He, section 4.2)."""
    return D(z1, z2), None, None


@variant(make_mlp)
def no_stopgrad(net, z1, z2):
    """SimSiam with its predictor, but without the stop-gradient."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2) / 2 + D(p2, z1) / 2, p1, p2


@variant(make_mlp)
def mirror(net, z1, z2):
    """Algorithm 2: the gradient reaches f through z, not through h(z).  h learns as in SimSiam."""
    p1, p2 = net.predictor(z1.detach()), net.predictor(z2.detach())
    return D(z1, p2) / 2 + D(z2, p1) / 2, p1, p2


@variant(make_mlp)
def symmetric(net, z1, z2):
    """Algorithm 3: h on both sides.  With h(f(x)) as the encoder this is half of naive's gradient.
    So P, and not Z, is what collapses."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, p2.detach()) / 2 + D(p2, p1.detach()) / 2, p1, p2


@variant(make_mlp, "h_inv has to follow h; with h at the shared rate P collapses, and without the "
         "BatchNorm on one seed of three", final_bn="noaffine", pred_lr=1.0, inverse_lr=10.0)
def inverse(net, z1, z2):
    """Algorithm 4: h on both sides, but a second head, h_inv, learns to map the target p back to
    z."""
    h, h_inv = net.predictor, net.inverse
    p1, p2, sg_z1, sg_z2 = h(z1), h(z2), z1.detach(), z2.detach()
    loss_pred = D(h(sg_z1), sg_z2) / 2 + D(h(sg_z2), sg_z1) / 2                     # trains h
    loss_inv = D(h_inv(p1.detach()), sg_z1) / 2 + D(h_inv(p2.detach()), sg_z2) / 2  # trains h_inv
    loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2        # trains f and h
    return loss_pred + loss_inv + loss_enc, p1, p2


class Bias(nn.Module):
    """p = z + b"""

    def __init__(self, dim, _):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.bias


@variant(Bias)
def bias(net, z1, z2):
    """Table 5: SimSiam, but the predictor only adds a vector, to z of length 1."""
    p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


class IdentityHead(nn.Module):
    """p = E z with E = I at the start.  As in Wen & Li only its off-diagonal entries are trained.

    The parameter is E - I, so that weight decay would pull towards I."""

    def __init__(self, dim, _):
        super().__init__()
        self.change = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("mask", 1 - torch.eye(dim), persistent=False)

    @property
    def E(self):
        identity = torch.eye(len(self.change), device=self.change.device)
        return identity + self.mask * self.change          # [D, D]

    def forward(self, z):
        return z @ self.E.T


@variant(IdentityHead, "f has to end in a BatchNorm, as in the theory; weight decay pulls E back "
         "to I", final_bn="noaffine", pred_weight_decay=5e-4)
def identity(net, z1, z2):
    """Wen & Li: ||BN[E phi(X1)] - sg BN[phi(X2)]||^2 for both directions, over 4 dim.

    phi is f before its last BatchNorm.  Here z is BN[phi], and E sees z, not phi."""
    p1, p2 = net.bn(net.predictor(z1)), net.bn(net.predictor(z2))
    return F.mse_loss(p1, z2.detach()) / 4 + F.mse_loss(p2, z1.detach()) / 4, p1, p2


def frozen_head(dim, hidden):
    """The control: E stays I, so that there is a stop-gradient but no trained predictor."""
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
        if args.final_bn != "none":                        # it may hide a collapse: see README
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the projector after the backbone
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        self.predictor, self.inverse = None, None          # h, h_inv
        if variant.predictor is not None:
            self.predictor = variant.predictor(dim, args.pred_hidden)
        if args.variant == "inverse":
            self.inverse = make_mlp(dim, args.pred_hidden)
        self.bn = nn.BatchNorm1d(dim, affine=False)        # only in the loss `identity`

    def forward(self, x1, x2):
        # One call per view, so that BatchNorm uses each view's own mean and variance.
        return self.encoder(x1), self.encoder(x2)          # [B, D]


build = Siamese


# ------------------------------------------------------------------------------------------- train

@torch.no_grad()
def head_metrics(net, z, p1, p2):
    """Columns of the predictor: collapse_metrics of P, and
    cos_bias                cosine of the predictor's last bias with the centre o of Z (Table 6)
    E_max, E_mean, E_asym   largest and mean |off-diagonal| of a D x D head, ||E - E^T|| / ||E||

    z: [2B, D], p1, p2: [B, D], of the last batch"""
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
    # Several groups, because only the encoder's learning rate falls.  The predictor's stays
    # constant, so that the predictor can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()}]
    for head, rate in ((model.predictor, args.pred_lr), (model.inverse, args.inverse_lr)):
        if head is not None:
            groups.append({"params": head.parameters(), "lr": lr * rate,
                           "weight_decay": args.pred_weight_decay})
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # makes the run's folder, or resumes it
    own = [f"{name} {value}" for name, value in variant.settings.items()
           if getattr(args, name) == value]
    if own and args.data not in ("cifar10", "cifar100"):   # which have the papers' recipe
        print(f"{args.variant} differs from the other variants in {', '.join(own)}: {variant.why}")
    if not log.history:                                    # row 0: the untrained net's score
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42 epochs; indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # the encoder's
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size], no labels
            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                  # bfloat16 on CUDA
                z1, z2 = net(x1, x2)
                loss, p1, p2 = variant.loss(model, z1, z2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would make a GPU wait
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat([z1, z2])                            # of the last batch, to look for collapse
        columns = head_metrics(model, z, p1, p2)
        if args.variant == "symmetric":                    # its loss compares P with P
            columns["verdict_P"] = common.verdict(
                {"m_o": columns["m_o_P"], "effective_rank": columns["effective_rank_P"]})
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

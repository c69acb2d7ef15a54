"""Train one of thirteen Siamese nets with another target, BatchNorm or predictor than SimSiam.

The encoder f turns a view, a randomly changed image, into z = f(x), and the predictor h turns z
into p = h(z).  In a complete collapse all z are equal.  The nets are of Zhang et al. 2022 (arXiv
2203.16262) and Wen & Li 2022 (arXiv 2205.06226), as in mirror_ablations.py, which explains more.

    python more_ablations.py --variant whitening
    python results/reproduce.py mirror            trains most of them and shows them in one table

On `patches` and two CPU cores a variant takes a minute.  Where we differ from the papers: the
settings for `patches` are ours.  The papers do not say how a memory bank starts; ours has random
rows of length 1, and is the target of one view.  Wen & Li's head sees z before its BatchNorm.
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
        pred_weight_decay=0.0, n_aug=10, bank_momentum=0.8),
    "cifar10": dict(                                                      # Chen & He, appendix D
        arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,
        proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0,
        pred_weight_decay=5e-4, n_aug=10, bank_momentum=0.8),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=20, weight_decay=5e-4)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine")}
FLAGS = {"variant": ("moving_average", "the net to train; the docstring of its loss describes it"),
         "n_aug": (None, "number of views of an image in same_batch"),
         "bank_momentum": (None, "share of the old target that moving_average keeps at a step")}


# ---------------------------------------------------------------------------------------- variants
# A variant is a function loss(net, z1, z2) below its @variant(...), as in mirror_ablations.py.

Variant = namedtuple("Variant", "loss predictor why settings")
VARIANTS = {}                                              # {name: Variant}
OURS = "our choice; we did not try the rate that the other variants share"
FC = "at the rate that the other variants share they learn a little less (one seed)"
HEAD = "f has to end in a BatchNorm, as in the theory; weight decay pulls E back to I"


def variant(name, predictor=None, why="", **settings):
    """Put the loss below into VARIANTS.  predictor: a function (dim, hidden) -> module"""
    def add(loss):
        VARIANTS[name] = Variant(loss, predictor, why, settings)
        return loss
    return add


def D(p, z):
    """Minus the mean cosine similarity of p and z, [B, dim] -> scalar.  The caller detaches z."""
    return -F.cosine_similarity(p, z, dim=1).mean()


def make_mlp(dim, hidden):
    """SimSiam's predictor: two linear layers, with BatchNorm and ReLU between them."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


def two_layers(dim, hidden):
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim))


def one_layer(dim, hidden):
    return nn.Linear(dim, dim, bias=False)


@variant("moving_average", final_bn="noaffine", why="the paper's f ends in a BatchNorm")
def moving_average(net, z1, z2):
    """No predictor; the target is the image's mean Z of past epochs, from a memory bank (Zhang et
    al., Table 1).  On most seeds z does not collapse completely, but keeps a dimension or two."""
    m, Z2 = net.bank_momentum, F.normalize(z2.float(), dim=1)
    eta = F.normalize(m * net.eta[net.images] + (1 - m) * Z2.detach(), dim=1)
    net.eta[net.images] = eta
    return D(z1, eta), None, None


@variant("same_batch")
def same_batch(net, z1, *others):
    """No predictor; the target is the mean over the image's other views (Zhang et al., Table 1 and
    A.3).  SimSiam's predictor is said to compute such a mean, but this net collapses."""
    z_mean = torch.stack(others).mean(0)
    return D(z1, z_mean.detach()), None, None


@variant("bn_after_l2", final_bn="noaffine", why="to compare it with naive --final-bn noaffine")
def bn_after_l2(net, z1, z2):
    """No predictor, but a BatchNorm of Z, which is z of length 1, right before a squared error
    (Zhang et al., section 4).  z does not collapse completely, but keeps a dimension or two."""
    Z1, Z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    return F.mse_loss(net.bn(Z1), net.bn(Z2)) / 2, None, None


def whiten(Z, group=16):
    """Make dimensions uncorrelated and of variance 1 within groups of 16.  [B, dim] -> [B, dim]"""
    with torch.autocast(Z.device.type, enabled=False):     # bfloat16 is too coarse for this.
        parts = (Z - Z.mean(0)).float().view(len(Z), -1, group).transpose(0, 1)    # [dim/16, B, 16]
        cov = parts.mT @ parts / (len(Z) - 1) + 1e-8 * torch.eye(group, device=Z.device)
        L = torch.linalg.cholesky_ex(cov)[0]
        white = torch.linalg.solve_triangular(L, parts.mT, upper=False)            # [dim/16, 16, B]
    return white.flatten(0, 1).T


@variant("whitening", final_bn="noaffine", why="to compare it with naive --final-bn noaffine")
def whitening(net, z1, z2):
    """As bn_after_l2, but correlations within groups of dimensions, drawn anew at every step, cost
    too (Zhang et al., 3.3; Hua et al. 2021, arXiv 2105.00470).  It learns well."""
    order = torch.randperm(z1.shape[1], device=z1.device)
    Z1, Z2 = F.normalize(z1, dim=1)[:, order], F.normalize(z2, dim=1)[:, order]
    return F.mse_loss(whiten(Z1), whiten(Z2)) / 2, None, None


@variant("mse", make_mlp)
def mse(net, z1, z2):
    """SimSiam with a squared error instead of D (Zhang et al., section 4).  It learns little."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return F.mse_loss(p1, z2.detach()) / 2 + F.mse_loss(p2, z1.detach()) / 2, p1, p2


@variant("two_fc", two_layers, FC, final_bn="noaffine", pred_lr=1.0)
@variant("tanh_fc", one_layer, FC, final_bn="noaffine", pred_lr=1.0)
@variant("fc", one_layer, FC, final_bn="noaffine", pred_lr=1.0)
def simsiam_l2(net, z1, z2):
    """SimSiam, but h is linear and sees Z, z of length 1 (Zhang et al., section 4, Table 5).
    two_fc has two layers, and learns nearly as well as SimSiam.  fc has one, and so has tanh_fc,
    whose weights go through tanh after every step.  Both learn little, and z loses dimensions."""
    p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


class Bias(nn.Module):
    """A predictor that only adds a trained vector b, which starts at 0: p = z + b"""

    def __init__(self, dim, _):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.bias


@variant("fc_of_z", one_layer, OURS, final_bn="noaffine", pred_lr=1.0)
@variant("bias_of_z", Bias, OURS, pred_lr=50.0)
def simsiam(net, z1, z2):
    """SimSiam, but h is simple and sees z, not Z (Zhang et al., section 4).  In fc_of_z it is one
    linear layer, and learns little.  In bias_of_z it only adds a vector, and z collapses."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


class IdentityHead(nn.Module):
    """p = E z, where E starts as the identity I.  Its diagonal stays 1, or is trained too."""

    def __init__(self, dim, _, train_diagonal=False):
        super().__init__()
        mask = torch.ones(dim, dim) if train_diagonal else 1 - torch.eye(dim)
        self.change = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("mask", mask, persistent=False)

    @property
    def E(self):
        identity = torch.eye(len(self.change), device=self.change.device)
        return identity + self.mask * self.change          # [dim, dim]

    def forward(self, z):
        return z @ self.E.T


def full_head(dim, hidden):
    return IdentityHead(dim, hidden, train_diagonal=True)


@variant("linear", one_layer, OURS, final_bn="noaffine", pred_lr=100.0)
@variant("identity_full", full_head, HEAD, final_bn="noaffine", pred_weight_decay=5e-4)
@variant("identity_symmetric", IdentityHead, HEAD, final_bn="noaffine", pred_weight_decay=5e-4)
def wen_li(net, z1, z2):
    """As `identity` in mirror_ablations.py, h is a matrix E, and the loss is a squared error behind
    a BatchNorm (Wen & Li).  linear starts E at random.  identity_full trains its diagonal too.
    identity_symmetric, which is ours, keeps E symmetric.  None of them collapses completely."""
    p1, p2 = net.bn(net.predictor(z1)), net.bn(net.predictor(z2))
    return F.mse_loss(p1, z2.detach()) / 4 + F.mse_loss(p2, z1.detach()) / 4, p1, p2


# ----------------------------------------------------------------------------------------- network

class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.variant, self.bank_momentum, dim = args.variant, args.bank_momentum, args.proj_dim
        backbone, width = common.make_backbone(args.arch)
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
        self.predictor = None                                                                # h
        if VARIANTS[args.variant].predictor is not None:
            self.predictor = VARIANTS[args.variant].predictor(dim, args.pred_hidden)
        self.bn = nn.BatchNorm1d(dim, affine=False)        # Some losses need it.
        if args.variant == "moving_average":               # The memory bank has a row an image.
            self.register_buffer("eta", F.normalize(torch.randn(args.n_images, dim), dim=1))

    def forward(self, views):
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        z = [self.encoder(views[0])]                       # [B, dim] each
        with torch.set_grad_enabled(self.variant != "same_batch"):    # Its other views are targets.
            return z + [self.encoder(x) for x in views[1:]]

    @torch.no_grad()
    def constrain(self):
        """After every step keep tanh_fc's weights below 1, and identity_symmetric's E symmetric."""
        if self.variant == "tanh_fc":
            self.predictor.weight.tanh_()                  # It also pulls them towards 0.
        elif self.variant == "identity_symmetric":
            change = self.predictor.change
            change.copy_((change + change.T) / 2)


build = Siamese                                # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

@torch.no_grad()
def head_metrics(net, z, p1, p2):
    """The predictor's columns, as in mirror_ablations.py.  z: [2B, dim], p1, p2: [B, dim]"""
    if p1 is None:
        return {}
    of_P = common.collapse_metrics(torch.cat([p1, p2]))
    found = {f"{name}_P": of_P[name] for name in ("std", "m_o", "effective_rank")}
    last = net.predictor[-1] if isinstance(net.predictor, nn.Sequential) else net.predictor
    if VARIANTS[net.variant].loss is wen_li:
        E = last.weight if net.variant == "linear" else last.E
        off = (E - E.diag().diag()).abs()
        found |= {"E_max": off.max().item(), "E_mean": off.sum().item() / (len(E)**2 - len(E)),
                  "E_asym": ((E - E.T).norm() / E.norm()).item()}
    elif last.bias is not None:
        o = F.normalize(z.float(), dim=1).mean(0)
        found["cos_bias"] = F.cosine_similarity(last.bias, o, dim=0).item()
    return found


def parse(argv=None):
    settings = {name: variant.settings for name, variant in VARIANTS.items()}
    args = common.parse_args(
        __file__, __doc__, RECIPES, argv, CHOICES | {"variant": VARIANTS}, FLAGS,
        presets={"patches": settings, "other": settings},
        zero=["pred_weight_decay", "bank_momentum"])
    if args.bank_momentum >= 1 or args.n_aug < 2:
        common.fail("--bank-momentum must be below 1, and --n-aug at least 2: a view and a target")
    if args.variant == "whitening" and args.proj_dim % 16:
        common.fail(f"--proj-dim {args.proj_dim} does not divide into whitening's groups of 16")
    args.label, args.n_images = args.variant, 0            # main sets the number.
    if args.variant == "same_batch":
        args.label += str(args.n_aug)
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    variant, args.n_images = VARIANTS[args.variant], len(data.train_x)
    n_views = args.n_aug if args.variant == "same_batch" else 2
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    # The weights form two groups, because only the encoder's learning rate falls.  The predictor's
    # rate stays constant, so the predictor can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256                   # --lr is the rate for a batch of 256.
    groups = [{"params": model.encoder.parameters()}]
    if model.predictor is not None:
        groups.append({"params": model.predictor.parameters(), "lr": lr * args.pred_lr,
                       "weight_decay": args.pred_weight_decay})
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    own = [f"{name} {value}" for name, value in variant.settings.items()
           if getattr(args, name) == value]
    if own and args.data not in ("cifar10", "cifar100"):   # These have the papers' recipe.
        print(f"{args.variant} differs from the other variants in {', '.join(own)}: {variant.why}")
    if not log.history:                                    # Row 0 is of the untrained net.
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):  # A resumed run goes on where it ended.
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42; images' indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # Group 0 is the encoder.
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]; no labels
            views = [common.augment(x, data.mean, data.std) for _ in range(n_views)]
            model.images = chosen                          # moving_average asks which images.
            with common.autocast(device):                  # A GPU uses 16-bit floats (bfloat16).
                z = net(views)
                loss, p1, p2 = variant.loss(model, *z)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.constrain()
            losses.append(loss.detach())                   # .item() here would wait for the GPU.
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat(z)                                   # Has the last batch's z collapsed?
        metrics = common.measure(model.encoder, data, args, epoch, z)
        log.row(epoch, mean_loss, seconds, **metrics, **head_metrics(model, z, p1, p2))
    found = {}
    if "E_mean" in log.history[-1]:
        found["E_mean_1"] = log.history[1]["E_mean"]       # after the first epoch
    log.finish(**found, **common.evaluate(model.encoder, data, args, epochs=100))
    return model


if __name__ == "__main__":
    common.cli(main)

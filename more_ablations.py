"""The other Siamese nets of the two papers: other targets, other BatchNorms, other predictors.

Zhang et al., "How Does SimSiam Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262):
Tables 1 and 5, section 4.  Wen & Li, "The Mechanism of Prediction Head in Non-contrastive
Self-supervised Learning", 2022 (arXiv 2205.06226).  It is built like mirror_ablations.py, which
explains the letters.

    python more_ablations.py --variant whitening
    python results/reproduce.py mirror            all of them in one table and one figure

On `patches` and two CPU cores a variant takes a minute.  Where we differ from the papers: on
`patches` all rates are ours; the projector ends with a BatchNorm if the variant is about one or
needs one; the memory bank's start, its normalisation and a loss in one direction are our choice,
since the papers do not say; Wen & Li's E sees phi, here it sees BN[phi].
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
        pred_weight_decay=0.0, n_aug=10, bank_momentum=0.8),
    "cifar10": dict(                                                      # Chen & He, appendix D
        arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,
        proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0,
        pred_weight_decay=5e-4, n_aug=10, bank_momentum=0.8),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=20, weight_decay=5e-4)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine")}
FLAGS = {"variant": ("moving_average", "which of the Siamese nets"),
         "n_aug": (None, "views of an image in same_batch"),
         "bank_momentum": (None, "how much of a target moving_average keeps")}


# ---------------------------------------------------------------------------------------- variants
# As in mirror_ablations.py: a loss, net, z1, z2 [B, D] -> loss, p1, p2 (None without a predictor),
# and above it the predictor that it needs, the settings that differ, and why.

Variant = namedtuple("Variant", "loss predictor why settings")
VARIANTS = {}                                              # {name: Variant}
OURS = "our choice; the rate that mirror_ablations.py shares was not tried"
HEAD = "f has to end in a BatchNorm, as in the theory; weight decay pulls E back to I"


def variant(name, predictor=None, why="", **settings):
    """@variant(...) puts the loss that it stands above into VARIANTS.  predictor(dim, hidden)
    returns a module."""
    def add(loss):
        VARIANTS[name] = Variant(loss, predictor, why, settings)
        return loss
    return add


def D(p, z):
    """Minus the mean cosine similarity.  p, z: [B, dim] -> scalar.  Who calls it detaches z."""
    return -F.cosine_similarity(p, z, dim=1).mean()


def make_mlp(dim, hidden):
    """SimSiam's predictor: two layers, without BatchNorm at the output."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


def two_layers(dim, hidden):
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim))


def one_layer(dim, hidden):
    return nn.Linear(dim, dim, bias=False)


@variant("moving_average", final_bn="noaffine", why="the final BN is the paper's")
def moving_average(net, z1, z2):
    """Table 1: the target is the image's own mean over past epochs, from a memory bank eta.

    eta's rows start as random directions and stay normalised; the loss is not symmetric."""
    m, Z2 = net.bank_momentum, F.normalize(z2.float(), dim=1)
    eta = F.normalize(m * net.eta[net.images] + (1 - m) * Z2.detach(), dim=1)
    net.eta[net.images] = eta
    return D(z1, eta), None, None


@variant("same_batch")
def same_batch(net, z1, *others):
    """Table 1, A.3: the target is the mean over n - 1 other views, which h is said to stand for."""
    z_mean = torch.stack(others).mean(0)
    return D(z1, z_mean.detach()), None, None


@variant("bn_after_l2", final_bn="noaffine", why="as the row that it is compared with")
def bn_after_l2(net, z1, z2):
    """Section 4: BN right before the MSE, after the l2 normalisation.  Over D as well.

    BN before it is `mirror_ablations.py --variant naive --final-bn noaffine`."""
    Z1, Z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    return F.mse_loss(net.bn(Z1), net.bn(Z2)) / 2, None, None


def whiten(Z, group=16):
    """Uncorrelated dimensions of variance 1 within each group, by Cholesky.  [B, D] -> [B, D]"""
    with torch.autocast(Z.device.type, enabled=False):     # bfloat16 is too coarse for this
        parts = (Z - Z.mean(0)).float().view(len(Z), -1, group).transpose(0, 1)     # [D/16, B, 16]
        cov = parts.mT @ parts / (len(Z) - 1) + 1e-8 * torch.eye(group, device=Z.device)
        L = torch.linalg.cholesky_ex(cov)[0]
        white = torch.linalg.solve_triangular(L, parts.mT, upper=False)             # [D/16, 16, B]
    return white.flatten(0, 1).T


@variant("whitening", final_bn="noaffine", why="as the row that it is compared with")
def whitening(net, z1, z2):
    """bn_after_l2, but correlated dimensions cost as well (after Hua et al. 2021, 2105.00470).

    Groups are drawn anew at every step, so that no two dimensions stay unseen by each other."""
    order = torch.randperm(z1.shape[1], device=z1.device)
    Z1, Z2 = F.normalize(z1, dim=1)[:, order], F.normalize(z2, dim=1)[:, order]
    return F.mse_loss(whiten(Z1), whiten(Z2)) / 2, None, None


@variant("mse", make_mlp)
def mse(net, z1, z2):
    """Section 4: SimSiam without the l2 normalisation; means over B and D."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return F.mse_loss(p1, z2.detach()) / 2 + F.mse_loss(p2, z1.detach()) / 2, p1, p2


@variant("two_fc", two_layers, OURS, final_bn="noaffine", pred_lr=1.0)
@variant("tanh_fc", one_layer, OURS, final_bn="noaffine", pred_lr=1.0)
@variant("fc", one_layer, OURS, final_bn="noaffine", pred_lr=1.0)
def simsiam_l2(net, z1, z2):
    """Table 5: equation 2, but the predictor, FC layers, sees the l2-normalised z."""
    p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


class Bias(nn.Module):
    """p = z + b"""

    def __init__(self, dim, _):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.bias


@variant("fc_of_z", one_layer, OURS, final_bn="noaffine", pred_lr=1.0)
@variant("bias_of_z", Bias, OURS, pred_lr=50.0)
def simsiam(net, z1, z2):
    """Equation 2: the simple predictor sees z itself."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


class IdentityHead(nn.Module):
    """p = E z with E = I at the start.  Wen & Li keep its diagonal at 1: no gradient, no decay.

    The parameter is E - I, so weight decay pulls towards I."""

    def __init__(self, dim, _, train_diagonal=False):
        super().__init__()
        mask = torch.ones(dim, dim) if train_diagonal else 1 - torch.eye(dim)
        self.change = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("mask", mask, persistent=False)

    @property
    def E(self):
        identity = torch.eye(len(self.change), device=self.change.device)
        return identity + self.mask * self.change          # [D, D]

    def forward(self, z):
        return z @ self.E.T


def full_head(dim, hidden):
    return IdentityHead(dim, hidden, train_diagonal=True)


@variant("linear", one_layer, OURS, final_bn="noaffine", pred_lr=100.0)
@variant("identity_full", full_head, HEAD, final_bn="noaffine", pred_weight_decay=5e-4)
@variant("identity_symmetric", IdentityHead, HEAD, final_bn="noaffine", pred_weight_decay=5e-4)
def wen_li(net, z1, z2):
    """||BN[E phi(X1)] - sg BN[phi(X2)]||^2, both ways, over 4 D.  z is BN[phi] already."""
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
        if args.final_bn != "none":                        # it may hide a collapse: see README
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the projector after the backbone
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        self.predictor = None                                                                # h
        if VARIANTS[args.variant].predictor is not None:
            self.predictor = VARIANTS[args.variant].predictor(dim, args.pred_hidden)
        self.bn = nn.BatchNorm1d(dim, affine=False)        # right before the loss of some
        if args.variant == "moving_average":               # the memory bank
            self.register_buffer("eta", F.normalize(torch.randn(args.n_images, dim), dim=1))

    def forward(self, views):
        # One call per view, so that BatchNorm uses each view's own mean and variance.
        z = [self.encoder(views[0])]                       # [B, D] each
        with torch.set_grad_enabled(self.variant != "same_batch"):      # all but the first detached
            return z + [self.encoder(x) for x in views[1:]]

    @torch.no_grad()
    def constrain(self):
        """What two of the heads are held to after every step."""
        if self.variant == "tanh_fc":
            self.predictor.weight.tanh_()                  # no entry beyond 1; decays towards 0
        elif self.variant == "identity_symmetric":
            change = self.predictor.change
            change.copy_((change + change.T) / 2)


build = Siamese


# ------------------------------------------------------------------------------------------- train

@torch.no_grad()
def head_metrics(net, z, p1, p2):
    """Columns of the predictor, as in mirror_ablations.py.  z: [2B, D], p1, p2: [B, D]"""
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
        common.fail("--bank-momentum must be below 1, and --n-aug at least 2, a view and a target")
    if args.variant == "whitening" and args.proj_dim % 16:
        common.fail(f"--proj-dim {args.proj_dim}: whitening is of groups of 16 dimensions")
    args.label, args.n_images = args.variant, 0            # main knows the number
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
    # Two groups, because only the encoder's learning rate falls.  The predictor's stays constant,
    # so that the predictor can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()}]
    if model.predictor is not None:
        groups.append({"params": model.predictor.parameters(), "lr": lr * args.pred_lr,
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
            views = [common.augment(x, data.mean, data.std) for _ in range(n_views)]
            model.images = chosen                          # of the memory bank
            with common.autocast(device):                  # bfloat16 on CUDA
                z = net(views)
                loss, p1, p2 = variant.loss(model, *z)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.constrain()
            losses.append(loss.detach())                   # .item() here would make a GPU wait
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat(z)                                   # of the last batch, to look for collapse
        metrics = common.measure(model.encoder, data, args, epoch, z)
        log.row(epoch, mean_loss, seconds, **metrics, **head_metrics(model, z, p1, p2))
    found = {}
    if "E_mean" in log.history[-1]:
        found["E_mean_1"] = log.history[1]["E_mean"]       # after the first epoch
    log.finish(**found, **common.evaluate(model.encoder, data, args, epochs=100))
    return model


if __name__ == "__main__":
    common.cli(main)

"""Which part of SimSiam prevents collapse?  Zhang et al.'s Siamese variants, Wen & Li's heads.

Zhang et al., "How Does SimSiam Avoid Collapse Without Negative Samples?", 2022 (arXiv 2203.16262):
Tables 1, 2, 5 and 6, Fig. 3, Algorithms 1 to 4.  Wen & Li, "The Mechanism of Prediction Head in
Non-contrastive Self-supervised Learning", 2022 (arXiv 2205.06226): identity-initialised heads.

    python mirror_ablations.py --variant mirror
    python compare.py mirror                 all of them in one table and one figure

On `patches` and two CPU cores a variant takes a minute.  Without a predictor, without the
stop-gradient, or with the predictor on the wrong path, m_o is 1.00 after one epoch and std falls
from 0.77 to 0.02; with SimSiam's predictor, its inverse after it, two linear layers or a bias alone
it does not.

Where we differ from the papers.  On `patches` all rates are ours.  The projector ends without a
BatchNorm, so that complete collapse shows as m_o -> 1, but for the variants below that need one.
A predictor is 10 times as fast as the encoder, FC layers and the first head of `inverse` as fast,
its second 10 times, a bias 50, E 100, none with weight decay.  Algorithm 4 prints its last term
without /2, which would weigh the second view twice.  Zhang et al. train for 1000 epochs on
CIFAR-100, with a final BN, here without affine as in solo-learn.  Wen & Li's settings for images
are not known to us; their E sees phi, here it sees BN[phi].
"""
import torch
from torch import nn
from torch.nn import functional as F

import common

# One dict a data set; every entry is also a flag, and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.  pred_lr, inverse_lr: rates of h
# and of inverse's second head over the encoder's, constant.
MORE = dict(inverse_lr=1.0, n_aug=10, bank_momentum=0.8)
RECIPES = {
    "patches": dict(                                                                          # ours
        arch="small", epochs=12, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=1,
        proj_layers=2, proj_dim=256, pred_hidden=512, final_bn="none", pred_lr=10.0,
        pred_weight_decay=0.0, **MORE),
    "cifar10": dict(                                                      # Chen & He, appendix D
        arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,
        proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0,
        pred_weight_decay=5e-4, **MORE),
    "cifar100": dict(                                                         # Zhang et al., A.1
        arch="resnet18", epochs=1000, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,
        proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="noaffine", pred_lr=1.0,
        pred_weight_decay=1e-5, **MORE),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=20, weight_decay=5e-4)
BN = dict(final_bn="noaffine")
FC, BIAS = dict(final_bn="noaffine", pred_lr=1.0), dict(pred_lr=50.0)
HEAD = dict(final_bn="noaffine", pred_lr=100.0)            # compare.py scan: E must be fast
OURS = {                                                   # variant: settings that it brings
    "simsiam": {}, "naive": {}, "mirror": {}, "symmetric": {}, "no_stopgrad": {},
    "inverse": dict(final_bn="noaffine", pred_lr=1.0, inverse_lr=10.0),     # h_inv must keep up
    "moving_average": BN, "same_batch": {}, "bn_after_l2": BN, "whitening": BN,
    "mse": {}, "two_fc": FC, "tanh_fc": FC, "fc": FC, "fc_of_z": FC,
    "bias": BIAS, "bias_of_z": BIAS,
    "linear": HEAD, "identity_full": HEAD, "identity": HEAD, "identity_symmetric": HEAD,
    "identity_frozen": HEAD}
PRESETS = {"patches": OURS, "other": OURS}                 # on CIFAR the papers' recipe is for all
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"), "variant": OURS}
FLAGS = {"variant": ("simsiam", "which of the Siamese nets")}


# ------------------------------------------------------------------------------------------ losses
# net, z1, z2 -> loss, and p1, p2 where there is a predictor.  z: [B, D], p: [B, D].
# Every detach is a stop-gradient.

def D(p, z):
    """Negative cosine similarity.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -F.cosine_similarity(p, z, dim=1).mean()


def simsiam(net, z1, z2):
    """Equation 2."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


def mse(net, z1, z2):
    """Section 4: SimSiam without the l2 normalisation; means over B and D."""
    h = net.predictor
    p1, p2 = h(z1), h(z2)
    return F.mse_loss(p1, z2.detach()) / 2 + F.mse_loss(p2, z1.detach()) / 2, p1, p2


def no_stopgrad(net, z1, z2):
    """SimSiam, predictor and all, but for the stop-gradient."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, z2) / 2 + D(p2, z1) / 2, p1, p2


def naive(net, z1, z2):
    """Fig. 2 (a): no predictor.

    A stop-gradient would only halve the gradient of this symmetric loss (Chen & He, 4.2)."""
    return D(z1, z2), None, None


def mirror(net, z1, z2):
    """Algorithm 2: SimSiam's paths exchanged.  f learns where h is not; h learns as in SimSiam."""
    p1, p2 = net.predictor(z1.detach()), net.predictor(z2.detach())
    return D(z1, p2) / 2 + D(z2, p1) / 2, p1, p2


def symmetric(net, z1, z2):
    """Algorithm 3: h on both paths, so that h(f(x)) is one encoder and the loss the naive one."""
    p1, p2 = net.predictor(z1), net.predictor(z2)
    return D(p1, p2.detach()) / 2 + D(p2, p1.detach()) / 2, p1, p2


def inverse(net, z1, z2):
    """Algorithm 4: h on both paths, but the target mapped back to z by a trained inverse."""
    h, h_inv = net.predictor, net.inverse
    p1, p2, sg_z1, sg_z2 = h(z1), h(z2), z1.detach(), z2.detach()
    loss_pred = D(h(sg_z1), sg_z2) / 2 + D(h(sg_z2), sg_z1) / 2                     # trains h
    loss_inv = D(h_inv(p1.detach()), sg_z1) / 2 + D(h_inv(p2.detach()), sg_z2) / 2  # trains h_inv
    loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2        # trains f and h
    return loss_pred + loss_inv + loss_enc, p1, p2


def moving_average(net, z1, z2):
    """Table 1: the target is the image's own mean over past epochs, from a memory bank eta.

    Not given by the papers: eta's rows start as random directions and stay normalised; the loss
    is not symmetric."""
    m, Z2 = net.bank_momentum, F.normalize(z2.float(), dim=1)
    eta = F.normalize(m * net.eta[net.images] + (1 - m) * Z2.detach(), dim=1)
    net.eta[net.images] = eta
    return D(z1, eta), None, None


def same_batch(net, z1, *others):
    """Table 1, A.3: the target is the mean over n - 1 other views, which h is said to stand for."""
    z_mean = torch.stack(others).mean(0)
    return D(z1, z_mean.detach()), None, None


def bn_after_l2(net, z1, z2):
    """Section 4: BN right before the MSE, after the l2 normalisation.  Over D as well.

    BN before it is `--variant naive --final-bn noaffine`."""
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


def whitening(net, z1, z2):
    """bn_after_l2, but correlated dimensions cost as well (after Hua et al. 2021, 2105.00470).

    Groups are drawn anew at every step, so that no two dimensions stay unseen by each other."""
    order = torch.randperm(z1.shape[1], device=z1.device)
    Z1, Z2 = F.normalize(z1, dim=1)[:, order], F.normalize(z2, dim=1)[:, order]
    return F.mse_loss(whiten(Z1), whiten(Z2)) / 2, None, None


def simsiam_l2(net, z1, z2):
    """Section 4: equation 2, but the predictor, FC layers or a bias, sees the l2-normalised z.

    Where it sees z (fc_of_z, bias_of_z) the loss is `simsiam`."""
    p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))
    return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2


def wen_li(net, z1, z2):
    """||BN[E phi(X1)] - sg BN[phi(X2)]||^2, both ways, over 4 D.

    z is BN[phi] already: with --final-bn noaffine, which these heads bring, f ends in that BN, and
    E sees it."""
    p1, p2 = net.bn(net.predictor(z1)), net.bn(net.predictor(z2))
    return F.mse_loss(p1, z2.detach()) / 4 + F.mse_loss(p2, z1.detach()) / 4, p1, p2


LOSSES = {
    "simsiam": simsiam, "naive": naive, "mirror": mirror, "symmetric": symmetric,
    "no_stopgrad": no_stopgrad, "inverse": inverse, "moving_average": moving_average,
    "same_batch": same_batch, "bn_after_l2": bn_after_l2, "whitening": whitening, "mse": mse,
    "two_fc": simsiam_l2, "tanh_fc": simsiam_l2, "fc": simsiam_l2, "fc_of_z": simsiam,
    "bias": simsiam_l2, "bias_of_z": simsiam, "linear": wen_li, "identity_full": wen_li,
    "identity": wen_li, "identity_symmetric": wen_li, "identity_frozen": wen_li}


# ----------------------------------------------------------------------------------------- network

def make_projector(width, layers, dim, final_bn):
    """Linear, BN, ReLU, ..., Linear, final BN, which may hide complete collapse (see README)."""
    net = []
    for i in range(layers):
        net += [nn.Linear(dim if i else width, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
    net = net[:-2]                                         # no BN and ReLU after the last, but
    if final_bn != "none":
        net.append(nn.BatchNorm1d(dim, affine=final_bn == "affine"))
    return nn.Sequential(*net)


def make_mlp(dim, hidden):
    """SimSiam's predictor: no BN at its output."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


class Bias(nn.Module):
    """p = z + b"""
    def __init__(self, dim):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.bias


class IdentityHead(nn.Module):
    """p = E z with E = I at the start.  Wen & Li keep its diagonal at 1: no gradient, no decay.

    The parameter is E - I, so weight decay pulls towards I."""
    def __init__(self, dim, train_diagonal=False):
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


def make_predictor(variant, dim, hidden):
    if variant in ("simsiam", "mirror", "symmetric", "no_stopgrad", "inverse", "mse"):
        return make_mlp(dim, hidden)
    if variant == "two_fc":
        return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim))
    if variant in ("tanh_fc", "fc", "fc_of_z", "linear"):
        return nn.Linear(dim, dim, bias=False)
    if variant in ("bias", "bias_of_z"):
        return Bias(dim)
    if variant == "identity_full":
        return IdentityHead(dim, train_diagonal=True)
    if variant in ("identity", "identity_symmetric"):
        return IdentityHead(dim)
    if variant == "identity_frozen":
        return IdentityHead(dim).requires_grad_(False)
    return None


class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.variant, self.bank_momentum, dim = args.variant, args.bank_momentum, args.proj_dim
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                     # f = projector after backbone
        self.encoder.backbone = backbone
        self.encoder.projector = make_projector(width, args.proj_layers, dim, args.final_bn)
        self.predictor = make_predictor(args.variant, dim, args.pred_hidden)                    # h
        self.inverse = None                                                                 # h_inv
        if args.variant == "inverse":
            self.inverse = make_mlp(dim, args.pred_hidden)
        if LOSSES[args.variant] in (bn_after_l2, wen_li):
            self.bn = nn.BatchNorm1d(dim, affine=False)    # right before the loss
        if args.variant == "moving_average":               # the memory bank
            self.register_buffer("eta", F.normalize(torch.randn(args.n_images, dim), dim=1))

    def forward(self, views, images):
        """views: list of [B, 3, S, S]; images: int64 [B], which they are -> loss, list of z, p"""
        self.images, z = images, [self.encoder(views[0])]  # [B, D]; BN statistics are a view's own
        with torch.set_grad_enabled(self.variant != "same_batch"):      # all but the first detached
            z += [self.encoder(x) for x in views[1:]]
        loss, *p = LOSSES[self.variant](self, *z)
        return loss, z, p

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
def head_metrics(net, z):
    """Columns of the predictor.  z: list of [B, D], of the last batch

    cos_bias                cosine of the predictor's last bias with the centre o of Z (Table 6)
    E_max, E_mean, E_asym   largest and mean |off-diagonal| of a D x D head, ||E - E^T|| / ||E||"""
    h, found = net.predictor, {}
    last = h[-1] if isinstance(h, nn.Sequential) else h
    if getattr(last, "bias", None) is not None:
        o = F.normalize(torch.cat(list(z)).float(), dim=1).mean(0)
        found["cos_bias"] = F.cosine_similarity(last.bias, o, dim=0).item()
    if LOSSES[net.variant] is wen_li:
        E = h.weight if net.variant == "linear" else h.E
        off = (E - E.diag().diag()).abs()
        found["E_max"] = off.max().item()
        found["E_mean"] = off.sum().item() / (len(E)**2 - len(E))
        found["E_asym"] = ((E - E.T).norm() / E.norm()).item()
    return found


def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS, PRESETS)
    if args.n_aug < 2:
        common.fail(f"--n-aug must be at least 2, a view and its target, not {args.n_aug}")
    if args.variant == "whitening" and args.proj_dim % 16:
        common.fail(f"--proj-dim {args.proj_dim}: whitening is of groups of 16 dimensions")
    args.label = args.variant
    if args.variant == "same_batch":
        args.label += str(args.n_aug)
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    if args.variant == "moving_average" and common.world_size() > 1:
        common.fail("the memory bank needs a single process: run it without torchrun")
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    args.n_images = len(data.train_x)
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    groups = [{"params": list(model.encoder.parameters())}]
    for head, rate in ((model.predictor, args.pred_lr), (model.inverse, args.inverse_lr)):
        if head is not None:
            groups.append({"params": list(head.parameters()), "lr": lr * rate,
                           "weight_decay": args.pred_weight_decay})
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()
    n_views = args.n_aug if args.variant == "same_batch" else 2

    for epoch in run.epochs():
        for x in run.batches():                            # uint8 [B, 3, S, S]
            rate = common.cosine_lr(lr, run.progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # f's; h's stays, so that h keeps up
            views = [common.augment(x, data.mean, data.std) for _ in range(n_views)]
            with common.autocast(device):                  # bfloat16 on CUDA
                loss, z, p = net(views, run.chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.constrain()
            if model.predictor is not None:
                run.log(loss, z=z, P=p)
            else:
                run.log(loss, z=z)
        run.end_epoch(**head_metrics(model, run.views["z"]))
    run.finish(**report(run))
    return model


def report(run):
    """What compare.py asks for beyond the last row.  -> for result.json

    The verdict of `symmetric`, whose loss compares P with P, is on P: h after f is its encoder."""
    if not run.is_first:
        return {}
    found, last = {}, run.history[-1]
    if "m_o_P" in last and run.args.variant == "symmetric":
        found["verdict"] = common.verdict(last["m_o_P"], last["effective_rank_P"])
    if "E_mean" in last:
        found["E_mean_1"] = run.history[1]["E_mean"]       # after the first epoch
    return found


if __name__ == "__main__":
    main()

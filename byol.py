"""BYOL: the target is a slow average of the net, an exponential moving average of its weights.

Grill et al., "Bootstrap Your Own Latent", 2020 (arXiv 2006.07733): z = f(x) are the projections,
p = h(z) the predictions, t = f'(x) the projections of the target net f' <- m f' + (1 - m) f;
L = 2 + 2 D(p1, sg(t2)) plus the same with the views exchanged.  `diff simsiam.py byol.py` shows
recipes and heads, the target and its update, and the loss.

    python byol.py

learns ten classes of `patches` without labels: kNN 83 % (three seeds) in two minutes on two CPU
cores.  With --predictor none --ema 0, or with --no-stopgrad, one dimension is left.  Where we
differ: SGD, not LARS at batch 4096, and a predictor rate that stays constant; on `patches` it is 10
times the encoder's, the EMA remembers 20 steps of a run's 1000, and the projector ends with a BN.
"""
import copy

import torch
from torch import nn

import common

# One dict a data set; every entry is also a flag, and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.  pred_lr: h's over f's.
RECIPES = {
    "patches": dict(                                                                          # ours
        arch="small", epochs=18, batch_size=64, lr=0.1, weight_decay=1e-3, warmup_epochs=0,
        proj_hidden=256, proj_dim=256, pred_hidden=256, final_bn="noaffine", pred_lr=10.0,
        ema=0.95, ema_schedule="constant", min_scale=0.2, solarize_p=0.0),
    # lightly's benchmark: 0.06 at batch 128 and decay 5e-4, for a loss a quarter of ours
    "cifar10": dict(
        arch="resnet18", epochs=200, batch_size=128, lr=0.03, weight_decay=2e-3, warmup_epochs=0,
        proj_hidden=1024, proj_dim=256, pred_hidden=1024, final_bn="none", pred_lr=1.0,
        ema=0.99, ema_schedule="constant", min_scale=0.08, solarize_p=0.0),
    # solo-learn's heads, EMA, crops and solarization of the second view; the SGD is lightly's
    "cifar100": dict(
        arch="resnet18", epochs=1000, batch_size=256, lr=0.03, weight_decay=2e-3, warmup_epochs=10,
        proj_hidden=4096, proj_dim=256, pred_hidden=4096, final_bn="none", pred_lr=1.0,
        ema=0.99, ema_schedule="cosine", min_scale=0.08, solarize_p=0.2),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=70)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "predictor": ("mlp", "linear", "none"), "ema_schedule": ("constant", "cosine")}
FLAGS = {"predictor": ("mlp", "h: two layers as in the paper, one matrix, or nothing"),
         "no_stopgrad": (False, "the online net is its own target, with gradient: collapses")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Negative cosine similarity.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -nn.functional.cosine_similarity(p, z, dim=1).mean()


# ----------------------------------------------------------------------------------------- network

def make_mlp(width, hidden, dim):
    """BYOL's projector and its predictor."""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


class BYOL(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                     # f = projector after backbone
        self.encoder.backbone = backbone
        dim = args.proj_dim
        self.encoder.projector = make_mlp(width, args.proj_hidden, dim)
        if args.final_bn != "none":
            self.encoder.projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.predictor = nn.Identity()                     # h
        if args.predictor == "mlp":
            self.predictor = make_mlp(dim, args.pred_hidden, dim)
        elif args.predictor == "linear":
            self.predictor = nn.Linear(dim, dim, bias=False)
        self.target = None                                 # f', a copy at the start
        if args.ema:
            self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, D]; BN statistics are a view's own
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, D]
        if self.target is None:                            # without EMA the net is its own target
            return p1, p2, z1, z2, z1, z2
        return p1, p2, z1, z2, self.target(x1), self.target(x2)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f in place, BatchNorm's averages too (nothing reads those), its
        integer counter not.  Nothing where there is no target."""
        if self.target is None:
            return
        new = [v for v in self.encoder.state_dict().values() if v.is_floating_point()]
        old = [v for v in self.target.state_dict().values() if v.is_floating_point()]
        torch._foreach_lerp_(old, new, 1 - m)


build = BYOL


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    args.label = "" if args.predictor == "mlp" else args.predictor       # in the folder's name
    if args.no_stopgrad:
        args.label, args.ema = "no_stopgrad", 0.0          # an average has no gradient to stop
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = BYOL(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters(), "lr": lr * args.pred_lr}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        for x in run.batches():                            # uint8 [B, 3, S, S]
            rate = common.cosine_lr(lr, run.progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # f's; h's stays, so that h keeps up
            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale, solarize_p=args.solarize_p)
            with common.autocast(device):                  # bfloat16 on CUDA
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
                if args.no_stopgrad:                       # t1 is z1 here, t2 is z2
                    loss = (2 + 2 * D(p1, t2)) + (2 + 2 * D(p2, t1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if args.ema_schedule == "cosine":              # from ema to 1
                m = 1 - common.cosine_lr(1 - args.ema, run.progress, args.epochs)
            else:
                m = args.ema
            model.update_target(m)
            run.log(loss, z=(z1, z2))
        run.end_epoch()
    run.finish()
    return model


if __name__ == "__main__":
    main()

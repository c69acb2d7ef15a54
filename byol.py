"""BYOL: the target is not the net itself but a slow average of it, an exponential moving average (EMA) of its weights.

Grill et al., "Bootstrap Your Own Latent", 2020 (arXiv 2006.07733): with z = f(x) the projections and p = h(z) the predictions of
the online net, and t = f'(x) the projections of the target net f' <- m f' + (1 - m) f, the loss is 2 - 2 cos(p1, sg(t2)) and the
same with the views exchanged.  `diff simsiam.py byol.py` is what BYOL adds.

    python byol.py

learns ten classes of `patches` without labels: kNN 88.5 +- 1.2 % (seeds 0, 1, 2) in 104 s of training on two CPU cores (torch 2.15).
With `--predictor none --ema 0`, or with `--no-stopgrad`, one dimension is left.  A difference to the paper on every data set: SGD,
and a predictor rate that stays constant; on `patches` it is 10 times the encoder's, and the projector ends with a BN.
"""
import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

import common

# One dict per data set; every entry is also a flag (--batch-size 128), and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.  solarize_p: of the second view alone.
RECIPES = {
    "patches": dict(arch="small", epochs=18, batch_size=64, lr=0.1, weight_decay=1e-3, warmup_epochs=0,      # ours
                    proj_hidden=256, proj_dim=256, pred_hidden=256, final_bn="noaffine", pred_lr=10.0,
                    ema=0.95, ema_schedule="constant", min_scale=0.2, solarize_p=0.0),
    # lightly's benchmark.  Its 0.06 at batch 128 and decay of 5e-4 are for a loss a quarter of ours, which makes lr / 4 and decay * 4.
    "cifar10": dict(arch="resnet18", epochs=200, batch_size=128, lr=0.03, weight_decay=2e-3, warmup_epochs=0,
                    proj_hidden=1024, proj_dim=256, pred_hidden=1024, final_bn="none", pred_lr=1.0,
                    ema=0.99, ema_schedule="constant", min_scale=0.2, solarize_p=0.0),
    # solo-learn's heads, EMA, crops and solarization.  It trains with LARS for 1000 epochs; the SGD is lightly's.
    "cifar100": dict(arch="resnet18", epochs=1000, batch_size=256, lr=0.03, weight_decay=2e-3, warmup_epochs=10,
                     proj_hidden=4096, proj_dim=256, pred_hidden=4096, final_bn="none", pred_lr=1.0,
                     ema=0.99, ema_schedule="cosine", min_scale=0.08, solarize_p=0.2),
    "other": dict(arch="small", epochs=70, batch_size=64, lr=0.1, weight_decay=1e-3, warmup_epochs=0,        # ours
                  proj_hidden=256, proj_dim=256, pred_hidden=256, final_bn="noaffine", pred_lr=10.0,
                  ema=0.95, ema_schedule="constant", min_scale=0.2, solarize_p=0.0),
}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"), "predictor": ("mlp", "linear", "none"),
           "ema_schedule": ("constant", "cosine")}
FLAGS = {"predictor": ("mlp", "h: two layers as in the paper, one matrix, or nothing"),
         "no_stopgrad": (False, "the target is the online net itself, and the gradient flows into it: collapses")}


# ------------------------------------------------------------------------------------------------------------- network

def make_mlp(width, hidden, dim):
    """Linear, BN, ReLU, Linear: BYOL's projector and its predictor."""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


class BYOL(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                                     # f = projector after backbone, the online net
        self.encoder.backbone = backbone
        self.encoder.projector = make_mlp(width, args.proj_hidden, args.proj_dim)
        if args.final_bn != "none":
            self.encoder.projector.append(nn.BatchNorm1d(args.proj_dim, affine=args.final_bn == "affine"))
        self.predictor = (make_mlp(args.proj_dim, args.pred_hidden, args.proj_dim) if args.predictor == "mlp" else             # h
                          nn.Linear(args.proj_dim, args.proj_dim, bias=False) if args.predictor == "linear" else nn.Identity())
        self.target = copy.deepcopy(self.encoder).requires_grad_(False) if args.ema else None       # f', a copy at the start

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)                        # [B, D]; each view has its own BN statistics
        p1, p2 = self.predictor(z1), self.predictor(z2)                    # [B, D]
        t1, t2 = (self.target(x1), self.target(x2)) if self.target else (z1, z2)     # without EMA the target is the net itself
        return p1, p2, z1, z2, t1, t2

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f, in one call for all weights and BatchNorm averages.

        The averages are kept for whoever uses f' later: in training f' normalises by its batch, like f."""
        if self.target:
            old, new = ([t for t in net.state_dict().values() if t.is_floating_point()] for net in (self.target, self.encoder))
            torch._foreach_lerp_(old, new, 1 - m)


build = BYOL


# ---------------------------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Negative cosine similarity, mean over the batch.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -F.cosine_similarity(p, z, dim=1).mean()


# --------------------------------------------------------------------------------------------------------------- train

def main(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS)
    if args.no_stopgrad:
        args.ema = 0.0                                                     # an average has no gradient to stop
    what = {args.predictor: args.predictor != "mlp", "no_stopgrad": args.no_stopgrad, "no_ema": not args.ema and not args.no_stopgrad}
    args.label = "-".join(name for name, is_so in what.items() if is_so)   # for the run folder's name: what is not as in the paper
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = BYOL(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD([{"params": model.encoder.parameters()},
                                 {"params": model.predictor.parameters(), "lr": lr * args.pred_lr}],
                                lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        losses = []
        for t, x in run.batches():                                         # epochs done so far; uint8 [B, 3, S, S]
            # The encoder's rate falls along a cosine; the predictor's stays constant, so that h keeps up with the changing z.
            optimizer.param_groups[0]["lr"] = common.cosine_lr(lr, t, args.epochs, args.warmup_epochs)

            x1 = common.augment(x, data.mean, data.std, args.min_scale)
            x2 = common.augment(x, data.mean, data.std, args.min_scale, solarize_p=args.solarize_p)        # T' of the paper
            with common.autocast(device):                                  # bfloat16 on CUDA
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
                if args.no_stopgrad:                                       # here t1 is z1, t2 is z2
                    loss = (2 + 2 * D(p1, t2)) + (2 + 2 * D(p2, t1))
            losses.append(loss.detach())
            if epoch == 0:                                                 # the untrained net: measured, not trained
                break

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine = (1 + math.cos(math.pi * t / args.epochs)) / 2         # from 1 to 0
            model.update_target(args.ema if args.ema_schedule == "constant" else 1 - (1 - args.ema) * cosine)
        run.end_epoch(losses, lr=optimizer.param_groups[0]["lr"], z=torch.cat([z1, z2]).detach())
    return model


if __name__ == "__main__":
    main()

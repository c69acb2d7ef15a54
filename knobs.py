"""SimSiam and BYOL with every knob that is blamed when they collapse.

The method files show the method; this one is to be turned and broken: `python compare.py
collapse-guide` makes one change at a time, and results/README.md#collapse-guide says what came out.

    python knobs.py                              SimSiam, as in simsiam.py
    python knobs.py --variant byol               BYOL, as in byol.py
    python knobs.py --no-pred-bn --batch-size 16 --data path/to/folder

On `patches` a run takes 90 s on two CPU cores.  BYOL is SimSiam with a slow target here: its loss,
2 + 2 D both ways, is 4 times SimSiam's but for a constant, so that byol.py's rate 0.1 is 0.4, and
its weight decay a quarter.  --target-every 10 is the alternating optimisation of Chen & He (2021,
arXiv 2011.10566, section 5): so many steps towards one target net, then a copy of the new one.
"""
import copy

import torch
from torch import nn

import common

# One dict a data set; every entry is also a flag, and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.  pred_lr: h's over f's.  ema 0:
# the net is its own target.
RECIPES = {
    "patches": dict(                                                       # simsiam.py, byol.py
        arch="small", epochs=20, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=2,
        optimizer="sgd", proj_layers=2, proj_dim=256, proj_bn=True, final_bn="noaffine",
        predictor="mlp", pred_hidden=128, pred_bn=True, pred_lr=1.0, pred_schedule="constant",
        ema=0.0, target_every=1, stopgrad=True, pair="other", min_scale=0.2, jitter_p=0.8),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=70, weight_decay=5e-4, warmup_epochs=0)
BYOL = dict(epochs=18, weight_decay=2.5e-4, warmup_epochs=0, pred_hidden=256, pred_lr=10.0,
            ema=0.95)
PRESETS = {"patches": {"byol": BYOL}, "other": {"byol": BYOL | dict(epochs=70)}}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "variant": ("simsiam", "byol"), "optimizer": ("sgd", "adam"),
           "predictor": ("mlp", "none"), "pred_schedule": ("constant", "cosine"),
           "pair": ("other", "own")}
FLAGS = {"variant": ("simsiam", "whose settings to start from")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Negative cosine similarity.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -nn.functional.cosine_similarity(p, z, dim=1).mean()


# ----------------------------------------------------------------------------------------- network

def hidden_layer(d_in, d_out, with_bn):
    """-> a list of layers"""
    if with_bn:
        return [nn.Linear(d_in, d_out, bias=False), nn.BatchNorm1d(d_out), nn.ReLU()]
    return [nn.Linear(d_in, d_out), nn.ReLU()]


class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim = args.proj_dim
        self.encoder = nn.Sequential()                     # f = projector after backbone
        self.encoder.backbone = backbone
        projector = []
        for i in range(args.proj_layers - 1):
            projector += hidden_layer(dim if i else width, dim, args.proj_bn)
        projector.append(nn.Linear(dim if projector else width, dim, bias=False))
        if args.final_bn != "none":
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder.projector = nn.Sequential(*projector)
        self.predictor = nn.Identity()                     # h
        if args.predictor == "mlp":
            self.predictor = nn.Sequential(*hidden_layer(dim, args.pred_hidden, args.pred_bn),
                                           nn.Linear(args.pred_hidden, dim))
        self.target = None
        if args.ema or args.target_every > 1:
            self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, D]; BN statistics are a view's own
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, D]
        if self.target is None:
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


build = Siamese


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS, PRESETS)
    args.label = args.variant
    if not args.stopgrad:
        args.ema, args.target_every = 0.0, 1               # a copy has no gradient to stop
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters(), "lr": lr * args.pred_lr}]
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr, weight_decay=args.weight_decay)
    else:
        optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        for x in run.batches():                            # uint8 [B, 3, S, S]
            rate = common.cosine_lr(lr, run.progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate
            if args.pred_schedule == "cosine":             # else h's stays, so that h keeps up
                optimizer.param_groups[1]["lr"] = rate * args.pred_lr
            x1, x2 = (common.augment(x, data.mean, data.std, args.min_scale, jitter_p=args.jitter_p)
                      for _ in range(2))
            with common.autocast(device):                  # bfloat16 on CUDA
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                if args.pair == "own":                     # the bug: a prediction of its own view
                    t1, t2 = t2, t1
                loss = D(p1, t2.detach()) / 2 + D(p2, t1.detach()) / 2     # detach: stop-gradient
                if not args.stopgrad:
                    loss = D(p1, t2) / 2 + D(p2, t1) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (run.step + 1) % args.target_every == 0:    # 10: so many steps on one target
                model.update_target(args.ema)
            run.log(loss, z=(z1, z2))
        run.end_epoch()
    run.finish()
    return model


if __name__ == "__main__":
    main()

"""BYOL: the target is a slow average of the net, an exponential moving average of its weights.

Grill et al., "Bootstrap Your Own Latent", 2020 (arXiv 2006.07733):
L = 2 + 2 D(p1, sg(t2)) plus the same with the views exchanged.  D, z = f(x), p = h(z) and sg are
those of simsiam.py; t = f'(x) are projections of the target net, f' <- m f' + (1 - m) f.

    python byol.py

learns ten classes of `patches` without labels: kNN 83 % (three seeds) in two minutes on two CPU
cores.  With --predictor none or --no-stopgrad one or two dimensions are left.  Where we differ from
the paper: SGD, not LARS at batch 4096; a constant m and predictor rate; a BatchNorm after z.
"""
import copy
import time

import torch
from torch import nn

import common

# The settings for each data set.  Every entry is also a flag (--help says what it is), and a flag
# that is given wins.
RECIPES = {
    "patches": dict(                                                                          # ours
        arch="small", epochs=18, batch_size=64, lr=0.1, weight_decay=1e-3, warmup_epochs=0,
        proj_hidden=256, proj_dim=256, pred_hidden=256, final_bn="noaffine", pred_lr=10.0,
        ema=0.95),
    "cifar10": dict(            # lightly's benchmark: 0.06 and 5e-4 for a loss a quarter of ours,
                                # and crops from 8 % of an image; here from 20 %
        arch="resnet18", epochs=200, batch_size=128, lr=0.03, weight_decay=2e-3, warmup_epochs=0,
        proj_hidden=1024, proj_dim=256, pred_hidden=1024, final_bn="none", pred_lr=1.0,
        ema=0.99),
}
RECIPES["cifar100"] = RECIPES["cifar10"]
RECIPES["other"] = RECIPES["patches"] | dict(epochs=70)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "predictor": ("mlp", "none")}
FLAGS = {"predictor": ("mlp", "h: two layers, or none"),
         "no_stopgrad": (False, "the online net is its own target, with gradient: collapses")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Minus the mean cosine similarity.  p, z: [B, dim] -> scalar.  Who calls it detaches z."""
    return -nn.functional.cosine_similarity(p, z, dim=1).mean()


# ----------------------------------------------------------------------------------------- network

def make_mlp(width, hidden, dim):
    """Two layers, without BatchNorm at the output."""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


class BYOL(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim = args.proj_dim
        projector = make_mlp(width, args.proj_hidden, dim)
        if args.final_bn != "none":                        # it may hide a collapse: see README
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the projector after the backbone
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        self.predictor = make_mlp(dim, args.pred_hidden, dim)                                # h
        if args.predictor == "none":
            self.predictor = nn.Identity()
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)                      # f'

    def forward(self, x1, x2):
        # One call per view, so that BatchNorm uses each view's own mean and variance.
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, D]
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, D]
        return p1, p2, z1, z2, self.target(x1), self.target(x2)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f in place: weights and BatchNorm's averages, but no counters."""
        target = self.target.state_dict()
        for name, new in self.encoder.state_dict().items():
            if new.is_floating_point():
                target[name].lerp_(new, 1 - m)


build = BYOL


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS, zero=["ema"])
    if args.ema > 1:
        common.fail("--ema must be at most 1")
    args.label = "" if args.predictor == "mlp" else "no_predictor"       # in the folder's name
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = BYOL(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    # Two groups, because only the encoder's learning rate falls.  The predictor's stays constant,
    # so that the predictor can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters(), "lr": lr * args.pred_lr}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # makes the run's folder, or resumes it
    if not log.history:                                    # row 0: the untrained net's score
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42 epochs; indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # the encoder's
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size], no labels
            # augment is random: two views of the same images
            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                  # bfloat16 on CUDA
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                # detach is the stop-gradient: without it p and z move towards one point together
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
                if args.no_stopgrad:                       # an average has no gradient to let pass
                    loss = (2 + 2 * D(p1, z2)) + (2 + 2 * D(p2, z1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target(args.ema)                  # after the step, so that it follows
            losses.append(loss.detach())                   # .item() here would make a GPU wait
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat([z1, z2])                            # of the last batch, to look for collapse
        log.row(epoch, mean_loss, seconds, **common.measure(model.encoder, data, args, epoch, z))
    log.finish(**common.evaluate(model.encoder, data, args, epochs=100))   # of a linear probe
    return model


if __name__ == "__main__":
    common.cli(main)

"""BYOL learns features of images without labels: its target is a slow average of the net itself.

Grill et al., "Bootstrap Your Own Latent", 2020 (arXiv 2006.07733), equation 2.
A view is a random crop of an image, in other colours.  The encoder f turns a view x into a vector
z = f(x).  It is a backbone, whose outputs are the features, and a small net after it, the
projector.  The predictor h, also a small net, guesses the z of the other view: p = h(z).  D(p, z)
is minus the cosine of the angle between p and z.  It is also at its lowest if all z are equal, but
then z says nothing about an image: a collapse.  The stop-gradient sg lets z pass, but no gradient.
L = 2 + 2 D(p1, sg(t2)) + 2 + 2 D(p2, sg(t1)) is the loss for two views x1, x2 of the same images.
Here t = f'(x) comes from the target net f', which starts as a copy of f and is not trained.  It
follows f slowly: after each step f' <- m f' + (1 - m) f, an exponential moving average (EMA).

    python byol.py
    python byol.py --predictor none       or --no-stopgrad: z keeps one or two dimensions

It trains for two minutes on two CPU cores, on images that it makes itself (`patches`).  Nearest
neighbours by the features (kNN) then name the class of 83 % of test images (three seeds).  Where we
differ from the paper: we train by SGD, not by LARS with batches of 4096; m and the predictor's
learning rate are constant.  On `patches` that rate is ten times the encoder's, and the projector
ends with a BatchNorm.
"""
import copy
import time

import torch
from torch import nn

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
RECIPES = {
    "patches": dict(                                                                          # ours
        arch="small", epochs=18, batch_size=64, lr=0.1, weight_decay=1e-3, warmup_epochs=0,
        proj_hidden=256, proj_dim=256, pred_hidden=256, final_bn="noaffine", pred_lr=10.0,
        ema=0.95),
    # From lightly's benchmark.  Its loss is a quarter of ours, so its rate, 0.06 for 128 images, is
    # four times ours, and its weight decay a quarter.  Its crops keep 8 % of an image, ours 20 %.
    "cifar10": dict(
        arch="resnet18", epochs=200, batch_size=128, lr=0.03, weight_decay=2e-3, warmup_epochs=0,
        proj_hidden=1024, proj_dim=256, pred_hidden=1024, final_bn="none", pred_lr=1.0,
        ema=0.99),
}
RECIPES["cifar100"] = RECIPES["cifar10"]
RECIPES["other"] = RECIPES["patches"] | dict(epochs=70)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine"),
           "predictor": ("mlp", "none")}
FLAGS = {"predictor": ("mlp", "the predictor h: two layers, or none"),  # name: (default, help)
         "no_stopgrad": (False, "the net is its own target, without stop-gradient: it collapses")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Minus the cosine of the angle between p and z, averaged over the batch.  -> scalar
    p, z: [B, dim].  The caller detaches z, so that the stop-gradient is seen in the loop."""
    return -nn.functional.cosine_similarity(p, z, dim=1).mean()


# ----------------------------------------------------------------------------------------- network

def make_mlp(width, hidden, dim):
    """Two linear layers, with BatchNorm and ReLU between them.  [B, width] -> [B, dim]"""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, dim))


class BYOL(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim = args.proj_dim
        projector = make_mlp(width, args.proj_hidden, dim)
        if args.final_bn != "none":                        # It can hide a collapse (see README).
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the backbone, then the projector
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        self.predictor = make_mlp(dim, args.pred_hidden, dim)                                # h
        if args.predictor == "none":
            self.predictor = nn.Identity()
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)                      # f'

    def forward(self, x1, x2):
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, dim]
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, dim]
        return p1, p2, z1, z2, self.target(x1), self.target(x2)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f, in place: the target keeps the share m of itself, and follows f.
        BatchNorm's running averages follow too, but not its counters, which are integers."""
        target = self.target.state_dict()
        for name, new in self.encoder.state_dict().items():
            if new.is_floating_point():
                target[name].lerp_(new, 1 - m)


build = BYOL                                   # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    """The run's settings: those of the recipe, except for the flags that were given.  -> args"""
    # zero names the flags that may be 0: with --ema 0 the target is always the net itself.
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS, zero=["ema"])
    if args.ema > 1:
        common.fail("--ema must be at most 1")
    # The label becomes a part of the name of the run's folder.
    args.label = "" if args.predictor == "mlp" else "no_predictor"
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = BYOL(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    # The weights form two groups, because only the encoder's learning rate falls.  The predictor's
    # rate stays constant, so the predictor can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256                   # --lr is the rate for a batch of 256.
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters(), "lr": lr * args.pred_lr}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    if not log.history:                                    # Row 0 is of the untrained net.
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):  # A resumed run goes on where it ended.
        start, losses = time.time(), []
        # progress: epochs done so far, such as 3.42.  chosen: which images are in this batch.
        for progress, chosen in common.batches(data, args, epoch):
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # Group 0 is the encoder.
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]; no labels
            # augment is random, so that two calls make two different views of the same images.
            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                  # A GPU uses 16-bit floats (bfloat16).
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                # .detach() is the stop-gradient: the gradient goes through p, not the target.
                # If both could move, the easiest agreement would be one point for all images.
                loss = (2 + 2 * D(p1, t2.detach())) + (2 + 2 * D(p2, t1.detach()))
                # f' gets no gradient in any case, so here the net itself is the target.
                if args.no_stopgrad:
                    loss = (2 + 2 * D(p1, z2)) + (2 + 2 * D(p2, z1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target(args.ema)                  # The target follows after the step.
            # Only the number is kept, not its graph.  .item() would make the CPU wait for the GPU.
            losses.append(loss.detach())
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        # measure tests the features by kNN, and looks for a collapse in the last batch's z.
        z = torch.cat([z1, z2])
        log.row(epoch, mean_loss, seconds, **common.measure(model.encoder, data, args, epoch, z))
    log.finish(**common.evaluate(model.encoder, data, args, epochs=100))  # trains the linear probe
    return model


if __name__ == "__main__":
    common.cli(main)

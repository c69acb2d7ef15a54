"""SimSiam learns features of images without labels, by making two views of an image agree.

Chen & He, "Exploring Simple Siamese Representation Learning", 2021 (arXiv 2011.10566), Algorithm 1.
A view is a random crop of an image, in other colours.  The encoder f turns a view x into a vector
z = f(x).  It is a backbone, whose outputs are the features, and a small net after it, the
projector.  The predictor h, also a small net, guesses the z of the other view: p = h(z).  D(p, z)
is minus the cosine of the angle between p and z.  It is also at its lowest if all z are equal, but
then z says nothing about an image: a collapse.  The stop-gradient sg lets z pass, but no gradient.
L = D(p1, sg(z2)) / 2 + D(p2, sg(z1)) / 2 is the loss for two views x1, x2 of the same images.

    python simsiam.py

It trains for two to four minutes on two CPU cores, on images that it makes itself (`patches`).
Nearest neighbours by the features (kNN) then name 92 % of the test images right, on average over
three seeds (untrained: 23 %).  To see a collapse, use --final-bn none and delete both .detach().
"""
import time

import torch
from torch import nn

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
RECIPES = {
    "patches": dict(            # ours; without warm-up one seed in five keeps only two dimensions
        arch="small", epochs=20, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=2,
        proj_layers=2, proj_dim=256, pred_hidden=128, final_bn="noaffine"),
    "cifar10": dict(                                                      # Chen & He, appendix D
        arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,
        proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine"),
    "cifar100": dict(                      # Zhang et al. 2022, A.1; their warm-up starts at 0.003
        arch="resnet18", epochs=1000, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,
        proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="noaffine"),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=70, weight_decay=5e-4, warmup_epochs=0)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine")}


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


class SimSiam(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim = args.proj_dim
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
        self.predictor = make_mlp(dim, args.pred_hidden, dim)                                # h

    def forward(self, x1, x2):
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, dim]
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, dim]
        return p1, p2, z1, z2


build = SimSiam                                # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    """The run's settings: those of the recipe, except for the flags that were given.  -> args"""
    return common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES)


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = SimSiam(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    # The weights form two groups, because only the encoder's learning rate falls.  The predictor's
    # rate stays constant, so the predictor can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256                   # --lr is the rate for a batch of 256.
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters()}]
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
                p1, p2, z1, z2 = net(x1, x2)
                # .detach() is the stop-gradient: the gradient goes through p, not the target.
                # If both could move, the easiest agreement would be one point for all images.
                loss = D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
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

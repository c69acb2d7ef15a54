"""SimSiam learns features of images without labels, by making two views of an image agree.

Chen & He, "Exploring Simple Siamese Representation Learning", 2021 (arXiv 2011.10566), Algorithm 1:
L = D(p1, sg(z2))/2 + D(p2, sg(z1))/2.  x1, x2 are two random views of the same images.  z = f(x) is
what the encoder (backbone and projector) makes of a view.  p = h(z) is what the predictor, a small
net, makes of z: a guess of the other view's z.  D is minus the cosine of their angle.  The
stop-gradient sg lets the numbers pass, but no gradient.

    python simsiam.py

learns `patches` in two to four minutes on two CPU cores: by the backbone's features, nearest
neighbours (kNN) name the class of 92 % of test images (three seeds), untrained 23 %.  L is least
if all z are equal: to see that, use --final-bn none and take both .detach() out of the loss.
"""
import time

import torch
from torch import nn

import common

# The settings for each data set.  Every entry is also a flag (--help says what it is), and a flag
# that is given wins.
RECIPES = {
    "patches": dict(               # ours; without warm-up one seed in five stalls at rank 2
        arch="small", epochs=20, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=2,
        proj_layers=2, proj_dim=256, pred_hidden=128, final_bn="noaffine"),
    "cifar10": dict(                                                      # Chen & He, appendix D
        arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,
        proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine"),
    "cifar100": dict(                           # Zhang et al., A.1; their warm-up starts at 0.003
        arch="resnet18", epochs=1000, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,
        proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="noaffine"),
}
RECIPES["other"] = RECIPES["patches"] | dict(epochs=70, weight_decay=5e-4, warmup_epochs=0)
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Minus the mean cosine similarity.  p, z: [B, dim] -> scalar.  Who calls it detaches z."""
    return -nn.functional.cosine_similarity(p, z, dim=1).mean()


# ----------------------------------------------------------------------------------------- network

def make_mlp(width, hidden, dim):
    """Two layers, without BatchNorm at the output."""
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
        if args.final_bn != "none":                        # it may hide a collapse: see README
            projector.append(nn.BatchNorm1d(dim, affine=args.final_bn == "affine"))
        self.encoder = nn.Sequential()                     # f: the projector after the backbone
        self.encoder.add_module("backbone", backbone)
        self.encoder.add_module("projector", projector)
        self.predictor = make_mlp(dim, args.pred_hidden, dim)                                # h

    def forward(self, x1, x2):
        # One call per view, so that BatchNorm uses each view's own mean and variance.
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, D]
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, D]
        return p1, p2, z1, z2


build = SimSiam


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    return common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES)


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = SimSiam(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    # Two groups, because only the encoder's learning rate falls.  The predictor's stays constant,
    # so that the predictor can follow a z that keeps changing (Chen & He, 4.2).
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters()}]
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
                p1, p2, z1, z2 = net(x1, x2)
                # detach is the stop-gradient: without it p and z move towards one point together
                loss = D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would make a GPU wait
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat([z1, z2])                            # of the last batch, to look for collapse
        log.row(epoch, mean_loss, seconds, **common.measure(model.encoder, data, args, epoch, z))
    log.finish(**common.evaluate(model.encoder, data, args, epochs=100))   # of a linear probe
    return model


if __name__ == "__main__":
    common.cli(main)

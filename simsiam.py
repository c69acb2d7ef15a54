"""SimSiam: a Siamese net that needs no negative pairs, no momentum encoder and no large batch.

Chen & He, "Exploring Simple Siamese Representation Learning", 2021 (arXiv 2011.10566), their Algorithm 1:
the loss is -cos(p1, sg(z2))/2 - cos(p2, sg(z1))/2, with z = f(x) the projections of two views, p = h(z) the predictions
and sg the stop-gradient.

    python simsiam.py

learns ten classes of `patches` without labels: kNN 89.7 +- 1.2 % (seeds 0, 1, 2) from 22.8 +- 1.8 % of the untrained net, in
50 s of training on two CPU cores (torch 2.15), while std stays at 0.99: no collapse.  Take the two `.detach()` away, with
--final-bn none, and watch m_o go to 1.  `--data cifar10` and `--data cifar100` are the papers' recipes for a GPU.
"""
import torch
from torch import nn
from torch.nn import functional as F

import common

# One dict per data set; every entry is also a flag (--batch-size 128), and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.
RECIPES = {
    "patches": dict(arch="small", epochs=20, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=0,      # ours
                    proj_layers=2, proj_dim=256, pred_hidden=128, final_bn="noaffine"),
    "cifar10": dict(arch="resnet18", epochs=800, batch_size=512, lr=0.03, weight_decay=5e-4, warmup_epochs=0,  # Chen & He, app. D
                    proj_layers=2, proj_dim=2048, pred_hidden=512, final_bn="noaffine"),
    "cifar100": dict(arch="resnet18", epochs=1000, batch_size=256, lr=0.5, weight_decay=1e-5, warmup_epochs=10,  # Zhang et al., A.1
                     proj_layers=3, proj_dim=2048, pred_hidden=512, final_bn="affine"),
    "other": dict(arch="small", epochs=70, batch_size=64, lr=0.4, weight_decay=5e-4, warmup_epochs=0,        # ours
                  proj_layers=2, proj_dim=256, pred_hidden=128, final_bn="noaffine"),
}
CHOICES = {"arch": common.ARCHS, "final_bn": ("none", "noaffine", "affine")}


# ------------------------------------------------------------------------------------------------------------- network

def make_projector(width, layers, dim, final_bn):
    """Linear, BN, ReLU, ..., Linear, final BN.  The final BN hides complete collapse: see "Read the columns" in the README."""
    net = []
    for i in range(layers):
        net += [nn.Linear(width if i == 0 else dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
    net = net[:-2]                                                         # no BN and ReLU after the last layer, but
    if final_bn != "none":
        net += [nn.BatchNorm1d(dim, affine=final_bn == "affine")]
    return nn.Sequential(*net)


class SimSiam(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                                     # f = projector after backbone
        self.encoder.backbone = backbone
        self.encoder.projector = make_projector(width, args.proj_layers, args.proj_dim, args.final_bn)
        self.predictor = nn.Sequential(                                    # h, a bottleneck without BN at its output
            nn.Linear(args.proj_dim, args.pred_hidden, bias=False), nn.BatchNorm1d(args.pred_hidden), nn.ReLU(inplace=True),
            nn.Linear(args.pred_hidden, args.proj_dim))

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)                        # [B, D]; each view has its own BN statistics
        p1, p2 = self.predictor(z1), self.predictor(z2)                    # [B, D]
        return p1, p2, z1, z2


build = SimSiam


# ---------------------------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Negative cosine similarity, mean over the batch.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -F.cosine_similarity(p, z, dim=1).mean()


# --------------------------------------------------------------------------------------------------------------- train

def main(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = SimSiam(args).to(device, memory_format=torch.channels_last)
    lr = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD([{"params": model.encoder.parameters()}, {"params": model.predictor.parameters()}],
                                lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        losses = []
        for t, x in run.batches():                                         # epochs done so far; uint8 [B, 3, S, S]
            # The encoder's rate falls along a cosine; the predictor's stays constant, so that h keeps up with the changing z.
            optimizer.param_groups[0]["lr"] = common.cosine_lr(lr, t, args.epochs, args.warmup_epochs)

            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                                  # bfloat16 on CUDA
                p1, p2, z1, z2 = net(x1, x2)
                loss = D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2     # detach is the stop-gradient: without it, collapse
            losses.append(loss.detach())
            if epoch == 0:                                                 # the untrained net: measured, not trained
                break

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run.end_epoch(losses, lr=optimizer.param_groups[0]["lr"], z=torch.cat([z1, z2]).detach())
    return model


if __name__ == "__main__":
    main()

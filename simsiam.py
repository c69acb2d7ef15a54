"""SimSiam: a Siamese net that needs no negative pairs, no momentum encoder and no large batch.

Chen & He, "Exploring Simple Siamese Representation Learning", 2021 (arXiv 2011.10566), Algorithm 1:
L = D(p1, sg(z2))/2 + D(p2, sg(z1))/2, with D the negative cosine similarity, z = f(x) the
projections of two views, p = h(z) the predictions and sg the stop-gradient.

    python simsiam.py

learns ten classes of `patches` without labels: kNN 93 % from 23 % untrained, in 90 s on two CPU
cores, without collapse.  Take `.detach()` away, with --final-bn none, and watch m_o go to 1.
"""
import torch
from torch import nn

import common

# One dict a data set; every entry is also a flag, and a flag that is given wins.
# lr is for a batch of 256: the rate used is lr * batch_size / 256.
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
    """Negative cosine similarity.  p, z: [B, D] -> scalar.  The stop-gradient is the caller's."""
    return -nn.functional.cosine_similarity(p, z, dim=1).mean()


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


class SimSiam(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim, hidden = args.proj_dim, args.pred_hidden
        self.encoder = nn.Sequential()                     # f = projector after backbone
        self.encoder.backbone = backbone
        self.encoder.projector = make_projector(width, args.proj_layers, dim, args.final_bn)
        self.predictor = nn.Sequential(                    # h, a bottleneck, no BN at its output
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, dim))

    def forward(self, x1, x2):
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, D]; BN statistics are a view's own
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
    lr = args.lr * args.batch_size / 256
    groups = [{"params": model.encoder.parameters()}, {"params": model.predictor.parameters()}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    run = common.Run(args, model, optimizer, data)
    net = run.parallel()

    for epoch in run.epochs():
        for x in run.batches():                            # uint8 [B, 3, S, S]
            rate = common.cosine_lr(lr, run.progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # f's; h's stays, so that h keeps up
            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):                  # bfloat16 on CUDA
                p1, p2, z1, z2 = net(x1, x2)
                loss = D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2     # detach: stop-gradient
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss, z=(z1, z2))
        run.end_epoch()
    run.finish()
    return model


if __name__ == "__main__":
    main()

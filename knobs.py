"""Train SimSiam or BYOL with any of the changes that are blamed for a collapse.

The encoder turns a view, a randomly changed image, into z.  The predictor, a small net, guesses the
other view's z from it.  In a collapse all z are equal, or lie along few directions.  Each part of
both methods has a flag that changes or removes it.  results/collapse_guide.md says what each does.

    python knobs.py                              SimSiam, as in simsiam.py
    python knobs.py --variant byol               BYOL, as in byol.py
    python knobs.py --no-pred-bn --batch-size 16 --data path/to/folder

A run on `patches` takes 90 s on two CPU cores.  BYOL is SimSiam with a slow target here, so it has
a quarter of byol.py's loss (without a constant), 4 times its rate, a quarter of its weight decay.
"""
import copy
import time

import torch
from torch import nn

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
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
FLAGS = {
    "variant": ("simsiam", "the method to start from"), "optimizer": (None, "sgd has momentum 0.9"),
    "proj_bn": (None, "BatchNorm inside the projector"), "predictor": (None, "mlp: two layers"),
    "pred_bn": (None, "BatchNorm inside the predictor"),
    "stopgrad": (None, "whether .detach() keeps the gradient away from the target"),
    "pred_schedule": (None, "cosine: the predictor's learning rate falls as the encoder's does"),
    "target_every": (None, "steps towards a target net, before it is updated (Chen & He, 5)"),
    "pair": (None, "whether a prediction's target is of the other view or, by mistake, its own"),
    "jitter_p": (None, "share of the views whose colours are changed, from 0 to 1")}


# -------------------------------------------------------------------------------------------- loss

def D(p, z):
    """Minus the mean cosine similarity of p and z, [B, dim] -> scalar.  The caller detaches z."""
    return -nn.functional.cosine_similarity(p, z, dim=1).mean()


# ----------------------------------------------------------------------------------------- network

def hidden_layer(d_in, d_out, with_bn):
    """A linear layer, BatchNorm if it is wanted, and ReLU.  -> list of layers"""
    if with_bn:
        return [nn.Linear(d_in, d_out, bias=False), nn.BatchNorm1d(d_out), nn.ReLU()]
    return [nn.Linear(d_in, d_out), nn.ReLU()]


class Siamese(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        dim = args.proj_dim
        self.encoder = nn.Sequential()                     # f: the backbone, then the projector
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
        # Each view gets its own call, so that BatchNorm averages over one view at a time.
        z1, z2 = self.encoder(x1), self.encoder(x2)        # [B, dim]
        p1, p2 = self.predictor(z1), self.predictor(z2)    # [B, dim]
        if self.target is None:
            return p1, p2, z1, z2, z1, z2
        return p1, p2, z1, z2, self.target(x1), self.target(x2)

    @torch.no_grad()
    def update_target(self, m):
        """f' <- m f' + (1 - m) f in place: weights and BatchNorm's averages, not its counters"""
        if self.target is None:
            return
        target = self.target.state_dict()
        for name, new in self.encoder.state_dict().items():
            if new.is_floating_point():
                target[name].lerp_(new, 1 - m)


build = Siamese                                # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

@torch.no_grad()
def health(r):
    """Without labels, how many dimensions do the features r of test images use?  r: [N, width] ->
    test_rank_r, the effective rank, and test_auc_r (Li, Efros & Pathak 2022, arXiv 2209.15007), the
    mean share of the sum of r's singular values that the largest 1, 2, ... hold.  It is 1 if one is
    all, about 1/2 if all are equal.  In our reading the sum is of the values, not their squares."""
    R = nn.functional.normalize(r.float(), dim=1).cpu().double()
    R = R - R.mean(0)
    s = torch.linalg.eigvalsh(R.T @ R).clamp(min=0).sqrt()               # in rising order
    s = s.flip(0)[:len(R)]
    return {"test_rank_r": common.collapse_metrics(r)["effective_rank"],
            "test_auc_r": (s.cumsum(0) / s.sum()).mean().item()}


def parse(argv=None):
    args = common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES, FLAGS, PRESETS,
                             zero=["ema", "jitter_p"])
    if args.ema > 1 or args.min_scale > 1 or args.jitter_p > 1:
        common.fail("--ema, --min-scale and --jitter-p must be at most 1")
    args.label = args.variant
    if not args.stopgrad:
        args.ema, args.target_every = 0.0, 1               # A copy lets no gradient pass.
    return args


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    model = Siamese(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    # The weights form two groups, because by default only the encoder's learning rate falls.
    lr = args.lr * args.batch_size / 256                   # --lr is the rate for a batch of 256.
    groups = [{"params": model.encoder.parameters()},
              {"params": model.predictor.parameters(), "lr": lr * args.pred_lr}]
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr, weight_decay=args.weight_decay)
    else:
        optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    backbone = model.encoder.backbone
    if not log.history:                                    # Row 0 is of the untrained net.
        of_r = health(common.extract_features(backbone, data.test_x, data.mean, data.std))
        log.row(0, **common.measure(model.encoder, data, args), **of_r)

    for epoch in range(len(log.history), args.epochs + 1):  # A resumed run goes on where it ended.
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42; images' indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate         # Group 0 is the encoder.
            if args.pred_schedule == "cosine":             # Group 1 is the predictor.
                optimizer.param_groups[1]["lr"] = rate * args.pred_lr
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]; no labels
            x1, x2 = (common.augment(x, data.mean, data.std, args.min_scale, jitter_p=args.jitter_p)
                      for _ in range(2))
            with common.autocast(device):                  # A GPU uses 16-bit floats (bfloat16).
                p1, p2, z1, z2, t1, t2 = net(x1, x2)
                if args.pair == "own":                     # The view predicts itself, by mistake.
                    t1, t2 = t2, t1
                # .detach() is the stop-gradient: the target stays where it is, and only p moves.
                loss = D(p1, t2.detach()) / 2 + D(p2, t1.detach()) / 2
                if not args.stopgrad:
                    loss = D(p1, t2) / 2 + D(p2, t1) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would wait for the GPU.
            steps = (epoch - 1) * log.steps + len(losses)
            if steps % args.target_every == 0:             # Until then the target holds still.
                model.update_target(args.ema)
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        z = torch.cat([z1, z2])                            # Has the last batch's z collapsed?
        of_r = health(common.extract_features(backbone, data.test_x, data.mean, data.std))
        metrics = common.measure(model.encoder, data, args, epoch, z)
        log.row(epoch, mean_loss, seconds, **metrics, **of_r)
    log.finish(**common.evaluate(model.encoder, data, args, epochs=100))  # trains the linear probe
    return model


if __name__ == "__main__":
    common.cli(main)

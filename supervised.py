"""A classifier that learns from the labels: a ceiling for the methods that learn without them.

The backbone (the net that makes the features), the random views and the loop are the same.  So the
accuracy says how much can be learned at all.  If images have several labels, it learns them all.

    python supervised.py --data strong_weak
    python supervised.py --data strong_weak --epochs 0       the floor: measures the untrained net

The first takes 90 s on two CPU cores.  Nearest neighbours by the features (kNN) then name the
strong label of 100 % of test images, and the weak one of 90 % (three seeds).  There is no projector
between the features r and the loss, so the columns that show a collapse are those of r.
"""
import time

import torch
from torch import nn

import common

# A recipe holds the settings for one data set.  Each setting is also a flag, such as --epochs 20,
# which wins over the recipe.  --help explains them.  "other" is the recipe for folders of images.
RECIPES = {
    "patches": dict(                                                                          # ours
        arch="small", epochs=30, batch_size=64, lr=0.4, weight_decay=1e-3, warmup_epochs=0),
    "cifar10": dict(                                                          # ours, not measured
        arch="resnet18", epochs=200, batch_size=128, lr=0.2, weight_decay=5e-4, warmup_epochs=0),
}
RECIPES["cifar100"] = RECIPES["cifar10"]
RECIPES["other"] = RECIPES["patches"] | dict(weight_decay=5e-4)
CHOICES = {"arch": common.ARCHS}


# -------------------------------------------------------------------------------------------- loss

def loss_of(outputs, labels):
    """The cross-entropy of each label, summed over an image's labels.  -> scalar
    outputs: a list of [B, classes]; labels: a list of int64 [B]"""
    return sum(nn.functional.cross_entropy(output, y) for output, y in zip(outputs, labels))


# ----------------------------------------------------------------------------------------- network

class Classifier(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                     # f: the backbone alone, no projector
        self.encoder.add_module("backbone", backbone)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in args.n_classes)

    def forward(self, x):
        r = self.encoder(x)                                # [B, width]
        return [head(r) for head in self.heads], r


build = Classifier                             # linear_eval.py makes any script's net by this name.


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
    """The run's settings: those of the recipe, except for the flags that were given.  -> args"""
    return common.parse_args(__file__, __doc__, RECIPES, argv, CHOICES)


def main(argv=None):
    args = parse(argv)
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    if not data.classes:
        common.fail(f"{args.data} has no labels to learn from")
    all_labels = [data.train_y, *(train for train, _ in data.more.values())]         # int64 [N]
    args.n_classes = [int(y.max()) + 1 for y in all_labels]
    model = Classifier(args).to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if args.compile else model
    lr = args.lr * args.batch_size / 256                   # --lr is the rate for a batch of 256.
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True,
                                weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # It makes or resumes the run's folder.
    if not log.history:                                    # Row 0 is of the untrained net.
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):  # A resumed run goes on where it ended.
        start, losses = time.time(), []
        # progress: epochs done so far, such as 3.42.  chosen: which images are in this batch.
        for progress, chosen in common.batches(data, args, epoch):
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]
            x1 = common.augment(x, data.mean, data.std)    # One view is enough for this loss.
            with common.autocast(device):                  # A GPU uses 16-bit floats (bfloat16).
                outputs, r = net(x1)
                loss = loss_of(outputs, [y[chosen] for y in all_labels])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would wait for the GPU.
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        # measure tests the features by kNN, and looks for a collapse in the last batch's r.
        log.row(epoch, mean_loss, seconds, **common.measure(model.encoder, data, args, epoch, r))
    log.finish(**common.evaluate(model.encoder, data, args, epochs=100))  # trains the linear probe
    return model


if __name__ == "__main__":
    common.cli(main)

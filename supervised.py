"""The ceiling: the same backbone, views and loop, but with the labels.  No self-supervision.

What it reaches says how much of a label this net can learn at all, and so what the others lose.
If images have several labels (--data strong_weak) it learns all of them at once.

    python supervised.py --data strong_weak
    python supervised.py --data strong_weak --epochs 0       the floor: the untrained net

takes 90 s on two CPU cores and gets 100 % of the strong label and 90 % of the weak one (kNN, three
seeds).  There is no projector: z is r, the backbone's output, so the collapse columns are of r.
"""
import time

import torch
from torch import nn

import common

# The settings for each data set.  Every entry is also a flag (--help says what it is), and a flag
# that is given wins.
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
    """Cross-entropy, summed over the labels of an image.

    outputs: list of [B, classes], labels: list of int64 [B] -> scalar"""
    return sum(nn.functional.cross_entropy(output, y) for output, y in zip(outputs, labels))


# ----------------------------------------------------------------------------------------- network

class Classifier(nn.Module):
    def __init__(self, args):
        super().__init__()
        backbone, width = common.make_backbone(args.arch)
        self.encoder = nn.Sequential()                     # the backbone alone
        self.encoder.add_module("backbone", backbone)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in args.n_classes)

    def forward(self, x):
        r = self.encoder(x)                                # [B, width]
        return [head(r) for head in self.heads], r


build = Classifier


# ------------------------------------------------------------------------------------------- train

def parse(argv=None):
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
    lr = args.lr * args.batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True,
                                weight_decay=args.weight_decay)
    log = common.Log(args, model, optimizer, data)         # makes the run's folder, or resumes it
    if not log.history:                                    # row 0: the untrained net's score
        log.row(0, **common.measure(model.encoder, data, args))

    for epoch in range(len(log.history), args.epochs + 1):
        start, losses = time.time(), []
        for progress, chosen in common.batches(data, args, epoch):   # such as 3.42 epochs; indices
            rate = common.cosine_lr(lr, progress, args.epochs, args.warmup_epochs)
            optimizer.param_groups[0]["lr"] = rate
            x = data.train_x[chosen]                       # uint8 [B, 3, size, size]
            x1 = common.augment(x, data.mean, data.std)    # one view is enough
            with common.autocast(device):                  # bfloat16 on CUDA
                outputs, r = net(x1)
                loss = loss_of(outputs, [y[chosen] for y in all_labels])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())                   # .item() here would make a GPU wait
        mean_loss, seconds = torch.stack(losses).mean().item(), time.time() - start
        log.row(epoch, mean_loss, seconds, **common.measure(model.encoder, data, args, epoch, r))
    log.finish(**common.evaluate(model.encoder, data, args, epochs=100))   # of a linear probe
    return model


if __name__ == "__main__":
    common.cli(main)

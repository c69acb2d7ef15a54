"""What the scripts share: data, augmentation, backbone, evaluation, flags, and the log of a run."""
import argparse
import copy
import csv
import io
import json
import math
import os
import signal
import sys
import zlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image, ImageOps                            # torchvision's own image library
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm                                 # It also draws bars in a notebook.


def fail(why):
    """End the script with exit status 2 and one line that says what is wrong and what to do."""
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2)


# -------------------------------------------------------------------------------------------- data

# x: images, uint8 [N, 3, H, W], on the device.  y: labels, int64 [N], or -1.  mean, std: [3], those
# of the colours in 0..1.  classes: 0 without labels.  more: other labels, {"_weak": (train, test)}.
Data = namedtuple("Data", "train_x train_y test_x test_y mean std classes more")


def load_data(name, data_dir="data", size=32, device="cpu", limit=None):
    """The data set or the folder of this name -> Data.  limit: use only so many training images."""
    if name in PATCHES:
        train, test = [make_patches(PATCHES[name], *part, size) for part in ((4000, 1), (1000, 2))]
    elif name in ("cifar10", "cifar100"):
        train, test = [from_torchvision(name, data_dir, part) for part in (True, False)]
    else:
        files, held_out = find_images(Path(name))
        if limit and files:                                # The others need not be decoded.
            files = [files[i] for i in balanced_subset(torch.tensor([y for _, y in files]), limit)]
        train, test = read_images(files, size), read_images(held_out, size)
    if limit:
        keep = balanced_subset(train[1][0], limit)
        train = train[0][keep], train[1][:, keep]
    some = train[0][::max(1, len(train[0]) // 4000)].float().div(255)
    if len(some) > 1 and some.std(0).max() < 0.01:
        fail(f"--data {name}: all images are the same, so there is nothing to learn from them")
    mean, std = some.mean((0, 2, 3)), some.std((0, 2, 3)).clamp(min=1e-3)
    (x, y), (x2, y2) = [[part.to(device) for part in both] for both in (train, test)]
    more = {"_weak": (y[1], y2[1])} if len(y) > 1 else {}                # y, y2: [labels, N]
    return Data(x, y[0], x2, y2[0], mean.to(device), std.to(device), int(y[0].max()) + 1, more)


def balanced_subset(labels, limit):
    """Indices of `limit` images, if possible equally many of each class.  labels: int64 [N]"""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    one_hot = F.one_hot(labels[order] + 1)                 # [N, classes + 1]
    place = (one_hot.cumsum(0) * one_hot).sum(1)           # the first of its class, the second, ...
    return order[place.argsort(stable=True)][:limit].sort().values


# For each label: classes, copies of the pattern in an image, smallest and largest amplitude.
PATCHES = {"patches": ((10, 7, 0.35, 0.6),),
           "strong_weak": ((5, 7, 0.35, 0.6), (5, 5, 0.28, 0.45))}


def make_patches(features, n, seed, size, side=7):
    """Noise with copies of a small pattern, the class, at random places, some of them mirrored.
    The patterns do not depend on the seed.  With two labels, all pairs are equally frequent.
    features: PATCHES[...] -> uint8 [n, 3, size, size], int64 [labels, n]"""
    fixed, g = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    room, labels, scattered, period = size - side + 1, [], [], 1            # room: places in a row
    for classes, copies, low, high in features:
        labels.append(torch.arange(n) // period % classes)             # They count up as digits do.
        period *= classes
        where = torch.rand(n, room * room, generator=g).topk(min(copies, room * room), 1).indices
        mirrored = torch.rand(where.shape, generator=g).round().long()      # [n, copies]
        amplitude = torch.empty(where.shape).uniform_(low, high, generator=g)
        spots = torch.zeros(n, 2, room * room)
        spots[torch.arange(n)[:, None], mirrored, where] = amplitude
        scattered.append(spots.view(n, 2, room, room))
    x = 0.5 + 0.005 * torch.randn(n, 3, 1, 1, generator=g)
    x = x + 0.15 * torch.randn(n, 3, size, size, generator=g)
    x += 0.005 * F.interpolate(torch.randn(n, 1, 4, 4, generator=g), (size, size), mode="bicubic")
    for (classes, *_), y, spots in zip(features, labels, scattered):
        pattern = torch.randn(classes, 1, 4, 4, generator=fixed)
        pattern = F.interpolate(pattern, size=(side, side), mode="bicubic", align_corners=True)
        pattern -= pattern.mean((2, 3), keepdim=True)
        pattern /= pattern.abs().amax((2, 3), keepdim=True)
        for c in range(classes):
            both = torch.stack([pattern[c], pattern[c].flip(2)])
            x[y == c] += F.conv_transpose2d(spots[y == c], both)
    return x.clamp_(0, 1).mul_(255).round_().to(torch.uint8), torch.stack(labels)


def from_torchvision(name, data_dir, train):
    """CIFAR, downloaded if data_dir lacks it -> uint8 [N, 3, 32, 32], labels int64 [1, N]"""
    try:
        data = getattr(torchvision.datasets, name.upper())(data_dir, train, download=True)
    except (OSError, RuntimeError) as e:                   # no connection, no room, a broken file
        fail(f"{name} is not in {data_dir}/ ({str(e).splitlines()[0]}): use --data patches")
    return torch.as_tensor(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor([data.targets])


IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def find_images(root):
    """The images of a folder -> two lists of (file, label), for training and for testing.
    An image has one of the endings above.  Nothing hidden is one, and nothing in this repository or
    its runs.  A class is a folder in train/.  Without train/ or with one class labels are -1.
    Without a test folder each file's own name decides, so a new file does not move the others."""
    if not root.is_dir():
        fail(f"--data {root}: no such data set or folder.  Use {FLAGS['data'][1]}")
    files, seen = [], {Path(__file__).resolve().parent}
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        fresh = here.resolve() not in seen and "args.json" not in names    # Links may lead back.
        seen.add(here.resolve())
        below[:] = sorted(name for name in below if fresh and name[0] not in "._")
        files += [here / name for name in sorted(names) if name[0] != "."] if fresh else [here]
    images = [file for file in files if file.name.lower().endswith(IMAGES)]
    place = {file: file.relative_to(root).parts for file in images}              # train, cats, ...
    held_out = next((name for name in ("test", "val", "valid") if (root / name).is_dir()), "")
    train, test = [[(file, parts[1]) for file, parts in place.items()
                    if parts[0] == part and len(parts) > 2] for part in ("train", held_out)]
    if not train:
        train, test = [(file, "") for file in images], []
    used = dict(train + test)
    unused = [str(file.relative_to(root)) for file in files if file not in used]
    if unused:
        print(f"{root}: {len(unused)} files are not used, such as {', '.join(unused[:5])}")
    classes = sorted({name for _, name in train})
    if test and {*classes} != {name for _, name in test}:
        fail(f"--data {root}: {held_out}/ must have the classes of train/")
    if len(classes) < 2:
        print(f"{root}: no labels, so there is neither kNN nor a linear probe")
    if train and not test:
        print(f"{root}: a tenth of the images is held out for testing")
        number = {pair: zlib.crc32(os.fsencode(pair[0].relative_to(root))) for pair in train}
        test = [pair for pair in train if number[pair] % 10 == 0] or [min(train, key=number.get)]
        train = sorted({*train} - {*test})
    return [[(file, classes.index(name) if len(classes) > 1 else -1) for file, name in part]
            for part in (train, test)]


def read_images(files, size):
    """[(file, label)] -> the square in the middle, uint8 [N, 3, size, size]; labels int64 [1, N]"""
    def decode(pair):
        try:
            file = Image.open(pair[0])
            image = ImageOps.exif_transpose(file)
            if file.mode[0] in "IF":                       # PNG and PPM have 16 bits in mode I.
                deep = file.mode.startswith("I;16") or file.format in ("PNG", "PPM")
                if not deep or image.getextrema()[1] < 256:
                    return "numbers of an unknown range"
                image = image.point(lambda value: value * (1 / 256), "L")
            elif file.mode[-1] in "Aa" or "transparency" in file.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.BICUBIC)
        except Exception:                                  # A bad file may raise any of many kinds.
            return "unreadable"
        return torchvision.transforms.functional.pil_to_tensor(image), pair[1]

    with ThreadPoolExecutor() as pool:
        images = [*tqdm(pool.map(decode, files), "decoding", len(files), leave=False, disable=None)]
    bad = [f"{file} ({why})" for (file, _), why in zip(files, images) if type(why) is str]
    if bad:
        print(f"skipped {len(bad)} of {len(files)} images: {', '.join(bad[:5])}")
    if len(bad) == len(files):
        fail("--data: no readable images for training or for testing")
    x, y = zip(*[image for image in images if type(image) is not str])
    return torch.stack(x), torch.tensor([y])


# ------------------------------------------------------------------------------------ augmentation

@torch.no_grad()
def augment(x, mean, std, min_scale=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
            jitter_p=0.8, gray_p=0.2):
    """A random view of each image, by torchvision's RandomResizedCrop (bicubic), flip, ColorJitter
    and grayscale.  Only the order of ColorJitter's four steps is the same for a batch.
    x: uint8 [B, 3, S, S]; mean, std: [3] -> float [B, 3, S, S], normalised, channels_last"""
    start, length = random_boxes(len(x), x.shape[-1], min_scale, x.device)
    mirror, gray, _, jitter, *u = torch.rand(8, len(x), 1, 1, 1, device=x.device)
    x = resized_crop(x, start, length, mirror.flatten() < 0.5)    # _ is drawn as in older runs.
    change = (jitter < jitter_p) * (2 * torch.stack(u) - 1)       # -1 to 1, 0: no change
    for i in torch.randperm(4).tolist():
        if i == 0:
            x = x.mul_(1 + brightness * change[0]).clamp_(0, 1)
        elif i == 1:
            factor, mean_gray = 1 + contrast * change[1], luminance(x).mean((2, 3), keepdim=True)
            x = x.mul_(factor).add_(mean_gray.mul_(1 - factor)).clamp_(0, 1)
        elif i == 2:
            x = adjust_saturation(x, 1 + saturation * change[2])
        else:
            x = adjust_hue(x, hue * change[3])
    x = adjust_saturation(x, (gray >= gray_p).float())            # 0 makes an image gray
    return normalise(x, mean, std)


def random_boxes(n, size, min_scale, device):
    """Boxes as RandomResizedCrop draws them: the first of ten that fits, or else the whole image.
    -> start (left, top) and length (width, height), each [2, n], in whole pixels"""
    area = torch.empty(n, 10, device=device).uniform_(min_scale, 1).mul_(size * size)
    aspect = torch.empty(n, 10, device=device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp_()
    sides = torch.stack([area * aspect, area / aspect]).sqrt_().round_()              # [2, n, 10]
    fits = sides.amax(0) <= size
    first = fits.to(torch.uint8).argmax(1)
    length = sides.gather(2, first.expand(2, n)[..., None])[..., 0].where(fits.any(1), size)
    return (torch.rand_like(length) * (size - length + 1)).floor_(), length


def resized_crop(x, start, length, mirror):
    """Cut out each image's box, resize it (bicubic) to the image's size, and mirror some of them.
    One small matrix resizes the columns, one the rows: a batch takes two matrix products.
    x: uint8 [B, 3, S, S]; start, length: [2, B]; mirror: bool [B] -> float [B, 3, S, S] in 0..1"""
    n, _, _, size = x.shape
    out = torch.arange(size, device=x.device) + 0.5                         # centres of pixels
    across = torch.where(mirror[:, None], size - out, out)
    out = torch.stack([across, out.expand(n, size)])                        # [2, B, S]
    position = out * (length / size)[..., None] - 0.5                   # 0 is the first in the box.
    base = position.floor()
    t = (position - base)[..., None]
    near = base[..., None] + torch.arange(-1.0, 3.0, device=x.device)       # 4 pixels [2, B, S, 4]
    t2, t3 = t * t, t * t * t
    weight = torch.cat([t2 - (t + t3) / 2, 1.5 * t3 - 2.5 * t2 + 1,         # Keys' cubic, a = -1/2
                        2 * t2 + (t - 3 * t3) / 2, (t3 - t2) / 2], -1)
    weight *= (near >= 0) & (near < length[..., None, None])                # nothing from outside
    weight /= weight.sum(-1, keepdim=True)
    near = near.add_(start[..., None, None]).clamp_(0, size - 1).long()
    columns, rows = torch.zeros(*out.shape, size, device=x.device).scatter_add_(3, near, weight)
    x = x.float().div_(255).view(n, 3 * size, size)
    x = torch.bmm(x, columns.mT).clamp_(0, 1)                     # PIL, too, clamps in between.
    return (rows[:, None] @ x.view(n, 3, size, size)).clamp_(0, 1)


def luminance(x):                                          # -> [B, 1, H, W]
    return (x[:, :1] * 0.2989).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)


def adjust_saturation(x, factor):                          # It changes x in place.
    return x.lerp_(luminance(x), 1 - factor).clamp_(0, 1)


def adjust_hue(x, shift):
    """Turn the hue by `shift` turns of the colour circle.  x: [B, 3, H, W]; shift: [B, 1, 1, 1].
    If m is the smallest channel and C the largest minus m, the hue is +-(C + g + b - r - m) / 6C
    turns from red, + if g > b.  A channel is m + C clamp(2 - 6 |turns from its hue|, 0, 1)."""
    r, g, b = x.unbind(1)
    low = x.amin(1)
    chroma = x.amax(1) - low
    h = torch.copysign(chroma + g + b - r - low, g - b) / (6 * chroma + 1e-8) + shift[:, 0]
    turns = h[:, None] - torch.arange(3, device=x.device).view(3, 1, 1) / 3
    share = turns.sub_(turns.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return share.mul_(chroma[:, None]).add_(low[:, None])


def normalise(x, mean, std):
    """(x - mean) / std, in place.  x: float [B, 3, S, S]; mean, std: [3] -> channels_last"""
    x = x.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
    return x.contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------ backbone and evaluation

ARCHS = {"small": 96, "resnet18": 512}                     # how many features the backbone has


def make_backbone(arch):
    """-> a net that makes features, [B, 3, S, S] -> [B, width], and width.  resnet18 is adapted to
    small images: its first convolution is 3x3 with stride 1, and there is no max-pooling."""
    if arch == "resnet18":
        net = torchvision.models.resnet18()
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool, net.fc = nn.Identity(), nn.Identity()
        return net, ARCHS[arch]

    def block(c_in, c_out, stride):
        shortcut = [nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)]
        return torchvision.models.resnet.BasicBlock(c_in, c_out, stride, nn.Sequential(*shortcut))
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        block(32, 64, 2), block(64, 96, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ARCHS[arch]


def autocast(device):
    """On newer CUDA cards, matrix products and convolutions use bfloat16, but losses float32."""
    on = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda" if on else "cpu", torch.bfloat16, enabled=on)


@torch.no_grad()
def collapse_metrics(z):
    """Has z collapsed?  z: [B, dim] -> dict of floats, all of Z, z's rows divided by their length.
    std             sqrt(dim) * mean standard deviation of a dimension: 1 healthy, 0 collapsed
    m_o, m_r        length of the mean o of Z, and mean length of Z - o: 0 and 1 in a healthy net,
                    1 and 0 after complete collapse to one point (Zhang et al. 2022, 3.1)
    effective_rank  exp(entropy of the eigenvalues of Cov(Z), divided by their sum): small after
                    dimensional collapse to few directions, noise after complete collapse
    covariance      off-diagonal entries of Cov(Z), squared and summed, / dim (their Algorithm 5)
    dead            share of z's rows that are 0 and have no direction, or 1 if all are equal"""
    z = z.float().cpu()
    Z = F.normalize(z, dim=1)
    (n, d), o = Z.shape, Z.mean(0)
    R = Z - o
    cov = R.T @ R / (n - 1)
    gram = R @ R.T if n < d else cov  # Both have the same eigenvalues, except for zeros and scale.
    eig = torch.linalg.eigvalsh(gram.double().nan_to_num())        # It may not converge in float32.
    eig = eig.clamp(min=1e-12) / eig.clamp(min=1e-12).sum()
    off = cov.square().sum() - cov.diagonal().square().sum()
    constant = z.std(0).max() <= 1e-6 * z.abs().max()
    values = {"std": d**0.5 * Z.std(0).mean(), "m_o": o.norm(), "m_r": R.norm(dim=1).mean(),
              "effective_rank": (-(eig * eig.log()).sum()).exp(), "covariance": off / d,
              "dead": ((Z.norm(dim=1) < 0.5) | constant).float().mean()}
    return {name: value.item() for name, value in values.items()}


def verdict(metrics):
    """Which collapse is it?  The limits are ours.  metrics: what collapse_metrics returns
    -> "none", "dimensional", "complete", "dead" or "nan"; in the last three the rank is noise"""
    if math.isnan(metrics["m_o"]):
        return "nan"
    if metrics.get("dead", 0) > 0.1:
        return "dead"
    if metrics["m_o"] >= 0.95:
        return "complete"
    return "dimensional" if metrics["effective_rank"] <= 4 else "none"


@torch.no_grad()
def extract_features(net, x, mean, std, batch_size=500):
    """The net's outputs for whole images, in eval mode.  x: uint8 [N, 3, S, S] -> float [N, dim]"""
    training, out = net.training, []
    net.eval()
    for part in x.split(batch_size):
        with autocast(x.device):
            out.append(net(normalise(part.float().div_(255), mean, std)).float())
    net.train(training)
    return torch.cat(out)


@torch.no_grad()
def knn_accuracy(train_feats, train_labels, test_feats, test_labels, k=200, temperature=0.1):
    """Percent right if the k nearest training images vote, with weights exp(cosine / temperature).
    feats: [N, dim]; labels: int64 [N].  Chunks of 500 keep the table of cosines small."""
    train, right = F.normalize(train_feats, dim=1), 0
    for feats, labels in zip(test_feats.split(500), test_labels.split(500)):
        cosine, nearest = (F.normalize(feats, dim=1) @ train.T).topk(min(k, len(train)), dim=1)
        votes = cosine.new_zeros(len(feats), int(train_labels.max()) + 1)
        votes.scatter_add_(1, train_labels[nearest], (cosine / temperature).exp())
        right += (votes.argmax(1) == labels).sum()
    return 100 * right.item() / len(test_labels)


def linear_probe(train_feats, train_labels, test_feats, test_labels, epochs=100, lr=0.1,
                 batch_size=256):
    """Percent right of one linear layer, trained on standardised features, after its last epoch.
    feats: [N, dim], made before, so the backbone does not learn; labels: int64 [N]"""
    mean, std = train_feats.mean(0), train_feats.std(0) + 1e-6
    train_feats, test_feats = (train_feats - mean) / std, (test_feats - mean) / std
    layer = nn.Linear(train_feats.shape[1], int(train_labels.max()) + 1).to(train_feats.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = cosine_lr(lr, epoch, epochs)
        order = torch.randperm(len(train_feats), generator=generator).to(train_feats.device)
        for i in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(train_feats[i]), train_labels[i]).backward()
            optimizer.step()
    return 100 * (layer(test_feats).argmax(1) == test_labels).float().mean().item()


def cosine_lr(lr, epoch, epochs, warmup_epochs=0):
    """The rate after `epoch` epochs (a float): it rises linearly from 0, then falls as a cosine."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return lr * 0.5 * (1 + math.cos(math.pi * share))


def evaluate(encoder, data, args, epoch=0, **probe):
    """Percent right: {"knn"} of the backbone's features.  Settings of linear_probe (epochs=100) add
    "linear", and "knn_z", "linear_z" of the projections.  A second label adds "knn_weak" and so on.
    Without labels the dict is empty.  In epochs that --eval-every leaves out its values are nan."""
    labels = {"": (data.train_y, data.test_y), **data.more} if data.classes else {}
    found, n = {f"knn{label}": math.nan for label in labels}, 64 if args.dry_run else None
    if not labels or epoch % args.eval_every and epoch < args.epochs:
        return found
    nets = {"": encoder.backbone, "_z": encoder} if probe else {"": encoder.backbone}
    for end, net in nets.items():
        r = extract_features(net, data.train_x[:n], data.mean, data.std)
        r2 = extract_features(net, data.test_x[:n], data.mean, data.std)
        for label, (y, y2) in labels.items():
            found[f"knn{end}{label}"] = knn_accuracy(r, y[:n], r2, y2[:n])
            if probe:
                found[f"linear{end}{label}"] = linear_probe(r, y[:n], r2, y2[:n], **probe)
    return found


@torch.no_grad()
def measure(encoder, data, args, epoch=0, z=None):
    """The columns of an epoch's row: collapse_metrics of projections z [B, dim], and evaluate.
    Before training a copy of the encoder makes z, because BatchNorm's averages must not change."""
    if z is None:
        net, x = copy.deepcopy(encoder), data.train_x[next(batches(data, args, epoch=1))[1]]
        views = [augment(x, data.mean, data.std) for _ in range(2)]
        with autocast(x.device):
            z = torch.cat([net(view) for view in views])
    found = collapse_metrics(z)
    r = extract_features(encoder.backbone, data.test_x[:args.batch_size], data.mean, data.std)
    found["dead"] = max(found["dead"], collapse_metrics(r)["dead"])
    return {**found, **evaluate(encoder, data, args, epoch)}


# ---------------------------------------------------------------------------------- flags and log

FLAGS = {                                                  # every script's flags: default, help
    "data": ("patches", "patches, strong_weak, cifar10, cifar100 or a folder of images (README)"),
    "data_dir": ("data", "folder that CIFAR is downloaded to"),
    "size": (32, "width and height in pixels, except for CIFAR"),
    "limit": (0, "train on this many images only, if possible equally many of each class (0: all)"),
    "seed": (0, "seed of the weights, the order of the images and the augmentation"),
    "device": ("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1 or mps"),
    "eval_every": (1, "measure kNN once in this many epochs"),
    "out": ("runs", "folder in which the run's own folder is made"),
    "resume": ("", "continue the run in this folder; flags given beside it replace the saved ones"),
    "compile": (False, "compile the net with torch.compile"),
    "dry_run": (False, "train for two steps only, to see that everything works"),
}
HELP = {                                                   # of the settings in the scripts' recipes
    "arch": "the backbone; small is meant for a CPU",
    "epochs": "passes over the training images", "batch_size": "images in a step",
    "lr": "learning rate for a batch of 256: the rate used is lr * batch_size / 256",
    "weight_decay": "weight decay", "warmup_epochs": "epochs in which the rate rises from 0",
    "proj_layers": "layers of the projector", "proj_dim": "dimensions of the projections z",
    "proj_hidden": "width of the projector's hidden layer",
    "pred_hidden": "width of the predictor's hidden layer",
    "final_bn": "BatchNorm at the end of the projector; noaffine has no trained scale and shift",
    "pred_lr": "constant learning rate of the predictor, as a multiple of the encoder's",
    "pred_weight_decay": "weight decay of the predictor", "temperature": "InfoNCE's tau",
    "ema": "share of its weights that the target net keeps at a step; 0: it is the net itself",
    "min_scale": "smallest share of an image in a crop", "schedule": "of the encoder's rate",
    "bias_lr": "learning rate of the predictor's bias, as a multiple of the encoder's",
}
MAY_BE_ZERO = ("limit", "seed", "epochs", "warmup_epochs", "weight_decay")


def parse_args(file, doc, recipes, argv=None, choices={}, flags={}, presets={}, zero=()):
    """The settings of a run: flags that are given win over presets, and those over the recipe.
    recipes: {data set: {setting: value}}.  The first is the default, "other" is for folders.
    flags: the script's own, {name: (default, help)}.  choices: {name: allowed values}.
    presets: {data set: {--variant: {setting: value}}}.  zero: settings that may be 0.  -> args"""
    name, first, flags = Path(file).name, next(iter(recipes)), FLAGS | flags
    for key, value in recipes[first].items():
        text = flags[key][1] if key in flags else HELP[key]
        defaults = ", ".join(f"{data} {recipe[key]}" for data, recipe in recipes.items())
        flags[key] = value, f"{text} ({defaults})"
    parser = argparse.ArgumentParser(name, f"python {name} [--flag value ...]; --help lists them",
                                     doc, argument_default=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, (value, text) in flags.items():
        kind = {"type": type(value), "choices": choices.get(key)}
        if isinstance(value, bool):
            kind = {"action": argparse.BooleanOptionalAction if value else "store_true"}
        parser.add_argument("--" + key.replace("_", "-"), help=text, **kind)
    given = vars(parser.parse_args(argv))
    if given.get("resume"):
        given = load_run(given["resume"])["args"] | given
    args = {key: value for key, (value, _) in flags.items()} | {"data": first} | given
    recipe = first if args["data"] in PATCHES else "other"
    recipe = args["data"] if args["data"] in recipes else recipe
    preset = presets.get(recipe, {}).get(args.get("variant"), {})
    args = args | recipes[recipe] | preset | given | {"script": Path(file).stem, "label": ""}
    if args["data"] not in (*PATCHES, "cifar10", "cifar100") and Path(args["data"]).is_dir():
        args["data"] = os.path.abspath(args["data"])       # It is then found from anywhere.
    for key, value in args.items():
        least = 0 if key in (*MAY_BE_ZERO, *zero) else 2 if key == "batch_size" else 1e-12
        if type(value) in (int, float) and not least <= value < 1e11:       # or nan
            fail(f"--{key.replace('_', '-')} cannot be {value}")
    if args["dry_run"]:                                    # It is always a run of its own.
        args |= {"epochs": 1, "batch_size": 16, "limit": 32, "warmup_epochs": 0, "resume": ""}
    return argparse.Namespace(**args)


def setup(args):
    """Seed the weights, and make PyTorch fast.  -> the device that --device names"""
    torch.empty(8_000_000)         # glibc then reuses such blocks, so a CPU augments twice as fast.
    torch.set_flush_denormal(True)                         # Else weights near 0 slow a CPU down.
    torch.set_float32_matmul_precision("high")             # A GPU then computes in TF32, faster.
    torch.manual_seed(args.seed)
    try:
        return torch.empty(1, device=args.device).device
    except (RuntimeError, AssertionError) as e:
        fail(f"--device {args.device} cannot be used ({str(e).splitlines()[0]}): try cpu")


def batches(data, args, epoch):
    """Full batches of random training images.  -> epochs done so far, a float; indices, int64 [B].
    The seed and the epoch determine order and augmentation, so a resumed run is the same."""
    n, seed = len(data.train_x), args.seed * 100_003 + epoch
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = order[:n - n % args.batch_size].view(-1, args.batch_size).to(data.train_x.device)
    torch.manual_seed(seed * 1009)                         # This seeds the augmentation.
    for i, chosen in enumerate(tqdm(order, f"epoch {epoch}", leave=False, disable=None)):
        yield epoch - 1 + (i + 0.5) / len(order), chosen


def cli(main):
    """Run a script's main.  Ctrl-C, a closed pipe, a full disk or memory end it in one sentence."""
    for name in ("stdout", "stderr"):                      # They may be closed, or lack letters.
        setattr(sys, name, getattr(sys, name) or open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        return main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)       # A second Ctrl-C would cut this off.
        why = "stopped"
    except (OSError, MemoryError, torch.cuda.OutOfMemoryError) as e:
        why = (str(e) or "out of memory").splitlines()[0]
    fail(f"{why}{Log.hint}")


def write(file, content):
    """Write text, or a dict by torch.save.  After a kill the old file or the new one is there."""
    part, whole = file.with_name(file.name + ".part"), io.BytesIO()
    if isinstance(content, dict):
        torch.save(content, whole)  # In memory, because on a full disk it raises no OSError.
    else:
        whole.write(content.encode())
    part.write_bytes(whole.getvalue())
    part.replace(file)


def write_csv(file, rows):
    """Write rows, which are dicts.  All of their keys are columns, and nan is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row))
    table.writeheader()
    table.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)
    write(file, text.getvalue())


def run_name(args):
    """Script, label (such as the variant) if there is one, data set and seed, joined by hyphens."""
    return "-".join(filter(None, [args.script, args.label, Path(args.data).name, f"s{args.seed}"]))


def new_folder(out, name):
    """Make the folder out/name, or out/name-2, -3, ... if it exists.  -> Path"""
    folder, n = Path(out, name), 1
    while folder.exists():
        folder, n = Path(out, f"{name}-{n + 1}"), n + 1
    folder.mkdir(parents=True)
    return folder


def load_run(folder, model=None, optimizer=None):
    """What a Log saved in a run's folder: args, tables, model, optimizer.  Model and optimizer, if
    given, take their states.  Learning rates and weight decay stay those of the optimizer given."""
    try:
        saved = torch.load(Path(folder) / "last.pt", map_location="cpu", weights_only=True)
        saved |= json.loads((Path(folder) / "args.json").read_text(encoding="utf-8"))
        if model is not None:
            model.load_state_dict(saved["model"])
            settings = {"param_groups": optimizer.state_dict()["param_groups"]}
            optimizer.load_state_dict(saved["optimizer"] | settings)
        return {name: saved[name] for name in ("args", "tables", "model", "optimizer")}
    except Exception as e:                     # A bad file may raise any of many kinds.
        fail(f"{folder} is no run folder, or its last.pt does not fit ({str(e).splitlines()[0]})")


class Log:
    """The run's folder: a new one, or that of --resume, from which it loads the net.
    history: a row (a dict) for each finished epoch, from 0 on.  tables: {name: rows} of all csv
    files; a script may add to its own before it calls `row`."""
    hint = ""                                              # how to continue the run begun last

    def __init__(self, args, model, optimizer, data):
        self.args, self.model, self.optimizer, self.names = args, model, optimizer, []
        self.steps = len(data.train_x) // args.batch_size                  # in an epoch
        if self.steps == 0:
            fail(f"--batch-size {args.batch_size} is larger than the {len(data.train_x)} images")
        if args.resume:
            self.folder = Path(args.resume)
            saved = load_run(self.folder, model, optimizer)
            self.tables = saved["tables"]
            args.epochs = max(args.epochs, len(self.tables["metrics"]) - 1)    # those done already
            if args.epochs != saved["args"]["epochs"] and vars(args).get("schedule") != "constant":
                print("The learning rate jumps, because it falls over the new number of epochs.")
        else:
            self.folder, self.tables = new_folder(args.out, run_name(args)), {"metrics": []}
        self.history = self.tables["metrics"]
        colours = {"mean": data.mean.tolist(), "std": data.std.tolist()}  # to use the net elsewhere
        write(self.folder / "args.json", json.dumps({"args": vars(args), **colours}, indent=2))
        Log.hint = f'; python {args.script}.py --resume "{self.folder}" continues this run'
        print(f"{self.folder}: {len(data.train_x)} training images, {data.train_x.device}, "
              f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    def row(self, epoch, loss=math.nan, seconds=0.0, **columns):
        """Print an epoch's row, and save it with the net.  loss: the epoch's mean.  seconds: of its
        training alone.  A nan ends the run, and last.pt keeps the epoch before."""
        finite = all(value.isfinite().all() for value in self.model.state_dict().values())
        if epoch and not (finite and math.isfinite(loss)):
            fail(f"numbers are nan or infinite in epoch {epoch}: try --lr below {self.args.lr}")
        seconds += self.history[-1]["seconds"] if self.history else 0
        speed = epoch * self.steps * self.args.batch_size / max(seconds, 1e-9)
        row = {"epoch": epoch, "seconds": seconds, "images_per_second": speed,
               "lr": self.optimizer.param_groups[0]["lr"], "loss": loss, **columns}
        row |= {} if "verdict_P" in row else {"verdict": verdict(row)}
        short = {"images_per_second": "img/s", "covariance": "cov", "effective_rank": "rank"}
        cells = {f"{short.get(name, name):>8}": f"{x:.4g}".replace("nan", "") if type(x) is float
                 else x for name, x in row.items() if not name.startswith("dead")}
        if verdict(row) in ("complete", "dead"):
            cells["    rank"] = "-"                        # A point has no rank.
        if [*cells] != self.names:
            print(*cells)
            self.names = [*cells]
        print(*(f"{cell:>{len(name)}}" for name, cell in cells.items()), flush=True)
        self.history.append(row)
        for name, rows in self.tables.items():
            write_csv(self.folder / f"{name}.csv", rows)
        write(self.folder / "backbone.pt", self.model.encoder.backbone.state_dict())
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        write(self.folder / "last.pt", state | {"tables": self.tables})

    def finish(self, **found):
        """Write result.json: the last row and what is found at the end, without nan; curves.png."""
        found["knn_untrained"] = self.history[0].get("knn", math.nan)
        result = {k: v for k, v in {**self.history[-1], **found}.items() if v == v}
        write(self.folder / "result.json", json.dumps(result, indent=2))
        figure = Figure(figsize=(14, 3.4), layout="constrained")
        figure.suptitle(f"collapse: {result['verdict']}")
        for axis, key in zip(figure.subplots(1, 4), ("loss", "m_o", "effective_rank", "knn")):
            axis.plot([row.get(key, math.nan) for row in self.history], ".-")
            axis.set(title=key, xlabel="epoch", ylim=(None if key == "loss" else 0, None))
        figure.savefig(self.folder / "curves.png")
        probe = f"; linear probe {result['linear']:.1f} %" if "linear" in result else ""
        print(f"collapse: {result['verdict']}{probe}")

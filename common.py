"""What every script shares: data, batched augmentation, evaluation and the run folder.

No method lives here.  Images are uint8 tensors [N, 3, H, W] that stay on the device; a view is a
float tensor [B, 3, H, W].
"""
import argparse
import copy
import csv
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from PIL import Image, ImageOps                            # torchvision's own image library
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock
from tqdm import tqdm


def fail(why):
    """Bad input of any kind: one line that says what is wrong and what to do, exit status 2."""
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------------------- arguments and device

FLAGS = {                                                  # of every script: default, help
    "data": ("patches", "patches, strong_weak, cifar10, cifar100, stl10, fashionmnist, or a "
                        "folder: train/<class>/*, test/ or val/, or any images without labels"),
    "data_dir": ("data", "where torchvision downloads to"),
    "size": (32, "images are resized to this many pixels a side"),
    "limit": (0, "train on a class-balanced subset of this many images (0: all)"),
    "seed": (0, "seed of weights, order and augmentations"),
    "device": ("auto", "auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, mps"),
    "eval_every": (1, "epochs between two kNN evaluations"),
    "out": ("runs", "folder that the run's own folder is made in"),
    "resume": ("", "go on with this run folder; a flag beside it wins over the saved one"),
    "compile": (False, "torch.compile the model and the augmentation"),
    "dry_run": (False, "two steps of everything, in seconds"),
}
MAY_BE_ZERO = {"limit", "seed", "weight_decay", "pred_weight_decay", "warmup_epochs", "ema",
               "jitter_p", "solarize_p", "rho", "eps", "bank_momentum", "random_init"}
BELOW_ONE = {"rho", "bank_momentum"}                       # shares of the past
AT_MOST_ONE = {"ema", "min_scale", "jitter_p", "solarize_p"}             # ema 1: a frozen target


class Parser(argparse.ArgumentParser):
    def __init__(self, file, doc, flags, choices={}):
        """flags: {name: (default, help)}, choices: {name: allowed values}"""
        super().__init__(prog=Path(file).name, description=doc, argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        for name, (value, text) in flags.items():
            kind = {"type": type(value), "choices": choices.get(name)}
            if isinstance(value, bool):
                kind = {"action": argparse.BooleanOptionalAction if value else "store_true"}
            self.add_argument("--" + name.replace("_", "-"), help=text, **kind)

    def error(self, message):
        fail(f"{message} (python {self.prog} --help lists the flags)")


def parse_args(file, doc, recipes, argv=None, choices={}, flags={}, presets={}):
    """Common flags, and one flag for every entry of a recipe.  A flag that is given wins.

    recipes: {data set: {name: value}}; "other" is for any data set without one.
    flags: the script's own, {name: (default, help)}.  choices: {name: allowed values}.
    presets: {data set: {value of --variant: {name: value}}}; they win over the recipe."""
    by_recipe = {name: (value, ", ".join(f"{data} {r[name]}" for data, r in recipes.items()))
                 for name, value in recipes["patches"].items()}
    given = vars(Parser(file, doc, FLAGS | flags | by_recipe, choices).parse_args(argv))
    saved = read_run(given["resume"])["args"] if given.get("resume") else {}
    if saved and saved["script"] != Path(file).stem:
        fail(f"{given['resume']} was made by {saved['script']}.py: go on with that")
    args = {name: value for name, (value, _) in (FLAGS | flags).items()} | saved | given
    data = "patches" if args["data"] in PATCHES else args["data"]
    data = data if data in recipes else "other"
    preset = presets.get(data, {}).get(args.get("variant"), {})
    args = recipes[data] | preset | args | {"script": Path(file).stem}
    check_numbers(args | {"epochs": args["epochs"] or 1})  # none: the untrained net is evaluated
    if args["batch_size"] < 2:
        fail("--batch-size must be at least 2: BatchNorm needs two images")
    if args["dry_run"]:
        args |= {"epochs": 1, "batch_size": min(args["batch_size"], 16), "warmup_epochs": 0}
        args["limit"] = args["limit"] or 200
    return argparse.Namespace(**args)


def check_numbers(args):
    for name, value in args.items():
        flag = "--" + name.replace("_", "-")
        if type(value) not in (int, float) or value == 0 and name in MAY_BE_ZERO:
            continue
        if not 0 < value < math.inf:
            least = "zero or more" if name in MAY_BE_ZERO else "more than zero"
            fail(f"{flag} must be {least}, not {value}")
        if name in BELOW_ONE and value >= 1:
            fail(f"{flag} is the share of the past that is kept: it must be below 1, not {value}")
        if name in AT_MOST_ONE and value > 1:
            fail(f"{flag} must be at most 1, not {value}")


def setup(args):
    """Choose the device, join the other ranks if torchrun started us, seed.  -> torch.device"""
    # glibc: once a block of 32 MB was freed, malloc keeps smaller ones instead of giving their
    # pages back to the kernel at every step; on a CPU that makes augment twice as fast.
    torch.empty(8_000_000)
    torch.set_flush_denormal(True)                         # a CPU crawls where weights decay to 0
    warnings.filterwarnings("ignore", "The value of the smallest subnormal")       # numpy, of that
    torch.set_float32_matmul_precision("high")                                    # TF32 on CUDA
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if "RANK" in os.environ and not dist.is_initialized():                  # started by torchrun
        backend = "nccl" if name.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=2))    # rank 0 may download first
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        why = str(e).splitlines()[0]
        fail(f"--device {name} cannot be used here ({why}): try --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(args.seed)
    return device


def autocast(device):
    """bfloat16 on a CUDA card that computes in it (Ampere or newer); elsewhere float32.

    Matrix products and convolutions alone are in bfloat16: cosine similarities, squared errors and
    norms are float32 by CUDA autocast's own list.  A loss that multiplies matrices leaves it."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_of_ranks(x):
    """The mean of x over all ranks; x itself where there is one."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x / world_size()


def gather(z):
    """The rows of all ranks below each other, [world_size * B, D]; z itself where there is one.

    Gradient flows into a rank's own rows alone.  Where every rank computes the whole loss, its
    gradient is the sum over ranks, but DistributedDataParallel takes their mean: multiply the
    loss by world_size() for backward."""
    if world_size() == 1:
        return z
    parts = [torch.empty_like(z) for _ in range(world_size())]
    dist.all_gather(parts, z.detach().contiguous())
    parts[rank()] = z
    return torch.cat(parts)


# -------------------------------------------------------------------------------------------- data

@dataclass
class Data:
    train_x: torch.Tensor      # uint8 [N, 3, H, W]; test_x likewise
    train_y: torch.Tensor      # int64 [N], -1 where an image has no label
    test_x: torch.Tensor
    test_y: torch.Tensor
    mean: torch.Tensor         # [3], of the training images in 0..1; std likewise
    std: torch.Tensor
    classes: list              # names; none where no image has a label
    more: dict                 # further labels of the same images: {name: (train, test)}


def load_data(name, data_dir="data", size=32, device="cpu", limit=None):
    """`patches`, a torchvision data set, or a folder of images -> Data, decoded, on the device.

    limit: keep a class-balanced subset of the training images.  Ends with `fail` where the data
    cannot be used."""
    more = {}
    if name in PATCHES:
        train_x, train = make_patches(PATCHES[name], 4000, size, 1)
        test_x, test = make_patches(PATCHES[name], 1000, size, 2)
        parts = train_x, train[:, 0], test_x, test[:, 0], list("0123456789")[:train[:, 0].max() + 1]
        if name == "strong_weak":
            more = {"weak": (train[:, 1], test[:, 1])}     # the first label is the strong one
    elif name in TORCHVISION:
        if rank() > 0:
            dist.barrier()                                # rank 0 downloads before the others read
        parts = from_torchvision(name, data_dir, size)
        if name == "cifar100":
            more = {"coarse": [coarse_labels(data_dir, part) for part in ("train", "test")]}
        if rank() == 0 and world_size() > 1:
            dist.barrier()
    else:
        parts = from_folder(Path(name), size, limit)
    train_x, train_y, test_x, test_y, classes = parts
    keep = balanced_subset(train_y, limit) if limit else slice(None)
    train_x, train_y = train_x[keep], train_y[keep]
    some = train_x[::max(1, len(train_x) // 4000)].float().div(255)
    mean, std = some.mean((0, 2, 3)), some.std((0, 2, 3)).clamp(min=1e-3)
    tensors = [x.to(device) for x in (train_x, train_y, test_x, test_y, mean, std)]
    more = {label: (y[keep].to(device), y2.to(device)) for label, (y, y2) in more.items()}
    return Data(*tensors, classes, more)


def balanced_subset(labels, limit):
    """Indices of `limit` images, as many of each class as can be, drawn with a fixed seed.

    labels: int64 [N] -> int64 [M]"""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    if (labels >= 0).any():
        order = order[labels[order] >= 0]
    place = torch.empty(len(order), dtype=torch.long)     # how many of its class come before it
    for c in labels.unique():
        place[labels[order] == c] = torch.arange(int((labels[order] == c).sum()))
    return order[place.argsort(stable=True)][:limit].sort().values


# of each label: classes, copies of its pattern in an image, least and greatest amplitude
PATCHES = {"patches": ((10, 7, 0.35, 0.6),),
           "strong_weak": ((5, 7, 0.35, 0.6), (5, 5, 0.28, 0.45))}


def make_patterns(features, side=7):
    """-> for each label the patterns of its classes, the same always, [classes, 1, side, side]"""
    g, patterns = torch.Generator().manual_seed(0), []
    for classes, *_ in features:
        pattern = torch.randn(classes, 1, 4, 4, generator=g)
        pattern = F.interpolate(pattern, size=(side, side), mode="bicubic", align_corners=True)
        pattern -= pattern.mean((2, 3), keepdim=True)
        patterns.append(pattern / pattern.abs().amax((2, 3), keepdim=True))
    return patterns


def make_patches(features, n, size, seed, side=7):
    """A class is one small luminance pattern, scattered over a noisy background.

    A patch comes at a random place, with a random amplitude, mirrored or not.  Colour and
    background hardly vary from image to image, on purpose: whatever survives the augmentation
    and is easier than the pattern becomes a shortcut.  The patterns are the same for every seed,
    and labels are independent: each pair of classes is as frequent as any other.
    features: PATCHES[...] -> uint8 [n, 3, size, size], int64 [n, labels]"""
    if size < side:
        fail(f"--size must be at least {side} for patches, not {size}")
    patterns, g = make_patterns(features, side), torch.Generator().manual_seed(seed)
    room, labels, scattered, period = size - side + 1, [], [], 1            # room: places in a row
    for classes, copies, low, high in features:
        labels.append(torch.arange(n) // period % classes)                  # as digits count up
        period *= classes
        where = torch.rand(n, room * room, generator=g).topk(min(copies, room * room), 1).indices
        mirrored = torch.rand(where.shape, generator=g).round().long()      # [n, copies]
        amplitude = torch.empty(where.shape).uniform_(low, high, generator=g)
        spots = torch.zeros(n, 2, room * room)
        spots[torch.arange(n)[:, None], mirrored, where] = amplitude
        scattered.append(spots.view(n, 2, room, room))
    x = 0.5 + 0.005 * torch.randn(n, 3, 1, 1, generator=g)
    x = x + 0.15 * torch.randn(n, 3, size, size, generator=g)
    clutter = torch.randn(n, 1, 4, 4, generator=g)
    x += 0.005 * F.interpolate(clutter, size=(size, size), mode="bicubic")
    for pattern, y, spots in zip(patterns, labels, scattered):
        for c in range(len(pattern)):
            both = torch.stack([pattern[c], pattern[c].flip(2)])
            x[y == c] += F.conv_transpose2d(spots[y == c], both)
    return x.clamp_(0, 1).mul_(255).round_().to(torch.uint8), torch.stack(labels, 1)


TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10",
               "fashionmnist": "FashionMNIST"}


def from_torchvision(name, data_dir, size):
    make, out = getattr(torchvision.datasets, TORCHVISION[name]), []
    for part in ("train", "test"):
        which = {"train": part == "train"}
        if name == "stl10":
            which = {"split": "train+unlabeled" if part == "train" else "test"}
        try:
            files = make(data_dir, download=True, **which)
        except (OSError, RuntimeError) as e:              # no network, no room, a broken archive
            why = str(e).splitlines()[0]
            fail(f"{name} could not be downloaded to {data_dir}/ ({why}): connect once or copy it "
                 f"there, or use --data patches, which needs no download")
        x = torch.as_tensor(files.data)
        if x.ndim == 3:
            x = x[:, None]                                                  # gray
        elif x.shape[-1] == 3:
            x = x.permute(0, 3, 1, 2)
        x = x.expand(-1, 3, -1, -1)
        if x.shape[-1] != size:
            x = torch.cat([F.interpolate(some, (size, size), mode="bicubic", antialias=True)
                           for some in x.split(1000)])
        labels = files.labels if name == "stl10" else files.targets
        out += [x.contiguous(), torch.as_tensor(labels).long()]
    return *out, list(files.classes)


def coarse_labels(data_dir, part):
    """CIFAR-100's 20 superclasses, which torchvision leaves in the file.  -> int64 [N]"""
    file = Path(data_dir) / torchvision.datasets.CIFAR100.base_folder / part
    return torch.tensor(pickle.loads(file.read_bytes(), encoding="latin1")["coarse_labels"])


def from_folder(root, size, limit):
    """A folder of images: short side `size` pixels, RGB, cut at the centre.

    train/<class>/* and test/ or val/ with the same classes; without those a tenth of each class is
    held out; without train/, every image at any depth is taken, without labels, a tenth held out.
    -> the five parts of Data; labels are -1 and classes [] where there are none"""
    def images_in(folder):
        places = {folder / c: y for y, c in enumerate(classes)} or {folder: -1}
        return [(file, y) for place, y in places.items() for file in sorted(place.rglob("*"))
                if file.is_file() and torchvision.datasets.folder.is_image_file(file.name)]

    if not root.is_dir():
        fail(f"--data {root}: no such data set or folder; use one of {FLAGS['data'][1]}")
    train, test = root / "train", root / "test" if (root / "test").is_dir() else root / "val"
    classes = []
    if train.is_dir():
        classes = sorted(d.name for d in train.iterdir() if d.is_dir())
        if len(classes) < 2:
            fail(f"--data {root}: train/ has {len(classes)} class folders; kNN needs two or more, "
                 f"train/<class>/*; for images without labels name {train} itself")
    files = images_in(train if classes else root)
    if classes and test.is_dir():
        if more := {d.name for d in test.iterdir() if d.is_dir()} - {*classes}:
            fail(f"--data {root}: {test.name}/ has the class {min(more)}, which train/ lacks")
        held_out = images_in(test)
    else:
        files, held_out = [pair for i, pair in enumerate(files) if i % 10], files[::10]
        if rank() == 0:
            print(f"{root}: every tenth image is held out for testing"
                  f"{'' if classes else '; no labels, so neither kNN nor linear probe'}")
    if limit:                                                     # no need to decode the others
        chosen = balanced_subset(torch.tensor([y for _, y in files]), limit)
        files = [files[i] for i in chosen]
    return (*read_images(root, "train", files, size), *read_images(root, "test", held_out, size),
            classes)


def read_images(root, part, files, size):
    """files: [(file, label)], to `part` on -> uint8 [N, 3, size, size], labels int64 [N]"""
    need, there = 2 * len(files) * 3 * size * size, memory()      # one by one, then as one tensor
    if need > there:
        fits = int(0.8 * len(files) * there / need)
        fail(f"--data {root}: {len(files)} images to {part} on take {need / 2**30:.1f} GB while "
             f"they are read, of {there / 2**30:.1f}: --limit {fits} fits, or a smaller --size")
    with ThreadPoolExecutor() as pool:
        images = pool.map(lambda pair: decode(pair[0], size), files)
        images = list(tqdm(images, f"decoding, {part}", len(files), leave=False,
                           disable=True if rank() else None))
    bad = [str(file) for (file, _), image in zip(files, images) if image is None]
    if len(bad) == len(files):
        seen = f", of {len(bad)} files (first: {bad[0]})" if bad else ""
        fail(f"--data {root}: no readable image to {part} on{seen}")
    if bad and rank() == 0:
        print(f"skipped {len(bad)} of {len(files)} images to {part} on that cannot be read: "
              f"{', '.join(bad[:5])}")
    labels = [y for (_, y), image in zip(files, images) if image is not None]
    return torch.stack([image for image in images if image is not None]), torch.tensor(labels)


def memory():
    """Bytes of memory of this machine; where it cannot be known, more than anybody has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**60


def decode(file, size):
    """-> uint8 [3, size, size], or None where the file is no readable image."""
    try:
        image = Image.open(file)
        if image.mode.startswith("I"):                             # 16 bits a pixel
            image = image.point(lambda value: value * (1 / 256), "L")
        image = ImageOps.fit(image.convert("RGB"), (size, size), Image.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1)


# ------------------------------------------------------------------------------------ augmentation

@torch.no_grad()
def augment(x, mean, std, min_scale=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
            jitter_p=0.8, gray_p=0.2, solarize_p=0.0):
    """One independent random view of each image, as torchvision would draw it, on x's device.

    RandomResizedCrop (bicubic; area min_scale..1, aspect 3/4..4/3), flip, ColorJitter, grayscale,
    solarize, normalise.  The order of the four colour operations is drawn once a batch.
    x: uint8 [B, 3, S, S]; mean, std: [3] -> float [B, 3, S, S], channels_last."""
    start, length = random_boxes(len(x), x.shape[-1], min_scale, x.device)
    mirror, gray, solarize, jitter, *u = torch.rand(8, len(x), 1, 1, 1, device=x.device)
    x = resized_crop(x, start, length, mirror.flatten() < 0.5)
    change = (jitter < jitter_p) * (2 * torch.stack(u) - 1)       # -1..1; 0: an image left alone
    operations = [(adjust_brightness, 1 + brightness * change[0]),
                  (adjust_contrast, 1 + contrast * change[1]),
                  (adjust_saturation, 1 + saturation * change[2]), (adjust_hue, hue * change[3])]
    for i in torch.randperm(4).tolist():
        adjust, amount = operations[i]
        x = adjust(x, amount)
    x = adjust_saturation(x, (gray >= gray_p).float())            # a factor of 0: none of it
    if solarize_p:
        x = torch.where((solarize < solarize_p) & (x >= 0.5), 1 - x, x)
    return normalise(x, mean, std)


def random_boxes(n, size, min_scale, device):
    """The boxes of RandomResizedCrop: of ten draws the first that fits, else the whole image.

    -> start [2, n] (left, top), length [2, n] (width, height), in whole pixels"""
    area = torch.empty(n, 10, device=device).uniform_(min_scale, 1).mul_(size * size)
    aspect = torch.empty(n, 10, device=device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp_()
    sides = torch.stack([area * aspect, area / aspect]).sqrt_().round_()              # [2, n, 10]
    fits = sides.amax(0) <= size
    first = fits.to(torch.uint8).argmax(1)
    length = sides.gather(2, first.expand(2, n)[..., None])[..., 0].where(fits.any(1), size)
    return (torch.rand_like(length) * (size - length + 1)).floor_(), length


def resized_crop(x, start, length, mirror):
    """Cut each image's box, resize it to the image's own size (bicubic), mirror it where asked.

    A crop is separable: one small matrix resamples the columns, one the rows, so a batch is two
    batched matrix products.
    x: uint8 [B, 3, S, S]; start, length: [2, B]; mirror: bool [B] -> float [B, 3, S, S] in 0..1"""
    n, _, _, size = x.shape
    out = torch.arange(size, device=x.device) + 0.5                         # centres of pixels
    across = torch.where(mirror[:, None], size - out, out)
    out = torch.stack([across, out.expand(n, size)])                        # [2, B, S]
    position = out * (length / size)[..., None] - 0.5                       # 0: first of the box
    base = position.floor()
    t = (position - base)[..., None]
    near = base[..., None] + torch.arange(-1.0, 3.0, device=x.device)       # 4 pixels [2, B, S, 4]
    t2, t3 = t * t, t * t * t
    weight = torch.cat([t2 - (t + t3) / 2, 1.5 * t3 - 2.5 * t2 + 1,         # Keys' cubic, a = -1/2
                        2 * t2 + (t - 3 * t3) / 2, (t3 - t2) / 2], -1)
    weight *= (near >= 0) & (near < length[..., None, None])                # none from outside
    weight /= weight.sum(-1, keepdim=True)
    near = near.add_(start[..., None, None]).clamp_(0, size - 1).long()
    both = torch.zeros(*out.shape, size, device=x.device).scatter_add_(3, near, weight)
    columns, rows = both                                                    # [B, S, S] each
    x = x.float().div_(255).view(n, 3 * size, size)
    x = torch.bmm(x, columns.mT).clamp_(0, 1)                     # clamped as PIL does, in between
    return (rows[:, None] @ x.view(n, 3, size, size)).clamp_(0, 1)


def luminance(x):
    """[B, 3, H, W] -> [B, 1, H, W]"""
    return (x[:, :1] * 0.2989).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)


# The four of ColorJitter, in place.  x: [B, 3, H, W] in 0..1; factor or shift: [B, 1, 1, 1]

def adjust_brightness(x, factor):
    return x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x, factor):
    mean = luminance(x).mean((2, 3), keepdim=True)
    return x.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def adjust_saturation(x, factor):
    return x.lerp_(luminance(x), 1 - factor).clamp_(0, 1)


def adjust_hue(x, shift):
    """Turn the hue by `shift` turns.

    With m, M the least and greatest channel and C = M - m, the hue is +-(C + g + b - r - m) / 6C
    turns from red, + where g > b; a channel is m + C clamp(2 - 6 |turns from its hue|, 0, 1)."""
    r, g, b = x.unbind(1)
    low = x.amin(1)
    chroma = x.amax(1) - low
    h = torch.copysign(chroma + g + b - r - low, g - b).div_(chroma.mul(6).add_(1e-8))
    h = h.add_(shift[:, 0])
    turns = h[:, None] - torch.arange(3, device=x.device).view(3, 1, 1) / 3
    share = turns.sub_(turns.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return share.mul_(chroma[:, None]).add_(low[:, None])


def normalise(x, mean, std):
    """In place but for the memory format.  x: float [B, 3, S, S]; mean, std: [3]"""
    x = x.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
    return x.contiguous(memory_format=torch.channels_last)


def compile_augment():
    """The parts of augment, each by itself; as one it would be compiled for each of 24 orders."""
    for part in (resized_crop, adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue):
        globals()[part.__name__] = torch.compile(part)


# ----------------------------------------------------------------------------- backbone, evaluation

ARCHS = {"small": 96, "resnet18": 512}                     # width of the representation


def make_backbone(arch):
    """-> backbone ([B, 3, S, S] -> [B, width]), width.

    `resnet18` is torchvision's, with the stem for small images (3x3 convolution of stride 1, no
    max-pooling) and without its last layer.  `small` is a residual net of torchvision's blocks
    that a CPU trains in a minute."""
    if arch == "resnet18":
        net = torchvision.models.resnet18()
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool, net.fc = nn.Identity(), nn.Identity()
        return net, ARCHS[arch]

    def block(c_in, c_out, stride):
        shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        return BasicBlock(c_in, c_out, stride, nn.Sequential(shortcut, nn.BatchNorm2d(c_out)))

    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        block(32, 64, 2), block(64, 96, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ARCHS[arch]


@torch.no_grad()
def collapse_metrics(z):
    """Has it collapsed?  z: [B, D] -> dict of floats, all of the l2-normalised rows Z.

    std             sqrt(D) * mean over dimensions of the standard deviation: 1 healthy, 0 complete
                    collapse
    m_o, m_r        length of the centre o = mean(Z), mean length of the residuals Z - o: 0 and 1
                    healthy (Zhang et al. 3.1)
    effective_rank  exp(entropy of the eigenvalues of Cov(Z), normalised to sum 1, where 0 log 0
                    is 0): small after dimensional collapse; after complete collapse it is noise
    covariance      squared off-diagonal entries of Cov(Z), summed, over D (their Algorithm 5)

    Standard deviation and Cov are over B - 1."""
    Z = F.normalize(z.float().cpu(), dim=1)
    (n, d), o = Z.shape, Z.mean(0)
    R = Z - o
    cov = R.T @ R / (n - 1)
    gram = R @ R.T if n < d else cov                       # the same but for zeros and scale
    eig = torch.linalg.eigvalsh(gram.double())             # in float32 it may fail to converge
    eig = eig.clamp(min=1e-12) / eig.clamp(min=1e-12).sum()
    off = cov.square().sum() - cov.diagonal().square().sum()
    values = {"std": d**0.5 * Z.std(0).mean(), "m_o": o.norm(), "m_r": R.norm(dim=1).mean(),
              "effective_rank": (-(eig * eig.log()).sum()).exp(), "covariance": off / d}
    return {name: value.item() for name, value in values.items()}


def verdict(m_o, effective_rank, few=4):
    """"complete": the centre is all there is; "dimensional": few dimensions are left; or "none".
    Our own rule."""
    if m_o >= 0.95:
        return "complete"
    return "dimensional" if effective_rank <= few else "none"


def alarm(rows, warmup_epochs=0):
    """A line for a run that goes wrong, once for each kind of collapse; "" where nothing is new.

    Two epochs on end, after warm-up and the first: each with m_o 0.95 or more, or with effective
    rank 2.75 or less, which does not rise.  A rank of 3 to 4 often comes back: only the verdict
    counts it.
    rows: of metrics.csv, so far"""
    rows = [row for row in rows if row["epoch"] > max(warmup_epochs, 1)]
    kinds = ["none"]
    for before, row in zip(rows, rows[1:]):
        both = {verdict(r["m_o"], r["effective_rank"], few=2.75) for r in (before, row)}
        rising = row["effective_rank"] > before["effective_rank"] and "complete" not in both
        kind = "complete" if both == {"complete"} else "dimensional"
        kinds.append("none" if "none" in both or rising else kind)
    if kinds[-1] in ("none", *kinds[:-1]):
        return ""
    return (f"{kinds[-1]} collapse since epoch {before['epoch']:.0f} (std {row['std']:.2f}, "
            f"m_o {row['m_o']:.2f}, rank {row['effective_rank']:.1f})")


@torch.no_grad()
def health(r):
    """How rich are the features of images that were not trained on?  Needs no labels.

    r: [N, D] -> test_rank_r, their effective rank (see collapse_metrics), and test_auc_r, the area
    under the share of the singular values of the centred, l2-normalised r that the largest 1, 2,
    ..., D of them hold: 1 where one holds all, 1/2 (and half a step) where all are equal.
    Li, Efros & Pathak (2022, arXiv 2209.15007) forecast accuracy by it; that it is the singular
    values that are summed, not their squares, is our reading."""
    R = F.normalize(r.float(), dim=1).cpu().double()
    R = R - R.mean(0)
    s = torch.linalg.eigvalsh(R.T @ R).clamp(min=0).sqrt()               # ascending
    s = s.flip(0)[:len(R)]
    return {"test_rank_r": collapse_metrics(r)["effective_rank"],
            "test_auc_r": (s.cumsum(0) / s.sum()).mean().item()}


@torch.no_grad()
def extract_features(net, x, mean, std, batch_size=500):
    """Features of images as they are, in eval mode: weights and BatchNorm averages do not change.

    x: uint8 [N, 3, S, S] -> float [N, D], on the same device"""
    training, out = net.training, []
    net.eval()
    for part in x.split(batch_size):
        with autocast(x.device):
            out.append(net(normalise(part.float().div_(255), mean, std)).float())
    net.train(training)
    return torch.cat(out)


def labelled_features(net, data, few=False):
    """-> train_feats, train_labels, test_feats, test_labels, for knn_accuracy and linear_probe.

    Of the images with a label, if there are any; few: of 64 of them."""
    n = 64 if few else None
    labelled = (data.train_y >= 0) | (not data.classes)
    train_x, train_y = data.train_x[labelled][:n], data.train_y[labelled][:n]
    return (extract_features(net, train_x, data.mean, data.std), train_y,
            extract_features(net, data.test_x[:n], data.mean, data.std), data.test_y[:n])


@torch.no_grad()
def knn_accuracy(train_feats, train_labels, test_feats, test_labels, k=200, temperature=0.1):
    """kNN by cosine, each neighbour's vote weighted by exp(cosine / temperature).  -> percent right

    feats: [N, D], labels: int64 [N]; in chunks, so that 50 000 x 10 000 fits everywhere"""
    train, right = F.normalize(train_feats, dim=1), 0
    classes = int(train_labels.max()) + 1
    for feats, labels in zip(test_feats.split(500), test_labels.split(500)):
        cosine, nearest = (F.normalize(feats, dim=1) @ train.T).topk(min(k, len(train)), dim=1)
        votes = cosine.new_zeros(len(feats), classes)
        votes.scatter_add_(1, train_labels[nearest], (cosine / temperature).exp())
        right += (votes.argmax(1) == labels).sum()
    return 100 * right.item() / len(test_labels)


def linear_probe(train_feats, train_labels, test_feats, test_labels, epochs=100, lr=0.1,
                 batch_size=256, seed=0):
    """One linear layer on standardised features, by SGD.  -> top-1, top-5 percent, last epoch

    feats: [N, D], cached, so that the backbone takes no part; labels: int64 [N]"""
    mean, std = train_feats.mean(0), train_feats.std(0) + 1e-6
    train_feats, test_feats = (train_feats - mean) / std, (test_feats - mean) / std
    layer = nn.Linear(train_feats.shape[1], int(train_labels.max()) + 1).to(train_feats.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = cosine_lr(lr, epoch, epochs)
        order = torch.randperm(len(train_feats), generator=generator).to(train_feats.device)
        for i in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(train_feats[i]), train_labels[i]).backward()
            optimizer.step()
    with torch.no_grad():
        best = layer(test_feats).topk(min(5, layer.out_features), dim=1).indices
    hit = (best == test_labels[:, None]).float()                                          # [N, 5]
    return 100 * hit[:, 0].mean().item(), 100 * hit.sum(1).mean().item()


def cosine_lr(lr, epoch, epochs, warmup_epochs=0):
    """The rate after `epoch` (a float) of `epochs`: linear warm-up from 0, then half a cosine."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return lr * 0.5 * (1 + math.cos(math.pi * share))


# ----------------------------------------------------------------------------------- the run folder

def read_run(folder):
    """What args.json in a run folder says."""
    try:
        info = json.loads((Path(folder) / "args.json").read_text())
        info["args"]["script"]
        return info
    except (OSError, ValueError, KeyError, TypeError) as e:
        fail(f"{folder} is not a run folder (no readable args.json: {e}); runs are in runs/ unless "
             f"--out said otherwise")


def load_checkpoint(file):
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        saved["model"], saved["epoch"]
        return saved
    except Exception as e:                    # torch.load raises half a dozen kinds on a bad file
        fail(f"{file} cannot be read ({type(e).__name__}: the file is missing, truncated or no "
             f"checkpoint of a run)")


def write(file, save):
    """save(path) into a temporary file, then one move: a kill leaves the old or the new file."""
    part = file.with_name(file.name + ".part")
    save(part)
    os.replace(part, file)


def write_json(file, content):
    write(file, lambda part: part.write_text(json.dumps(content, indent=2)))


def save_figure(figure, file):
    """A PNG of 256 colours, a third of the size."""
    def save(part):
        figure.savefig(part, dpi=100, format="png")
        picture = Image.open(part).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        picture.save(part, "png", optimize=True)

    write(file, save)


def read_csv(file):
    """-> list of dicts of floats, nan where a cell is empty"""
    with open(file, newline="") as f:
        return [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(f)]


def append_csv(file, rows):
    """Add rows, dicts; the columns are the file's, else the last row's; nan is an empty cell."""
    with open(file, "a+", newline="") as f:                # reads from the start, adds to the end
        f.seek(0)
        columns = next(csv.reader(f), None)
        table = csv.DictWriter(f, columns or list(rows[-1]), restval="")
        if not columns:
            table.writeheader()
        table.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)


def forget_after(file, epoch):
    """Drop rows that a killed run wrote after its last checkpoint; the first column is epoch."""
    header, *rows = file.read_text().splitlines(keepends=True) or [""]
    if not header.startswith("epoch,"[:len(header)]):      # no table of the run
        return
    if not header.endswith("\n"):                          # killed while it was made
        file.unlink()
        return
    rows = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= epoch]
    write(file, lambda part: part.write_text(header + "".join(rows)))


def run_name(args):
    """mirror_ablations-bias-patches-s0: script, label and data set if there is one, seed."""
    data = Path(getattr(args, "data", "")).name
    parts = [args.script, getattr(args, "label", ""), data, f"s{args.seed}"]
    return "-".join(part for part in parts if part)


def new_folder(args, device):
    """A fresh run folder, -2, -3, ... where there is one already, with args.json."""
    git = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:                                                                 # no git here
        commit = ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    info = {"args": vars(args), "python": sys.version.split()[0], "torch": torch.__version__,
            "torchvision": torchvision.__version__, "device": name,
            "threads": torch.get_num_threads(), "git": commit}
    for n in range(1, sys.maxsize):
        folder = Path(args.out) / (run_name(args) if n == 1 else f"{run_name(args)}-{n}")
        try:
            folder.mkdir(parents=True)
            write_json(folder / "args.json", info)
            return folder
        except FileExistsError:
            continue
        except OSError as e:
            fail(f"--out {args.out}: cannot write there ({e.strerror}); name another folder")


class Run:
    """The run folder and the loop around a method.  A script calls, in this order:

        run = Run(args, model, optimizer, data)   makes the folder, or loads what --resume names
        net = run.parallel()                      the model to train with (DDP, --compile)
        for epoch in run.epochs():                1, 2, ...; before 1 row 0, the untrained net
            for x in run.batches():               uint8 [B, 3, S, S]; beside it run.progress, the
                                                  epochs done so far, run.step, counted from 0, and
                                                  run.chosen, which images these are, int64 [B]
                run.log(loss, z=(z1, z2))         a scalar, averaged over the epoch; projections
                                                  [B, D]: the last ones are measured for collapse,
                                                  and those of any other name, P=(p1, p2), as m_o_P
            run.end_epoch()                       prints, saves; keywords are more columns
        run.finish(found=...)                     linear probe and result.json, with what was found

    The model has .encoder, images -> z, and .encoder.backbone, images -> r, which is evaluated.
    The script has parse(argv) -> args and build(args) -> model, for compare.py and linear_eval.py.
    Every epoch draws its random numbers from (seed, epoch, rank), so that going on repeats what an
    uninterrupted run would have done.  Under torchrun each rank sees its part of each batch; loss
    and collapse columns are of all ranks; rank 0 evaluates and writes."""

    def __init__(self, args, model, optimizer, data):
        self.args, self.model, self.optimizer, self.data = args, model, optimizer, data
        self.epoch, self.saved, self.seconds, self.history = 0, 0, 0.0, []
        self.is_first, self.device, n = rank() == 0, data.train_x.device, len(data.train_x)
        self.steps = n // args.batch_size                          # without the last short batch
        if self.steps == 0:
            fail(f"--batch-size {args.batch_size} is larger than the {n} training images: lower it")
        if args.batch_size % world_size() or args.batch_size < 2 * world_size():
            fail(f"--batch-size {args.batch_size} cannot be shared by {world_size()} ranks, two "
                 f"images or more each")
        if args.dry_run:
            self.steps = min(self.steps, 2)
        self.drawn = time.perf_counter()
        signal.signal(signal.SIGINT, self.interrupted)
        self.folder = Path(args.resume)
        if args.resume:
            self.load()
        elif self.is_first:
            self.folder = new_folder(args, self.device)
        if self.is_first:
            parameters = sum(p.numel() for p in model.parameters())
            print(f"{self.folder}: {n} training images, {parameters:,} parameters, {self.device}, "
                  f"{world_size()} process{'es' if world_size() > 1 else ''}", flush=True)
            for i, row in enumerate(self.history):
                self.print_row(row, header=i == 0)

    def load(self):
        file = self.folder / "last.pt"
        if file.exists():
            saved = load_checkpoint(file)
            try:
                self.model.load_state_dict(saved["model"])
                self.optimizer.load_state_dict(saved["optimizer"])
                self.epoch, self.seconds = saved["epoch"], saved["seconds"]
                self.saved = self.epoch
            except (KeyError, ValueError, RuntimeError, TypeError) as e:
                fail(f"{file} does not fit these arguments ({str(e).splitlines()[0]}): resume with "
                     f"the run's own flags")
        if self.is_first:
            for table in self.folder.glob("*.csv"):
                forget_after(table, self.epoch or -1)
            if self.epoch:
                table = self.folder / "metrics.csv"
                self.history = read_csv(table) if table.exists() else []
                if [row["epoch"] for row in self.history] != list(range(self.epoch + 1)):
                    fail(f"{table} lacks rows of the {self.epoch} epochs in last.pt: put it back, "
                         f"or start a new run")

    def interrupted(self, *_):
        if self.is_first:
            self.draw()
            print(f"\nstopped; {self.saved} finished epochs are saved.  "
                  f"To go on: python {self.args.script}.py --resume {self.folder}")
        raise SystemExit(130)

    def parallel(self):
        """The model to train with: itself; under torchrun in DDP, with --compile compiled."""
        net = self.model
        if world_size() > 1:
            if self.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(net)  # in place: BN sees all ranks' batch
            net = nn.parallel.DistributedDataParallel(net)
        if self.args.compile:
            compile_augment()
            net = torch.compile(net)
        return net

    def epochs(self):
        """The epochs still to do, 1, 2, ..."""
        if self.epoch == 0:
            self.measure_untrained()
        for epoch in range(self.epoch + 1, self.args.epochs + 1):
            self.model.train()
            self.losses = []
            yield epoch
            if self.epoch != epoch:
                raise RuntimeError("a training loop must call end_epoch")

    @torch.no_grad()
    def measure_untrained(self):
        """Row 0, on a copy of the encoder: nothing that trains notices."""
        encoder, data = copy.deepcopy(self.model.encoder).train(), self.data
        x = next(self.batches())
        x1, x2 = augment(x, data.mean, data.std), augment(x, data.mean, data.std)
        with autocast(self.device):
            z = encoder(x1), encoder(x2)
        self.add_row(math.nan, {"z": z}, {})
        if self.args.epochs == 0 and self.is_first:
            self.save()

    def batches(self):
        """One pass over the training images in random order.  -> uint8 [B, 3, S, S]"""
        a, epoch, x = self.args, self.epoch + 1, self.data.train_x
        shuffle = torch.Generator().manual_seed(a.seed * 100_003 + epoch)       # same on every rank
        order = torch.randperm(len(x), generator=shuffle)[: self.steps * a.batch_size]
        order = order.view(self.steps, a.batch_size)[:, rank()::world_size()].to(self.device)
        torch.manual_seed((a.seed * 100_003 + epoch) * 1009 + rank())           # augmentations
        start = time.perf_counter()
        bar = tqdm(order, f"epoch {epoch}", leave=False, disable=True if rank() else None)
        for i, self.chosen in enumerate(bar):
            self.step = (epoch - 1) * self.steps + i
            self.progress = epoch - 1 + (i + 0.5) / self.steps    # in the middle of the step
            yield x.index_select(0, self.chosen)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def log(self, loss, **views):
        """All of it stays on the device until the epoch ends."""
        self.losses.append(loss.detach())
        self.views = views

    def log_rows(self, name, rows):
        """Add rows of this epoch, dicts of numbers, to a csv of the run; before end_epoch."""
        if self.is_first:
            append_csv(self.folder / name, [{"epoch": self.epoch + 1, **row} for row in rows])

    def end_epoch(self, **columns):
        loss = mean_of_ranks(torch.stack(self.losses).mean()).item()
        self.epoch += 1
        finite = all(p.isfinite().all() for p in self.model.parameters())
        if not finite or not math.isfinite(loss):
            fail(f"the loss or a weight became nan or infinite in epoch {self.epoch}; last.pt in "
                 f"the run folder keeps the epoch before.  Lower --lr (now {self.args.lr}) and "
                 f"start again")
        self.add_row(loss, self.views, columns)
        if not self.is_first:
            return
        self.save()
        if time.perf_counter() - self.drawn > 30:          # it takes half a second
            self.draw()

    def save(self):
        # The row was printed before it is written: after a kill of whoever reads our output, the
        # print fails, and no two processes write here.
        rows = self.history[-1:] if self.epoch > 1 else self.history         # row 0 comes with 1
        append_csv(self.folder / "metrics.csv", rows)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "epoch": self.epoch, "seconds": self.seconds}
        backbone = self.model.encoder.backbone.state_dict()
        write(self.folder / "backbone.pt", lambda part: torch.save(backbone, part))
        write(self.folder / "last.pt", lambda part: torch.save(state, part))       # last: it counts
        self.saved = self.epoch

    def add_row(self, loss, views, columns):
        """Evaluate and print, on the first rank."""
        views = {name: gather(torch.cat(list(xs)).detach()) for name, xs in views.items()}
        if not self.is_first:
            return
        a, data = self.args, self.data
        seen = self.epoch * self.steps * a.batch_size
        row = {"epoch": self.epoch, "seconds": self.seconds,
               "images_per_second": seen / max(self.seconds, 1e-9),
               "lr": self.optimizer.param_groups[0]["lr"], "loss": loss,
               **collapse_metrics(views.pop("z"))}
        names = ["knn", *(f"knn_{label}" for label in data.more)] if data.classes else []
        row |= dict.fromkeys([*names, "test_rank_r", "test_auc_r"], math.nan)
        if self.epoch in (0, a.epochs) or self.epoch % a.eval_every == 0:
            features = labelled_features(self.model.encoder.backbone, data, a.dry_run)
            row |= self.evaluate("knn", knn_accuracy, features) | health(features[2])
        for name, x in views.items():
            found = collapse_metrics(x)
            row |= {f"{key}_{name}": found[key] for key in ("std", "m_o", "effective_rank")}
        row |= columns
        self.history.append(row)
        self.print_row(row, header=len(self.history) == 1 or row.keys() != self.history[-2].keys())
        if warning := alarm(self.history, a.warmup_epochs):
            print(f"{warning}.  Try --lr {a.lr / 4:g} or --weight-decay 0; what else it may be: "
                  f"results/README.md#collapse-guide", flush=True)

    def evaluate(self, name, accuracy, features):
        """accuracy for each of the labels, if there are any.  -> {column: percent}"""
        x, y, x2, y2 = features                            # see labelled_features
        found = {name: accuracy(x, y, x2, y2)} if self.data.classes else {}
        for label, (y, y2) in self.data.more.items():
            found[f"{name}_{label}"] = accuracy(x, y[:len(x)], x2, y2[:len(x2)])
        return found

    def print_row(self, row, header):
        short = {"images_per_second": "img/s", "covariance": "cov", "test_rank_r": "rank_r",
                 "test_auc_r": "auc_r"}
        names = [short.get(name, name.replace("effective_", "")) for name in row]
        if header:
            print(" ".join(f"{name:>8}" for name in names))
        cells = ["" if v != v else f"{v:.4g}" for v in row.values()]
        print(" ".join(f"{c:>{max(8, len(n))}}" for c, n in zip(cells, names)), flush=True)

    def finish(self, **found):
        """Linear probe, result.json.  -> what it says; None on all ranks but the first"""
        if dist.is_initialized():
            dist.destroy_process_group()
        if not self.is_first:
            return None
        last, few, encoder = self.history[-1], self.args.dry_run, self.model.encoder
        result = {"verdict": verdict(last["m_o"], last["effective_rank"])}
        if self.data.classes:
            for name, net in (("linear", encoder.backbone), ("linear_z", encoder)):
                features = labelled_features(net, self.data, few)
                result |= self.evaluate(
                    name, lambda *f: linear_probe(*f, 2 if few else 100)[0], features)
            result["knn_untrained"] = self.history[0]["knn"]
        result |= {key: value for key, value in (last | found).items() if value == value}   # no nan
        self.draw()
        write_json(self.folder / "result.json", result)
        probe = f"; linear probe {result['linear']:.1f} %" if self.data.classes else ""
        print(f"collapse: {result['verdict']}{probe}")
        return result

    def draw(self):
        """curves.png: loss; std, m_o and effective rank; kNN with the untrained net's."""
        from matplotlib.figure import Figure             # a second's import, only if it is needed
        if not self.history:
            return
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        curve = {key: [row[key] for row in self.history] for key in self.history[0]}
        epochs = curve["epoch"]
        left.plot(epochs, curve["loss"])
        left.set(title="loss", xlabel="epoch")
        middle.plot(epochs, curve["std"], label="std (0 collapsed)")
        middle.plot(epochs, curve["m_o"], label="m_o (1 collapsed)")
        middle.set(title="collapse", xlabel="epoch", ylim=(-0.03, 1.08))
        twin = middle.twinx()
        twin.plot(epochs, curve["effective_rank"], "C2", label="effective rank (right)")
        twin.set_ylim(bottom=0)
        twin.tick_params(axis="y", colors="C2")
        middle.legend(handles=middle.lines + twin.lines, fontsize=8, loc="upper center",
                      bbox_to_anchor=(0.5, -0.17), ncols=3)
        if self.data.classes:
            known = [(epoch, knn) for epoch, knn in zip(epochs, curve["knn"]) if knn == knn]
            right.plot(*zip(*known), label="kNN")
            right.axhline(curve["knn"][0], color="gray", ls="--", label="untrained net")
            right.set(title="kNN accuracy of the backbone (%)", xlabel="epoch", ylim=(0, 100))
            right.legend(fontsize=8, loc="lower right")
        else:
            figure.delaxes(right)
        save_figure(figure, self.folder / "curves.png")
        self.drawn = time.perf_counter()


# --------------------------------------------------------------------------------- the toy scripts

def parse_toy(file, doc, flags, argv=None):
    """For a script without images and recipes: its own flags, and --seed, --device, --out."""
    flags = flags | {name: FLAGS[name] for name in ("seed", "device", "out")}
    defaults = {name: value for name, (value, _) in flags.items()} | {"device": "cpu"}
    args = defaults | vars(Parser(file, doc, flags).parse_args(argv)) | {"script": Path(file).stem}
    if args["device"].startswith("mps"):
        fail("--device mps has no float64, which the toys need: use --device cpu")
    check_numbers(args)
    return argparse.Namespace(**args)


def run_parts(file, doc, argv, parts, shape):
    """A toy script made of parts, one after the other, their panels in one figure.

    parts: {name: part}; part(generator) -> rows (what, measured, theory), and functions
    draw(axis), a panel each; shape: rows and columns of panels"""
    args = parse_toy(file, doc, {}, argv)
    device = setup(args)
    if device.type != "cpu":                               # on a CPU it costs a third of the time
        torch.set_default_device(device)
    generator = torch.Generator(device).manual_seed(args.seed)

    from matplotlib.figure import Figure
    figure, table = Figure(figsize=(16, 7.5), layout="constrained"), []
    axes = iter(figure.subplots(*shape).flat)
    for name, part in parts.items():
        rows, *draws = part(generator)
        table += [{"part": name, "what": w, "measured": m, "theory": t} for w, m, t in rows]
        for draw in draws:
            draw(next(axes))
    finish_toy(args, device, table, figure)


def finish_toy(args, device, table, figure):
    """Print the table, a list of dicts, and leave it with the figure in a run folder."""
    cells = [list(table[0])]
    for row in table:
        cells.append([f"{v:.5g}" if isinstance(v, float) else str(v) for v in row.values()])
    width = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, width)).rstrip())
    folder = new_folder(args, device)
    append_csv(folder / f"{args.script}.csv", table)
    save_figure(figure, folder / f"{args.script}.png")
    print(f"{folder}: {args.script}.csv, {args.script}.png")

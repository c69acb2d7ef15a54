"""What every script shares: data, batched augmentation, evaluation and the run folder.  No method lives here.

Images are uint8 tensors [N, 3, H, W] that stay on the device; a view is a float tensor [B, 3, H, W].
"""
import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock
from tqdm import tqdm


def fail(why):
    """Bad input of any kind: one line that says what is wrong and what to do, exit status 2."""
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2)


# ------------------------------------------------------------------------------------------------ arguments and device

FLAGS = {                                                 # the flags of every script: default, help
    "data": ("patches", "patches, cifar10, cifar100, stl10, fashionmnist, or a folder with train/<class>/* and test/ or val/"),
    "data_dir": ("data", "where torchvision downloads to"),
    "size": (32, "images are resized to this many pixels a side"),
    "limit": (0, "train on a class-balanced subset of this many images (0: all)"),
    "seed": (0, "seed of weights, order and augmentations"),
    "device": ("auto", "auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, mps"),
    "eval_every": (1, "epochs between two kNN evaluations"),
    "out": ("runs", "folder that the run's own folder is made in"),
    "resume": ("", "go on with this run folder; a flag given beside it wins over the saved one"),
    "compile": (False, "torch.compile the model"),
    "dry_run": (False, "two steps of everything, in seconds"),
}
MAY_BE_ZERO = {"limit", "seed", "weight_decay", "pred_weight_decay", "warmup_epochs", "ema", "solarize_p", "rho", "eps",
               "random_init"}
BELOW_ONE = {"ema", "rho"}                                # shares of the past


class Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(f"{message} (python {self.prog} --help lists the flags)")


def parse_args(file, doc, recipes, argv=None, choices=(), flags={}, presets={}):
    """Common flags, and one flag for every entry of a recipe.  What the user gives wins over the recipe of the data set.

    recipes: {data set: {name: value}}; "other" is for any data set without one.  choices: {name: allowed values}.
    flags: the script's own, {name: (default, help)}.  presets: {flag: {its value: {name: value}}}, settings that come with a
    value of a flag; they win over the recipe, and lose to what the user gives."""
    parser = Parser(prog=Path(file).name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                    argument_default=argparse.SUPPRESS)
    by_recipe = {k: (v, ", ".join(f"{d} {r[k]}" for d, r in recipes.items())) for k, v in recipes["patches"].items()}
    choices = {flag: tuple(by_value) for flag, by_value in presets.items()} | dict(choices)
    add_flags(parser, FLAGS | flags | by_recipe, choices)
    given = vars(parser.parse_args(argv))
    saved = read_run(given["resume"])["args"] if given.get("resume") else {}
    args = {k: v for k, (v, _) in (FLAGS | flags).items()} | saved | given
    recipe = recipes.get(args["data"], recipes["other"])
    for flag, by_value in presets.items():
        recipe = recipe | by_value[args[flag]]
    args = recipe | args | {"script": Path(file).stem}
    check_numbers(args)
    if args["batch_size"] < 2:
        fail("--batch-size must be at least 2: BatchNorm needs two images")
    if args["dry_run"]:
        args |= {"epochs": 1, "batch_size": min(args["batch_size"], 16), "warmup_epochs": 0, "limit": args["limit"] or 200}
    return argparse.Namespace(**args)


def add_flags(parser, flags, choices={}):
    """flags: {name: (default, help)}, choices: {name: allowed values}"""
    for name, (value, text) in flags.items():
        kind = {"type": type(value), "choices": choices.get(name)}
        if isinstance(value, bool):                                        # with --no-... where the default is to do it
            kind = {"action": argparse.BooleanOptionalAction if value else "store_true"}
        parser.add_argument("--" + name.replace("_", "-"), help=text, **kind)


def check_numbers(args):
    for name, value in args.items():
        if type(value) in (int, float) and not (0 < value < math.inf or value == 0 and name in MAY_BE_ZERO):
            fail(f"--{name.replace('_', '-')} must be {'zero or more' if name in MAY_BE_ZERO else 'more than zero'}, not {value}")
        if name in BELOW_ONE and value >= 1:
            fail(f"--{name} is the share of the past that is kept: it must be below 1, not {value}")


def parse_toy(file, doc, flags, argv=None):
    """For a script without images and recipes: its own flags, and --seed, --device, --out."""
    parser = Parser(prog=Path(file).name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags = flags | {"seed": FLAGS["seed"], "device": ("cpu", "cpu, cuda, ..."), "out": FLAGS["out"]}
    add_flags(parser, flags)
    parser.set_defaults(**{name: value for name, (value, _) in flags.items()}, script=Path(file).stem)
    args = parser.parse_args(argv)
    check_numbers(vars(args))
    return args


def run_parts(file, doc, argv, parts, shape):
    """A toy script made of parts, one after the other, their panels in one figure.

    parts: {name: part}; part(generator) -> rows (what, measured, theory), and functions draw(axis), a panel each; shape: rows and
    columns of panels"""
    args = parse_toy(file, doc, {}, argv)
    device = setup(args)
    torch.set_default_device(device)
    generator = torch.Generator(device).manual_seed(args.seed)

    from matplotlib.figure import Figure
    figure, table = Figure(figsize=(16, 7.5), layout="constrained"), []
    axes = iter(figure.subplots(*shape).flat)
    for name, part in parts.items():
        rows, *draws = part(generator)
        table += [{"part": name, "what": what, "measured": measured, "theory": theory} for what, measured, theory in rows]
        for draw in draws:
            draw(next(axes))
    finish_toy(args, device, table, figure)


def finish_toy(args, device, table, figure):
    """Print the table, and leave it with the figure in a run folder.  table: list of dicts, "measured" and "theory" among the keys"""
    def text(value):
        return f"{value:.5g}" if isinstance(value, float) else str(value)
    cells = [list(table[0]), *([text(value) for value in row.values()] for row in table)]
    width = [max(map(len, column)) for column in zip(*cells)]
    print("\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, width)).rstrip() for line in cells))
    folder = new_folder(args, device)
    write_csv(folder / f"{args.script}.csv", table)
    write(folder / f"{args.script}.png", lambda f: figure.savefig(f, dpi=100, format="png"))
    print(f"{folder}: {args.script}.csv, {args.script}.png")


def setup(args):
    """Choose the device, join the other ranks when torchrun started us, seed everything.  -> torch.device"""
    # glibc: once a block of 32 MB was freed, malloc keeps smaller ones instead of giving their pages back to the kernel at every
    # step; that alone makes augment more than twice as fast on the CPU (batch 256).  Elsewhere it does nothing.
    torch.empty(8_000_000)
    torch.set_float32_matmul_precision("high")                                    # TF32 on CUDA
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    if "RANK" in os.environ and not dist.is_initialized():                                          # started by torchrun
        dist.init_process_group("nccl" if name.startswith("cuda") else "gloo")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        fail(f"--device {name} cannot be used here ({str(e).splitlines()[0]}): try --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(args.seed)
    return device


def autocast(device):
    """bfloat16 where it pays, on CUDA; elsewhere nothing."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


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
    """The rows of all ranks below each other, [world_size * B, D], z itself where there is one rank.

    Gradient flows into a rank's own rows alone.  Where every rank computes the whole loss, its gradient is the sum over ranks, but
    DistributedDataParallel takes their mean: multiply the loss by world_size() for backward."""
    if world_size() == 1:
        return z
    parts = [torch.empty_like(z) for _ in range(world_size())]
    dist.all_gather(parts, z.detach().contiguous())
    parts[rank()] = z
    return torch.cat(parts)


# ---------------------------------------------------------------------------------------------------------------- data

@dataclass
class Data:
    train_x: torch.Tensor      # uint8 [N, 3, H, W]; test_x likewise
    train_y: torch.Tensor      # int64 [N], -1 where an image has no label (STL-10's 100 000)
    test_x: torch.Tensor
    test_y: torch.Tensor
    classes: list              # names
    mean: torch.Tensor         # [3], of the training images in 0..1; std likewise
    std: torch.Tensor


def load_data(name, data_dir="data", size=32, device="cpu", limit=None):
    """`patches`, a torchvision data set, or a folder of images -> Data, decoded once, on the device.

    limit: keep a class-balanced subset of the training images.  Ends with `fail` where the data cannot be used."""
    if name == "patches":
        train_x, train_y, test_x, test_y, classes = *make_patches(4000, size, 1), *make_patches(1000, size, 2), list("0123456789")
    elif name in ("cifar10", "cifar100", "stl10", "fashionmnist"):
        if rank():
            dist.barrier()                                                          # rank 0 downloads before the others read
        train_x, train_y, test_x, test_y, classes = from_torchvision(name, data_dir, size)
        if rank() == 0 and world_size() > 1:
            dist.barrier()
    else:
        train_x, train_y, test_x, test_y, classes = from_folder(Path(name), size, limit)
    if limit:
        keep = balanced_subset(train_y, limit)
        train_x, train_y = train_x[keep], train_y[keep]
    some = train_x[::max(1, len(train_x) // 4000)].float().div(255)
    return Data(*(t.to(device) for t in (train_x, train_y, test_x, test_y)), classes,
                some.mean((0, 2, 3)).to(device), some.std((0, 2, 3)).clamp(min=1e-3).to(device))


def balanced_subset(labels, limit):
    """Indices of `limit` images, as many of each class as can be, drawn with a fixed seed.  labels: int64 [N] -> int64 [M]"""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order] >= 0]
    place = torch.empty(len(order), dtype=torch.long)                    # how many of its class come before each image
    for c in labels.unique():
        place[labels[order] == c] = torch.arange(int((labels[order] == c).sum()))
    return order[place.argsort(stable=True)][:limit].sort().values


def make_patches(n, size, seed, classes=10, copies=7, side=7):
    """The image form of Wen & Li's patch data: each class is one small luminance pattern, scattered over a noisy background.

    A patch comes at a random place, with a random amplitude, mirrored or not.  Colour and background hardly vary from
    image to image, on purpose: whatever survives the augmentation and is easier than the pattern becomes a shortcut.
    -> uint8 [n, 3, size, size], int64 [n].  The patterns are the same for every seed."""
    if size < side:
        fail(f"--size must be at least {side} for patches, not {size}")
    g = torch.Generator().manual_seed(0)
    pattern = F.interpolate(torch.randn(classes, 1, 4, 4, generator=g), size=(side, side), mode="bicubic", align_corners=True)
    pattern -= pattern.mean((2, 3), keepdim=True)
    pattern /= pattern.abs().amax((2, 3), keepdim=True)                                               # [classes, 1, 7, 7]
    g.manual_seed(seed)
    y, places = torch.arange(n) % classes, (size - side + 1) ** 2
    where = torch.rand(n, places, generator=g).topk(min(copies, places), 1).indices                         # [n, copies]
    mirrored = torch.rand(where.shape, generator=g).round().long()
    amplitude = torch.empty(where.shape).uniform_(0.35, 0.6, generator=g)
    spots = torch.zeros(n, 2, places)
    spots[torch.arange(n)[:, None], mirrored, where] = amplitude
    spots = spots.view(n, 2, size - side + 1, size - side + 1)
    x = 0.5 + 0.005 * torch.randn(n, 3, 1, 1, generator=g) + 0.15 * torch.randn(n, 3, size, size, generator=g)
    x += 0.005 * F.interpolate(torch.randn(n, 1, 4, 4, generator=g), size=(size, size), mode="bicubic")       # soft clutter
    for c in range(classes):
        x[y == c] += F.conv_transpose2d(spots[y == c], torch.stack([pattern[c], pattern[c].flip(2)]))
    return x.clamp_(0, 1).mul_(255).round_().to(torch.uint8), y


def from_torchvision(name, data_dir, size):
    make = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100,
            "stl10": torchvision.datasets.STL10, "fashionmnist": torchvision.datasets.FashionMNIST}[name]
    out = []
    for part in ("train", "test"):
        which = {"split": "train+unlabeled" if part == "train" else part} if name == "stl10" else {"train": part == "train"}
        try:
            files = make(data_dir, download=True, **which)
        except (OSError, RuntimeError) as e:                     # no network, no room, a broken archive
            fail(f"{name} could not be downloaded to {data_dir}/ ({str(e).splitlines()[0]}): "
                 f"connect once or copy it there, or use --data patches, which needs no download")
        x = torch.as_tensor(files.data)
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2) if x.shape[-1] == 3 else x
        x = x.expand(-1, 3, -1, -1)
        if x.shape[-1] != size:
            x = torch.cat([F.interpolate(some, (size, size), mode="bicubic", antialias=True) for some in x.split(1000)])
        out += [x.contiguous(), torch.as_tensor(files.labels if name == "stl10" else files.targets).long()]
    return *out, list(files.classes)


def from_folder(root, size, limit):
    """train/<class>/* and test/ or val/; every image becomes RGB, its short side `size` pixels, cut at the centre."""
    test = next((root / d for d in ("test", "val") if (root / d).is_dir()), None)
    if not root.is_dir():
        fail(f"--data {root}: no such data set or folder; use one of {FLAGS['data'][1]}")
    if not (root / "train").is_dir() or test is None:
        fail(f"--data {root}: needs the folders train/ and test/ (or val/), each with one folder of images a class")
    classes = sorted(d.name for d in (root / "train").iterdir() if d.is_dir())
    if len(classes) < 2:
        fail(f"--data {root}: train/ has {len(classes)} class folders; kNN needs two or more, train/<class>/*")
    out = []
    for folder in (root / "train", test):
        files = [(f, y) for y, c in enumerate(classes) if (folder / c).is_dir() for f in sorted((folder / c).iterdir())
                 if f.suffix.lower() in torchvision.datasets.folder.IMG_EXTENSIONS]
        if limit and folder is not test:                                              # no need to decode the others
            files = [files[i] for i in balanced_subset(torch.tensor([y for _, y in files]), limit)]
        with ThreadPoolExecutor() as pool:
            decoded = list(tqdm(pool.map(lambda fy: decode(fy[0], size), files), f"decoding {folder}", len(files),
                                leave=False, disable=True if rank() else None))
        bad = [f for (f, _), image in zip(files, decoded) if image is None]
        if len(bad) == len(files):
            fail(f"--data {root}: no readable image in {folder}/<class>/" + (f", of {len(bad)} files (first: {bad[0]})" if bad else ""))
        if bad and rank() == 0:
            print(f"skipped {len(bad)} of {len(files)} images in {folder} that cannot be read: {', '.join(map(str, bad[:5]))}")
        good = [(image, y) for (_, y), image in zip(files, decoded) if image is not None]
        out += [torch.stack([image for image, _ in good]), torch.tensor([y for _, y in good])]
    return *out, classes


def decode(file, size):
    """-> uint8 [3, size, size], or None where the file is no readable image."""
    from PIL import Image, ImageOps                                # torchvision's own image library
    try:
        image = ImageOps.fit(Image.open(file).convert("RGB"), (size, size), Image.BICUBIC)
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


# -------------------------------------------------------------------------------------------------------- augmentation

def augment(x, mean, std, min_scale=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, gray_p=0.2,
            blur_p=0.0, solarize_p=0.0):
    """One independent random view of each image, as torchvision's transforms would draw it, on the tensor's device.

    RandomResizedCrop (bicubic; area min_scale..1, aspect 3/4..4/3), flip, ColorJitter, grayscale, blur, solarize,
    normalise.  The order of the four colour operations is drawn once a batch.
    x: uint8 [B, 3, S, S]; mean, std: [3] -> float [B, 3, S, S], channels_last."""
    def uniform(low, high):
        return torch.empty(len(x), 1, 1, 1, device=x.device).uniform_(low, high)

    def happens(p):
        return uniform(0, 1) < p

    x = resized_crop(x, *random_boxes(len(x), x.shape[-1], min_scale, x.device), happens(0.5).flatten())
    jitter = happens(jitter_p)                                             # an image that is left alone gets the factor 1
    for i in torch.randperm(4).tolist():
        if i == 0:
            x = adjust_brightness(x, 1 + jitter * uniform(-brightness, brightness))
        elif i == 1:
            x = adjust_contrast(x, 1 + jitter * uniform(-contrast, contrast))
        elif i == 2:
            x = adjust_saturation(x, 1 + jitter * uniform(-saturation, saturation))
        else:
            x = adjust_hue(x, jitter * uniform(-hue, hue))
    x = adjust_saturation(x, 1.0 - happens(gray_p).float())                                       # no saturation is gray
    if blur_p:
        x = gaussian_blur(x, torch.where(happens(blur_p), uniform(0.1, 2.0), 1e-3).flatten())      # 1e-3 pixels: no blur
    if solarize_p:
        x = torch.where(happens(solarize_p) & (x >= 0.5), 1 - x, x)
    return x.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1)).contiguous(memory_format=torch.channels_last)


def random_boxes(n, size, min_scale, device):
    """The boxes of RandomResizedCrop: of ten draws the first that fits, else the whole image.

    -> start [2, n] (left, top), length [2, n] (width, height), in whole pixels"""
    area = torch.empty(n, 10, device=device).uniform_(min_scale, 1).mul_(size * size)
    aspect = torch.empty(n, 10, device=device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp_()
    sides = torch.stack([area * aspect, area / aspect]).sqrt_().round_()                                      # [2, n, 10]
    fits = sides.amax(0) <= size
    first = fits.to(torch.uint8).argmax(1)
    length = sides.gather(2, first.expand(2, n)[..., None])[..., 0].where(fits.any(1), size)
    return (torch.rand_like(length) * (size - length + 1)).floor_(), length


def resized_crop(x, start, length, mirror):
    """Cut each image's box, resize it to the image's own size (bicubic), mirror it where asked.

    A crop is separable: one small matrix resamples the columns, one the rows, so a batch is two batched matrix products.
    x: uint8 [B, 3, S, S]; start, length: [2, B]; mirror: bool [B] -> float [B, 3, S, S] in 0..1"""
    n, _, _, size = x.shape
    out = torch.arange(size, device=x.device) + 0.5                                                   # centres of pixels
    out = torch.stack([torch.where(mirror[:, None], size - out, out), out.expand(n, size)])                   # [2, B, S]
    position = out * (length / size)[..., None] - 0.5                                  # in the box, where 0 is its first
    base = position.floor()
    t = (position - base)[..., None]
    near = base[..., None] + torch.arange(-1.0, 3.0, device=x.device)                        # its four pixels [2, B, S, 4]
    square, cube = t * t, t * t * t
    weight = torch.cat([square - (t + cube) / 2, 1.5 * cube - 2.5 * square + 1,              # Keys' cubic with a = -1/2
                        2 * square + (t - 3 * cube) / 2, (cube - square) / 2], -1)
    weight *= (near >= 0) & (near < length[..., None, None])                           # nothing from outside of the box
    weight /= weight.sum(-1, keepdim=True)
    near = near.add_(start[..., None, None]).clamp_(0, size - 1).long()
    columns, rows = torch.zeros(*out.shape, size, device=x.device).scatter_add_(3, near, weight)           # [B, S, S] each
    x = torch.bmm(x.float().div_(255).view(n, 3 * size, size), columns.mT).clamp_(0, 1)     # clamped as PIL does, in between
    return (rows[:, None] @ x.view(n, 3, size, size)).clamp_(0, 1)


def luminance(x):
    """[B, 3, H, W] -> [B, 1, H, W]"""
    return (x[:, :1] * 0.2989).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)


# The four of ColorJitter, in place where they can be.  x: [B, 3, H, W] in 0..1; factor or shift: [B, 1, 1, 1]

def adjust_brightness(x, factor):
    return x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x, factor):
    mean = luminance(x).mean((2, 3), keepdim=True)
    return x.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def adjust_saturation(x, factor):
    return x.lerp_(luminance(x), 1 - factor).clamp_(0, 1)


def adjust_hue(x, shift):
    """Turn the hue by `shift` turns.  With m, M the least and greatest channel and C = M - m, the hue is
    +-(C + g + b - r - m) / 6C turns from red, + where g > b; a channel is m + C clamp(2 - 6 |turns from its own hue|, 0, 1)."""
    r, g, b = x.unbind(1)
    low = x.amin(1)
    chroma = x.amax(1) - low
    h = torch.copysign(chroma + g + b - r - low, g - b).div_(chroma.mul(6).add_(1e-8)).add_(shift[:, 0])
    turns = h[:, None] - torch.arange(3, device=x.device).view(3, 1, 1) / 3
    return turns.sub_(turns.round()).abs_().mul_(-6).add_(2).clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def gaussian_blur(x, sigma):
    """torchvision's gaussian_blur with a kernel of about a tenth of the image (3 pixels of 32).  sigma: [B], in pixels"""
    size = x.shape[-1]
    taps = torch.arange(-max(1, size // 20), max(1, size // 20) + 1, device=x.device)
    weight = torch.exp(-taps**2 / (2 * sigma[:, None] ** 2))
    weight = (weight / weight.sum(1, keepdim=True))[:, None].expand(-1, size, -1)                              # [B, S, k]
    near = size - 1 - (size - 1 - (torch.arange(size, device=x.device)[:, None] + taps).abs()).abs()       # mirrored edges
    rows = torch.zeros(len(x), size, size, device=x.device).scatter_add_(2, near.expand(len(x), -1, -1), weight)[:, None]
    return rows @ (x @ rows.mT)


# ----------------------------------------------------------------------------------------------- backbones, evaluation

ARCHS = ("small", "resnet18")


def make_backbone(arch):
    """-> backbone ([B, 3, S, S] -> [B, width]), width.

    `resnet18` is torchvision's, with the stem for small images (3x3 convolution of stride 1, no max-pooling) and without
    its last layer.  `small` is a residual net of torchvision's blocks that a CPU trains in a minute."""
    if arch == "resnet18":
        net = torchvision.models.resnet18()
        net.conv1, net.maxpool, net.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
        return net, 512

    def block(c_in, c_out, stride):
        shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        return BasicBlock(c_in, c_out, stride, shortcut)

    return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
                         block(32, 64, 2), block(64, 96, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 96


@torch.no_grad()
def collapse_metrics(z):
    """Has the representation collapsed?  z: [B, D] -> dict of floats, all of the l2-normalised rows Z.

    std             sqrt(D) * mean over dimensions of the standard deviation: 1 healthy, 0 complete collapse
    m_o, m_r        length of the centre o = mean(Z), mean length of the residuals Z - o: 0 and 1 healthy (Zhang et al. 3.1)
    effective_rank  exp(entropy of the eigenvalues of Cov(Z), normalised to sum 1): small after dimensional collapse;
                    after complete collapse it is that of rounding noise and says nothing
    covariance      sum of the squared off-diagonal entries of Cov(Z), over D (Zhang et al., Algorithm 5)"""
    Z = F.normalize(z.float().cpu(), dim=1)
    (n, d), o = Z.shape, Z.mean(0)
    R = Z - o
    cov = R.T @ R / (n - 1)
    eig = torch.linalg.eigvalsh(R @ R.T if n < d else cov).clamp(min=1e-12)             # the same but for zeros and scale
    eig = eig / eig.sum()
    return {"std": (d**0.5 * Z.std(0).mean()).item(), "m_o": o.norm().item(), "m_r": R.norm(dim=1).mean().item(),
            "effective_rank": (-(eig * eig.log()).sum()).exp().item(),
            "covariance": ((cov.square().sum() - cov.diagonal().square().sum()) / d).item()}


def verdict(m_o, effective_rank):
    """Has it collapsed?  A rule of this repository: "complete" where the centre is all there is, else "dimensional", else "none"."""
    return "complete" if m_o >= 0.95 else "dimensional" if effective_rank <= 4 else "none"


@torch.no_grad()
def extract_features(net, x, mean, std, batch_size=500):
    """Features of images as they are, by the net in eval mode (its weights and BatchNorm averages do not change).

    x: uint8 [N, 3, S, S] -> float [N, D], on the same device"""
    training, out = net.training, []
    net.eval()
    for part in x.split(batch_size):
        part = part.float().div_(255).sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
        with autocast(x.device):
            out.append(net(part.contiguous(memory_format=torch.channels_last)).float())
    net.train(training)
    return torch.cat(out)


def labelled_features(net, data, few=False):
    """-> train_feats, train_labels, test_feats, test_labels of the images with a label, for knn_accuracy and linear_probe; few: of 256."""
    labelled, n = data.train_y >= 0, 256 if few else sys.maxsize
    train, test = (extract_features(net, x[:n], data.mean, data.std) for x in (data.train_x[labelled], data.test_x))
    return train, data.train_y[labelled][:n], test, data.test_y[:n]


@torch.no_grad()
def knn_accuracy(train_feats, train_labels, test_feats, test_labels, k=200, temperature=0.1):
    """kNN by cosine similarity, each neighbour's vote weighted by exp(similarity / temperature).  -> percent right

    feats: [N, D], labels: int64 [N]; in chunks, so that 50 000 x 10 000 fits everywhere"""
    train, classes, right = F.normalize(train_feats, dim=1), int(train_labels.max()) + 1, 0
    for feats, labels in zip(test_feats.split(500), test_labels.split(500)):
        similarity, nearest = (F.normalize(feats, dim=1) @ train.T).topk(min(k, len(train)), dim=1)
        votes = similarity.new_zeros(len(feats), classes)
        votes.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
        right += (votes.argmax(1) == labels).sum()
    return 100 * right.item() / len(test_labels)


def linear_probe(train_feats, train_labels, test_feats, test_labels, epochs=100, lr=0.1, batch_size=256, seed=0):
    """Train one linear layer on cached, standardised features (SGD, momentum .9, cosine).  -> top-1, top-5 percent

    feats: [N, D], labels: int64 [N].  The backbone takes no part.  The last epoch counts, not the best."""
    mean, std = train_feats.mean(0), train_feats.std(0) + 1e-6
    train_feats, test_feats = (train_feats - mean) / std, (test_feats - mean) / std
    layer = nn.Linear(train_feats.shape[1], int(train_labels.max()) + 1).to(train_feats.device)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = cosine_lr(lr, epoch, epochs)
        for i in torch.randperm(len(train_feats), generator=generator).to(train_feats.device).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(train_feats[i]), train_labels[i]).backward()
            optimizer.step()
    with torch.no_grad():
        best = layer(test_feats).topk(min(5, layer.out_features), dim=1).indices == test_labels[:, None]              # [N, 5]
    return 100 * best[:, 0].float().mean().item(), 100 * best.any(1).float().mean().item()


def cosine_lr(lr, epoch, epochs, warmup_epochs=0):
    """The learning rate after `epoch` (a float) of `epochs`: linear warm-up from 0, then half a cosine down to 0."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    return lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)))


# ------------------------------------------------------------------------------------------------------- the run folder

def read_run(folder):
    """What args.json in a run folder says."""
    try:
        return json.loads((Path(folder) / "args.json").read_text())
    except (OSError, ValueError) as e:
        fail(f"{folder} is not a run folder (no readable args.json: {e}); runs are in runs/ unless --out said otherwise")


def load_checkpoint(file):
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        saved["model"], saved["epoch"]
        return saved
    except Exception as e:                                       # torch.load raises half a dozen kinds on a damaged file
        fail(f"{file} cannot be read ({type(e).__name__}: the file is missing, truncated or no checkpoint of a run)")


def write(file, save):
    """save(path) into a temporary file, then put it in place in one move: a kill at any moment leaves the old or the new."""
    part = file.with_name(file.name + ".part")
    save(part)
    os.replace(part, file)


def git_commit():
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:                                                                                         # no git here
        return ""


def run_name(args, seed=None):
    """mirror_ablations-bias-patches-s0: script, label if it has one, data set if it has one, seed."""
    parts = [args.script, getattr(args, "label", ""), Path(getattr(args, "data", "")).name, f"s{args.seed if seed is None else seed}"]
    return "-".join(part for part in parts if part)


def new_folder(args, device):
    """A fresh run folder, -2, -3, ... where there is one already, with args.json."""
    info = {"args": vars(args), "python": sys.version.split()[0], "torch": torch.__version__, "torchvision": torchvision.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device), "git": git_commit()}
    for n in range(1, sys.maxsize):
        folder = Path(args.out) / (run_name(args) + f"-{n}" * (n > 1))
        try:
            folder.mkdir(parents=True)
            write(folder / "args.json", lambda f: f.write_text(json.dumps(info, indent=2)))
            return folder
        except FileExistsError:
            continue
        except OSError as e:
            fail(f"--out {args.out}: cannot write there ({e.strerror}); name another folder")


class Run:
    """The run folder and the loop around the method: epochs, batches, checkpoint, metrics.csv, curves.png.

    Every epoch draws its random numbers from (seed, epoch, rank), so that going on from a checkpoint repeats what an
    uninterrupted run would have done.  Under torchrun each rank sees its own part of each batch; rank 0 writes."""

    def __init__(self, args, model, optimizer, data):
        self.args, self.model, self.optimizer, self.data = args, model, optimizer, data
        self.epoch, self.seconds, self.history, self.is_first = -1, 0.0, [], rank() == 0
        self.steps = min(len(data.train_x) // args.batch_size, 2 if args.dry_run else sys.maxsize)
        if self.steps == 0:
            fail(f"--batch-size {args.batch_size} is larger than the {len(data.train_x)} training images: lower it")
        if args.batch_size % world_size() or args.batch_size < 2 * world_size():
            fail(f"--batch-size {args.batch_size} cannot be shared by {world_size()} ranks, two images or more each")
        self.folder = Path(args.resume) if args.resume else new_folder(args, data.train_x.device) if rank() == 0 else None
        if args.resume and (self.folder / "last.pt").exists():
            self.load(self.folder / "last.pt")
        signal.signal(signal.SIGINT, self.interrupted)
        if rank() == 0:
            print(f"{self.folder}: {len(data.train_x)} training images, {sum(p.numel() for p in model.parameters()):,} "
                  f"parameters, {data.train_x.device}" + (f", {world_size()} ranks" if world_size() > 1 else ""))
            for i, row in enumerate(self.history):
                self.print_row(row, header=i == 0)
            if self.history:
                self.write_results()                                # a kill may have come between last.pt and these

    def load(self, file):
        saved = load_checkpoint(file)
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.epoch, self.seconds, self.history = saved["epoch"], saved["seconds"], saved["history"]
        except (KeyError, ValueError, RuntimeError, TypeError) as e:
            fail(f"{file} does not fit these arguments ({str(e).splitlines()[0]}): resume with the run's own flags")

    def interrupted(self, *_):
        if rank() == 0:
            self.draw()
            print(f"\nstopped; {max(self.epoch, 0)} finished epochs are saved.  "
                  f"To go on: python {self.args.script}.py --resume {self.folder}")
        raise SystemExit(130)

    def parallel(self):
        """The model to train with: itself; under torchrun in DistributedDataParallel, with --compile compiled."""
        net = self.model
        if world_size() > 1:
            if self.data.train_x.is_cuda:
                nn.SyncBatchNorm.convert_sync_batchnorm(net)           # in place: BatchNorm sees the batch of all ranks
            net = nn.parallel.DistributedDataParallel(net)
        return torch.compile(net) if self.args.compile else net

    def epochs(self):
        """Epochs still to do.  Epoch 0 is for measuring the untrained net; it has one batch."""
        for epoch in range(self.epoch + 1, self.args.epochs + 1):
            if epoch == 0 and rank() == 0:
                self.untrained_knn = self.knn()           # before BatchNorm's averages have seen a batch
            self.model.train()
            yield epoch
            if self.epoch != epoch:
                raise RuntimeError("a training loop must call end_epoch")
        if dist.is_initialized():
            dist.destroy_process_group()

    def batches(self):
        """One pass over the training images in random order, without the last short batch.

        -> t, the epochs done by the middle of this step (what a schedule needs); x, uint8 [B, 3, S, S]"""
        a, epoch, x = self.args, self.epoch + 1, self.data.train_x
        steps = self.steps if epoch else 1
        shuffle = torch.Generator().manual_seed(a.seed * 100_003 + epoch)                      # the same on every rank
        order = torch.randperm(len(x), generator=shuffle)[: steps * a.batch_size].view(steps, a.batch_size)
        order = order[:, rank()::world_size()].to(x.device)
        torch.manual_seed((a.seed * 100_003 + epoch) * 1009 + rank())                                    # augmentations
        self.started = time.perf_counter()
        bar = tqdm(order, f"epoch {epoch}", leave=False, disable=True if rank() else None)
        for i, chosen in enumerate(bar):
            self.chosen = chosen                                                 # which images these are, int64 [B]
            yield max(0, epoch - 1 + (i + 0.5) / steps), x.index_select(0, chosen)

    def end_epoch(self, losses, lr, z, **extra):
        """Evaluate, print the row, write metrics.csv, last.pt, backbone.pt and, ten times a run, curves.png.

        losses: scalar tensors; z: [N, D], the last batch's projections; extra: the method's own columns"""
        loss = torch.stack(losses).mean().item()                                        # waits for the device, once an epoch
        self.epoch, a = self.epoch + 1, self.args
        self.seconds += (time.perf_counter() - self.started) * (self.epoch > 0)
        if not math.isfinite(loss) or not all(p.isfinite().all() for p in self.model.parameters()):
            fail(f"the loss or a weight became nan or infinite in epoch {self.epoch}; {self.folder or 'the run'}/last.pt keeps the epoch "
                 f"before.  Lower --lr (now {a.lr}) and start again")
        if rank():
            return
        last = self.epoch == a.epochs
        row = {"epoch": self.epoch, "seconds": self.seconds,
               "images_per_second": self.epoch * self.steps * a.batch_size / max(self.seconds, 1e-9), "lr": lr, "loss": loss,
               **collapse_metrics(z), "knn": "", **extra}
        if self.epoch == 0 or last or self.epoch % a.eval_every == 0:
            row["knn"] = self.knn() if self.epoch else self.untrained_knn
        self.history.append(row)
        write(self.folder / "last.pt", lambda f: torch.save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": self.epoch,
             "seconds": self.seconds, "history": self.history}, f))
        self.write_results(draw=last or self.epoch > 0 and self.epoch % max(1, a.epochs // 10) == 0)
        self.print_row(row, header=self.epoch == 0)

    def write_results(self, draw=True):
        write(self.folder / "backbone.pt", lambda f: torch.save(self.model.encoder.backbone.state_dict(), f))
        write_csv(self.folder / "metrics.csv", self.history)
        if draw:
            self.draw()

    def knn(self):
        return knn_accuracy(*labelled_features(self.model.encoder.backbone, self.data, self.args.dry_run))

    def log(self, name, rows):
        """Add rows (dicts of numbers) of this epoch to a csv in the run folder; before end_epoch, so that a kill loses none."""
        if rank() == 0:
            file, epoch = self.folder / name, self.epoch + 1
            before = [row | {"epoch": int(row["epoch"])} for row in (read_csv(file) if file.exists() else []) if row["epoch"] < epoch]
            write_csv(file, before + [{"epoch": epoch, **row} for row in rows])

    def finish(self, **first):
        """result.json, for run_jobs the sign that a run is done: `first`, a linear probe's top-1 and the last epoch's row.

        -> that dict; None on all ranks but the first"""
        if self.is_first:
            feats, dry_run = labelled_features(self.model.encoder.backbone, self.data, self.args.dry_run), self.args.dry_run
            result = {**first, "linear": linear_probe(*feats, epochs=2 if dry_run else 100)[0], **self.history[-1]}
            write(self.folder / "result.json", lambda f: f.write_text(json.dumps(result, indent=2)))
            return result

    def print_row(self, row, header):
        short = {"images_per_second": "img/s", "effective_rank": "rank", "covariance": "cov"}
        if header:
            print(" ".join(f"{short.get(k, k):>{max(8, len(short.get(k, k)))}}" for k in row))
        print(" ".join(f"{v:{w}.4g}" if isinstance(v, float) else f"{v:>{w}}"
                       for v, w in zip(row.values(), (max(8, len(short.get(k, k))) for k in row))), flush=True)

    def draw(self):
        """curves.png: loss; std, m_o and effective rank; kNN with the untrained net's."""
        from matplotlib.figure import Figure                               # a second's import, only where it is needed
        if not self.history:
            return
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        epochs = [row["epoch"] for row in self.history]
        left.plot(epochs, [row["loss"] for row in self.history])
        left.set(title="loss", xlabel="epoch")
        middle.plot(epochs, [row["std"] for row in self.history], label="std (0 collapsed)")
        middle.plot(epochs, [row["m_o"] for row in self.history], label="m_o (1 collapsed)")
        middle.set(title="collapse", xlabel="epoch", ylim=(-0.03, 1.08))
        twin = middle.twinx()
        twin.plot(epochs, [row["effective_rank"] for row in self.history], "C2", label="effective rank (right)")
        twin.set_ylim(bottom=0)
        twin.tick_params(axis="y", colors="C2")
        middle.legend(handles=middle.lines + twin.lines, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
        known = [(row["epoch"], row["knn"]) for row in self.history if row["knn"] != ""]
        right.plot(*zip(*known), label="kNN")
        right.axhline(self.history[0]["knn"], color="gray", ls="--", label="untrained net")
        right.set(title="kNN accuracy of the backbone (%)", xlabel="epoch", ylim=(0, 100))
        right.legend(fontsize=8, loc="lower right")
        write(self.folder / "curves.png", lambda f: figure.savefig(f, dpi=110, format="png"))


# -------------------------------------------------------------------------------------------------------- several runs

def differs(args, folder):
    """The settings in which a run folder differs from args, but for seed, place and device."""
    saved = read_run(folder)["args"]
    return [k for k in vars(args) if k not in ("seed", "out", "resume", "device") and k in saved and saved[k] != vars(args)[k]]


def run_jobs(jobs, train):
    """Train every job that its run folder does not hold yet, and go on with one that was cut off.  -> their run folders

    jobs: arguments, a Namespace each; train(args) leaves result.json in the run folder when it is done"""
    folders = []
    for args in jobs:
        folder = Path(args.out) / run_name(args)
        if (folder / "args.json").exists():
            if different := differs(args, folder):
                fail(f"{folder} was made with another --{different[0].replace('_', '-')}: name another folder with --out")
            args.resume = str(folder)
        if not (folder / "result.json").exists():
            setup(args)                                                  # seeds, as if this were the only run
            try:
                train(args)
            except SystemExit as stop:
                if stop.code == 130:                                                                            # Ctrl-C
                    print("The same command again goes on from there with all that is left.")
                raise
        folders.append(folder)
    return folders


def read_csv(file):
    """-> list of dicts of floats, nan where a cell is empty"""
    with open(file, newline="") as f:
        return [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(f)]


def write_csv(file, rows):
    """rows: list of dicts; the columns are all of their keys, empty where a row lacks one."""
    def save(part):
        with open(part, "w", newline="") as f:
            table = csv.DictWriter(f, list(dict.fromkeys(k for row in rows for k in row)))
            table.writeheader()
            table.writerows(rows)
    write(file, save)


def write_table(args, rows, columns):
    """table.csv of these rows; table.md, with mean and standard deviation over all seeds that lie beside with the same settings.

    rows: dicts, the same ones in the same order for every seed; columns: {key: (title, digits, or None for text)} -> the Markdown"""
    folder = Path(args.out) / run_name(args)
    write_csv(folder / "table.csv", rows)
    write(folder / "args.json", lambda f: f.write_text(json.dumps({"args": vars(args)}, indent=2)))
    seeds = [f.parent for f in sorted(folder.parent.glob(run_name(args, seed="*") + "/args.json"))]
    tables = [list(csv.DictReader(open(f / "table.csv", newline=""))) for f in seeds if not differs(args, f)]
    lines = [[title for title, _ in columns.values()], ["---"] * len(columns)]
    for row in zip(*tables):
        lines.append([])
        for key, (_, digits) in columns.items():
            values = [seed.get(key, "") for seed in row]
            if digits is None:
                cell = ", ".join(v + f" ({values.count(v)} of {len(row)})" * (values.count(v) < len(row)) for v in dict.fromkeys(values))
            elif "" in values:
                cell = ""
            else:
                x = torch.tensor([float(v) for v in values], dtype=torch.double)
                cell = f"{x.mean():.{digits}f}" + (f" ± {x.std():.{digits}f}" if len(x) > 1 else "")
            lines[-1].append(cell)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write(folder / "table.md", lambda f: f.write_text(text, encoding="utf-8"))
    return text

"""Views per second of common.augment against torchvision's PIL pipeline in DataLoader workers.

    python tests/bench_data.py [--data FOLDER] [--workers 2] [--rounds 5] [--compile]
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common

REPEAT = 15


class TwoViews(Dataset):
    """The plain PyTorch way: arrays, turned into PIL images and transformed one by one."""

    def __init__(self, data):
        self.images = data.train_x.permute(0, 2, 3, 1).cpu().numpy()
        self.transform = T.Compose([
            T.RandomResizedCrop(data.train_x.shape[-1], (0.2, 1.0),
                                interpolation=InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(), T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            T.RandomGrayscale(0.2), T.ToTensor(),
            T.Normalize(data.mean.tolist(), data.std.tolist())])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = Image.fromarray(self.images[i])
        return self.transform(image), self.transform(image)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="patches")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="as a run with --compile")
    args = parser.parse_args()
    common.setup(argparse.Namespace(device="cpu", seed=0))
    if args.compile:
        common.compile_augment()
    data = common.load_data(args.data, limit=4000)
    loader = DataLoader(TwoViews(data), args.batch_size, shuffle=True, num_workers=args.workers,
                        drop_last=True)
    batches = len(data.train_x) // args.batch_size
    views = 2 * batches * args.batch_size

    def pipeline():
        for _ in loader:
            pass

    def batched():
        for _ in range(REPEAT):                            # as long as the pipeline takes for one
            for i in torch.randperm(len(data.train_x)).split(args.batch_size)[:batches]:
                x = data.train_x.index_select(0, i)
                common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)

    speeds = []
    for _ in range(args.rounds + 1):                       # in turn: a drift hits both
        row = []
        for work, epochs in ((pipeline, 1), (batched, REPEAT)):
            start = time.perf_counter()
            work()
            row.append(epochs * views / (time.perf_counter() - start))
        speeds.append(row)
    speeds = speeds[1:]                                    # the first warms up
    theirs, ours = (statistics.median(column) for column in zip(*speeds))
    print(f"{args.data}, {torch.get_num_threads()} threads, {args.workers} workers, "
          f"batch {args.batch_size}, median of {args.rounds}:")
    print(f"torchvision PIL in DataLoader {theirs:9.0f} views/s")
    print(f"common.augment                {ours:9.0f} views/s")
    print(f"ratio                         {statistics.median(b / a for a, b in speeds):9.1f}")


if __name__ == "__main__":
    main()

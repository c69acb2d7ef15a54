"""Training images per second of simsiam.py against the plain PyTorch way, with the same net.

    python tests/bench_train.py [--data FOLDER] [--workers 2] [--rounds 3]

The plain way: DataLoader workers with PIL transforms, PyTorch's default memory format.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import simsiam
from bench_data import TwoViews


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="patches")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    bench = parser.parse_args()
    args = argparse.Namespace(**simsiam.RECIPES["patches"])

    data = common.load_data(bench.data, limit=4000)
    loader = DataLoader(TwoViews(data), args.batch_size, shuffle=True, num_workers=bench.workers,
                        drop_last=True)

    def our_batches():
        for i in torch.randperm(len(data.train_x)).split(args.batch_size):
            if len(i) == args.batch_size:
                x = data.train_x.index_select(0, i)
                yield common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)

    def epoch(batches, model, optimizer):
        start, n = time.perf_counter(), 0
        for x1, x2 in batches:
            p1, p2, z1, z2 = model(x1, x2)
            loss = simsiam.D(p1, z2.detach()) / 2 + simsiam.D(p2, z1.detach()) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            n += len(x1)
        return n / (time.perf_counter() - start)

    def make(memory_format):
        model = simsiam.SimSiam(args).to(memory_format=memory_format)
        return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9,
                                      weight_decay=args.weight_decay)

    plain = make(torch.contiguous_format)
    first = [epoch(loader, *plain) for _ in range(bench.rounds)]   # before setup() changes malloc
    common.setup(argparse.Namespace(device="cpu", seed=0))
    fast = make(torch.channels_last)
    ours = [epoch(our_batches(), *fast) for _ in range(bench.rounds)]
    second = [epoch(loader, *plain) for _ in range(bench.rounds)]  # with what setup() does
    print(f"{bench.data}, {torch.get_num_threads()} threads, batch {args.batch_size}, "
          f"median of {bench.rounds} epochs:")
    first, second, ours = (statistics.median(speeds) for speeds in (first, second, ours))
    print(f"plain PyTorch, {bench.workers} workers          {first:7.0f} images/s")
    print(f"plain PyTorch after common.setup  {second:7.0f} images/s")
    print(f"simsiam.py                        {ours:7.0f} images/s")
    print(f"ratio                            {ours / first:8.2f}")


if __name__ == "__main__":
    main()

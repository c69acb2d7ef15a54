"""How fast is this GPU?  Training steps of simsiam.py with the settings of its cifar10 recipe.

    python results/bench_gpu.py
    python results/bench_gpu.py --device cpu --arch small --batch-size 32 --steps 3 --compile no

augment: the share of a step that makes the views; product: that of a large matrix product's TFLOP/s
"""
import argparse
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common                                              # noqa: E402
import simsiam                                             # noqa: E402


def seconds(work, device, steps):
    """-> the time of one call of work, the median of five rounds after one to warm up"""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(steps):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / steps)
    return sorted(times[1:])[2]


def make(arch, device, batch_size, compiled):
    """-> one training step of simsiam.py, and its augmentation alone"""
    model = simsiam.build(argparse.Namespace(**simsiam.RECIPES["cifar10"] | {"arch": arch}))
    model = model.to(device, memory_format=torch.channels_last)
    net = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=5e-4)
    x = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8, device=device)
    mean, std = torch.full((2, 3), 0.5, device=device)

    def augment():
        return common.augment(x, mean, std), common.augment(x, mean, std)

    def step():
        x1, x2 = augment()
        with common.autocast(device):
            p1, p2, z1, z2 = net(x1, x2)
            loss = simsiam.D(p1, z2.detach()) / 2 + simsiam.D(p2, z1.detach()) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step, augment


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default="resnet18", choices=common.ARCHS)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", nargs="+", default=["no", "yes"], help="which rows")
    args = parser.parse_args(argv)
    device = common.setup(argparse.Namespace(device=args.device, seed=0))
    on_gpu = device.type == "cuda"
    a = torch.randn(8192, 8192, device=device) if on_gpu else torch.randn(1024, 1024)
    with common.autocast(device):
        product = 2 * len(a)**3 / seconds(lambda: a @ a, device, 5)             # FLOP/s
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, SimSiam with {args.arch}; a matrix product reaches "
          f"{product / 1e12:.3g} TFLOP/s")
    print("batch  compile   images/s   ms/step   augment   TFLOP/s   product   peak GB")
    for compiled in args.compile:
        for batch in args.batch_size:
            with FlopCounterMode(display=False) as flops:
                make(args.arch, device, batch, False)[0]()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            step, augment = make(args.arch, device, batch, compiled == "yes")
            time_of_step = seconds(step, device, args.steps)
            share = seconds(augment, device, args.steps) / time_of_step
            rate = flops.get_total_flops() / time_of_step
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if on_gpu else "-"
            print(f"{batch:5}  {compiled:7}{batch / time_of_step:11.0f}{1e3 * time_of_step:10.2f}"
                  f"{share:10.1%}{rate / 1e12:10.3g}{rate / product:10.1%}{memory:>10}", flush=True)


if __name__ == "__main__":
    common.cli(main)

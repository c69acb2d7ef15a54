"""Steps of simsiam.py as its cifar10 recipe trains: how fast is this GPU, and what holds it up?

    python tests/bench_gpu.py                                        batch 128 and 512
    python tests/bench_gpu.py --device cpu --arch small --batch-size 32 --steps 3

A row a setting, with and without --compile: images a second; milliseconds a step (median of
--rounds); kernels that the GPU runs in a step; the share of a step that augmenting two views takes
by itself; TFLOP/s of a step, and their share of what one large matrix product reaches here in the
net's precision; peak memory.  Please open an issue with the output.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import simsiam


def seconds(work, device, steps, rounds):
    """Of one call of work; the first round warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(steps):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / steps)
    return statistics.median(times[1:])


def matmul_flops(device, n):
    """FLOP/s of one n x n matrix product in the precision that a net has here."""
    a = torch.randn(n, n, device=device)
    with common.autocast(device):
        return 2 * n**3 / seconds(lambda: a @ a, device, 5, 5)


def make(args, device, batch_size, compiled):
    """-> one training step of simsiam.py, and the augmentation of it alone"""
    recipe = simsiam.RECIPES["cifar10"] | {"arch": args.arch}
    model = simsiam.SimSiam(argparse.Namespace(**recipe))
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=5e-4)
    x = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8, device=device)
    mean, std = torch.full((2, 3), 0.5, device=device)
    net = model
    if compiled:
        common.compile_augment()
        net = torch.compile(model)

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
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arch", default="resnet18", choices=common.ARCHS)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled rows out")
    args = parser.parse_args(argv)
    device = common.setup(argparse.Namespace(device=args.device, seed=0))
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    peak = matmul_flops(device, 8192 if on_gpu else 1024)
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda if on_gpu else 'none'}, "
          f"SimSiam with {args.arch}; a matrix product reaches {peak / 1e12:.3g} TFLOP/s")
    print("batch  compile   images/s   ms/step   kernels   augment   TFLOP/s   of product"
          "   peak GB")
    for compiled in (False, True)[:1 if args.no_compile else 2]:
        for batch_size in args.batch_size:
            with FlopCounterMode(display=False) as flops:
                make(args, device, batch_size, False)[0]()
            step, augment = make(args, device, batch_size, compiled)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            time_of_step = seconds(step, device, args.steps, args.rounds)
            share = seconds(augment, device, args.steps, args.rounds) / time_of_step
            kernels = memory = "-"
            if on_gpu:
                with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                    step()
                    torch.cuda.synchronize()
                kernels = sum(e.device_type == DeviceType.CUDA for e in profiler.events())
                memory = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}"
            rate, word = flops.get_total_flops() / time_of_step, "yes" if compiled else "no"
            print(f"{batch_size:5}  {word:7}{batch_size / time_of_step:11.0f}"
                  f"{1e3 * time_of_step:10.2f}{kernels:>10}{share:10.1%}{rate / 1e12:10.3g}"
                  f"{rate / peak:13.1%}{memory:>10}", flush=True)


if __name__ == "__main__":
    main()

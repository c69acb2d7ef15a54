"""What it costs to set W_p after every step: steps of directpred.py with each predictor, in turn.

    python tests/bench_directpred.py [--rounds 5] [--steps 20] [--device cpu]

`sgd` is the step without setting.  Median over the rounds of a step's time; the last column is
over that of sgd.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import directpred


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    bench = parser.parse_args()
    kinds = {"sgd": [], "directpred": [], "directcopy": [], "directpred, freq 5": ["--freq", "5"]}
    nets = {}
    for name, flags in kinds.items():
        predictor = name.split(",")[0]
        args = directpred.parse(["--predictor", predictor, "--device", bench.device, *flags])
        device = common.setup(args)
        model = directpred.DirectPred(args).to(device, memory_format=torch.channels_last)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, 0.01, momentum=0.9)
        nets[name] = args, model, optimizer
    data = common.load_data("patches", device=device, limit=1000)

    def steps(args, model, optimizer):
        start = time.perf_counter()
        for step in range(1, bench.steps + 1):
            x = data.train_x[torch.randint(len(data.train_x), (args.batch_size,), device=device)]
            x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
            with common.autocast(device):
                p1, p2, z1, z2, t1, t2 = model(x1, x2)
                loss = 4 + 2 * directpred.D(p1, t2.detach()) + 2 * directpred.D(p2, t1.detach())
            model.update_correlations(z1, z2, t1, t2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target(args.ema)
            if model.is_set and step % args.freq == 0:
                model.set_predictor()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / bench.steps * 1000

    for net in nets.values():
        steps(*net)                                        # warm up
    times = {name: [] for name in kinds}
    for _ in range(bench.rounds):
        for name, net in nets.items():
            times[name].append(steps(*net))
    print(f"{device}, {torch.get_num_threads()} threads, batch {args.batch_size}, "
          f"D = {args.proj_dim}; median of {bench.rounds} rounds of {bench.steps} steps:")
    for name, ms in times.items():
        ratio = statistics.median(a / b for a, b in zip(ms, times["sgd"]))
        print(f"{name:20} {statistics.median(ms):7.2f} ms {ratio:7.3f}")


if __name__ == "__main__":
    main()

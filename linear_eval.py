"""Linear probe and kNN of what a script saved, beside the same for the untrained net.

    python linear_eval.py runs/simsiam-patches-s0

One protocol for all: the net is frozen and in eval mode, images are as they are, the last epoch
counts, and all test images.  The probe is one linear layer on cached, standardised features, of the
backbone (r) and of the projector (z).  Writes linear_eval.json into the run folder.
"""
import argparse
import importlib
import json
from pathlib import Path

import torch

import common


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/simsiam-patches-s0")
    parser.add_argument("--epochs", type=int, default=100, help="of the probe")
    parser.add_argument("--lr", type=float, default=0.1, help="of the probe")
    parser.add_argument("--batch-size", type=int, default=256, help="of the probe")
    parser.add_argument("--device", default=common.FLAGS["device"][0])
    flags = parser.parse_args(argv)

    saved = common.load_run(flags.run)
    args = argparse.Namespace(**saved["args"] | {"device": flags.device})
    device = common.setup(args)                            # the run's seed: the net it started from
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    if not data.classes:
        common.fail(f"{args.data} has no labels, so there is nothing to probe for or to vote on")
    model = importlib.import_module(args.script).build(args)
    model = model.to(device, memory_format=torch.channels_last)
    probe = {"epochs": flags.epochs, "lr": flags.lr, "batch_size": flags.batch_size}
    untrained = common.evaluate(model.encoder, data, args, **probe)
    model.load_state_dict(saved["model"])
    trained = common.evaluate(model.encoder, data, args, **probe)

    print(f"{flags.run}, {len(data.test_x)} test images, percent\n{'':14}untrained   epoch "
          f"{saved['tables']['metrics'][-1]['epoch']}")
    for name in trained:
        print(f"{name:14}{untrained[name]:9.1f}{trained[name]:10.1f}")
    result = {**probe, "untrained": untrained, "trained": trained}
    common.write(flags.run / "linear_eval.json", json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    common.cli(main)

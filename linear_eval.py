"""Scores of a run's features, by linear probe and by kNN, beside those of the untrained net.

    python linear_eval.py runs/simsiam-patches-s0

The linear probe is one linear layer, trained to name the class of an image by its features.  kNN
names the class of its nearest neighbours.  Both are of the backbone's features r and of the
projector's outputs z.  All methods are measured in one way: the net stays as the last epoch left it
(frozen, in eval mode), images are not augmented, features are computed once and standardised for
the probe, and all test images count.  The scores go to linear_eval.json in the run's folder.
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
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/simsiam-patches-s0")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of the probe")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate of the probe")
    parser.add_argument("--batch-size", type=int, default=256, help="batch size of the probe")
    parser.add_argument("--data", help="where the images are, if it is not where they were")
    parser.add_argument("--device", default=common.FLAGS["device"][0], help="cpu, cuda or mps")
    flags = parser.parse_args(argv)

    saved = common.load_run(flags.run)
    args = argparse.Namespace(**saved["args"] | {"device": flags.device})
    args.data = flags.data or args.data
    # setup takes the run's seed, so the model below begins as the net that the run started from.
    device = common.setup(args)
    data = common.load_data(args.data, args.data_dir, args.size, device, args.limit)
    if not data.classes:
        common.fail(f"{args.data} has no labels, so there is no class to find for probe and kNN")
    model = importlib.import_module(args.script).build(args)
    model = model.to(device, memory_format=torch.channels_last)
    probe = {"epochs": flags.epochs, "lr": flags.lr, "batch_size": flags.batch_size}
    untrained = common.evaluate(model.encoder, data, args, **probe)
    model.load_state_dict(saved["model"])
    trained = common.evaluate(model.encoder, data, args, **probe)

    print(f"{flags.run}, {len(data.test_x)} test images, percent right\n{'':14}untrained   epoch "
          f"{saved['tables']['metrics'][-1]['epoch']}")
    for name in trained:
        print(f"{name:14}{untrained[name]:9.1f}{trained[name]:10.1f}")
    result = {**probe, "untrained": untrained, "trained": trained}
    common.write(flags.run / "linear_eval.json", json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    common.cli(main)

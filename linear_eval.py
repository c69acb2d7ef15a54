"""Linear probe and kNN of what a script saved, beside the same for the untrained net.

    python linear_eval.py runs/simsiam-patches-s0

One protocol for all: frozen backbone in eval mode, images as they are, the last epoch, all test
images.  The probe is one linear layer on cached, standardised features.  Writes linear_eval.json
into the run folder.
"""
import argparse
import importlib
from pathlib import Path

import torch

import common

FLAGS = {"epochs": (100, "of the probe"), "lr": (0.1, "of the probe"),
         "batch_size": (256, "of the probe"), "device": common.FLAGS["device"],
         "layer": ("backbone", "whose output is evaluated")}


def evaluate(net, data, args):
    """-> {"knn", "top1", "top5"}, percent, of each further label with its name behind.

    net: images -> [B, D]"""
    x, y, x2, y2 = common.labelled_features(net, data)
    found = {}
    for label, (y, y2) in ({"": (y, y2)} | data.more).items():
        end = f"_{label}" if label else ""
        top1, top5 = common.linear_probe(x, y, x2, y2, args.epochs, args.lr, args.batch_size)
        found |= {f"knn{end}": common.knn_accuracy(x, y, x2, y2), f"top1{end}": top1,
                  f"top5{end}": top5}
    return found


def main(argv=None):
    parser = common.Parser(__file__, __doc__, FLAGS, {"layer": ("backbone", "projection")})
    parser.add_argument("run", type=Path, help="a run folder, such as runs/simsiam-patches-s0")
    defaults = {name: value for name, (value, _) in FLAGS.items()}
    args = argparse.Namespace(**defaults | vars(parser.parse_args(argv)))
    common.check_numbers(vars(args))

    saved = common.read_run(args.run)["args"]
    if not Path(__file__).with_name(f"{saved['script']}.py").exists():
        common.fail(f"{args.run} was made by {saved['script']}.py, which is not beside this file")
    if "data" not in saved:
        common.fail(f"{args.run} was made by {saved['script']}.py, which saves no net")
    saved = argparse.Namespace(**saved | {"device": args.device})
    device = common.setup(saved)                           # the run's seed: the net it started from
    data = common.load_data(saved.data, saved.data_dir, saved.size, device, saved.limit)
    if not data.classes:
        common.fail(f"{saved.data} has no labels, so there is nothing to probe for or to vote on")
    model = importlib.import_module(saved.script).build(saved)
    model = model.to(device, memory_format=torch.channels_last)
    net = model.encoder if args.layer == "projection" else model.encoder.backbone
    untrained = evaluate(net, data, args)
    checkpoint = common.load_checkpoint(args.run / "last.pt")
    model.load_state_dict(checkpoint["model"])
    trained = {"epoch": checkpoint["epoch"], **evaluate(net, data, args)}

    print(f"{args.run}, {args.layer}, {len(data.test_x)} test images")
    print(f"{'':24}kNN   linear top-1   top-5")
    for name, r in (("untrained net", untrained), (f"after epoch {trained['epoch']}", trained)):
        for end in ("", *(f"_{label}" for label in data.more)):
            print(f"{name + end.replace('_', ', '):20}{r['knn' + end]:7.1f}"
                  f"{r['top1' + end]:15.1f}{r['top5' + end]:8.1f}")
    result = {"layer": args.layer, "epochs": args.epochs, "lr": args.lr,
              "batch_size": args.batch_size, "untrained": untrained, "trained": trained}
    common.write_json(args.run / "linear_eval.json", result)
    return result


if __name__ == "__main__":
    main()

"""Linear probe and kNN of what a script saved, beside the same for the untrained net it started from.

    python linear_eval.py runs/simsiam-patches-s0

One protocol for all: frozen backbone in eval mode, images as they are, the last epoch, all test images.  The probe is one
linear layer on cached, standardised features.  Writes linear_eval.json into the run folder.
"""
import argparse
import importlib
import json
from pathlib import Path

import torch

import common


def evaluate(net, data, args):
    """-> {"knn", "top1", "top5"}, percent.  net: images -> [B, D]"""
    feats = common.labelled_features(net, data)
    top1, top5 = common.linear_probe(*feats, epochs=args.epochs, lr=args.lr, batch_size=args.batch_size)
    return {"knn": common.knn_accuracy(*feats), "top1": top1, "top5": top5}


def main(argv=None):
    parser = common.Parser(prog="linear_eval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/simsiam-patches-s0")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--layer", choices=("backbone", "projection"), default="backbone", help="whose output is evaluated")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    for name in ("epochs", "lr", "batch_size"):
        if not getattr(args, name) > 0:
            common.fail(f"--{name.replace('_', '-')} must be more than zero, not {getattr(args, name)}")

    saved = common.read_run(args.run)["args"]
    if not Path(__file__).with_name(f"{saved['script']}.py").exists():
        common.fail(f"{args.run} was made by {saved['script']}.py, which is not beside linear_eval.py")
    saved = argparse.Namespace(**{**saved, "device": args.device})
    device = common.setup(saved)                                             # the run's seed: the very net it started from
    data = common.load_data(saved.data, saved.data_dir, saved.size, device, saved.limit)
    model = importlib.import_module(saved.script).build(saved).to(device, memory_format=torch.channels_last)
    net = model.encoder if args.layer == "projection" else model.encoder.backbone
    result = {"layer": args.layer, "epochs": args.epochs, "lr": args.lr, "batch_size": args.batch_size}
    result["untrained"] = evaluate(net, data, args)
    checkpoint = common.load_checkpoint(args.run / "last.pt")
    model.load_state_dict(checkpoint["model"])
    result["trained"] = {"epoch": checkpoint["epoch"], **evaluate(net, data, args)}

    print(f"{args.run}, {args.layer}, {len(data.test_x)} test images\n{'':24}kNN   linear top-1   top-5")
    for name, r in (("untrained net", result["untrained"]), (f"after epoch {checkpoint['epoch']}", result["trained"])):
        print(f"{name:20}{r['knn']:7.1f}{r['top1']:15.1f}{r['top5']:8.1f}")
    common.write(args.run / "linear_eval.json", lambda f: f.write_text(json.dumps(result, indent=2)))
    return result


if __name__ == "__main__":
    main()

"""How rare may a class be before a net that sees no labels neglects its pattern?

    python tests/imbalance.py                    results/imbalance.csv, results/imbalance.png

Ziyin et al. (2023, arXiv 2210.00638) ask which losses stand imbalance; toy_landscape.py has their
linear model.  Here a share of the images of the first strong class of `strong_weak` is trained on,
and all of the others.  Then a probe that is fitted on all images, as in few_labels.py, is asked for
that class: was its pattern learnt?  Fifteen minutes on two CPU cores; what is there is kept."""
import importlib
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import common                                              # noqa: E402
import compare                                             # noqa: E402
from few_labels import ridge                               # noqa: E402

ROWS = {"SimCLR mlp": ("directclr.py --projector mlp --epochs 10", "#08519c"),
        "SimSiam": ("simsiam.py --epochs 10", "#1a9850"),
        "untrained": ("simsiam.py --epochs 0", "0.5")}
SHARES = (1, 0.1, 0.03, 0)
load_all = common.load_data


def load_less(share):
    """-> a load_data that leaves this share of the first class's training images"""
    def load_data(*arguments):
        data = load_all(*arguments)
        rare = torch.where(data.train_y == 0)[0]
        keep = torch.ones(len(data.train_y), dtype=torch.bool)
        keep[rare[round(share * len(rare)):]] = False
        data.train_x, data.train_y = data.train_x[keep], data.train_y[keep]
        data.more = {label: (y[keep], y2) for label, (y, y2) in data.more.items()}
        return data
    return load_data


def train(row, share):
    """-> the trained model"""
    script, *flags = ROWS[row][0].split()
    module = importlib.import_module(script.removesuffix(".py"))
    out = f"runs/imbalance/{row.replace(' ', '_')}_{share}"
    argv = [*flags, "--data", "strong_weak", "--eval-every", "10", "--out", out]
    args = module.parse(argv)
    folder = Path(out, common.run_name(args))
    if not (folder / "result.json").exists():
        common.load_data = load_less(share)
        return module.main(argv)
    model = module.build(args)
    model.load_state_dict(common.load_checkpoint(folder / "last.pt")["model"])
    return model


def recall(model, data):
    """-> percent of the first class's test images that the probe finds, and of the others'"""
    x, y, x2, y2 = common.labelled_features(model.encoder.backbone, data)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x2 = (x - mean) / std, (x2 - mean) / std
    rare = y2 == 0
    return [ridge(x, y, x2[part], y2[part], 5).item() for part in (rare, ~rare)]


def main():
    data, records = load_all("strong_weak"), []
    for share in SHARES:
        for row in ROWS:
            rare, others = recall(train(row, share), data)
            records.append({"label": row, "seed": 0, "share": share, "rare": rare,
                            "others": others})
            print(records[-1], flush=True)
    compare.save_records(records, ROOT / "results" / "imbalance.csv")
    draw(records)


def draw(records):
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis, places = figure.subplots(), range(len(SHARES))
    for row, (_, color) in ROWS.items():
        for key, style in (("rare", "o-"), ("others", ":")):
            values = [r[key] for r in records if r["label"] == row]
            axis.plot(places, values, style, color=color, label=f"{row}: {key}")
    axis.set(xticks=places, xticklabels=[f"{share:.0%}" for share in SHARES],
             xlabel="share of the rare class that is trained on", title="found by a probe (%)")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    common.save_figure(figure, ROOT / "results" / "imbalance.png")


if __name__ == "__main__":
    main()

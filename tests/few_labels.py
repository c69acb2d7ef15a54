"""Does collapse help?  Probes that see few labels, of the nets of `compare.py weak`.

    python compare.py weak --seed 0,1,2          before
    python tests/few_labels.py                   results/few_labels.csv, results/few_labels.png

Ziyin et al. (2023, arXiv 2210.00638): a collapsed dimension that the task does not ask for is none
that few labels have to fit.  Here the task is the strong label, and what some nets lost is the weak
one.  Ridge regression on standardised features, penalty 1 an image, mean over 20 balanced draws."""
import importlib
import sys
from argparse import Namespace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import common                                              # noqa: E402
import compare                                             # noqa: E402

ROWS = {"untrained": "0.5", "SimCLR none": "#b10026", "DirectCLR": "#fd8d3c",
        "SimCLR mlp": "#08519c", "SimSiam": "#1a9850", "BYOL": "#41b6c4", "frozen head": "#6a51a3"}
SIZES, DRAWS = (10, 20, 50, 100, 300, 1000, 4000), 20


def ridge(x, y, x2, y2, classes):
    """x: [n, D], standardised -> percent right"""
    target = F.one_hot(y, classes).double() - 1 / classes
    x, x2 = (torch.cat([v, torch.ones(len(v), 1)], 1).double() for v in (x, x2))
    gram = x.T @ x + len(x) * torch.eye(x.shape[1])
    W = torch.linalg.solve(gram, x.T @ target)
    return 100 * (torch.cat([part @ W for part in x2.split(1000)]).argmax(1) == y2).double().mean()


def main():
    data, records = common.load_data("strong_weak"), []
    labels = {"strong": (data.train_y, data.test_y), "weak": data.more["weak"]}
    generator = torch.Generator().manual_seed(0)
    keys = torch.rand(DRAWS, len(data.train_x), generator=generator)     # the same for all nets
    for row in ROWS:
        for folder in sorted(Path("runs/weak", row.replace(" ", "_")).iterdir()):
            args = Namespace(**common.read_run(folder)["args"])
            model = importlib.import_module(args.script).build(args)
            model.load_state_dict(common.load_checkpoint(folder / "last.pt")["model"])
            x, _, x2, _ = common.labelled_features(model.encoder.backbone, data)
            mean, std = x.mean(0), x.std(0) + 1e-6
            x, x2 = (x - mean) / std, (x2 - mean) / std
            for name, (y, y2) in labels.items():
                for n in SIZES:
                    found = []
                    for key in keys if n < len(x) else keys[:1]:
                        chosen = torch.cat([(key - 2 * (y == c).float()).argsort()[:n // 5]
                                            for c in range(5)])
                        found.append(ridge(x[chosen], y[chosen], x2, y2, 5))
                    records.append({"label": row, "seed": args.seed, "task": name, "n": n,
                                    "accuracy": torch.stack(found).mean().item()})
    compare.save_records(records, ROOT / "results" / "few_labels.csv")
    draw(records)


def draw(records):
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, task in zip(figure.subplots(1, 2), ("strong", "weak")):
        for row, color in ROWS.items():
            values = torch.tensor([[r["accuracy"] for r in records if r["label"] == row
                                    and r["task"] == task and r["n"] == n] for n in SIZES])
            low, high = (values.mean(1) + sign * values.std(1) for sign in (-1, 1))
            axis.plot(SIZES, values.mean(1), "o-", color=color, ms=3, label=row)
            axis.fill_between(SIZES, low, high, color=color, alpha=0.15, lw=0)
        axis.axhline(20, color="k", lw=0.8, ls=":")
        axis.set(xscale="log", xlabel="labelled images", title=f"{task} label: accuracy (%)",
                 xticks=SIZES, xticklabels=SIZES)
        axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    common.save_figure(figure, ROOT / "results" / "few_labels.png")


if __name__ == "__main__":
    main()

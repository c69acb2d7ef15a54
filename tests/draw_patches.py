"""results/strong_weak.png: what strong and weak mean.  Run by hand: python tests/draw_patches.py

Above each pattern as it is without noise, at its mean amplitude; below ten images with their
labels."""
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import common                                              # noqa: E402

features = common.PATCHES["strong_weak"]
figure = Figure(figsize=(10, 3.6), layout="constrained")
axes = figure.subplots(3, 10, height_ratios=[0.6, 1, 1])
names = ("strong", "weak")
for i, (name, patterns) in enumerate(zip(names, common.make_patterns(features))):
    _, copies, low, high = features[i]
    for c, pattern in enumerate(patterns):
        axis = axes[0, 5 * i + c]
        axis.imshow(0.5 + pattern[0] * (low + high) / 2, cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{name} {c}", fontsize=9)
images, labels = common.make_patches(features, 1000, 32, 1)
for axis, i in zip(axes[1:].flat, torch.arange(0, 500, 25) + torch.arange(20)):
    axis.imshow(images[i].permute(1, 2, 0))
    strong, weak = labels[i].tolist()
    axis.set_title(f"strong {strong}, weak {weak}", fontsize=7)
for axis in axes.flat:
    axis.set_axis_off()
figure.savefig(ROOT / "results" / "strong_weak.png", dpi=100)    # its noise has many colours

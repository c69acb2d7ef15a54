"""strong_weak.png: ten images of the data set strong_weak, and above each its patterns alone.

    python results/draw_patches.py
"""
import sys
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common                                              # noqa: E402

features = common.PATCHES["strong_weak"]
images, labels = common.make_patches(features, 25, 1, 32)  # each pair of classes once
# The same images, with patterns of amplitude zero: what is left is background and noise.
without = [(classes, copies, 0, 0) for classes, copies, *_ in features]
background, _ = common.make_patches(without, 25, 1, 32)
patterns = (0.5 + (images.int() - background.int()) / 255).clamp(0, 1)

figure = Figure(figsize=(12, 3), layout="constrained")
axes = figure.subplots(2, 10)
for column, i in enumerate((0, 6, 12, 18, 24, 5, 11, 17, 23, 4)):
    strong, weak = labels[:, i].tolist()
    axes[0, column].set_title(f"strong {strong}, weak {weak}", fontsize=9)
    for axis, image in zip(axes[:, column], (patterns[i], images[i])):
        axis.imshow(image.permute(1, 2, 0))
        axis.set_axis_off()
figure.savefig(HERE / "strong_weak.png")

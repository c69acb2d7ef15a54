"""results/neurons.png: how alike are the neurons, collapsed or not?  After Wen & Li's first figure.

    python compare.py phases                     before
    python tests/draw_neurons.py

Correlations over the test images, of z's 256 neurons and of the backbone's 96, sorted by their
leading eigenvector: after dimensional collapse all are copies of one, up to the sign."""
import importlib
import sys
from argparse import Namespace
from pathlib import Path

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import common                                              # noqa: E402

data = common.load_data("strong_weak")
figure = Figure(figsize=(10, 3), layout="constrained")
axes = iter(figure.subplots(1, 4))
for label in ("frozen head", "identity head"):
    folder = next(Path("runs/phases", label.replace(" ", "_")).glob("*-s0"))
    args = Namespace(**common.read_run(folder)["args"])
    model = importlib.import_module(args.script).build(args)
    model.load_state_dict(common.load_checkpoint(folder / "last.pt")["model"])
    name = label.replace("identity", "trained")
    for letter, net in (("z", model.encoder), ("r", model.encoder.backbone)):
        features = common.extract_features(net, data.test_x, data.mean, data.std)      # [N, D]
        correlation = features.T.corrcoef()
        order = torch.linalg.eigh(correlation)[1][:, -1].argsort()
        off = correlation[~torch.eye(len(order), dtype=torch.bool)].abs().mean()
        axis = next(axes)
        image = axis.imshow(correlation[order][:, order], cmap="coolwarm", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], title=f"{name}: {letter}\nmean |correlation| {off:.2f}")
figure.colorbar(image, ax=figure.axes, shrink=0.8, label="correlation of two neurons")
common.save_figure(figure, ROOT / "results" / "neurons.png")

"""neurons.png: how alike are the neurons, collapsed or not?  After Wen & Li's first figure.

    python results/reproduce.py phases             trains the nets that are drawn
    python results/draw_neurons.py

The picture shows correlations of neurons over the test images: of the 256 neurons of z and of the
96 of the backbone.  The neurons are sorted by the leading eigenvector of their correlations.
"""
import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import torch
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common                                              # noqa: E402

data = common.load_data("strong_weak")
figure = Figure(figsize=(10, 3), layout="constrained")
axes = iter(figure.subplots(1, 4))
for label, name in (("frozen_head", "frozen head"), ("identity_head", "trained head")):
    folder = next(Path("runs/phases", label).glob("*-s0"))
    args = Namespace(**json.loads((folder / "args.json").read_text())["args"])
    model = importlib.import_module(args.script).build(args)
    saved = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    for letter, net in (("z", model.encoder), ("r", model.encoder.backbone)):
        features = common.extract_features(net, data.test_x, data.mean, data.std)      # [N, D]
        correlation = features.T.corrcoef()                # [D, D]
        order = torch.linalg.eigh(correlation)[1][:, -1].argsort()
        off = correlation[~torch.eye(len(order), dtype=torch.bool)].abs().mean()
        axis = next(axes)
        image = axis.imshow(correlation[order][:, order], cmap="coolwarm", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], title=f"{name}: {letter}\nmean |correlation| {off:.2f}")
figure.colorbar(image, ax=figure.axes, shrink=0.8, label="correlation of two neurons")
figure.savefig(HERE / "neurons.png")

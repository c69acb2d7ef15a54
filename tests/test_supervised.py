"""The ceiling and the floor: what a net learns with labels, what the untrained one has."""
import argparse
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import common
import supervised

SMALL = "--limit 200 --batch-size 16 --size 8".split()
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def test_loss_is_cross_entropy_of_every_label():
    g = torch.Generator().manual_seed(0)
    outputs = [torch.randn(5, 3, generator=g), torch.randn(5, 2, generator=g)]
    labels = [torch.tensor([0, 2, 2, 1, 0]), torch.tensor([1, 0, 1, 0, 0])]
    probabilities = [output.exp() / output.exp().sum(1, keepdim=True) for output in outputs]
    by_hand = -sum(p[i, y[i]].log() for p, y in zip(probabilities, labels) for i in range(5)) / 5
    assert supervised.loss_of(outputs, labels).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_learns_what_the_labels_say_and_each_image_its_own(monkeypatch):
    """Images whose label is their brightness: right only if labels follow the shuffled images."""
    def bright(*args, load=common.load_data):
        data = load(*args)
        y, y2 = torch.arange(len(data.train_x)) % 2, torch.arange(len(data.test_x)) % 2
        x, x2 = ((60 + 120 * y).byte().view(-1, 1, 1, 1).expand(-1, 3, 8, 8) for y in (y, y2))
        return data._replace(train_x=x, train_y=y, test_x=x2, test_y=y2)
    monkeypatch.setattr(common, "load_data", bright)
    supervised.main([*SMALL, "--epochs", "2", "--lr", "0.1"])
    result = json.loads(Path("runs/supervised-patches-s0/result.json").read_text())
    assert result["knn"] > 99 and result["loss"] < 0.5


@pytest.mark.parametrize("data, heads", [("patches", [10]), ("strong_weak", [5, 5])])
def test_no_epochs_is_the_untrained_net_with_a_head_for_each_label(data, heads):
    supervised.main([*SMALL, "--data", data, "--epochs", "0"])
    folder = Path(f"runs/supervised-{data}-s0")
    saved = common.load_run(folder)
    args = argparse.Namespace(**saved["args"])
    common.setup(args)
    fresh = supervised.build(args)
    assert all(torch.equal(saved["model"][k], v) for k, v in fresh.state_dict().items())
    assert [head.out_features for head in fresh.heads] == heads
    assert saved["optimizer"]["param_groups"][0]["nesterov"]
    result = json.loads((folder / "result.json").read_text())
    assert result["knn"] == result["knn_untrained"] == saved["tables"]["metrics"][0]["knn"]
    assert "loss" not in result and result["epoch"] == 0
    assert ("linear_weak" in result) == (data == "strong_weak")


def test_needs_labels(capsys):
    Path("pics").mkdir()
    for i in range(20):
        Image.new("RGB", (32, 32), (9 * i, 0, 0)).save(f"pics/{i}.png")
    with pytest.raises(SystemExit) as stop:
        supervised.main("--data pics --batch-size 4".split())
    assert stop.value.code == 2 and "pics has no labels" in capsys.readouterr().err

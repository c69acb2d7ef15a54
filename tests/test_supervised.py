"""The ceiling and the floor: what a net learns with labels, what the untrained one has."""
import json
from pathlib import Path

import pytest
import torch

import common
import linear_eval
import supervised

SMALL = "--limit 200 --batch-size 16".split()


def test_loss_is_cross_entropy_of_every_label():
    g = torch.Generator().manual_seed(0)
    outputs = [torch.randn(5, 3, generator=g), torch.randn(5, 2, generator=g)]
    labels = [torch.tensor([0, 2, 2, 1, 0]), torch.tensor([1, 0, 1, 0, 0])]
    by_hand = 0
    for output, y in zip(outputs, labels):
        p = output.exp() / output.exp().sum(1, keepdim=True)
        by_hand -= sum(p[i, y[i]].log() for i in range(5)) / 5
    assert supervised.loss_of(outputs, labels).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_learns_what_the_labels_say_and_each_image_its_own(in_tmp, monkeypatch):
    """Images whose label is their brightness: right only if labels follow the shuffled images."""
    load = common.load_data

    def bright(*args):
        data = load(*args)
        for part in ("train", "test"):
            x = getattr(data, f"{part}_x")
            y = torch.arange(len(x)) % 2
            setattr(data, f"{part}_y", y)
            setattr(data, f"{part}_x", (60 + 120 * y).byte().view(-1, 1, 1, 1).expand_as(x))
        return data
    monkeypatch.setattr(common, "load_data", bright)
    supervised.main([*SMALL, "--epochs", "2", "--lr", "0.1"])
    result = json.loads(Path("runs/supervised-patches-s0/result.json").read_text())
    assert result["knn"] > 99 and result["loss"] < 0.5


def test_images_without_a_label_are_left_out(in_tmp, monkeypatch, capsys):
    """stl10 has 100 000 of them: a batch of nothing else has no loss."""
    load = common.load_data

    def few_labels(*args):
        data = load(*args)
        data.train_y = torch.where(torch.arange(200) % 10 < 8, -1, data.train_y)
        return data
    monkeypatch.setattr(common, "load_data", few_labels)
    supervised.main([*SMALL, "--epochs", "1"])
    assert "40 training images" in capsys.readouterr().out
    result = json.loads(Path("runs/supervised-patches-s0/result.json").read_text())
    assert 0 < result["loss"] < 10


@pytest.mark.parametrize("data, heads", [("patches", [10]), ("strong_weak", [5, 5])])
def test_a_head_for_each_label(data, heads, in_tmp):
    supervised.main([*SMALL, "--data", data, "--dry-run"])
    folder = Path(f"runs/supervised-{data}-s0")
    args = common.argparse.Namespace(**common.read_run(folder)["args"])
    net, saved = supervised.build(args), torch.load(folder / "last.pt", weights_only=True)
    net.load_state_dict(saved["model"])
    assert saved["optimizer"]["param_groups"][0]["nesterov"]
    assert [head.out_features for head in net.heads] == heads


def test_no_epochs_is_the_untrained_net(in_tmp):
    supervised.main([*SMALL, "--data", "strong_weak", "--epochs", "0"])
    folder = Path("runs/supervised-strong_weak-s0")
    args = common.argparse.Namespace(**common.read_run(folder)["args"])
    device = common.setup(args)
    data = common.load_data("strong_weak", limit=200, device=device)
    fresh = supervised.build(args)
    for name, value in torch.load(folder / "backbone.pt", weights_only=True).items():
        assert torch.equal(value, fresh.encoder.backbone.state_dict()[name]), name
    result = json.loads((folder / "result.json").read_text())
    x, y, x2, y2 = common.labelled_features(fresh.encoder.backbone, data)
    assert result["knn"] == common.knn_accuracy(x, y, x2, y2) == result["knn_untrained"]
    assert "loss" not in result and result["epoch"] == 0
    probe = linear_eval.main([str(folder)])
    assert probe["trained"]["top1_weak"] == pytest.approx(result["linear_weak"], abs=0.2)
    assert probe["trained"]["epoch"] == 0 and probe["trained"]["knn"] == result["knn"]


def test_needs_labels(in_tmp, capsys):
    from PIL import Image
    Path("pics").mkdir()
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 0, 0)).save(f"pics/{i}.png")
    with pytest.raises(SystemExit) as stop:
        supervised.main("--data pics --batch-size 4".split())
    assert stop.value.code == 2 and "pics has no labels" in capsys.readouterr().err

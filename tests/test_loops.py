"""What each main hands on around its loss: recipes, rates, decays, views, and what it reports."""
import argparse
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import byol
import common
import directclr
import directpred
import gradient_components
import knobs
import mirror_ablations
import more_ablations
import simsiam
import supervised
from test_simsiam import result_of

SCRIPTS = (simsiam, byol, directpred, directclr, mirror_ablations, more_ablations,
           gradient_components, supervised, knobs)
TINY = "--limit 64 --size 8 --batch-size 16 --eval-every 9".split()        # four steps an epoch
pytestmark = pytest.mark.usefixtures("in_tmp", "no_pictures")
every_script = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture
def no_pictures(no_curves, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda *_: None)


def test_every_script_trains_on_own_images_as_a_command(image_folder):
    """In one process, because importing torch takes longer than all of them."""
    code = """import runpy, sys
scripts, sys.argv[1:] = sys.argv[1:], ["--dry-run", "--data", "pics"]
for script in scripts:
    runpy.run_path(script, run_name="__main__")"""
    files = [script.__file__ for script in SCRIPTS]
    out = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(Path(common.__file__).parent)})
    assert out.returncode == 0, out.stderr
    assert len(list(Path("runs").glob("*/result.json"))) == len(SCRIPTS)


@every_script
def test_every_script_trains_on_cifar_and_compiles_the_model_alone(
        script, fake_cifar, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda net: seen.append(net) or net)
    monkeypatch.setattr(common, "linear_probe", lambda *_, **__: 0.0)
    for data in ("cifar10", "cifar100"):
        net = script.main(["--dry-run", "--compile", "--arch", "small", "--data", data])
        assert len(seen) == 1 and seen.pop() is net and isinstance(net, torch.nn.Module)
    assert len(list(Path("runs").glob("*/result.json"))) == 2


@pytest.mark.parametrize("script, flags, heads", [
    (simsiam, "", [(0.1, 0.01)]), (directclr, "", []), (supervised, "", []),
    (knobs, "--pred-lr 2", [(0.2, 0.01)]), (byol, "--pred-lr 2", [(0.2, 0.01)]),
    (knobs, "--pred-lr 2 --optimizer adam", [(0.2, 0.01)]),
    (directpred, "--schedule cosine --pred-lr 2 --pred-weight-decay 0.02 --bias-lr 3",
     [(0.2, 0.02), (0.1 * 3.0, 0)]),
    (mirror_ablations, "--variant inverse --pred-lr 2 --inverse-lr 3 --pred-weight-decay 0.02",
     [(0.2, 0.02), (0.1 * 3.0, 0.02)]),
    (more_ablations, "--variant mse --pred-lr 2 --pred-weight-decay 0.02", [(0.2, 0.02)]),
    (gradient_components, "--pred-weight-decay 0.02 --bias-lr 3", [(0.1, 0.02), (0.1 * 3.0, 0)])])
def test_rates_and_decays_at_every_step(script, flags, heads, watch, monkeypatch):
    """The encoder's rate: an epoch of warm-up, an epoch of half a cosine; those of heads stay."""
    optimizer = torch.optim.Adam if "adam" in flags else torch.optim.SGD
    seen = watch(optimizer, "step", lambda _, self: [
        (group["lr"], group["weight_decay"]) for group in self.param_groups])
    monkeypatch.setattr(common, "linear_probe", lambda *_, **__: 0.0)
    flags = f"--lr 1.6 --weight-decay 0.01 --epochs 2 --warmup-epochs 1 {flags}"
    script.main([*TINY, *flags.split()])
    encoder, *others = zip(*seen)
    rates, decays = zip(*encoder)
    cosine = [0.05 * (1 + math.cos(math.pi * (i + 0.5) / 4)) for i in range(4)]
    assert rates == pytest.approx([0.0125, 0.0375, 0.0625, 0.0875, *cosine])
    assert set(decays) == {0.01} and [set(head) for head in others] == [{head} for head in heads]
    run, = Path("runs").iterdir()
    assert common.load_run(run)["tables"]["metrics"][-1]["lr"] == rates[-1]


@pytest.mark.parametrize("script, flags, more", [
    (directpred, [], {}), (directclr, [], {}), (knobs, ["--jitter-p", "0"], {"jitter_p": 0.0})])
def test_both_views_are_augmented_as_was_asked_for(script, flags, more, watch):
    seen = watch(common, "augment", lambda _, x, mean, std, *scale, **more: (scale, more))
    script.main(["--dry-run", "--size", "8", "--min-scale", "0.6", *flags])
    assert seen[-4:] == [((0.6,), more)] * 4               # two steps


@every_script
def test_measuring_row_0_changes_nothing_that_trains(script, first_step):
    """Weights, BatchNorm's averages, target, F and memory bank are as they were built."""
    model, *_ = first_step(script, "--size", "8")
    torch.manual_seed(0)
    args = script.parse(["--size", "8"])
    args.n_images, args.n_classes = 32, [10]               # main sets them
    fresh, found = script.build(args).state_dict(), model.state_dict()
    assert found.keys() == fresh.keys() and any("running_var" in key for key in fresh)
    assert all(torch.equal(found[key], fresh[key]) for key in fresh)


def test_row_0_is_of_the_first_batch_in_training_mode_and_speed_is_of_all_epochs():
    flags = [*TINY, *"--epochs 2 --final-bn none".split()]
    simsiam.main(flags)
    rows = common.load_run("runs/simsiam-patches-s0")["tables"]["metrics"]
    for row in rows[1:]:
        seen = row["images_per_second"] * row["seconds"]
        assert seen == pytest.approx(64 * row["epoch"], rel=1e-3)
    torch.manual_seed(0)                                   # what setup does, then the net
    net = simsiam.build(simsiam.parse(flags)).to(memory_format=torch.channels_last)
    data = common.load_data("patches", size=8, limit=64)
    r, r2 = (common.extract_features(net.encoder.backbone, x, data.mean, data.std)
             for x in (data.train_x, data.test_x))
    assert rows[0]["knn"] == pytest.approx(common.knn_accuracy(r, data.train_y, r2, data.test_y))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:16]
    torch.manual_seed(1009)
    x1, x2 = (common.augment(data.train_x[order], data.mean, data.std) for _ in range(2))
    with torch.no_grad():
        z = torch.cat([net.encoder(x1), net.encoder(x2)])
    assert rows[0]["m_o"] == pytest.approx(common.collapse_metrics(z)["m_o"], rel=1e-4)


@every_script
def test_flags_and_recipes(script, capsys):
    mine, other = (vars(script.parse(["--data", name])) for name in ("patches", "strong_weak"))
    assert {key for key in mine if mine[key] != other[key]} == {"data"}    # tuned for one of them
    for data, recipe in script.RECIPES.items():
        args = script.parse(["--data", data, "--lr", "0.123"])
        assert args.lr == 0.123 and args.epochs == recipe["epochs"]
    with pytest.raises(SystemExit):
        script.main(["--help"])
    text = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in text for name in (*common.FLAGS, *recipe))


def test_supervised_loss_is_the_cross_entropy_of_every_label():
    g = torch.Generator().manual_seed(0)
    outputs = [torch.randn(5, 3, generator=g), torch.randn(5, 2, generator=g)]
    labels = [torch.tensor([0, 2, 2, 1, 0]), torch.tensor([1, 0, 1, 0, 0])]
    probabilities = [output.exp() / output.exp().sum(1, keepdim=True) for output in outputs]
    by_hand = -sum(p[i, y[i]].log() for p, y in zip(probabilities, labels) for i in range(5)) / 5
    assert supervised.loss_of(outputs, labels).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_supervised_learns_what_the_labels_say_each_image_its_own(monkeypatch):
    """Images whose label is their brightness: right only if labels follow the shuffled images."""
    def bright(*args, load=common.load_data):
        data = load(*args)
        y, y2 = torch.arange(len(data.train_x)) % 2, torch.arange(len(data.test_x)) % 2
        x, x2 = ((60 + 120 * y).byte().view(-1, 1, 1, 1).expand(-1, 3, 8, 8) for y in (y, y2))
        return data._replace(train_x=x, train_y=y, test_x=x2, test_y=y2)
    monkeypatch.setattr(common, "load_data", bright)
    supervised.main([*TINY, "--epochs", "6", "--lr", "0.1"])
    result = result_of("runs/supervised-patches-s0")
    assert result["knn"] > 99 and result["loss"] < 0.5


@pytest.mark.parametrize("data, heads", [("patches", [10]), ("strong_weak", [5, 5])])
def test_no_epochs_of_supervised_leave_the_untrained_net_and_a_head_for_each_label(data, heads):
    supervised.main([*TINY, "--data", data, "--epochs", "0"])
    folder = Path(f"runs/supervised-{data}-s0")
    saved = common.load_run(folder)
    args = argparse.Namespace(**saved["args"])
    common.setup(args)
    fresh = supervised.build(args)
    assert all(torch.equal(saved["model"][k], v) for k, v in fresh.state_dict().items())
    assert [head.out_features for head in fresh.heads] == heads
    assert saved["optimizer"]["param_groups"][0]["nesterov"]
    result = result_of(folder)
    assert result["knn"] == result["knn_untrained"] == saved["tables"]["metrics"][0]["knn"]
    assert "loss" not in result and result["epoch"] == 0
    assert ("linear_weak" in result) == (data == "strong_weak")


def test_supervised_needs_labels(image_folder, capsys):
    with pytest.raises(SystemExit) as stop:
        supervised.main(["--data", str(image_folder / "train/cats")])
    assert stop.value.code == 2 and "has no labels" in capsys.readouterr().err

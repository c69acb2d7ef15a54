"""What each main hands on around its loss: recipes, rates, decays, views, and what it reports."""
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

SCRIPTS = (simsiam, byol, directpred, directclr, mirror_ablations, more_ablations,
           gradient_components, supervised, knobs)
TINY = "--limit 64 --size 8 --batch-size 16 --eval-every 9".split()        # four steps an epoch
pytestmark = pytest.mark.usefixtures("in_tmp", "no_pictures")


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


@pytest.mark.parametrize("script", SCRIPTS)
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
    (directpred, "--schedule cosine --pred-lr 2 --pred-weight-decay 0.02 --bias-lr 3",
     [(0.2, 0.02), (0.1 * 3.0, 0)]),
    (mirror_ablations, "--variant inverse --pred-lr 2 --inverse-lr 3 --pred-weight-decay 0.02",
     [(0.2, 0.02), (0.1 * 3.0, 0.02)]),
    (more_ablations, "--variant mse --pred-lr 2 --pred-weight-decay 0.02", [(0.2, 0.02)]),
    (gradient_components, "--pred-weight-decay 0.02 --bias-lr 3", [(0.1, 0.02), (0.1 * 3.0, 0)])])
def test_rates_and_decays_at_every_step(script, flags, heads, monkeypatch):
    """The encoder's rate: an epoch of warm-up, an epoch of half a cosine; those of heads stay."""
    seen = []

    def step(self, real=torch.optim.SGD.step):
        seen.append([(g["lr"], g["weight_decay"]) for g in self.param_groups])
        real(self)
    monkeypatch.setattr(torch.optim.SGD, "step", step)
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


@pytest.mark.parametrize("script", [directpred, directclr, knobs])
def test_both_views_are_cut_at_the_scale_that_was_asked_for(script, monkeypatch):
    seen = []

    def augment(x, mean, std, *scale, real=common.augment, **more):
        seen.append(scale)
        return real(x, mean, std, *scale, **more)
    monkeypatch.setattr(common, "augment", augment)
    script.main(["--dry-run", "--size", "8", "--min-scale", "0.6"])
    assert seen[-4:] == [(0.6,)] * 4                       # two steps


def test_directpreds_target_follows_what_the_step_left():
    net = directpred.main([*TINY, *"--epochs 1 --ema 0".split()])
    for weight, target in zip(net.encoder.parameters(), net.target.parameters()):
        assert torch.equal(weight, target)


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
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:16]
    torch.manual_seed(1009)
    x = data.train_x[order]
    x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
    with torch.no_grad():
        z = torch.cat([net.encoder(x1), net.encoder(x2)])
    assert rows[0]["m_o"] == pytest.approx(common.collapse_metrics(z)["m_o"], rel=1e-4)
    knn = common.knn_accuracy(r, data.train_y, r2, data.test_y)
    assert rows[0]["knn"] == pytest.approx(knn)


@pytest.mark.parametrize("script", SCRIPTS)
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

"""What each main hands on around its loss: rates, decays, target, views, and what it reports."""
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import byol
import common
import directclr
import directpred
import gradient_components
import mirror_ablations
import simsiam
import supervised

pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")
TINY = "--limit 64 --size 8 --batch-size 16 --eval-every 9".split()        # four steps an epoch


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(common, "save_figure", lambda *_: None)


@pytest.mark.parametrize("script, flags, heads", [
    (simsiam, "", [(0.1, 0.01)]),
    (byol, "--pred-lr 2", [(0.2, 0.01)]),
    (directpred, "--schedule cosine --pred-lr 2 --pred-weight-decay 0.02 --bias-lr 3",
     [(0.2, 0.02), (0.1 * 3.0, 0)]),
    (directclr, "", []),
    (gradient_components, "--pred-weight-decay 0.02 --bias-lr 3", [(0.1, 0.02), (0.1 * 3.0, 0)]),
    (supervised, "", [])])
def test_rates_and_decays_at_every_step(script, flags, heads, monkeypatch):
    """The encoder's rate: an epoch of warm-up, an epoch of half a cosine; those of heads stay."""
    seen = []

    def watch(self, *loss, log=common.Run.log, **views):
        seen.append([(g["lr"], g["weight_decay"]) for g in self.optimizer.param_groups])
        log(self, *loss, **views)
    monkeypatch.setattr(common.Run, "log", watch)
    flags = f"--lr 1.6 --weight-decay 0.01 --epochs 2 --warmup-epochs 1 {flags}"
    script.main([*TINY, *flags.split()])
    encoder, *others = zip(*seen)
    rates, decays = zip(*encoder)
    cosine = [0.05 * (1 + math.cos(math.pi * (i + 0.5) / 4)) for i in range(4)]
    assert rates == pytest.approx([0.0125, 0.0375, 0.0625, 0.0875, *cosine])
    assert set(decays) == {0.01}
    assert [set(head) for head in others] == [{head} for head in heads]
    file, = Path("runs").glob("*/metrics.csv")
    assert common.read_csv(file)[-1]["lr"] == pytest.approx(rates[-1], rel=1e-4)


def test_a_constant_rate(monkeypatch):
    seen = []

    def watch(self, *loss, log=common.Run.log, **views):
        seen.append(self.optimizer.param_groups[0]["lr"])
        log(self, *loss, **views)
    monkeypatch.setattr(common.Run, "log", watch)
    directpred.main([*TINY, *"--lr 1.6 --epochs 1 --schedule constant".split()])
    assert set(seen) == {0.1}


@pytest.mark.parametrize("script", [byol, directpred])
def test_the_target_follows_what_the_step_left(script, monkeypatch):
    name, seen = "projector.0.weight", []

    def watch(self, *loss, log=common.Run.log, **views):
        nets = self.model.encoder, self.model.target
        seen.append([net.state_dict()[name].clone() for net in nets])
        log(self, *loss, **views)
    monkeypatch.setattr(common.Run, "log", watch)
    script.main([*TINY, *"--epochs 1 --ema 0.9".split()])
    assert len(seen) == 4
    for (_, before), (new, after) in zip(seen, seen[1:]):
        assert torch.allclose(after, 0.9 * before + 0.1 * new, atol=1e-7)
        assert not torch.equal(after, before)


@pytest.mark.parametrize("script, d0", [(directpred, ""), (directclr, "--d0 8")])
def test_both_views_are_cut_at_the_scale_that_was_asked_for(script, d0, monkeypatch):
    seen = []

    def watch(x, mean, std, *scale, augment=common.augment):
        seen.append(scale)
        return augment(x, mean, std, *scale)
    monkeypatch.setattr(common, "augment", watch)
    script.main([*TINY, "--dry-run", "--min-scale", "0.6", *d0.split()])
    assert seen[-4:] == [(0.6,)] * 4


def test_spectra_and_probes_of_directclr_are_of_the_test_set_and_of_each_label():
    flags = "--data strong_weak --epochs 1 --projector mlp --d0 9 --proj-hidden 16 --proj-dim 12"
    model = directclr.main([*TINY, *flags.split()])
    folder = Path("runs/directclr-mlp-strong_weak-s0")
    result = json.loads((folder / "result.json").read_text())
    data = common.load_data("strong_weak", size=8, limit=64)
    train, _, test, _ = common.labelled_features(model.encoder.backbone, data)
    labels = {"": (data.train_y, data.test_y), "_weak": data.more["weak"]}
    for name, part in (("first", slice(9)), ("rest", slice(9, 96))):
        for label, (y, y2) in labels.items():
            by_hand = common.linear_probe(train[:, part], y, test[:, part], y2)[0]
            assert result[f"linear_{name}{label}"] == pytest.approx(by_hand, abs=0.5)
    z = common.extract_features(model.encoder, data.test_x, data.mean, data.std)       # eval mode
    rank = common.collapse_metrics(z)["effective_rank"]
    assert result["test_rank_z"] == pytest.approx(rank, rel=1e-3)
    last = common.read_csv(folder / "metrics.csv")[-1]
    assert last["m_o_r"] != last["m_o"]                    # of r, of z


def test_E_after_the_first_epoch_and_at_the_end():
    mirror_ablations.main([*TINY, *"--variant identity --epochs 2 --lr 4 --proj-dim 12".split()])
    folder = Path("runs/mirror_ablations-identity-patches-s0")
    _, first, last = common.read_csv(folder / "metrics.csv")
    result = json.loads((folder / "result.json").read_text())
    assert first["E_mean"] != last["E_mean"]
    assert result["E_mean_1"] == pytest.approx(first["E_mean"])
    assert result["E_mean"] == pytest.approx(last["E_mean"])


def test_as_many_views_as_asked_for(monkeypatch):
    seen = []

    def watch(self, views, images, forward=mirror_ablations.Siamese.forward):
        seen.append(len(views))
        return forward(self, views, images)
    monkeypatch.setattr(mirror_ablations.Siamese, "forward", watch)
    flags = "--variant same_batch --n-aug 5 --epochs 1 --proj-dim 12"
    mirror_ablations.main([*TINY, *flags.split()])
    assert seen == [5] * 4


def test_infonce_is_at_the_temperature_that_was_asked_for():
    args = gradient_components.parse("--loss infonce --temperature 0.7".split())
    z1, z2 = (torch.randn(6, 5).requires_grad_() for _ in range(2))
    loss, _ = gradient_components.loss_of("infonce", args, z1, z2, z1, z2)
    Z1, Z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    one = F.cross_entropy(Z1 @ Z2.detach().T / 0.7, torch.arange(6))
    other = F.cross_entropy(Z2 @ Z1.detach().T / 0.7, torch.arange(6))
    expected = torch.autograd.grad((one + other) / 2, (z1, z2))
    for found, by_autograd in zip(torch.autograd.grad(loss, (z1, z2)), expected):
        assert torch.allclose(found, by_autograd, atol=1e-6)


def test_what_is_tuned_for_patches_is_for_strong_weak_too():
    for script in (byol, directclr, directpred, mirror_ablations, simsiam, supervised):
        mine, other = (vars(script.parse(["--data", name])) for name in ("patches", "strong_weak"))
        assert {key for key in mine if mine[key] != other[key]} == {"data"}


def test_every_epoch_has_its_own_order_and_its_own_views(monkeypatch):
    seen, augmented = [], []

    def watch(self, *loss, log=common.Run.log, **views):
        seen.append(self.chosen.tolist())
        log(self, *loss, **views)

    def views(x, *settings, augment=common.augment):
        augmented.append(torch.rand(1).item())
        return augment(x, *settings)
    monkeypatch.setattr(common.Run, "log", watch)
    monkeypatch.setattr(common, "augment", views)
    simsiam.main([*TINY, "--epochs", "2"])
    first, second = seen[:4], seen[4:]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(64))
    assert first != second and augmented[2:10] != augmented[10:]           # row 0 has two views


def test_row_0_is_of_the_first_batch_in_training_mode_and_speed_is_of_all_epochs():
    flags = [*TINY, *"--epochs 2 --final-bn none".split()]
    simsiam.main(flags)
    rows = common.read_csv("runs/simsiam-patches-s0/metrics.csv")
    for row in rows[1:]:
        seen = row["images_per_second"] * row["seconds"]
        assert seen == pytest.approx(64 * row["epoch"], rel=1e-3)
    torch.manual_seed(0)                                   # what setup does, then the net
    net = simsiam.build(simsiam.parse(flags)).to(memory_format=torch.channels_last)
    data = common.load_data("patches", size=8, limit=64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:16]
    torch.manual_seed(1009)
    x = data.train_x[order]
    x1, x2 = common.augment(x, data.mean, data.std), common.augment(x, data.mean, data.std)
    with torch.no_grad():
        z = torch.cat([net.encoder(x1), net.encoder(x2)])
    assert rows[0]["m_o"] == pytest.approx(common.collapse_metrics(z)["m_o"], rel=1e-4)


def test_a_weight_that_is_not_finite_is_refused_though_the_loss_is(monkeypatch, capsys):
    def broken(self, end_epoch=common.Run.end_epoch, **columns):
        next(self.model.parameters()).data[0] = math.inf
        end_epoch(self, **columns)
    monkeypatch.setattr(common.Run, "end_epoch", broken)
    with pytest.raises(SystemExit):
        simsiam.main([*TINY, "--epochs", "1"])
    assert "nan or infinite" in capsys.readouterr().err


def test_no_alarm_in_warm_up(monkeypatch):
    seen = []
    monkeypatch.setattr(common, "alarm", lambda rows, warmup: seen.append(warmup) or "")
    simsiam.main([*TINY, *"--epochs 1 --warmup-epochs 3".split()])
    assert set(seen) == {3}

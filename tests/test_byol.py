"""BYOL: loss, target, its average, and what collapses."""
import math
from pathlib import Path

import pytest
import torch

import byol
import common
import linear_eval

SMALL = "--proj-hidden 32 --proj-dim 24 --pred-hidden 16".split()
pytestmark = pytest.mark.usefixtures("no_curves")


def on_unit_sphere(p, t):
    """The loss of the paper's equation 2: ||p/|p| - t/|t|||^2, mean over the batch."""
    P, T = p / p.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    return (P - T).square().sum(1).mean()


def test_D_is_the_negative_cosine_and_detaches_nothing():
    torch.manual_seed(0)
    p, z = torch.randn(2, 5, 7, dtype=torch.double).requires_grad_().unbind()
    by_hand = -sum((a @ b) / (a @ a).sqrt() / (b @ b).sqrt() for a, b in zip(p, z)) / 5
    assert torch.allclose(byol.D(p, z), by_hand)
    P, Z = p / p.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
    cos = (P * Z).sum(1, keepdim=True)
    on_p, on_z = torch.autograd.grad(byol.D(p, z), [p, z])
    assert torch.allclose(on_p, -(Z - cos * P) / p.norm(dim=1, keepdim=True) / 5)
    assert torch.allclose(on_z, -(P - cos * Z) / z.norm(dim=1, keepdim=True) / 5)


# ------------------------------------------------------------------------------------ first step

FIRST = ["", "--predictor linear", "--predictor none", "--ema 0", "--no-stopgrad"]


@pytest.mark.parametrize("flags", FIRST)
def test_first_step_has_the_gradient_of_the_paper(flags, first_step):
    """And none at the target; with --no-stopgrad it flows through both paths."""
    flags = [*SMALL, *flags.split()]
    model, x1, x2, grads = first_step(byol, *flags, "--size", "8")
    z1, z2 = model.encoder(x1), model.encoder(x2)
    if "--no-stopgrad" in flags:
        t1, t2 = z1, z2
    else:
        target = model.target or model.encoder
        t1, t2 = target(x1).detach(), target(x2).detach()
    loss = on_unit_sphere(model.predictor(z1), t2) + on_unit_sphere(model.predictor(z2), t1)
    online = {k: p for k, p in model.named_parameters() if not k.startswith("target.")}
    for name, g in zip(online, torch.autograd.grad(loss, list(online.values()))):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name
    assert all(grads[name] is None for name in grads if name not in online)
    assert (model.target is None) == ("--ema" in flags or "--no-stopgrad" in flags)


def test_before_its_first_step_the_net_is_as_it_was_built(first_step):
    """Row 0 has been measured by then: weights, target and BatchNorm's averages."""
    model, *_ = first_step(byol, *SMALL, "--size", "8")
    torch.manual_seed(0)
    fresh = byol.build(byol.parse(SMALL)).state_dict()
    found = model.state_dict()
    assert found.keys() == fresh.keys() and any("running_var" in key for key in fresh)
    assert all(torch.equal(found[key], fresh[key]) for key in fresh)


# ---------------------------------------------------------------------------------------- target

def test_target_is_the_closed_form_average_of_weights_and_bn_buffers():
    """After k steps m^k f'_0 + (1 - m) sum_i m^(k-i) f_i, all of it; it starts as a copy."""
    model = byol.BYOL(byol.parse(SMALL)).double()
    online, target = model.encoder.state_dict(), model.target.state_dict()    # live views
    names = [key for key, value in online.items() if value.is_floating_point()]
    assert any("running_var" in key for key in names)
    assert all(torch.equal(target[key], online[key]) for key in names)
    m, steps = 0.9, 7
    expected = {key: m**steps * target[key] for key in names}
    for i in range(1, steps + 1):
        for key in names:
            online[key].normal_()
            expected[key] += (1 - m) * m ** (steps - i) * online[key]
        model.update_target(m)
    for key in names:
        assert torch.allclose(target[key], expected[key], rtol=1e-10, atol=1e-12), key


def test_a_target_of_momentum_1_stays_as_it_was(in_tmp):
    model = byol.main([*SMALL, *"--limit 64 --size 8 --batch-size 16 --epochs 1 --ema 1".split()])
    torch.manual_seed(0)
    first = byol.BYOL(byol.parse(SMALL)).target.parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.target.parameters(), first, strict=True))
    pairs = zip(model.target.parameters(), model.encoder.parameters())
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("schedule, expected", [
    ("constant", lambda share: 0.9),
    ("cosine", lambda share: 0.95 - 0.05 * math.cos(math.pi * share))])
def test_momentum_of_the_target(schedule, expected, in_tmp, monkeypatch):
    seen = []
    monkeypatch.setattr(byol.BYOL, "update_target", lambda self, m: seen.append(m))
    flags = "--limit 64 --size 8 --batch-size 16 --epochs 3 --eval-every 9 --ema 0.9".split()
    byol.main([*SMALL, *flags, "--ema-schedule", schedule])
    assert seen == pytest.approx([expected((i + 0.5) / 12) for i in range(12)])


# --------------------------------------------------------------------------------------- recipes

@pytest.mark.parametrize("data, hidden, schedule", [
    ("cifar10", 1024, "constant"), ("cifar100", 4096, "cosine")])
def test_recipes_of_the_papers(data, hidden, schedule):
    args = byol.parse(["--data", data])
    model = byol.BYOL(args)
    heads = [m for m in (*model.encoder.projector, *model.predictor) if hasattr(m, "in_features")]
    shapes = [(m.in_features, m.out_features) for m in heads]
    assert shapes == [(512, hidden), (hidden, 256), (256, hidden), (hidden, 256)]
    assert (args.ema, args.ema_schedule) == (0.99, schedule)


def test_only_the_second_view_is_solarized(in_tmp, monkeypatch):
    seen, real = [], common.augment

    def augment(x, mean, std, *scale, **more):
        seen.append((*scale, more.get("solarize_p", 0.0)))
        return real(x, mean, std, *scale, **more)

    monkeypatch.setattr(common, "augment", augment)
    byol.main([*SMALL, *"--dry-run --size 8 --solarize-p 0.2 --min-scale 0.08".split()])
    assert seen[-4:] == [(0.08, 0.0), (0.08, 0.2)] * 2             # before them those of row 0


# ------------------------------------------------------------------------------------------ runs

def test_resumed_run_has_the_weights_of_an_uninterrupted_one(whole_and_cut):
    whole, cut = whole_and_cut(byol, *SMALL, "--size", "8")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    first = "projector.0.weight"
    assert not torch.equal(whole["target." + first], whole["encoder." + first])


def test_collapses_without_stop_gradient_and_not_with_it(in_tmp):
    flags = "--limit 400 --size 16 --batch-size 32 --epochs 4 --final-bn none --seed 3".split()
    byol.main([*flags, "--eval-every", "9"])
    byol.main([*flags, "--eval-every", "9", "--no-stopgrad"])
    healthy = common.read_csv(Path("runs/byol-patches-s3/metrics.csv"))[-1]
    collapsed = common.read_csv(Path("runs/byol-no_stopgrad-patches-s3/metrics.csv"))[-1]
    assert healthy["std"] > 0.7 and healthy["m_o"] < 0.7, healthy
    assert collapsed["std"] < 0.25 and collapsed["m_o"] > 0.97, collapsed


@pytest.mark.parametrize("flags, name", [
    ("--data cifar10 --size 8 --limit 64 --batch-size 4", "byol-cifar10-s0"),
    ("--data pics --predictor linear --final-bn affine", "byol-linear-pics-s0"),
    ("--predictor none --ema 0 --seed 5 --size 8", "byol-none-patches-s5")])
def test_every_kind_of_run_and_linear_eval(flags, name, in_tmp, fake_cifar, image_folder):
    byol.main([*flags.split(), "--dry-run"])
    assert [row["epoch"] for row in common.read_csv(Path("runs", name, "metrics.csv"))] == [0, 1]
    result = linear_eval.main([f"runs/{name}", "--epochs", "1"])
    assert result["trained"]["epoch"] == 1


@pytest.mark.parametrize("flags, words", [
    ("--ema 1.1", "--ema"), ("--ema -0.1", "--ema"), ("--min-scale 2", "--min-scale"),
    ("--predictor deep", "--predictor"),
    ("--ema-schedule linear", "--ema-schedule")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        byol.main(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not Path("runs").exists()

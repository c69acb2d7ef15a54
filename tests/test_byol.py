"""BYOL: loss, target, its average, and what collapses."""
import math
from pathlib import Path

import pytest
import torch

import byol
import common
import linear_eval

SMALL = "--proj-hidden 32 --proj-dim 24 --pred-hidden 16".split()


def parse(*flags):
    return common.parse_args(byol.__file__, "", byol.RECIPES, flags, byol.CHOICES, byol.FLAGS)


def on_unit_sphere(p, t):
    """The loss of the paper's equation 2: ||p/|p| - t/|t|||^2, mean over the batch."""
    return (p / p.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)).square().sum(1).mean()


@pytest.mark.parametrize("flags", [[], ["--predictor", "linear"], ["--predictor", "none"], ["--ema", "0"]])
def test_first_step_has_the_gradient_of_the_paper_and_none_at_the_target(flags, first_step):
    model, x1, x2, grads = first_step(byol, *SMALL, *flags)
    target = model.target or model.encoder
    with torch.no_grad():
        t1, t2 = target(x1), target(x2)
    loss = on_unit_sphere(model.predictor(model.encoder(x1)), t2) + on_unit_sphere(model.predictor(model.encoder(x2)), t1)
    online = {name: p for name, p in model.named_parameters() if not name.startswith("target.")}
    for (name, p), g in zip(online.items(), torch.autograd.grad(loss, list(online.values()))):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name
    assert all(grads[name] is None for name in grads if name not in online) and (model.target is None) == ("--ema" in flags)


def test_no_stopgrad_lets_the_gradient_through_both_paths(first_step):
    model, x1, x2, grads = first_step(byol, *SMALL, "--no-stopgrad")
    z1, z2 = model.encoder(x1), model.encoder(x2)
    loss = on_unit_sphere(model.predictor(z1), z2) + on_unit_sphere(model.predictor(z2), z1)
    for (name, p), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters()))):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name
    assert model.target is None                                            # what the flag says: the online net is its own target


def test_target_is_the_closed_form_average_of_weights_and_bn_buffers():
    """After k steps: m^k f'_0 + (1 - m) sum_i m^(k-i) f_i, for all of its tensors; it starts as a copy."""
    model = byol.BYOL(parse(*SMALL)).double()
    names = [k for k, v in model.encoder.state_dict().items() if v.is_floating_point()]
    assert any("running_var" in k for k in names)
    for k in names:
        assert torch.equal(model.target.state_dict()[k], model.encoder.state_dict()[k])
    expected, m, steps = {k: 0.9**7 * model.target.state_dict()[k] for k in names}, 0.9, 7
    for i in range(1, steps + 1):
        for k in names:
            model.encoder.state_dict()[k].normal_()
            expected[k] += (1 - m) * m ** (steps - i) * model.encoder.state_dict()[k]
        model.update_target(m)
    for k in names:
        assert torch.allclose(model.target.state_dict()[k], expected[k], rtol=1e-10, atol=1e-12), k


@pytest.mark.parametrize("flags, expected", [("--ema 0.9 --ema-schedule constant", lambda share: 0.9),
                                             ("--ema 0.9 --ema-schedule cosine", lambda share: 0.95 - 0.05 * math.cos(math.pi * share))])
def test_momentum_of_the_target(flags, expected, in_tmp, monkeypatch):
    seen = []
    monkeypatch.setattr(byol.BYOL, "update_target", lambda self, m: seen.append(m))
    byol.main([*SMALL, *flags.split(), *"--limit 128 --batch-size 32 --epochs 3 --eval-every 9".split()])
    assert seen == pytest.approx([expected((i + 0.5) / 12) for i in range(12)])


@pytest.mark.parametrize("data, hidden, ema_schedule", [("cifar10", 1024, "constant"), ("cifar100", 4096, "cosine")])
def test_recipes_of_the_papers(data, hidden, ema_schedule):
    args = parse("--data", data)
    model = byol.BYOL(args)
    heads = [m for m in (*model.encoder.projector, *model.predictor) if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in heads] == [(512, hidden), (hidden, 256), (256, hidden), (hidden, 256)]
    assert (args.ema, args.ema_schedule) == (0.99, ema_schedule)


def test_only_the_second_view_is_solarized(in_tmp, monkeypatch):
    seen, real = [], common.augment
    monkeypatch.setattr(common, "augment", lambda *a, **k: (seen.append((a[3], k.get("solarize_p", 0.0))), real(*a, **k))[1])
    byol.main([*SMALL, "--dry-run", "--solarize-p", "0.2", "--min-scale", "0.08"])
    assert seen == [(0.08, 0.0), (0.08, 0.2)] * 3


def test_resumed_run_has_the_weights_of_an_uninterrupted_one(whole_and_cut):
    a, b = whole_and_cut(byol, *SMALL)
    assert a.keys() == b.keys() and any(k.startswith("target.") for k in a)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["target.projector.0.weight"], a["encoder.projector.0.weight"])


def test_collapses_without_stop_gradient_and_not_with_it(in_tmp):
    flags = "--limit 1000 --epochs 5 --eval-every 5 --final-bn none --seed 3 --out".split()
    byol.main([*flags, "with"])
    byol.main([*flags, "without", "--no-stopgrad"])
    healthy, collapsed = (common.read_csv(next(Path(folder).glob("*/metrics.csv")))[-1] for folder in ("with", "without"))
    assert healthy["std"] > 0.4 and healthy["m_o"] < 0.95, healthy
    assert collapsed["m_o"] > 0.97 and collapsed["std"] < 0.25, collapsed


@pytest.mark.parametrize("flags", ["--data cifar10", "--data cifar100 --batch-size 8", "--data pics", "--predictor linear --final-bn affine",
                                   "--predictor none --ema 0", "--ema-schedule cosine --ema 0.996"])
def test_every_kind_of_run_and_linear_eval(flags, in_tmp, fake_cifar, image_folder):
    byol.main([*flags.split(), "--dry-run"])
    folder, = Path("runs").iterdir()
    label = {"--predictor linear --final-bn affine": "-linear", "--predictor none --ema 0": "-none-no_ema"}.get(flags, "")
    assert folder.name.startswith(f"byol{label}-") and len(common.read_csv(folder / "metrics.csv")) == 2
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


@pytest.mark.parametrize("flags, words", [("--ema 1", "--ema"), ("--ema -0.1", "--ema"), ("--predictor deep", "--predictor"),
                                          ("--ema-schedule linear", "--ema-schedule")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        byol.main(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err

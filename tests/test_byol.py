"""BYOL: loss, target, its average, and what collapses.  test_simsiam.py has what scripts share."""
import json
from pathlib import Path

import pytest
import torch

import byol
from test_simsiam import same_gradients

SMALL = "--size 8 --proj-hidden 32 --proj-dim 24 --pred-hidden 16".split()
TINY = [*SMALL, *"--limit 64 --batch-size 16 --epochs 1 --eval-every 9".split()]   # four steps
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def on_unit_sphere(p, t):
    """The loss of the paper's equation 2: ||p/|p| - t/|t|||^2, mean over the batch."""
    P, T = p / p.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    return (P - T).square().sum(1).mean()


@pytest.mark.parametrize("flags", [[], ["--predictor", "none"], ["--no-stopgrad"]])
def test_first_step_has_the_gradient_of_the_paper(flags, first_step):
    """And none at the target; with --no-stopgrad it flows through both paths.

    Before it the net is as it was built, with BatchNorm's averages: row 0 has been measured."""
    model, x1, x2, grads = first_step(byol, *SMALL, *flags)
    torch.manual_seed(0)
    fresh, found = byol.build(byol.parse([*SMALL, *flags])).state_dict(), model.state_dict()
    assert found.keys() == fresh.keys() and any("running_var" in key for key in fresh)
    assert all(torch.equal(found[key], fresh[key]) for key in fresh)
    z1, z2 = model.encoder(x1), model.encoder(x2)
    t1, t2 = model.target(x1).detach(), model.target(x2).detach()
    if "--no-stopgrad" in flags:
        t1, t2 = z1, z2
    loss = on_unit_sphere(model.predictor(z1), t2) + on_unit_sphere(model.predictor(z2), t1)
    same_gradients(loss, model, grads)
    assert ("none" in flags) == (not list(model.predictor.parameters()))


def test_target_is_the_closed_form_average_of_weights_and_bn_buffers(m=0.9, steps=7):
    """After k steps m^k f'_0 + (1 - m) sum_i m^(k-i) f_i, all of it; it starts as a copy."""
    model = byol.build(byol.parse(SMALL)).double()
    online, target = model.encoder.state_dict(), model.target.state_dict()    # live views
    names = [key for key, value in online.items() if value.is_floating_point()]
    assert any("running_var" in key for key in names)
    assert all(torch.equal(target[key], online[key]) for key in names)
    expected = {key: m**steps * target[key] for key in names}
    for i in range(1, steps + 1):
        for key in names:
            online[key].normal_()
            expected[key] += (1 - m) * m ** (steps - i) * online[key]
        model.update_target(m)
    for key in names:
        assert torch.allclose(target[key], expected[key], rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("m", ["0", "1"])
def test_a_target_of_momentum_0_is_the_net_and_one_of_momentum_1_stays(m):
    model = byol.main([*TINY, "--ema", m])
    torch.manual_seed(0)
    first = byol.build(byol.parse(SMALL)).encoder.state_dict()
    last, target = model.encoder.state_dict(), model.target.state_dict()
    names = [name for name, _ in model.encoder.named_parameters()]
    assert all(torch.equal(target[key], (first if m == "1" else last)[key]) for key in names)
    assert not any(torch.equal(first[key], last[key]) for key in names)


def test_heads_of_the_recipe():
    model = byol.build(byol.parse(["--data", "cifar10"]))
    shapes = [tuple(m.weight.shape) for net in (model.encoder.projector, model.predictor)
              for m in net if isinstance(m, torch.nn.Linear)]
    assert shapes == [(1024, 512), (256, 1024), (1024, 256), (256, 1024)]


def test_collapses_without_stop_gradient_and_not_with_it():
    flags = "--limit 320 --size 16 --batch-size 32 --epochs 3 --final-bn none --lr 0.2".split()
    flags += ["--eval-every", "9", "--out"]
    byol.main([*flags, "with"])
    byol.main([*flags, "without", "--no-stopgrad"])
    healthy, collapsed = (json.loads(next(Path(out).glob("*/result.json")).read_text())
                          for out in ("with", "without"))
    assert healthy["std"] > 0.7 and healthy["m_o"] < 0.7, healthy
    assert collapsed["std"] < 0.25 and collapsed["m_o"] > 0.97, collapsed

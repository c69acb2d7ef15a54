"""knobs.py is simsiam.py and byol.py as long as no knob is turned; each knob does what it says."""
import numpy as np
import pytest
import torch

import byol
import knobs
import simsiam

SMALL = "--size 8 --limit 128 --batch-size 32 --epochs 2 --eval-every 9 --proj-dim 64".split()
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def test_untouched_it_is_simsiam_to_the_bit():
    a, b = simsiam.main(SMALL).state_dict(), knobs.main(SMALL).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_its_byol_takes_byols_steps(watch):
    """Rate 0.1 for 4 times the loss is rate 0.4, and its weight decay a quarter.  Both nets start
    alike.  byol.py's projector ends in a bias, which the BatchNorm behind it takes away."""
    start = knobs.build(knobs.parse([*SMALL, "--variant", "byol"])).state_dict()
    for net in (byol.BYOL, knobs.Siamese):
        watch(net, "__init__", lambda _, self, args: self.load_state_dict(start, strict=False))
    a = byol.main([*SMALL, "--proj-hidden", "64"]).state_dict()
    b = knobs.main([*SMALL, "--variant", "byol"]).state_dict()
    names = [name for name in b if "num_batches" not in name and "target" not in name
             and name != "encoder.projector.4.running_mean"]
    for name in names:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    assert max((a[name] - start[name]).abs().max() for name in names) > 0.01


def test_the_predictors_rate_falls_with_the_encoders(watch):
    rates = watch(torch.optim.SGD, "step", lambda _, self: [g["lr"] for g in self.param_groups])
    knobs.main([*SMALL, *"--pred-lr 3 --pred-schedule cosine".split()])
    assert all(h == pytest.approx(3 * f) for f, h in rates[:8])        # those behind: of the probe


def test_a_target_that_is_copied_stays_for_so_many_steps(watch):
    snapshots = watch(torch.optim.SGD, "step", lambda _, self: [
        p.detach().clone() for p in self.param_groups[0]["params"]])
    net = knobs.main([*SMALL, "--target-every", "3"])      # 8 steps: copied after 3 and after 6
    target = list(net.target.parameters())
    assert all(torch.equal(a, b) for a, b in zip(target, snapshots[5], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(target, snapshots[7], strict=True))


@pytest.mark.parametrize("n, d", [(64, 16), (16, 64)])
def test_health_against_numpy(n, d):
    r = np.random.default_rng(0).normal(size=(n, d)) * np.linspace(0.1, 2, d) + 0.3
    R = r / np.linalg.norm(r, axis=1, keepdims=True)
    values = np.linalg.svd(R - R.mean(0), compute_uv=False)
    area = sum(values[:i + 1].sum() / values.sum() for i in range(len(values))) / len(values)
    shares = (values**2 / (values**2).sum()).clip(1e-12)
    found = knobs.health(torch.tensor(r))
    assert found["test_auc_r"] == pytest.approx(area, rel=1e-3)
    assert found["test_rank_r"] == pytest.approx(np.exp(-shares @ np.log(shares)), rel=1e-3)

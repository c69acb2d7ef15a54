"""knobs.py is simsiam.py and byol.py as long as no knob is turned; each knob does what it says."""
import numpy as np
import pytest
import torch
from torch import nn

import byol
import common
import knobs
import simsiam

SMALL = "--size 8 --limit 128 --batch-size 32 --epochs 2 --eval-every 9 --proj-dim 64".split()
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def test_untouched_it_is_simsiam_to_the_bit():
    a, b = simsiam.main(SMALL).state_dict(), knobs.main(SMALL).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_its_byol_takes_byols_steps(monkeypatch):
    """Rate 0.1 for 4 times the loss is rate 0.4, and its weight decay a quarter.

    byol.py's last layer has a bias, which the BN behind it takes away; here it is left out."""
    start = {}

    def same_start(make):
        def build(args):
            net = make(args)
            for name, value in net.state_dict().items():
                start.setdefault(name, value * (not name.endswith("projector.3.bias")))
                value.copy_(start[name])
            return net
        return build
    monkeypatch.setattr(byol, "BYOL", same_start(byol.BYOL))
    monkeypatch.setattr(knobs, "Siamese", same_start(knobs.Siamese))
    a = byol.main([*SMALL, "--proj-hidden", "64"]).state_dict()
    b = knobs.main([*SMALL, "--variant", "byol"]).state_dict()
    names = [name for name in b if "num_batches" not in name and "target" not in name]
    for name in names:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    assert max((a[name] - start[name]).abs().max() for name in names) > 0.01


def net_of(flags):
    return knobs.build(knobs.parse(flags.split()))


def test_what_the_networks_are():
    bare = [nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in net_of("--no-pred-bn").predictor] == bare
    projector = net_of("--no-proj-bn --final-bn none").encoder.projector
    assert [type(layer) for layer in projector] == bare
    assert isinstance(net_of("--predictor none").predictor, nn.Identity)
    assert net_of("--pred-hidden 64").predictor[0].out_features == 64
    assert net_of("").target is None and net_of("--variant byol").target is not None
    assert net_of("--variant byol --no-stopgrad").target is None


@pytest.mark.parametrize("flags", ["", "--no-stopgrad", "--pair own", "--predictor none"])
def test_the_gradient_by_hand(flags, first_step):
    net, x1, x2, grads = first_step(knobs, *SMALL, *flags.split())
    z = [net.encoder(x1), net.encoder(x2)]
    p = z if "none" in flags else [net.predictor(v) for v in z]
    target = z if "stopgrad" in flags else [v.detach() for v in z]
    pairs = ((0, 0), (1, 1)) if "own" in flags else ((0, 1), (1, 0))
    cosines = [(p[i] * target[j]).sum(1) / p[i].norm(dim=1) / target[j].norm(dim=1)
               for i, j in pairs]
    expected = torch.autograd.grad(-torch.stack(cosines).mean(), list(net.parameters()))
    for (name, grad), g in zip(grads.items(), expected):
        assert torch.allclose(grad, g, rtol=1e-3, atol=1e-6), name


def test_augmentation_and_rates(monkeypatch):
    views, rates = [], []

    def augment(x, mean, std, *scale, real=common.augment, **more):
        views.append((scale, more))
        return real(x, mean, std, *scale, **more)

    def step(self, real=torch.optim.Adam.step):
        rates.append([group["lr"] for group in self.param_groups])
        return real(self)
    monkeypatch.setattr(common, "augment", augment)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    flags = [*SMALL, *"--optimizer adam --lr 0.008 --pred-lr 3 --warmup-epochs 0".split()]
    knobs.main([*flags, *"--min-scale 0.6 --jitter-p 0".split()])
    assert views[-16:] == [((0.6,), {"jitter_p": 0.0})] * 16
    f, h = zip(*rates)
    assert h == pytest.approx([0.003] * 8) and 0.001 >= f[0] > f[-1]
    rates.clear()
    knobs.main([*flags, "--pred-schedule", "cosine"])
    assert all(b == pytest.approx(3 * a) for a, b in rates) and len(rates) == 8


def test_a_target_that_is_copied_stays_for_so_many_steps(monkeypatch):
    snapshots = []

    def step(self, real=torch.optim.SGD.step):
        real(self)
        snapshots.append([p.detach().clone() for p in self.param_groups[0]["params"]])
    monkeypatch.setattr(torch.optim.SGD, "step", step)
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
    ball = torch.linalg.qr(torch.randn(500, 8))[0]         # all singular values the same
    assert knobs.health(torch.cat([ball, -ball]))["test_auc_r"] == pytest.approx(9 / 16, abs=0.01)

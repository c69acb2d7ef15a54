"""knobs.py is simsiam.py and byol.py as long as no knob is turned; each knob does what it says."""
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import byol
import common
import knobs
import simsiam

SMALL = "--size 16 --limit 128 --batch-size 32 --epochs 2 --eval-every 9".split()


def test_untouched_it_is_simsiam_to_the_bit(in_tmp):
    a, b = simsiam.main(SMALL).state_dict(), knobs.main(SMALL).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_its_byol_takes_byols_steps(in_tmp, monkeypatch):
    """Rate 0.1 for 4 times the loss is rate 0.4, and its weight decay a quarter.

    byol.py's last layer has a bias, which the BN behind it takes away; here it is left out."""
    real = byol.make_mlp

    def without_bias(width, hidden, dim):
        net = real(width, hidden, dim)
        if width == 96:
            torch.nn.init.zeros_(net[-1].bias)
        return net
    monkeypatch.setattr(byol, "make_mlp", without_bias)
    start = {}
    monkeypatch.setattr(byol, "BYOL", lambda args, make=byol.BYOL: same_start_of(make, args, start))
    monkeypatch.setattr(knobs, "Siamese",
                        lambda args, make=knobs.Siamese: same_start_of(make, args, start))
    a, b = byol.main(SMALL).state_dict(), knobs.main([*SMALL, "--variant", "byol"]).state_dict()
    moved = 0
    for name in b:
        if "num_batches" not in name and "target" not in name:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
            moved = max(moved, (a[name] - start[name]).abs().max().item())
    assert moved > 0.01


def same_start_of(make, args, start):
    """The second net starts where the first did."""
    net = make(args)
    for name, value in net.state_dict().items():
        if name in start:
            value.copy_(start[name])
    start.update({name: value.clone() for name, value in net.state_dict().items()
                  if name not in start})
    return net


def net_of(flags):
    return knobs.build(knobs.parse(flags.split()))


def kinds(net):
    return [type(layer) for layer in net]


def test_what_the_networks_are():
    net = net_of("--no-pred-bn")
    assert kinds(net.predictor) == [nn.Linear, nn.ReLU, nn.Linear]
    assert nn.BatchNorm1d in kinds(net.encoder.projector)
    net = net_of("--no-proj-bn --final-bn none")
    assert kinds(net.encoder.projector) == [nn.Linear, nn.ReLU, nn.Linear]
    assert net_of("--predictor none").predictor(torch.ones(2)).equal(torch.ones(2))
    assert net_of("--pred-hidden 64").predictor[0].out_features == 64
    assert net_of("").target is None and net_of("--variant byol").target is not None
    assert net_of("--variant byol --no-stopgrad").target is None


def first_gradient(flags, monkeypatch):
    """Loss and gradient of the first step, and the arguments of augment."""
    seen = []

    class Stop(Exception):
        pass

    def backward(self, *a, real=torch.Tensor.backward):
        real(self, *a)
        raise Stop
    with monkeypatch.context() as patch:
        patch.setattr(common, "augment", lambda x, *a, real=common.augment, **k: (
            seen.append((a[2:], k)), real(x, *a, **k))[1])
        patch.setattr(torch.Tensor, "backward", backward)
        nets = []
        patch.setattr(knobs, "Siamese", lambda args, make=knobs.Siamese: (
            nets.append(make(args)), nets[0])[1])
        with pytest.raises(Stop):
            knobs.main([*SMALL, *flags.split()])
    return nets[0], seen


@pytest.mark.parametrize("flags", ["", "--no-stopgrad", "--pair own", "--predictor none"])
def test_the_loss_by_hand(flags, in_tmp, monkeypatch):
    """Its gradient with respect to f's last matrix, against one that is written out."""
    net, _ = first_gradient(flags, monkeypatch)
    got = net.encoder.projector[3].weight.grad.clone()
    torch.manual_seed(0)
    args = knobs.parse([*SMALL, *flags.split()])
    fresh = knobs.Siamese(args).train()
    data = common.load_data("patches", size=16, limit=128)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))[:32]
    torch.manual_seed(1009)
    x1, x2 = (common.augment(data.train_x[order], data.mean, data.std) for _ in range(2))
    z = [fresh.encoder(x) for x in (x1, x2)]
    p = z if "none" in flags else [fresh.predictor(v) for v in z]
    target = z if "stopgrad" in flags else [v.detach() for v in z]
    pairs = ((0, 0), (1, 1)) if "own" in flags else ((0, 1), (1, 0))
    cosines = [(p[i] * target[j]).sum(1) / p[i].norm(dim=1) / target[j].norm(dim=1)
               for i, j in pairs]
    (-torch.stack(cosines).mean()).backward()
    want = fresh.encoder.projector[3].weight.grad
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * want.abs().max().item() + 1e-8)


def test_augmentation_and_rates(in_tmp, monkeypatch):
    _, seen = first_gradient("--min-scale 0.6 --jitter-p 0", monkeypatch)
    assert seen[-1] == ((0.6,), {"jitter_p": 0.0})
    rates = []

    def step(self, *a, real=torch.optim.Adam.step, **k):
        rates.append([group["lr"] for group in self.param_groups])
        return real(self, *a, **k)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    knobs.main([*SMALL, *"--optimizer adam --lr 0.008 --pred-lr 3 --warmup-epochs 0".split()])
    f, h = zip(*rates)
    assert h == pytest.approx([0.003] * 8) and f[0] > f[-1] and f[0] <= 0.001
    rates.clear()
    knobs.main([*SMALL, *"--optimizer adam --lr 0.008 --pred-lr 3 --pred-schedule cosine".split()])
    assert all(b == pytest.approx(3 * a) for a, b in rates) and len(rates) == 8
    assert Path("runs/knobs-simsiam-patches-s0-2").is_dir()


def test_a_target_that_is_copied_stays_for_so_many_steps(in_tmp, monkeypatch):
    snapshots = []

    def step(self, *a, real=torch.optim.SGD.step, **k):
        real(self, *a, **k)
        snapshots.append([p.detach().clone() for p in self.param_groups[0]["params"]])
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    net = knobs.main([*SMALL, "--target-every", "3"])      # 8 steps: copied after 3 and after 6
    target = list(net.target.parameters())
    assert all(torch.equal(a, b) for a, b in zip(target, snapshots[5], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(target, snapshots[7], strict=True))
    assert net_of("--target-every 1").target is None
    assert net_of("--target-every 9 --no-stopgrad").target is None


def test_a_collapse_is_said_while_it_trains_and_health_is_not(in_tmp, capsys):
    flags = ("--limit 128 --batch-size 16 --epochs 4 --eval-every 9 --warmup-epochs 0 --lr 1.6 "
             "--final-bn none").split()
    knobs.main(flags)
    assert "collapse since" not in capsys.readouterr().out
    knobs.main([*flags, "--predictor", "none"])
    out = capsys.readouterr().out
    assert out.count("complete collapse since epoch") == 1 and "#collapse-guide" in out
    assert "--lr 0.4 or --weight-decay 0;" in out          # a quarter of the rate
    before, after = out.split("complete collapse since epoch")
    assert re.search(r"\n +3 [^\n]*\n$", before) or re.search(r"\n +4 [^\n]*\n$", before)

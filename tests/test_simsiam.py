"""The method: loss, stop-gradient, heads, schedule."""
import argparse
import json

import pytest
import torch
from torch import nn

import common
import linear_eval
import simsiam


pytestmark = pytest.mark.usefixtures("no_curves")


def args(**changed):
    small = simsiam.RECIPES["patches"] | {"proj_dim": 32, "pred_hidden": 16}
    return argparse.Namespace(**small | changed)


def test_D_is_the_negative_cosine_and_detaches_nothing():
    torch.manual_seed(0)
    p = torch.randn(5, 7, dtype=torch.double, requires_grad=True)
    z = torch.randn(5, 7, dtype=torch.double, requires_grad=True)
    by_hand = -sum((a @ b) / (a @ a).sqrt() / (b @ b).sqrt() for a, b in zip(p, z)) / 5
    assert torch.allclose(simsiam.D(p, z), by_hand)
    simsiam.D(p, z).backward()
    n = p.norm(dim=1, keepdim=True)
    P, Z = p / n, z / z.norm(dim=1, keepdim=True)
    closed_form = -(Z - (P * Z).sum(1, keepdim=True) * P) / n / 5  # d(-cos)/dp = -(Z - cos P) / |p|
    assert torch.allclose(p.grad, closed_form) and z.grad.abs().sum() > 0


def test_training_step_has_the_gradient_of_the_paper_and_stops_it_at_z(first_step):
    """The first step of main() against Algorithm 1, written out with constant targets."""
    model, x1, x2, grads = first_step(simsiam, "--proj-dim", "32", "--pred-hidden", "16")
    z1, z2 = model.encoder(x1), model.encoder(x2)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    t1, t2 = z1.detach().clone(), z2.detach().clone()
    cosine = nn.CosineSimilarity(dim=1)
    loss = -(cosine(p1, t2).mean() + cosine(p2, t1).mean()) / 2
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for (name, p), g in zip(model.named_parameters(), expected):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("final_bn, kind", [
    ("none", nn.Linear), ("noaffine", nn.BatchNorm1d), ("affine", nn.BatchNorm1d)])
def test_final_bn(final_bn, kind):
    last = simsiam.SimSiam(args(final_bn=final_bn)).encoder.projector[-1]
    assert isinstance(last, kind) and (kind is nn.Linear or last.affine == (final_bn == "affine"))


@pytest.mark.parametrize("data, layers", [
    ("cifar10", [(512, 2048), (2048, 2048)]),
    ("cifar100", [(512, 2048), (2048, 2048), (2048, 2048)])])
def test_heads_of_the_papers(data, layers):
    model = simsiam.SimSiam(argparse.Namespace(**simsiam.RECIPES[data]))
    def shapes(net):
        return [(m.in_features, m.out_features) for m in net if isinstance(m, nn.Linear)]
    assert shapes(model.encoder.projector) == layers
    assert shapes(model.predictor) == [(2048, 512), (512, 2048)]
    kinds = [type(m).__name__ for m in model.encoder.projector]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == block * (len(layers) - 1) + ["Linear", "BatchNorm1d"]
    assert [type(m).__name__ for m in model.predictor] == [*block, "Linear"]


def test_predictor_rate_is_constant_and_encoder_rate_falls(monkeypatch, in_tmp):
    rates, real = [], torch.optim.SGD.step

    def step(self, *a):
        rates.append([group["lr"] for group in self.param_groups])
        return real(self, *a)
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    flags = "--limit 128 --batch-size 32 --epochs 6 --warmup-epochs 2 --lr 0.8 --eval-every 9"
    simsiam.main(flags.split())
    encoder, predictor = zip(*(step for step in rates if len(step) == 2))  # not the linear probe's
    base = 0.8 * 32 / 256
    assert len(encoder) == 24 and set(predictor) == {base}
    top = encoder.index(max(encoder))
    assert 7 <= top <= 8 and list(encoder[:top]) == sorted(encoder[:top])
    assert list(encoder[top:]) == sorted(encoder[top:], reverse=True)
    assert 0 < encoder[0] < 0.1 * base and encoder[-1] < 0.02 * base


def test_learns_in_a_few_epochs_and_a_net_without_stop_gradient_collapses(monkeypatch, in_tmp):
    """SimSiam keeps its std; with `detach` taken away the net goes to m_o = 1."""
    flags = "--limit 320 --batch-size 32 --epochs 4 --eval-every 9 --final-bn none --out".split()
    simsiam.main([*flags, "with"])
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    real = common.collapse_metrics
    monkeypatch.setattr(common, "collapse_metrics", lambda z: real(z.data))
    simsiam.main([*flags, "without"])

    def last(folder):
        return common.read_csv(f"{folder}/simsiam-patches-s0/metrics.csv")[-1]
    healthy, collapsed = last("with"), last("without")
    assert healthy["std"] > 0.4 and healthy["m_o"] < 0.95, healthy
    assert collapsed["m_o"] > 0.97 and collapsed["std"] < 0.25, collapsed
    assert collapsed["loss"] < -0.95, collapsed


# ----------------------------------------------------------------------------------- what it leaves

def test_linear_eval_starts_from_the_very_net_of_epoch_0(in_tmp):
    import csv
    simsiam.main("--limit 300 --epochs 2".split())
    folder = "runs/simsiam-patches-s0"
    rows = list(csv.DictReader(open(f"{folder}/metrics.csv")))
    result = linear_eval.main([folder, "--epochs", "3"])
    assert result["untrained"]["knn"] == pytest.approx(float(rows[0]["knn"]))
    assert result["trained"]["knn"] == pytest.approx(float(rows[-1]["knn"]))
    assert result["trained"]["epoch"] == 2
    assert json.load(open(f"{folder}/linear_eval.json")) == result
    flags = "--epochs 3 --layer projection --lr 0.5 --batch-size 64".split()
    projection = linear_eval.main([folder, *flags])["trained"]
    assert projection["top1"] != result["trained"]["top1"]
    assert 0 < projection["top1"] <= projection["top5"]

"""Targets and BatchNorms of more_ablations.py by hand; test_mirror_ablations.py has the rest."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import common
import more_ablations as X
from test_mirror_ablations import B, DIM, TINY, across, make, minus_cosine, same, trained, unit

pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def test_moving_average_updates_the_rows_of_its_batch_and_pulls_towards_them():
    net, loss, z1, z2 = make(X, "moving_average", bank_momentum=0.7, n_images=10)
    expected, net.images = net.eta.clone(), torch.tensor([7, 0, 3, 9, 2, 4])
    loss, *p = loss(net, z1, z2)
    loss.backward()
    for i, Z2 in zip(net.images, unit(z2.detach())):
        row = 0.7 * expected[i] + 0.3 * Z2
        expected[i] = row / row.norm()
    assert torch.allclose(net.eta, expected, atol=1e-7)
    assert z2.grad is None and p == [None, None]
    same(z1.grad, minus_cosine(z1, net.eta[net.images]))


def test_same_batch_target_is_the_mean_of_the_other_views():
    net, loss, z1, z2 = make(X, "same_batch")
    others = [z2, *torch.randn(3, B, DIM, dtype=torch.double).unbind()]
    loss, *p = loss(net, z1, *others)
    loss.backward()
    same(z1.grad, minus_cosine(z1, sum(others) / 4))
    assert z2.grad is None and p == [None, None]


def test_bn_after_l2():
    """Loss and gradient with BN by hand: u = (Z - mean) / sd, L = sum (u1 - u2)^2 / 2BD."""
    net, loss, z1, z2 = make(X, "bn_after_l2")
    loss, *p = loss(net, z1, z2)
    loss.backward()
    Z1, Z2 = unit(z1.detach()), unit(z2.detach())
    sd1, sd2 = ((Z.var(0, unbiased=False) + net.bn.eps).sqrt() for Z in (Z1, Z2))
    u1, u2 = (Z1 - Z1.mean(0)) / sd1, (Z2 - Z2.mean(0)) / sd2
    for z, sd, u, v in ((z1, sd1, u1, u2), (z2, sd2, u2, u1)):
        g = (u - v) / B / DIM
        same(z.grad, across(z, (g - g.mean(0) - u * (g * u).mean(0)) / sd))    # back through BN
    same(loss.detach(), (u1 - u2).square().sum() / (2 * B * DIM))
    assert p == [None, None]


def test_whitening_by_numpys_cholesky():
    """Both views in the same random groups; equal views cost nothing."""
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 200, 32) @ torch.randn(32, 32)             # correlated dimensions
    assert X.whitening(None, z1, z1)[0] < 1e-8
    torch.manual_seed(1)
    found = X.whitening(None, z1, z2)[0]
    torch.manual_seed(1)
    total = 0
    for group in torch.randperm(32).split(16):
        white = []
        for z in (z1, z2):
            Z = unit(z).double()[:, group].numpy()
            white.append(np.linalg.solve(np.linalg.cholesky(np.cov(Z.T)), (Z - Z.mean(0)).T))
        total += ((white[0] - white[1]) ** 2).sum() / (2 * 200 * 32)
    assert found.item() == pytest.approx(total, rel=1e-3)


def test_correlated_dimensions_cost_in_whitening_and_not_in_bn_after_l2():
    line = torch.randn(200, 1) * torch.ones(1, 32)
    z1, z2 = (line + 1 + 0.01 * torch.randn(200, 32) for _ in range(2))    # one dimension, noise
    net = SimpleNamespace(bn=nn.BatchNorm1d(32, affine=False))
    with_bn, with_whitening = X.bn_after_l2(net, z1, z2)[0], X.whitening(net, z1, z2)[0]
    assert with_bn < 0.3 * with_whitening and with_whitening > 0.5


@pytest.mark.parametrize("variant", ["tanh_fc", "fc", "fc_of_z"])
def test_tanh_holds_the_weights_of_tanh_fc_alone(variant):
    net, *_ = make(X, variant)
    net.predictor.weight.data.fill_(2)
    net.constrain()
    expected = np.tanh(2) if variant == "tanh_fc" else 2
    assert np.allclose(net.predictor.weight.detach(), expected)


@pytest.mark.parametrize("variant, n", [("moving_average", 2), ("same_batch", 5)])
def test_views_and_which_images_they_are_of(variant, n, monkeypatch):
    """The bank is told; same_batch has as many views as asked for, one of them with gradient."""
    seen = []

    def watch(self, views, forward=X.Siamese.forward):
        z = forward(self, views)
        seen.append((views, self.images, [view.requires_grad for view in z]))
        return z

    monkeypatch.setattr(common, "augment", lambda x, *_: x.float())
    monkeypatch.setattr(X.Siamese, "forward", watch)
    trained(X, variant, "--n-aug", "5")
    train_x = common.load_data("patches", size=8, limit=64).train_x
    for views, images, learns in seen:
        assert len(views) == n and all(torch.equal(train_x[images], view) for view in views)
        assert learns == [True] + [variant == "moving_average"] * (n - 1)
    assert torch.cat([images for _, images, _ in seen]).sort().values.tolist() == list(range(64))
    assert X.parse("--variant same_batch --n-aug 25".split()).label == "same_batch25"


def test_measuring_row_0_changes_nothing_that_trains(first_step):
    """Bank and BatchNorm's averages are as they were built."""
    flags = [*TINY, "--variant", "moving_average"]
    model, *_ = first_step(X, *flags)
    torch.manual_seed(0)
    args = X.parse(flags)
    args.n_images = 32
    fresh, found = X.build(args).state_dict(), model.state_dict()
    assert found.keys() == fresh.keys() and all(torch.equal(found[k], fresh[k]) for k in fresh)

"""Data, metrics and evaluation against independent computations."""
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import common


def test_patches_are_the_same_every_time():
    d = common.load_data("patches")
    assert d.train_x.shape == (4000, 3, 32, 32) and d.test_x.shape == (1000, 3, 32, 32)
    assert d.train_x.dtype == torch.uint8 and d.classes == 10 and d.more == {}
    assert d.train_y.bincount().tolist() == [400] * 10
    assert d.test_y.bincount().tolist() == [100] * 10
    make = common.make_patches.__wrapped__                 # not from conftest's cache
    assert torch.equal(make(common.PATCHES["patches"], 4000, 1, 32)[0], d.train_x)
    assert not torch.equal(d.train_x[:1000], d.test_x)
    assert torch.allclose(d.mean, d.train_x.double().div(255).mean((0, 2, 3)).float(), atol=1e-4)
    assert torch.allclose(d.std, d.train_x.double().div(255).std((0, 2, 3)).float(), atol=1e-4)


def test_patches_have_no_colour_or_brightness_shortcut():
    """The mean colour says nothing of the class: that explains under 2 % of its variance."""
    d = common.load_data("patches")
    colour = d.train_x.float().mean((2, 3))
    between = torch.stack([colour[d.train_y == c].mean(0) for c in range(10)]).var(0)
    assert (between / colour.var(0) < 0.02).all()


def test_strong_and_weak_labels_are_independent_and_their_patterns_the_same():
    """Each pair of classes comes as often; a class's spectrum is that of the test set's class."""
    d = common.load_data("strong_weak")
    strong, (weak, weak_test) = d.train_y, d.more["_weak"]
    assert (5 * strong + weak).bincount().tolist() == [160] * 25 and d.classes == 5
    assert (5 * d.test_y + weak_test).bincount().tolist() == [40] * 25
    for y, y_test in ((strong, d.test_y), (weak, weak_test)):
        power = [torch.stack([torch.fft.rfft2(x[which == c].float().mean(1)).abs().square().mean(0)
                              for c in range(5)]).flatten(1).log()
                 for x, which in ((d.train_x, y), (d.test_x, y_test))]
        a, b = (F.normalize(p - p.mean(0), dim=1) for p in power)
        likeness = a @ b.T
        assert (likeness.argmax(1) == torch.arange(5)).all() and likeness.diagonal().min() > 0.5


def test_the_weak_pattern_is_the_weaker():
    """Without background noise: energy of copies x amplitude^2, 7 x .23 against 5 x .135."""
    energy = []
    for feature in common.PATCHES["strong_weak"]:
        x, _ = common.make_patches((feature,), 2000, 3, 32)
        none, _ = common.make_patches(((5, feature[1], 0.0, 0.0),), 2000, 3, 32)
        energy.append((x.float() - none.float()).div(255).square().sum((1, 2, 3)).mean())
    assert 1.4 < energy[0] / energy[1] < 3.4


def test_limit_takes_a_class_balanced_subset_and_its_labels():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3)
    keep = common.balanced_subset(labels, 23)
    assert labels[keep].bincount().tolist() == [10, 10, 3] and len(keep.unique()) == 23
    whole, some = common.load_data("strong_weak"), common.load_data("strong_weak", limit=100)
    assert some.train_y.bincount().tolist() == [20] * 5 and len(some.test_x) == 1000
    for x, y, weak in zip(some.train_x[:9], some.train_y, some.more["_weak"][0]):
        same = (whole.train_x == x).flatten(1).all(1).nonzero().item()
        assert whole.train_y[same] == y and whole.more["_weak"][0][same] == weak


@pytest.mark.parametrize("name, classes, n", [("cifar10", 10, 500), ("cifar100", 100, 100)])
def test_cifar_is_read_from_torchvisions_files(name, classes, n, fake_cifar):
    d = common.load_data(name, str(fake_cifar))
    files = getattr(torchvision.datasets, name.upper())(str(fake_cifar), train=False)
    assert len(d.train_x) == n and len(d.test_x) == 100 and d.classes == classes
    assert np.array_equal(d.test_x[7].permute(1, 2, 0).numpy(), np.asarray(files[7][0]))
    assert d.test_y.tolist() == files.targets
    limited = common.load_data(name, str(fake_cifar), limit=50)
    assert len(limited.train_x) == 50 and len(limited.train_y.unique()) == min(50, classes)


def test_batches_have_every_image_once_and_their_own_order_in_each_epoch():
    data, args = Namespace(train_x=torch.zeros(35, 3, 8, 8)), Namespace(batch_size=8, seed=3)
    orders, views = [], []
    for epoch in (1, 2, 2):
        progress, chosen = zip(*common.batches(data, args, epoch))
        assert progress == tuple(epoch - 1 + (i + 0.5) / 4 for i in range(4))
        orders.append(torch.cat(chosen).tolist())
        views.append(torch.rand(9).tolist())               # from the epoch's own random numbers
        assert len({*orders[-1]}) == 32
    assert orders[0] != orders[1] == orders[2] and views[0] != views[1] == views[2]


# ------------------------------------------------------------------------------------------ metrics

def test_metrics_of_a_healthy_and_of_collapsed_representations():
    torch.manual_seed(0)
    healthy = common.collapse_metrics(torch.randn(4096, 32))
    assert abs(healthy["std"] - 1) < 0.02 and healthy["m_o"] < 0.05 and healthy["m_r"] > 0.99
    assert healthy["effective_rank"] > 31 and common.verdict(healthy) == "none"
    point = common.collapse_metrics(torch.ones(256, 32) + 0.01 * torch.randn(256, 32))
    assert point["std"] < 0.02 and point["m_o"] > 0.999 and point["m_r"] < 0.02
    assert common.verdict(point) == "complete"
    line = torch.randn(256, 1) * torch.ones(1, 32) + 0.001 * torch.randn(256, 32)
    line = common.collapse_metrics(line)
    assert line["std"] > 0.9 and line["m_o"] < 0.3 and line["effective_rank"] < 1.1
    assert common.verdict(line) == "dimensional"
    for m_o, rank, word in ((.95, 30, "complete"), (.94, 4.0, "dimensional"), (.94, 4.1, "none")):
        assert common.verdict({"m_o": m_o, "effective_rank": rank}) == word


@pytest.mark.parametrize("n, d", [(64, 16), (16, 64)])
def test_metrics_against_numpy(n, d):
    z = np.random.default_rng(0).normal(size=(n, d)) * np.linspace(0.1, 2, d) + 0.3
    Z = z / np.linalg.norm(z, axis=1, keepdims=True)
    m = common.collapse_metrics(torch.tensor(z))
    cov = np.cov(Z.T)
    eig = np.linalg.eigvalsh(cov).clip(1e-15)
    eig /= eig.sum()
    assert m["std"] == pytest.approx(math.sqrt(d) * Z.std(0, ddof=1).mean(), rel=1e-4)
    assert m["m_o"] == pytest.approx(np.linalg.norm(Z.mean(0)), rel=1e-4)
    assert m["m_r"] == pytest.approx(np.linalg.norm(Z - Z.mean(0), axis=1).mean(), rel=1e-4)
    assert m["effective_rank"] == pytest.approx(np.exp(-(eig * np.log(eig)).sum()), rel=1e-3)
    assert m["covariance"] == pytest.approx((cov[~np.eye(d, dtype=bool)] ** 2).sum() / d, rel=1e-3)


def test_metrics_do_not_trust_float32_eigenvalues(monkeypatch):
    """LAPACK's float32 solver gave up on a finite covariance of a collapsed net's features."""
    def gives_up(x, real=torch.linalg.eigvalsh):
        if x.dtype == torch.float:
            raise torch.linalg.LinAlgError("failed to converge")
        return real(x)
    monkeypatch.setattr(torch.linalg, "eigvalsh", gives_up)
    r = torch.ones(4, 8) + 1e-3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert common.collapse_metrics(r)["m_o"] > 0.99


# --------------------------------------------------------------------------------------- evaluation

def test_knn_against_a_loop():
    rng = np.random.default_rng(0)
    y, t = rng.integers(0, 5, 150), rng.integers(0, 5, 700)
    train = rng.normal(size=(150, 8)) + 1.5 * np.eye(8)[y]
    test = rng.normal(size=(700, 8)) + 1.5 * np.eye(8)[t]
    right = 0
    for a, label in zip(test, t):
        cosine = train @ a / np.linalg.norm(train, axis=1) / np.linalg.norm(a)
        near = np.argsort(-cosine)[:20]
        votes = [np.exp(cosine[near][y[near] == c] / 0.1).sum() for c in range(5)]
        right += np.argmax(votes) == label
    ours = common.knn_accuracy(*(torch.tensor(v) for v in (train, y, test, t)), k=20)
    assert ours == pytest.approx(100 * right / 700, abs=0.3) and 50 < ours < 100


def test_knn_of_a_large_set_stays_in_chunks():
    """50 000 x 10 000 similarities at once would be 2 GB."""
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **kwargs or {})
            self.seen = max(self.seen, getattr(out, "numel", int)())
            return out
    y = torch.arange(3000) % 10
    r = torch.randn(3000, 16) + 3 * torch.eye(16)[y]
    with Largest() as largest:
        assert common.knn_accuracy(r, y, r + 0.1, y) > 80
    assert largest.seen == 500 * 3000


def test_linear_probe_by_hand():
    """Softmax regression with momentum and half a cosine; standardised by the training set; the
    last epoch."""
    g = torch.Generator().manual_seed(0)
    x, y = 3 * torch.randn(60, 5, generator=g) + 2, torch.arange(60) % 3
    x2, y2 = 2 * torch.randn(40, 5, generator=g) + 1, torch.arange(40) % 3
    found = common.linear_probe(x, y, x2, y2, epochs=7, lr=2.0, batch_size=16)
    mean, std = x.mean(0), x.std(0) + 1e-6
    W, b, of_W, of_b = torch.zeros(3, 5), torch.zeros(3), 0, 0
    g.manual_seed(0)
    for epoch in range(7):
        lr = 1 + math.cos(math.pi * epoch / 7)
        for i in torch.randperm(60, generator=g).split(16):
            u = (x[i] - mean) / std
            error = (torch.softmax(u @ W.T + b, 1) - torch.eye(3)[y[i]]) / len(i)
            of_W, of_b = 0.9 * of_W + error.T @ u, 0.9 * of_b + error.sum(0)
            W, b = W - lr * of_W, b - lr * of_b
    right = (((x2 - mean) / std @ W.T + b).argmax(1) == y2).float().mean()
    assert found == pytest.approx(100 * right.item(), abs=1e-3)


@pytest.mark.parametrize("arch", common.ARCHS)
def test_extract_features_leaves_the_backbone_bit_identical(arch):
    net, width = common.make_backbone(arch)
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    feats = common.extract_features(net, x, mean, std, batch_size=4)
    assert feats.shape == (6, width) and net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.eval()
    by_hand = net((x.float() / 255 - mean[:, None, None]) / std[:, None, None])
    assert torch.allclose(feats, by_hand, atol=1e-4)


def test_cosine_lr():
    rates = [common.cosine_lr(2.0, epoch, 12, warmup_epochs=2) for epoch in (0, 1, 2, 7, 12)]
    assert rates == pytest.approx([0, 1, 2, 1, 0])
    assert common.cosine_lr(2.0, 0, 10) == 2.0 and common.cosine_lr(2.0, 5, 10) == pytest.approx(1)


def test_resnet18_is_torchvisions_except_for_the_stem():
    ours = common.make_backbone("resnet18")[0].state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"} and set(ours) <= set(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["conv1.weight"]


def test_weights_that_decay_to_nothing_do_not_slow_a_cpu_down():
    """Denormal numbers, on which it is a hundred times slower, count as 0 after setup."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot")
    small = torch.tensor(1e-30)
    assert small * 1e-10 > 0
    common.setup(Namespace(device="cpu", seed=0))
    assert small * 1e-10 == 0

"""Data, metrics and evaluation against independent computations."""
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import common


# --------------------------------------------------------------------------------------------- data

def test_patches_are_the_same_every_time():
    d = common.load_data("patches")
    assert d.train_x.shape == (4000, 3, 32, 32) and d.test_x.shape == (1000, 3, 32, 32)
    assert d.train_x.dtype == torch.uint8 and len(d.classes) == 10
    assert d.train_y.bincount().tolist() == [400] * 10
    assert d.test_y.bincount().tolist() == [100] * 10
    make = common.make_patches.__wrapped__                 # not from conftest's cache
    again, _ = make(common.PATCHES["patches"], 4000, 32, 1)
    assert torch.equal(again, d.train_x)
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
    strong, (weak, weak_test) = d.train_y, d.more["weak"]
    pairs = (5 * strong + weak).bincount()
    assert pairs.tolist() == [160] * 25 and len(d.classes) == 5
    assert (5 * d.test_y + weak_test).bincount().tolist() == [40] * 25
    half = common.load_data("strong_weak", limit=500).more["weak"][0]
    assert len(half) == 500
    for y, y_test in ((strong, d.test_y), (weak, weak_test)):
        power = [torch.stack([torch.fft.rfft2(x[which == c].float().mean(1)).abs().square().mean(0)
                              for c in range(5)]).flatten(1).log()
                 for x, which in ((d.train_x, y), (d.test_x, y_test))]
        a, b = (torch.nn.functional.normalize(p - p.mean(0), dim=1) for p in power)
        likeness = a @ b.T
        assert (likeness.argmax(1) == torch.arange(5)).all() and likeness.diagonal().min() > 0.5


def test_the_weak_pattern_is_the_weaker(monkeypatch):
    """Without background noise: energy of copies x amplitude^2, 7 x .23 against 5 x .135."""
    strong, weak = common.PATCHES["strong_weak"]
    energy = []
    for feature in (strong, weak):
        x, y = common.make_patches((feature,), 2000, 32, 3)
        none, _ = common.make_patches(((5, feature[1], 0.0, 0.0),), 2000, 32, 3)
        energy.append((x.float() - none.float()).div(255).square().sum((1, 2, 3)).mean())
    assert 1.4 < energy[0] / energy[1] < 3.4


def test_limit_takes_a_class_balanced_subset():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 20)
    keep = common.balanced_subset(labels, 23)
    assert labels[keep].bincount().tolist() == [10, 10, 3] and len(keep.unique()) == 23
    assert common.load_data("patches", limit=100).train_y.bincount().tolist() == [10] * 10


def test_cifar_is_read_from_torchvisions_files(fake_cifar):
    d = common.load_data("cifar10", str(fake_cifar))
    import torchvision
    files = torchvision.datasets.CIFAR10(str(fake_cifar), train=False)
    assert len(d.train_x) == 300 and len(d.test_x) == 60 and d.classes[3] == "c3"
    assert np.array_equal(d.test_x[7].permute(1, 2, 0).numpy(), np.asarray(files[7][0]))
    assert d.test_y[7] == files[7][1]
    d = common.load_data("cifar100", str(fake_cifar), limit=200)
    train, test = d.more["coarse"]                         # of the same images
    assert len(d.train_x) == 200 and torch.equal(train, d.train_y // 5)
    assert len(test) == 100 and torch.equal(test, d.test_y // 5)
    assert common.load_data("cifar10", str(fake_cifar), size=48).train_x.shape[-2:] == (48, 48)


def test_fashionmnist_and_stl10_become_rgb_of_the_wanted_size(monkeypatch):
    class Fake:
        def __init__(self, root, download, train=True, split="test"):
            self.data = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8)
            self.targets, self.classes = torch.arange(20) % 10, [str(i) for i in range(10)]
            if split != "test":
                self.labels = np.array([0, 1, -1, -1] * 5)
            else:
                self.labels = np.array([0, 1] * 10)
            if STL:
                assert split in ("train+unlabeled", "test")
                self.data = np.random.randint(0, 256, (20, 3, 96, 96), dtype=np.uint8)

    STL = False
    monkeypatch.setattr(common.torchvision.datasets, "FashionMNIST", Fake)
    monkeypatch.setattr(common.torchvision.datasets, "STL10", Fake)
    d = common.load_data("fashionmnist")
    assert d.train_x.shape == (20, 3, 32, 32) and torch.equal(d.train_x[:, 0], d.train_x[:, 2])
    STL = True
    d = common.load_data("stl10", size=48)
    assert d.train_x.shape == (20, 3, 48, 48) and d.train_y.tolist()[:4] == [0, 1, -1, -1]
    assert common.load_data("stl10", limit=6).train_y.tolist().count(-1) == 0


def test_folder_is_decoded_resized_and_cropped(image_folder, photos):
    d = common.load_data(str(image_folder), size=32)
    assert d.train_x.shape == (24, 3, 32, 32) and d.classes == ["cats", "dogs"]
    assert d.train_y.tolist() == [0] * 12 + [1] * 12
    assert torch.equal(d.train_x[0], photos[0])  # 000.png is 32 x 32 RGB: nothing may change
    assert torch.equal(d.train_x[9, 0], d.train_x[9, 1])              # 009.png is grayscale
    (image_folder / "test").rename(image_folder / "val")
    assert len(common.load_data(str(image_folder), size=24, limit=8).train_x) == 8


def test_corrupt_image_is_named_and_skipped(image_folder, capsys):
    (image_folder / "train" / "cats" / "005.png").write_bytes(b"no image")
    whole = (image_folder / "train" / "dogs" / "004.png").read_bytes()
    (image_folder / "train" / "dogs" / "004.png").write_bytes(whole[: len(whole) // 2])
    d = common.load_data(str(image_folder))
    assert len(d.train_x) == 22 and d.train_y.bincount().tolist() == [11, 11]
    out = capsys.readouterr().out
    assert "skipped 2 of 24" in out and "cats/005.png" in out and "dogs/004.png" in out


# ------------------------------------------------------------------------------------------ metrics

def test_metrics_of_a_healthy_and_of_collapsed_representations():
    torch.manual_seed(0)
    healthy = common.collapse_metrics(torch.randn(4096, 32))
    assert abs(healthy["std"] - 1) < 0.02 and healthy["m_o"] < 0.05 and healthy["m_r"] > 0.99
    assert healthy["effective_rank"] > 31
    complete = common.collapse_metrics(torch.ones(256, 32) + 0.01 * torch.randn(256, 32))
    assert complete["std"] < 0.02 and complete["m_o"] > 0.999 and complete["m_r"] < 0.02
    line = torch.randn(256, 1) * torch.ones(1, 32) + 0.001 * torch.randn(256, 32)
    dimensional = common.collapse_metrics(line)
    assert dimensional["std"] > 0.9 and dimensional["m_o"] < 0.3
    assert dimensional["effective_rank"] < 1.1


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
    squares = np.linalg.norm(Z - Z.mean(0), axis=1) ** 2
    assert squares.mean() == pytest.approx(1 - m["m_o"] ** 2, rel=1e-4)


@pytest.mark.parametrize("n, d", [(64, 16), (16, 64)])
def test_health_against_numpy(n, d):
    r = np.random.default_rng(0).normal(size=(n, d)) * np.linspace(0.1, 2, d) + 0.3
    R = r / np.linalg.norm(r, axis=1, keepdims=True)
    R -= R.mean(0)
    values = np.sort(np.sqrt(np.linalg.eigvalsh(R @ R.T if n < d else R.T @ R).clip(0)))[::-1]
    area = sum(values[:i + 1].sum() / values.sum() for i in range(len(values))) / len(values)
    shares = values**2 / (values**2).sum()
    entropy = -sum(share * np.log(share) for share in shares if share > 1e-12)
    found = common.health(torch.tensor(r))
    assert found["test_auc_r"] == pytest.approx(area, rel=1e-3)
    assert found["test_rank_r"] == pytest.approx(np.exp(entropy), rel=1e-3)


def test_metrics_do_not_trust_float32_eigenvalues(monkeypatch):
    """LAPACK's float32 solver gave up on a finite covariance of a collapsed net's features."""
    real = torch.linalg.eigvalsh

    def gives_up(x):
        if x.dtype == torch.float:
            raise torch.linalg.LinAlgError("failed to converge")
        return real(x)
    monkeypatch.setattr(torch.linalg, "eigvalsh", gives_up)
    r = torch.ones(100, 8) + 1e-3 * torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert common.health(r)["test_rank_r"] > 1 and common.collapse_metrics(r[:4])["m_o"] > 0.99


def test_health_of_one_and_of_all_dimensions():
    g = torch.Generator().manual_seed(0)
    line = torch.randn(500, 1, generator=g) * torch.eye(8)[0]       # +- one direction
    assert common.health(line)["test_auc_r"] == pytest.approx(1, abs=1e-4)
    ball = torch.linalg.qr(torch.randn(500, 8, generator=g, dtype=torch.double))[0]
    ball = torch.cat([ball, -ball])                        # centred, all singular values the same
    assert common.health(ball / ball.norm(dim=1, keepdim=True))["test_auc_r"] == pytest.approx(
        (8 + 1) / 2 / 8, abs=0.01)


def test_verdict():
    assert [common.verdict(*pair) for pair in ((0.95, 30), (0.94, 4.0), (0.1, 4.1))] == [
        "complete", "dimensional", "none"]


# --------------------------------------------------------------------------------------- evaluation

def test_knn_against_a_loop():
    rng = np.random.default_rng(0)
    train, y = rng.normal(size=(150, 8)), rng.integers(0, 5, 150)
    test, t = rng.normal(size=(700, 8)), rng.integers(0, 5, 700)
    train[np.arange(150), y] += 1.5
    test[np.arange(700), t] += 1.5
    right = 0
    for a, label in zip(test, t):
        cosine = train @ a / np.linalg.norm(train, axis=1) / np.linalg.norm(a)
        near = np.argsort(-cosine)[:20]
        votes = [np.exp(cosine[near][y[near] == c] / 0.1).sum() for c in range(5)]
        right += np.argmax(votes) == label
    ours = common.knn_accuracy(*(torch.tensor(v) for v in (train, y, test, t)), k=20)
    assert ours == pytest.approx(100 * right / 700, abs=0.3) and 50 < ours < 100


def test_knn_of_a_large_set_stays_in_chunks():
    """50 000 x 10 000 similarities at once would be 2 GB; a child's peak stays well below."""
    import subprocess
    import sys
    code = ("import resource, torch, common; torch.manual_seed(0);"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
            "y = torch.arange(50000) % 10; f = torch.randn(50000, 16) + 3 * torch.eye(16)[y];"
            "a = common.knn_accuracy(f, y, f[:10000].clone(), y[:10000]);"
            "print(a, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         cwd=common.Path(common.__file__).parent)
    accuracy, megabytes = map(float, out.stdout.split())
    assert accuracy > 80 and megabytes < 900, out.stderr


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
    assert found[0] == pytest.approx(100 * right.item(), abs=1e-3)


def test_linear_probe_separates_what_is_linear_and_nothing_else():
    torch.manual_seed(0)
    y = torch.arange(1200) % 6
    x = torch.randn(1200, 20)
    x += 6 * F.one_hot(y, 20) * torch.linspace(1, 50, 20)  # badly scaled on purpose
    top1, top5 = common.linear_probe(x[:1000], y[:1000], x[1000:], y[1000:], epochs=20)
    assert top1 > 97 and top5 > 99
    noise = torch.randn(1200, 20)
    top1, top5 = common.linear_probe(noise[:1000], y[:1000], noise[1000:], y[1000:], epochs=5)
    assert top1 < 30 and 70 < top5 < 95  # chance: 17 and 83


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
    assert common.cosine_lr(2.0, 0, 10) == 2.0
    assert common.cosine_lr(2.0, 5, 10) == pytest.approx(1.0)
    assert common.cosine_lr(2.0, 10, 10) == pytest.approx(0)
    assert common.cosine_lr(2.0, 1, 12, warmup_epochs=2) == 1.0
    assert common.cosine_lr(2.0, 2, 12, warmup_epochs=2) == 2.0
    assert common.cosine_lr(2.0, 7, 12, warmup_epochs=2) == pytest.approx(1.0)


def test_resnet18_is_torchvisions_but_for_the_stem():
    import torchvision
    ours = common.make_backbone("resnet18")[0].state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"} and set(ours) <= set(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["conv1.weight"]


# ------------------------------------------------------------------------------------------- alarm

def alarms(ranks, m_o=(), warmup=0):
    """What is said after each epoch; ranks and m_o of epochs 0, 1, ..."""
    m_o = [*m_o, *[0.1] * (len(ranks) - len(m_o))]
    rows = [{"epoch": float(i), "std": 0.5, "m_o": m_o[i], "effective_rank": rank}
            for i, rank in enumerate(ranks)]
    said = [common.alarm(rows[:i + 1], warmup) for i in range(len(rows))]
    return {i: " ".join(text.split()[:5]) for i, text in enumerate(said) if text}


def test_alarm_of_a_complete_collapse_and_only_once():
    assert alarms([30.0] * 8, [0.1, 0.5, 0.96, 0.99, 1, 1, 1, 1]) == {
        3: "complete collapse since epoch 2"}
    assert alarms([30.0] * 5, [0.1, 0.5, 0.96, 0.9, 0.96]) == {}           # not two on end
    late = alarms([1.0] * 3 + [30.0] * 4, [0.99] * 7, warmup=3)
    assert late == {5: "complete collapse since epoch 4"}


def test_alarm_of_lost_dimensions():
    assert alarms([20, 9, 3.5, 2.9, 2.7, 2.1]) == {5: "dimensional collapse since epoch 4"}
    assert alarms([20, 9, 3.5, 3.2, 2.9, 2.8]) == {}       # from there it often comes back
    assert alarms([20, 1.5, 1.6, 2.2, 3.0, 4.0]) == {}     # few at first, and rising
    assert alarms([20, 2, 2, 2, 5, 6, 2, 2]) == {3: "dimensional collapse since epoch 2"}
    mixed = alarms([20, 9, 9, 30, 1.5, 1.6], [0.1, 0.1, 0.6, 0.96, 0.93, 0.96])
    assert mixed == {4: "dimensional collapse since epoch 3"}             # to and fro
    both = alarms([20, 9, 2, 1.5, 1.2, 30, 30], [0.1, 0.1, 0.5, 0.6, 0.7, 0.96, 0.98])
    assert both == {3: "dimensional collapse since epoch 2", 6: "complete collapse since epoch 5"}


def test_no_alarm_before_there_is_a_second_epoch():
    assert common.alarm([]) == "" and alarms([1.0, 1.0], [1, 1]) == {}


def test_weights_that_decay_to_nothing_do_not_slow_a_cpu_down():
    """Denormal numbers, on which it is a hundred times slower, count as 0 after setup."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot")
    small = torch.tensor(1e-30)
    assert small * 1e-10 > 0
    common.setup(Namespace(device="cpu", seed=0))
    assert small * 1e-10 == 0

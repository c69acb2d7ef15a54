"""InfoNCE by double loops, what DirectCLR trains, and spectra."""
import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import common
import directclr as C
import linear_eval
from test_simsiam import randn, result_of, same_gradients

SMALL = "--size 8 --proj-hidden 32 --proj-dim 12".split()
TINY = [*SMALL, *"--limit 64 --batch-size 16 --eval-every 9".split()]      # four steps an epoch
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def cos(a, b):
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("temperature", [0.1, 0.7, 5.0])
@pytest.mark.parametrize("negatives", ["other", "both"])
def test_info_nce_is_the_double_loop(negatives, temperature, n=7):
    """Of "both" in SimCLR's own formulation: views 2k and 2k + 1 are a pair, every other one of the
    2N views in a row is a negative."""
    z1, z2 = 3 * randn(n, 4, seed=1), 0.2 * randn(n, 4, seed=2)
    z, total = torch.stack([z1, z2], 1).flatten(0, 1), 0.0
    for i in range(2 * n):
        own = [i] if negatives == "both" else range(i % 2, 2 * n, 2)
        e = {j: math.exp(cos(z[i], z[j]) / temperature) for j in range(2 * n) if j not in own}
        total -= math.log(e[i ^ 1] / sum(e.values())) / (2 * n)
    assert C.info_nce(z1, z2, temperature, negatives).item() == pytest.approx(total)


@pytest.mark.parametrize("negatives", ["other", "both"])
def test_loss_is_float32_where_the_net_is_bfloat16(negatives):
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = C.info_nce(z, z.flip(1), 0.05, negatives)
    exact = C.info_nce(z.double(), z.flip(1).double(), 0.05, negatives)
    assert loss.dtype == torch.float and loss.item() == pytest.approx(exact.item(), abs=1e-4)


def make(*flags):
    torch.manual_seed(0)
    return C.build(C.parse([*SMALL, *flags]))


def test_direct_sees_what_it_says():
    r = torch.randn(9, 96)
    prefix, random, orthogonal = (make("--direct-mode", mode, "--d0", "10").encoder.projector
                                  for mode in ("prefix", "random", "orthogonal"))
    assert torch.equal(prefix(r), r[:, :10])
    sets = []
    for step in range(20):
        random.draw(step)
        columns = random(r).T
        sets.append({next(i for i in range(96) if torch.equal(r[:, i], c)) for c in columns})
    assert all(len(chosen) == 10 for chosen in sets) and len(set(map(frozenset, sets))) == 20
    assert len(set.union(*sets)) > 60
    Q = orthogonal.Q
    assert torch.allclose(Q.T @ Q, torch.eye(10), atol=1e-5) and not list(orthogonal.parameters())
    assert torch.allclose(orthogonal(r), r @ Q)


@pytest.mark.parametrize("flags", [
    "--projector mlp --negatives both", "--projector linear", "--projector none",
    "--direct-mode orthogonal"])
def test_first_step_has_the_gradient_of_the_loss(flags, first_step):
    model, x1, x2, grads = first_step(C, *SMALL, *flags.split(), "--temperature", "0.3")
    z1, z2 = model.encoder(x1), model.encoder(x2)
    n, Z = len(z1), torch.cat([z1, z2]) / torch.cat([z1, z2]).norm(dim=1, keepdim=True)
    own = torch.eye(2 * n)                                             # what is no negative
    if "both" not in flags:
        own = torch.block_diag(torch.ones(n, n), torch.ones(n, n))
    e = torch.exp(Z @ Z.T / 0.3) * (1 - own)
    loss = -sum((e[i, (i + n) % (2 * n)] / e[i].sum()).log() for i in range(2 * n)) / (2 * n)
    same_gradients(loss, model, grads)


def test_random_draws_other_dimensions_at_every_step(watch, monkeypatch):
    seen = watch(C.Direct, "draw", lambda _, direct, step: tuple(direct.chosen.tolist()))
    monkeypatch.setattr(C, "report", lambda *_: {"linear_untrained_weak": 0})
    C.main([*TINY, "--direct-mode", "random", "--epochs", "2"])
    assert len(seen) == 8 == len(set(seen))                # one for every step


@pytest.mark.parametrize("flags, d0, dim", [
    ("--projector mlp --d0 9", 9, 12), ("--data patches --projector linear", 17, 12),
    ("--direct-mode random --d0 96", 96, 96)])
def test_what_a_run_leaves_is_of_the_trained_net_and_the_test_set(flags, d0, dim, capsys):
    """And of each label: spectra and probes by hand, on the features of the net in eval mode."""
    model = C.main([*TINY, "--epochs", "1", *flags.split()])
    assert all(module.training for module in model.modules())
    folder, = Path("runs").iterdir()
    result = result_of(folder)
    assert (folder / "spectrum.png").stat().st_size > 10_000
    with open(folder / "spectrum.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(1, 97))
    data = common.load_data("patches" if "patches" in flags else "strong_weak", size=8, limit=64)
    train, test = ((x.float() / 255 - data.mean.view(3, 1, 1)) / data.std.view(3, 1, 1)
                   for x in (data.train_x, data.test_x))
    torch.manual_seed(0)                                               # --seed
    untrained = C.build(C.parse([*TINY, *flags.split()])).requires_grad_(False).eval()
    untrained = untrained.encoder.backbone(train), untrained.encoder.backbone(test)
    f = model.eval().requires_grad_(False).encoder
    train, test = f.backbone(train), {"r": f.backbone(test), "z": f(test)}
    for name, x in test.items():
        s = np.linalg.svd(np.cov(normalize(x.double(), dim=1).numpy().T))[1]
        assert np.allclose([float(row[name]) for row in rows if row[name]], s / s[0], atol=1e-5)
        p = np.clip(s / s.sum(), 1e-12, None)
        assert result[f"test_rank_{name}"] == pytest.approx(np.exp(-p @ np.log(p)), rel=0.01)
        assert result[f"alive_{name}"] == (s > 1e-3 * s[0]).sum()
        assert len(s) == {"r": 96, "z": dim}[name]
    labels = {"": (data.train_y, data.test_y), **data.more}
    assert len(labels) == 2 - ("patches" in flags) and ("linear_rest" in result) == (d0 < 96)
    parts = {"first": (train[:, :d0], test["r"][:, :d0]), "untrained": untrained,
             "rest": (train[:, d0:], test["r"][:, d0:])}
    for part, (x, x2) in parts.items():
        for label, (y, y2) in labels.items():
            if part != "rest" or d0 < 96:
                probe = common.linear_probe(x, y, x2, y2)
                assert result[f"linear_{part}{label}"] == pytest.approx(probe, abs=0.5)
    if len(labels) == 2:                                   # The last line has three numbers.
        words = capsys.readouterr().out.splitlines()[-1].split()
        names = ("linear", "linear_weak", "linear_untrained_weak")
        assert [round(result[name]) for name in names] == [
            int(word) for word in words if word.isdecimal()]
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"].keys() >= {"knn", "linear"}

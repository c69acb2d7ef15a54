"""InfoNCE by double loops, its gradient in closed form, what DirectCLR trains, spectra, ranks."""
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import common
import directclr as C
import linear_eval

SMALL = "--proj-hidden 32 --proj-dim 12".split()
pytestmark = pytest.mark.usefixtures("no_curves")


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double)


# ------------------------------------------------------------------------------------------ loss

def cos(a, b):
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("temperature", [0.1, 0.7, 5.0])
def test_info_nce_is_the_double_loop(temperature, n=7):
    z1, z2 = 3 * randn(n, 4, seed=1), 0.2 * randn(n, 4, seed=2)
    total = 0.0
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(n):
            e = [math.exp(cos(a[i], b[j]) / temperature) for j in range(n)]
            total -= math.log(e[i] / sum(e)) / (2 * n)
    assert C.info_nce(z1, z2, temperature).item() == pytest.approx(total)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_both_is_nt_xent_over_the_2N_views_in_a_row(temperature, n=6):
    """SimCLR's own formulation: views 2k and 2k + 1 are a pair, every other one is a negative."""
    z1, z2 = randn(n, 4, seed=1), randn(n, 4, seed=2)
    z = torch.stack([z1, z2], 1).flatten(0, 1)
    total = 0.0
    for i in range(2 * n):
        e = {j: math.exp(cos(z[i], z[j]) / temperature) for j in range(2 * n) if j != i}
        total -= math.log(e[i ^ 1] / sum(e.values())) / (2 * n)
    assert C.info_nce(z1, z2, temperature, "both").item() == pytest.approx(total)


def test_gradient_is_the_closed_form(temperature=0.3, n=5):
    """-d loss_a / d Z_a = (Z_b - sum_i lambda_i Z_i) / tau of the paper, a row.

    Through the normalisation it is its part across Z_a, over |z_a|."""
    Za, Zb = (normalize(randn(n, 4, seed=s), dim=1) for s in (1, 2))
    e = [[math.exp(Za[i] @ Zb[j] / temperature) for j in range(n)] for i in range(n)]
    lam = [[e[i][j] / sum(e[i]) for j in range(n)] for i in range(n)]
    negative = [Zb[i] - sum(lam[i][j] * Zb[j] for j in range(n)) for i in range(n)]
    negative = torch.stack(negative) / temperature / n
    leaf = Za.clone().requires_grad_()
    grad, = torch.autograd.grad(C.one_way(leaf, Zb, temperature, "other"), leaf)
    assert torch.allclose(-grad, negative, atol=1e-12)

    # both directions: Za is a target too, in the columns of the same matrix
    mu = [[e[i][j] / sum(e[k][j] for k in range(n)) for i in range(n)] for j in range(n)]
    target = [sum(((i == j) - mu[j][i]) * Zb[j] for j in range(n)) for i in range(n)]
    whole = (negative + torch.stack(target) / temperature / n) / 2
    across = (whole - (whole * Za).sum(1, keepdim=True) * Za) / 2.5
    z = (2.5 * Za).requires_grad_()
    grad, = torch.autograd.grad(C.info_nce(z, Zb, temperature), z)
    assert torch.allclose(-grad, across, atol=1e-12)


def test_loss_is_float32_where_the_net_is_bfloat16():
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for negatives in ("other", "both"):
        loss = C.info_nce(z, z.flip(1), 0.05, negatives)
        exact = C.info_nce(z.double(), z.flip(1).double(), 0.05, negatives)
        assert loss.dtype == torch.float and loss.item() == pytest.approx(exact.item(), abs=1e-4)


RANKS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch, common, directclr
import torch.distributed as dist
rank = int(sys.argv[2])
dist.init_process_group("gloo", "file://" + os.path.abspath("store"), rank=rank, world_size=2)
torch.manual_seed(0)
net = torch.nn.Linear(6, 4).double()
x1, x2 = torch.randn(2, 8, 6).double()

class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net
    def forward(self, x1, x2):
        return self.net(x1), self.net(x2)

for negatives in ("other", "both"):
    whole = directclr.info_nce(net(x1), net(x2), 0.2, negatives)
    expected = torch.autograd.grad(whole, list(net.parameters()))
    net.zero_grad()
    parallel = torch.nn.parallel.DistributedDataParallel(Both())   # kept: its all-reduce dies too
    mine = slice(4 * rank, 4 * rank + 4)
    z1, z2 = parallel(x1[mine], x2[mine])
    loss = directclr.info_nce(common.gather(z1), common.gather(z2), 0.2, negatives)
    (loss * common.world_size()).backward()
    assert torch.allclose(loss, whole), (loss, whole)
    for p, g in zip(net.parameters(), expected):
        assert torch.allclose(p.grad, g) and g.abs().max() > 1e-3
print("right")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_ranks_give_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    command = [sys.executable, "-c", RANKS, str(Path(C.__file__).parent)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, r], cwd=tmp_path, env=env, **pipes) for r in "01"]
    for process in ranks:
        out, error = process.communicate(timeout=120)
        assert out == "right\n", error


# --------------------------------------------------------------------------------------- network

def make(*flags):
    torch.manual_seed(0)
    return C.DirectCLR(C.parse([*SMALL, *flags]))


def test_direct_sees_what_it_says():
    r, seen = torch.randn(9, 96), {"prefix": [], "random": []}
    for mode, sets in seen.items():
        projector = make("--direct-mode", mode, "--d0", "10").encoder.projector
        for step in range(20):
            if mode == "random":
                projector.draw(step)
            columns = projector(r).T
            sets.append([next(i for i in range(96) if torch.equal(r[:, i], c)) for c in columns])
    assert all(chosen == list(range(10)) for chosen in seen["prefix"])
    assert len({tuple(sorted(chosen)) for chosen in seen["random"]}) == 20
    assert all(len(set(chosen)) == 10 for chosen in seen["random"])
    orthogonal = make("--direct-mode", "orthogonal", "--d0", "10").encoder.projector
    assert torch.allclose(orthogonal.Q.T @ orthogonal.Q, torch.eye(10), atol=1e-5)
    assert not list(orthogonal.parameters())
    assert torch.allclose(orthogonal(r), r @ orthogonal.Q)


def test_a_whole_rotation_is_as_no_projector():
    rotation = make("--direct-mode", "orthogonal", "--d0", "96").encoder.projector
    r1, r2 = torch.randn(2, 6, 96)
    rotated = C.info_nce(rotation(r1), rotation(r2), 0.1).item()
    assert rotated == pytest.approx(C.info_nce(r1, r2, 0.1).item(), abs=1e-4)


def test_dimensions_beyond_d0_get_no_gradient_from_the_loss(d0=10):
    net = make("--d0", str(d0))
    z1, z2, r1, r2 = net(*torch.randn(2, 8, 3, 32, 32))
    names, params = zip(*net.encoder.backbone.named_parameters())
    on_r, *grads = torch.autograd.grad(C.info_nce(z1, z2, 0.1), [r1, *params])
    assert on_r[:, d0:].count_nonzero() == 0 and (on_r[:, :d0] != 0).all()
    makes_r = ("4.conv2", "4.bn2", "4.downsample")                     # r's own channels
    for name, g in zip(names, grads):
        assert g[:d0].count_nonzero() > 0, name
        assert (g[d0:].count_nonzero() == 0) == name.startswith(makes_r), name


@pytest.mark.parametrize("flags", [
    "--projector mlp --negatives both", "--projector linear", "--projector none",
    "--direct-mode orthogonal"])
def test_first_step_has_the_gradient_of_the_loss(flags, first_step, monkeypatch):
    monkeypatch.setattr(C, "report", lambda run: {})
    more = "--size 8 --temperature 0.3".split()
    model, x1, x2, grads = first_step(C, *SMALL, *flags.split(), *more)
    z1, z2 = model.encoder(x1), model.encoder(x2)
    n, Z = len(z1), torch.cat([z1, z2]) / torch.cat([z1, z2]).norm(dim=1, keepdim=True)
    e = torch.exp(Z @ Z.T / 0.3)
    own = torch.eye(2 * n)                                             # what is no negative
    if "both" not in flags:
        own = torch.block_diag(torch.ones(n, n), torch.ones(n, n))
    e = e * (1 - own)
    loss = -sum((e[i, (i + n) % (2 * n)] / e[i].sum()).log() for i in range(2 * n)) / (2 * n)
    names, params = zip(*model.named_parameters())
    for name, g in zip(names, torch.autograd.grad(loss, params)):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name


def test_random_mode_draws_other_dimensions_at_every_step(in_tmp, monkeypatch):
    seen = []

    def watch(self, step, draw=C.Direct.draw):
        draw(self, step)
        seen.append(tuple(self.chosen.tolist()))

    monkeypatch.setattr(C.Direct, "draw", watch)
    flags = "--direct-mode random --limit 64 --size 8 --batch-size 16 --epochs 2".split()
    monkeypatch.setattr(C, "report", lambda run: {})
    C.main([*flags, "--eval-every", "9"])
    assert len(seen) == 8 == len(set(seen))


# ---------------------------------------------------------------------------------------- report

def test_spectrum_against_numpy():
    x = randn(40, 6, seed=3) * torch.tensor([5, 1, 1, 0.1, 0, 0], dtype=torch.double)
    X = (x / x.norm(dim=1, keepdim=True)).numpy()
    assert np.allclose(C.spectrum(x), np.linalg.svd(np.cov(X.T))[1], atol=1e-12)


@pytest.mark.parametrize("flags, dim", [
    ("--projector mlp --size 16", 12), ("--direct-mode random --d0 96 --size 8", 96),
    ("--data cifar10 --size 8 --limit 64 --batch-size 4 --projector linear", 12)])
def test_what_a_run_leaves_and_linear_eval_reads_it(flags, dim, in_tmp, fake_cifar):
    model = C.main([*flags.split(), *SMALL, "--dry-run"])
    folder, = Path("runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    with open(folder / "spectrum.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "index", "r", "z"] and {row["epoch"] for row in rows} == {"1"}
    assert (folder / "spectrum.png").stat().st_size > 10_000
    assert all(module.training for module in model.modules())
    width = 512 if "cifar10" in flags else 96
    for space, size in (("r", width), ("z", dim)):
        s = np.array([float(row[space]) for row in rows if row[space]])
        p = np.clip(s / s.sum(), 1e-12, None)
        entropy = -(p * np.log(p)).sum()
        assert len(s) == size == result[f"dims_{space}"] and s[0] == 1 and (np.diff(s) <= 0).all()
        assert result[f"test_rank_{space}"] == pytest.approx(np.exp(entropy), rel=0.01)
        assert result[f"alive_{space}"] == (s > 1e-3).sum()
    if "96" in flags:                                  # d0 is all of r: the same probe, no rest
        assert result["linear_first"] == result["linear"] and "linear_rest" not in result
    else:
        assert 0 <= result["linear_rest"] <= 100
    if "mlp" in flags:                                 # what is in the file is the trained net's
        data = common.load_data("patches", size=16, limit=200)
        x = data.test_x[:64].float() / 255 - data.mean.view(3, 1, 1)
        with torch.no_grad():
            r = model.encoder.backbone.eval()(x / data.std.view(3, 1, 1)).double().numpy()
        s = np.linalg.svd(np.cov((r / np.linalg.norm(r, axis=1, keepdims=True)).T))[1]
        assert np.allclose([float(row["r"]) for row in rows], s / s[0], atol=1e-5)
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


def test_a_resumed_run_goes_on_as_if_uninterrupted(whole_and_cut, monkeypatch):
    monkeypatch.setattr(C, "report", lambda run: {})
    whole, cut = whole_and_cut(C, "--direct-mode", "random", "--size", "8")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("flags, words", [
    ("--temperature 0", "--temperature"), ("--d0 97", "--d0"), ("--d0 0", "--d0"),
    ("--data cifar10 --d0 513", "512"), ("--projector conv", "conv"),
    ("--negatives all", "--negatives")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        C.main(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not Path("runs").exists()

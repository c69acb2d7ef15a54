"""InfoNCE against double loops and its gradient's closed form, what DirectCLR trains, spectra, several ranks, tables."""
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

import directclr as C
import linear_eval

SMALL = "--proj-hidden 32 --proj-dim 12".split()


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# ---------------------------------------------------------------------------------------------------------------- loss

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
    """SimCLR's own formulation: views 2k and 2k + 1 are a pair, every other of the 2N - 2 is a negative."""
    z1, z2 = randn(n, 4, seed=1), randn(n, 4, seed=2)
    z = torch.stack([z1, z2], 1).flatten(0, 1)
    total = 0.0
    for i in range(2 * n):
        e = {j: math.exp(cos(z[i], z[j]) / temperature) for j in range(2 * n) if j != i}
        total -= math.log(e[i ^ 1] / sum(e.values())) / (2 * n)
    assert C.info_nce(z1, z2, temperature, "both").item() == pytest.approx(total)


def test_gradient_is_the_closed_form(temperature=0.3, n=5):
    """-d loss_a / d Z_a = (Z_b - sum_i lambda_i Z_i) / tau of the paper, a row; through the normalisation, its part across Z_a / |z_a|."""
    Za, Zb = (normalize(randn(n, 4, seed=s), dim=1) for s in (1, 2))
    lam = torch.stack([torch.stack([torch.exp(Za[i] @ Zb[j] / temperature) for j in range(n)]) for i in range(n)])
    lam = lam / lam.sum(1, keepdim=True)
    negative = torch.stack([(Zb[i] - sum(lam[i, j] * Zb[j] for j in range(n))) / temperature for i in range(n)]) / n
    leaf = Za.clone().requires_grad_()
    grad, = torch.autograd.grad(C.one_way(leaf, Zb, temperature, "other"), leaf)
    assert torch.allclose(-grad, negative, atol=1e-12)

    z = (2.5 * Za).requires_grad_()                                        # both directions, by the columns of the same matrix too
    mu = torch.exp(Zb @ Za.T / temperature)
    mu = mu / mu.sum(1, keepdim=True)
    as_target = torch.stack([sum((int(i == j) - mu[j, i]) * Zb[j] for j in range(n)) / temperature for i in range(n)]) / n
    whole = (negative + as_target) / 2
    across = (whole - (whole * Za).sum(1, keepdim=True) * Za) / 2.5
    grad, = torch.autograd.grad(C.info_nce(z, Zb, temperature), z)
    assert torch.allclose(-grad, across, atol=1e-12)


def test_loss_is_float32_where_the_net_is_bfloat16():
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for negatives in ("other", "both"):
        loss = C.info_nce(z, z.flip(1), 0.05, negatives)
        assert loss.dtype == torch.float and loss.item() == pytest.approx(C.info_nce(z.double(), z.flip(1).double(), 0.05, negatives).item(), abs=1e-4)


RANKS = """
import sys
sys.path.insert(0, {root!r})
import torch, common, directclr
import torch.distributed as dist
dist.init_process_group("gloo")
torch.manual_seed(0)
net, x1, x2 = torch.nn.Linear(6, 4).double(), torch.randn(8, 6).double(), torch.randn(8, 6).double()
rows = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)

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
    parallel = torch.nn.parallel.DistributedDataParallel(Both())           # kept: its all-reduce dies with it
    z1, z2 = parallel(x1[rows], x2[rows])
    loss = directclr.info_nce(common.gather(z1), common.gather(z2), 0.2, negatives)
    (loss * common.world_size()).backward()
    assert torch.allclose(loss, whole), (loss, whole)
    assert all(torch.allclose(p.grad, g) and g.abs().max() > 1e-3 for p, g in zip(net.parameters(), expected))
print("RANK IS RIGHT\\n", end="", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def torchrun(tmp_path, *command):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *map(str, command)], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_ranks_give_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(root=str(Path(C.__file__).parent)))
    out = torchrun(tmp_path, script)
    assert out.stdout.count("RANK IS RIGHT") == 2, out.stderr[-2000:]


# ------------------------------------------------------------------------------------------------------------- network

def make(*flags):
    torch.manual_seed(0)
    return C.DirectCLR(C.parse([*SMALL, *flags]))


def test_direct_sees_what_it_says():
    r = torch.randn(9, 96)
    prefix, random, orthogonal = (make("--projector", "direct", "--direct-mode", mode, "--d0", "10").encoder.projector for mode in C.CHOICES["direct_mode"])
    seen = {mode: [] for mode in ("prefix", "random")}
    for step in range(20):
        for mode, net in (("prefix", prefix), ("random", random)):
            net.draw(step)
            z = net(r)
            seen[mode].append([next(i for i in range(96) if torch.equal(r[:, i], column)) for column in z.T])
    assert all(chosen == list(range(10)) for chosen in seen["prefix"])
    assert len({tuple(sorted(chosen)) for chosen in seen["random"]}) == 20 and all(len(set(chosen)) == 10 for chosen in seen["random"])
    assert torch.allclose(orthogonal.Q.T @ orthogonal.Q, torch.eye(10), atol=1e-5)
    assert not list(orthogonal.parameters()) and torch.allclose(orthogonal(r), r @ orthogonal.Q)


def test_a_whole_rotation_is_as_no_projector():
    rotation = make("--projector", "direct", "--direct-mode", "orthogonal", "--d0", "96").encoder.projector
    r1, r2 = torch.randn(6, 96), torch.randn(6, 96)
    assert C.info_nce(rotation(r1), rotation(r2), 0.1).item() == pytest.approx(C.info_nce(r1, r2, 0.1).item(), abs=1e-4)


def test_dimensions_beyond_d0_get_no_gradient_from_the_loss(d0=10):
    net = make("--projector", "direct", "--d0", str(d0))
    z1, z2, r1, r2 = net(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32))
    grads = torch.autograd.grad(C.info_nce(z1, z2, 0.1), [r1, *net.encoder.backbone.parameters()])
    assert grads[0][:, d0:].count_nonzero() == 0 and (grads[0][:, :d0] != 0).all()
    for (name, p), g in zip(net.encoder.backbone.named_parameters(), grads[1:]):
        last = name.startswith("4.") and (name.split(".")[1] in ("conv2", "bn2", "downsample"))           # what makes r's own channels
        assert (g[d0:].count_nonzero() == 0) == last and g[:d0].count_nonzero() > 0, name


@pytest.mark.parametrize("flags", ["--projector mlp --negatives both", "--projector linear", "--projector none", "--direct-mode orthogonal"])
def test_first_step_has_the_gradient_of_the_loss(flags, first_step):
    model, x1, x2, grads = first_step(C, *SMALL, *flags.split())
    z1, z2 = model.encoder(x1), model.encoder(x2)
    n, Z = len(z1), torch.cat([z1 / z1.norm(dim=1, keepdim=True), z2 / z2.norm(dim=1, keepdim=True)])
    e = torch.exp(Z @ Z.T / model_temperature(flags))
    e = e * (1 - torch.eye(2 * n)) if "both" in flags else torch.block_diag(torch.ones(n, n), torch.ones(n, n)).neg().add(1) * e
    loss = -torch.stack([(e[i, (i + n) % (2 * n)] / e[i].sum()).log() for i in range(2 * n)]).mean()
    names, params = zip(*model.named_parameters())
    for name, g in zip(names, torch.autograd.grad(loss, params)):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name


def model_temperature(flags):
    return C.parse(flags.split()).temperature


# -------------------------------------------------------------------------------------------------------------- report

def test_spectrum_against_numpy():
    x = randn(40, 6, seed=3) * torch.tensor([5, 1, 1, 0.1, 0, 0], dtype=torch.double)
    X = (x / x.norm(dim=1, keepdim=True)).numpy()
    assert np.allclose(C.spectrum(x), np.linalg.svd(np.cov(X.T))[1], atol=1e-12)


def rows(file):
    return list(csv.DictReader(open(file)))


@pytest.mark.parametrize("flags", ["--projector mlp", "--direct-mode random --d0 96", "--data cifar10 --batch-size 8 --projector linear"])
def test_what_a_run_leaves_and_linear_eval_reads_it(flags, in_tmp, fake_cifar):
    model = C.main([*flags.split(), *SMALL, "--dry-run"])
    folder, = Path("runs").iterdir()
    result, spectrum = json.loads((folder / "result.json").read_text()), rows(folder / "spectrum.csv")
    assert (folder / "spectrum.png").stat().st_size > 10_000 and result["epoch"] == 1 and ("linear_rest" in result) == ("d0" not in flags)
    width = C.common.make_backbone(C.parse(flags.split()).arch)[1]
    assert [r["space"] for r in spectrum] == ["r"] * width + ["z"] * (96 if "random" in flags else 12)
    for space in "rz":
        s = np.array([float(r["eigenvalue"]) for r in spectrum if r["space"] == space])
        p = np.clip(s / s.sum(), 1e-12, None)
        assert (np.diff(s) <= 0).all() and result[f"test_rank_{space}"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=0.01)
        assert result[f"alive_{space}"] == (s > 1e-3 * s[0]).sum()
    assert model.training and linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


def test_a_resumed_run_goes_on_as_if_uninterrupted(whole_and_cut):
    a, b = whole_and_cut(C, "--direct-mode", "random")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_all_makes_a_table_and_a_figure_and_trains_nothing_twice(in_tmp, monkeypatch):
    trained, real = [], C.train
    monkeypatch.setattr(C, "train", lambda args, *rest: (trained.append(args), real(args, *rest))[1])
    C.main([*SMALL, "--dry-run", "--all"])
    folder = Path("runs/directclr-all-patches-s0")
    table = (folder / "table.md").read_text()
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["66.5", "61.1", "62.7", "51.5"]
    assert [a.projector for a in trained] == ["mlp", "linear", "direct", "none"] and (folder / "spectra.png").stat().st_size > 10_000
    C.main([*SMALL, "--dry-run", "--all"])
    assert len(trained) == 4 and (folder / "table.md").read_text() == table


@pytest.mark.parametrize("sweep", ["d0", "temperature"])
def test_picture_of_a_sweep(sweep, tmp_path):
    rows = [{"name": f"x {x}", "knn": 90.0, "linear": 91.0, "linear_first": 80.0, "test_rank_r": 7.0, "covariance": 0.1} for x in (0.5, 1, 2)]
    axes = C.draw_sweep(sweep, rows).axes
    assert [list(line.get_xdata()) for axis in axes for line in axis.lines] == [[0.5, 1, 2]] * (4 if sweep == "d0" else 3)


@pytest.mark.parametrize("flags, key, values", [
    ("--sweep d0", "d0", [6, 12, 17, 24, 48, 96]), ("--sweep temperature", "temperature", [0.05, 0.1, 0.2, 0.5, 1, 5]),
    ("--sweep d0 --arch resnet18 --d0 90", "d0", [32, 64, 90, 128, 256, 512]), ("--sweep mode", "direct_mode", ["prefix", "random", "orthogonal"])])
def test_rows_of_a_sweep(flags, key, values):
    jobs = [C.parse([*flags.split(), *row.split()], name) for name, row, _ in C.sweep_rows(C.parse(flags.split()))]
    assert [getattr(a, key) for a in jobs] == values and len({a.label for a in jobs}) == len(jobs) and not any(a.sweep for a in jobs)
    assert {a.projector for a in jobs} == {"mlp" if key == "temperature" else "direct"}


@pytest.mark.parametrize("flags, words", [("--all --sweep d0", "--sweep"), ("--all --resume runs/x", "runs/x"), ("--temperature 0", "--temperature"),
                                          ("--d0 97", "--d0"), ("--d0 0", "--d0"), ("--projector conv", "conv"), ("--sweep d1", "d1")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        C.main(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err and not Path("runs").exists()

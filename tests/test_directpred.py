"""The predictors that are set, F, and what a run leaves, against numpy and closed forms."""
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import directpred as P
import linear_eval

SMALL = "--proj-hidden 32 --proj-dim 12 --pred-hidden 16".split()


def correlation(kind):
    """F as float64 [12, 12]: of full rank, of rank 4, with repeated eigenvalues, of rank 1, with the identity's."""
    rng = np.random.default_rng(3)
    U = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    s = {"full": rng.uniform(0.1, 3, 12), "rank 4": np.r_[2, 1, 0.5, 0.1, np.zeros(8)], "repeated": np.repeat([5.0, 5, 1, 1, 0, 0], 2),
         "rank 1": np.r_[0.7, np.zeros(11)], "identity": np.ones(12), "steep": 0.6 ** np.arange(12)}[kind]
    return torch.from_numpy(U * s @ U.T)


KINDS = ["full", "rank 4", "repeated", "rank 1", "identity"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1, 2])
def test_directset_weight(kind, alpha, eps=0.07):
    """W - eps I = F^alpha / ||F^alpha||: by numpy's eigh, and by multiplying it with itself where that gives F back."""
    F = correlation(kind)
    W = P.directset_weight(F, alpha, eps).numpy()
    s, U = np.linalg.eigh(F.numpy())
    s = np.clip(s, 0, None)
    rounding = 2e-16**alpha                                                # of an eigenvalue that should be 0
    assert np.allclose(W, sum((sj / s.max()) ** alpha * np.outer(u, u) for sj, u in zip(s, U.T)) + eps * np.eye(12), atol=1e-9 + rounding)
    G, norm = W - eps * np.eye(12), np.linalg.norm(F.numpy(), 2)
    if alpha <= 1:
        assert np.allclose(np.linalg.matrix_power(G, round(1 / alpha)), F.numpy() / norm, atol=1e-9)
    else:
        assert np.allclose(G, F.numpy() @ F.numpy() / norm**2)


@pytest.mark.parametrize("kind", KINDS)
def test_directpred_weight_is_the_papers_up_to_its_length(kind, eps=0.1):
    """p_j = sqrt(s_j) + eps sqrt(max s), divided by the largest sqrt(s): the same after any change of F's scale."""
    F = correlation(kind)
    s, U = np.linalg.eigh(F.numpy())
    s = np.clip(s, 0, None)
    paper = U * (np.sqrt(s) + eps * np.sqrt(s.max())) @ U.T
    assert np.allclose(P.directpred_weight(F, eps).numpy() * np.sqrt(s.max()), paper, atol=1e-6)
    assert torch.allclose(P.directpred_weight(1e-3 * F, eps), P.directpred_weight(F, eps), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.double, 5e-4), (torch.float, 5e-4)])
def test_directcopy_is_directset_1(kind, dtype, tolerance):
    F = 40 * correlation(kind).to(dtype)
    assert torch.allclose(P.directcopy_weight(F, 0.3), P.directset_weight(F, 1, 0.3), atol=tolerance)
    assert np.allclose(P.directcopy_weight(F, 0.3), F.numpy() / np.linalg.norm(F.numpy(), 2) + 0.3 * np.eye(12), atol=tolerance)


def test_optimal_weight_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(50, 12)), rng.normal(size=(50, 12))
    F, C = torch.from_numpy(z.T @ z / 50), torch.from_numpy(t.T @ z / 50)
    ridge = 0.01 * np.trace(F) / 12                                        # as rows: least squares of [z; sqrt(50 ridge) I] to [t; 0]
    W, *_ = np.linalg.lstsq(np.r_[z, np.sqrt(50 * ridge) * np.eye(12)], np.r_[t, np.zeros((12, 12))], rcond=None)
    assert np.allclose(P.optimal_weight(F, C).numpy(), W.T)


# ---------------------------------------------------------------------------------------------------------- in the loop

def make(*flags):
    return P.DirectPred(P.parse([*SMALL, *flags]))


def test_F_is_the_closed_form_weighted_sum_of_its_batches(rho=0.7):
    net = make("--rho", str(rho))
    torch.manual_seed(0)
    batches = [torch.randn(4, 8, 12) for _ in range(5)]                                                     # z1, z2, t1, t2
    for b in batches:
        net.update_correlations(*b)
    weight = [rho**4] + [(1 - rho) * rho ** (4 - i) for i in range(1, 5)]                                   # the first is all there is
    both = [(np.r_[z1, z2], np.r_[t2, t1]) for z1, z2, t1, t2 in (b.numpy() for b in batches)]
    assert np.allclose(net.FC[0], sum(w * np.einsum("bi,bj->ij", z, z) / 16 for w, (z, _) in zip(weight, both)), atol=1e-6)
    assert np.allclose(net.FC[1], sum(w * np.einsum("bi,bj->ij", t, z) / 16 for w, (z, t) in zip(weight, both)), atol=1e-6)


@pytest.mark.parametrize("flags", ["--predictor directpred", "--predictor directcopy --ema 0", "--predictor sgd", "--predictor optimal --freq 3",
                                   "--predictor symmetric --predictor-layers 2 --predictor-bias"])
def test_first_step_has_the_gradient_of_the_loss_and_none_where_W_is_set(flags, first_step):
    model, x1, x2, grads = first_step(P, *SMALL, *flags.split())
    target = model.target or model.encoder
    with torch.no_grad():
        t1, t2 = (t / t.norm(dim=1, keepdim=True) for t in (target(x1), target(x2)))
    p1, p2 = (p / p.norm(dim=1, keepdim=True) for p in (model.predictor(model.encoder(x1)), model.predictor(model.encoder(x2))))
    loss = ((p1 - t2) ** 2).sum(1).mean() + ((p2 - t1) ** 2).sum(1).mean()
    is_set = flags in ("--predictor directpred", "--predictor directcopy --ema 0")
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("target.") and not (is_set and name == "predictor.weight")}
    for (name, p), g in zip(trained.items(), torch.autograd.grad(loss, list(trained.values()))):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name
    assert [name for name in grads if grads[name] is None] == [name for name in grads if name not in trained]


def test_freq_5_sets_exactly_every_fifth_step(in_tmp, monkeypatch):
    seen, real = [], P.DirectPred.update_predictor

    def watch(self, step):
        before = self.predictor.weight.detach().clone()
        real(self, step)
        W = self.predictor.weight.detach().clone()
        seen.append((step, torch.equal(W, before), torch.allclose(W, P.directpred_weight(self.FC[0], self.args.eps))))
    monkeypatch.setattr(P.DirectPred, "update_predictor", watch)
    P.main([*SMALL, *"--freq 5 --limit 128 --batch-size 16 --epochs 2 --eval-every 9 --lr 1".split()])       # 8 steps an epoch
    assert [step for step, *_ in seen] == list(range(1, 17))
    assert [step for step, _, is_set in seen if is_set] == [5, 10, 15] == [step for step, untouched, _ in seen if not untouched]


@pytest.mark.parametrize("layers", ["1", "2"])
def test_symmetric_predictor_is_symmetric_after_every_step(layers, in_tmp, monkeypatch):
    off, real = {"symmetric": [], "sgd": []}, P.DirectPred.update_predictor

    def watch(self, step):
        real(self, step)
        first, last = (self.predictor, self.predictor) if layers == "1" else (self.predictor[0], self.predictor[3])
        off[self.args.predictor].append((first.weight - last.weight.T).abs().max().item())
    monkeypatch.setattr(P.DirectPred, "update_predictor", watch)
    for predictor in off:
        P.main([*SMALL, *"--limit 128 --batch-size 32 --epochs 2 --eval-every 9 --predictor-layers".split(), layers, "--predictor", predictor])
    assert len(off["symmetric"]) == 8 and max(off["symmetric"]) < 1e-6 < 1e-2 < min(off["sgd"])


def test_bias_comes_with_the_recipe_and_can_be_turned():
    assert P.parse([]).predictor_bias and not P.parse(["--no-predictor-bias"]).predictor_bias
    assert not P.parse(["--data", "cifar10"]).predictor_bias and P.parse(["--data", "cifar10", "--predictor-bias"]).predictor_bias
    assert make("--no-predictor-bias").predictor.bias is None and make().predictor.bias.requires_grad


def test_columns_of_the_eigenspace_against_numpy():
    net = make("--predictor", "sgd")
    rng = np.random.default_rng(0)
    F = correlation("steep").numpy()
    W = rng.normal(size=(12, 12)) + F
    net.FC[0].copy_(torch.from_numpy(F))
    net.predictor.weight.data.copy_(torch.from_numpy(W))
    columns, modes = P.eigenspace(net)
    s, U = np.linalg.eigh(F)
    s, U = s[::-1], U[:, ::-1]
    cos = [u @ W @ u / np.linalg.norm(W @ u) for u in U.T]
    top = next(k for k in range(1, 13) if s[:k].sum() >= 0.99 * s.sum())
    assert columns["align"] == pytest.approx(np.mean(cos[:top]), abs=1e-4) and 1 < top < 12
    assert columns["commutator"] == pytest.approx(np.sqrt(((F @ W - W @ F) ** 2).sum() / (F**2).sum() / (W**2).sum()), rel=1e-5)
    assert columns["asymmetry"] == pytest.approx(np.sqrt(((W - W.T) ** 2).sum() / (W**2).sum()), rel=1e-5)
    assert np.allclose([m["s"] for m in modes], s, atol=1e-5) and np.allclose([m["cos"] for m in modes], cos, atol=1e-3)
    assert np.allclose([m["p"] for m in modes], [u @ W @ u for u in U.T], atol=1e-3)
    assert np.allclose([m["w"] for m in modes], np.linalg.eigvalsh((W + W.T) / 2)[::-1], atol=1e-5)


def rows(file):
    return list(csv.DictReader(open(file)))


def test_alignment_is_1_by_construction_where_W_is_set_and_not_where_it_is_trained(in_tmp):
    for predictor in ("directpred", "directset", "directcopy", "sgd"):
        P.main([*SMALL, "--dry-run", "--predictor", predictor])
        first, last = rows(f"runs/directpred-{predictor}-patches-s0/metrics.csv")
        aligned = float(last["align"]) > 0.9999 and float(last["commutator"]) < 1e-5 and float(last["asymmetry"]) < 1e-5
        assert aligned == (predictor != "sgd") and float(first["align"]) < 0.6


def test_a_resumed_run_goes_on_as_if_uninterrupted(whole_and_cut):
    a, b = whole_and_cut(P, *SMALL, "--freq", "3")
    assert all(torch.equal(a[k], b[k]) for k in a) and a["FC"].abs().sum() > 0
    spectra = [rows(f"{out}/directpred-directpred-patches-s0/spectrum.csv") for out in ("whole", "cut")]
    assert spectra[0] == spectra[1] and [r["epoch"] for r in spectra[0]] == [e for e in "012" for _ in range(12)]


RANKS = """
import sys
sys.path.insert(0, {root!r})
import torch, directpred
import torch.distributed as dist
destroy, dist.destroy_process_group = dist.destroy_process_group, lambda: None
model = directpred.main("--limit 96 --batch-size 32 --epochs 1 --proj-hidden 32 --proj-dim 12".split())
mine = torch.cat([model.FC.flatten(), model.predictor.weight.flatten()])
both = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
if dist.get_rank() == 0:
    print("RANKS", torch.equal(*both), mine.norm().item() > 0)
destroy()
"""


def test_two_ranks_share_F_and_W(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(root=str(Path(P.__file__).parent)))
    out = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script], cwd=tmp_path,
                         capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert re.search("RANKS True True", out.stdout), out.stderr[-2000:]


# -------------------------------------------------------------------------------------------------------------- command

@pytest.mark.parametrize("flags", ["--predictor directset --alpha 2 --eps 0", "--predictor symmetric --ema 0", "--predictor optimal", "--rho 0 --schedule constant",
                                   "--predictor sgd --predictor-layers 2 --predictor-bias", "--data cifar10 --batch-size 8"])
def test_every_predictor_runs_and_linear_eval_reads_it(flags, in_tmp, fake_cifar):
    P.main([*flags.split(), "--dry-run"])
    folder, = Path("runs").iterdir()
    assert {"spectrum.csv", "spectrum.png", "result.json"} < {f.name for f in folder.iterdir()}
    assert (folder / "spectrum.png").stat().st_size > 10_000
    assert len(rows(folder / "spectrum.csv")) == 2 * 128 and json.loads((folder / "result.json").read_text())["epoch"] == 1
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


def test_sweep_makes_a_table_and_trains_nothing_twice(in_tmp, monkeypatch):
    trained, real = [], P.train
    monkeypatch.setattr(P, "train", lambda args, *rest: (trained.append(args), real(args, *rest))[1])
    flags = [*SMALL, "--dry-run", "--sweep", "symmetric", "--predictor-layers", "2", "--predictor-bias"]
    P.main(flags)
    folder = Path("runs/directpred-sweep-symmetric-2layers-bias-patches-s0")
    table = (folder / "table.md").read_text()
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == [f"{x} (STL-10)" for x in (77.64, 78.53, 41.92, 65.59)]
    assert [(a.predictor, bool(a.ema), a.predictor_layers, a.proj_dim) for a in trained] == [
        (kind, ema, 2, 12) for ema in (True, False) for kind in ("symmetric", "sgd")]
    assert (folder / "spectra.png").stat().st_size > 10_000 and len(rows(folder / "table.csv")) == 4
    P.main(flags)
    assert len(trained) == 4 and (folder / "table.md").read_text() == table


@pytest.mark.parametrize("sweep, n", [("predictor", 6), ("alpha", 4), ("weight-decay", 4), ("symmetric", 4)])
def test_rows_of_a_sweep_differ(sweep, n):
    jobs = [P.parse(["--sweep", sweep, *flags.split()], name) for name, flags, _ in P.sweep_rows(P.parse(["--sweep", sweep]))]
    assert len({(a.predictor, a.freq, a.alpha, a.ema, a.weight_decay) for a in jobs}) == n == len({a.label for a in jobs}) == len(jobs)
    assert not any(a.sweep for a in jobs)


@pytest.mark.parametrize("flags, words", [("--sweep alpha --predictor sgd", "--predictor"), ("--predictor-layers 2", "--predictor-layers"),
                                          ("--sweep alpha --predictor-layers 2", "--predictor-layers"), ("--sweep alpha --resume runs/x", "runs/x"),
                                          ("--rho 1", "--rho"), ("--freq 0", "--freq"), ("--predictor mlp", "mlp"), ("--sweep beta", "beta"), ("--eps -1", "--eps")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        P.main(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err and not Path("runs").exists()

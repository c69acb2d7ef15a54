"""The predictors that are set, F, and what a run leaves, against numpy and closed forms."""
from pathlib import Path

import numpy as np
import pytest
import torch

import common
import directpred as P
import linear_eval
from test_simsiam import result_of

SMALL = "--size 8 --proj-hidden 32 --proj-dim 12 --pred-hidden 16".split()
TINY = [*SMALL, *"--limit 64 --batch-size 16 --eval-every 9".split()]      # four steps an epoch
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


SPECTRA = {
    "full": np.random.default_rng(1).uniform(0.1, 3, 12), "identity": np.ones(12),
    "rank 4": np.r_[2, 1, 0.5, 0.1, np.zeros(8)], "rank 1": np.r_[0.7, np.zeros(11)],
    "repeated": np.repeat([5.0, 5, 1, 1, 0, 0], 2), "steep": 0.6 ** np.arange(12)}
every_spectrum = pytest.mark.parametrize("kind", SPECTRA)


def correlation(kind):
    """-> F [12, 12], and its eigenvalues and eigenvectors by numpy, all float64"""
    U = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0]
    F = U * SPECTRA[kind] @ U.T
    s, U = np.linalg.eigh(F)
    return torch.from_numpy(F), np.clip(s, 0, None), U


@every_spectrum
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1, 2])
def test_directset_weight(kind, alpha, eps=0.07):
    """F^alpha / ||F^alpha|| + eps I, by numpy's eigh."""
    F, s, U = correlation(kind)
    expected = U * ((s / s.max()) ** alpha + eps) @ U.T
    assert np.allclose(P.directset_weight(F, alpha, eps), expected, atol=1e-9 + 2e-16**alpha)


@every_spectrum
def test_directpred_weight_is_the_papers_up_to_its_length(kind, eps=0.1):
    """p_j = sqrt(s_j) + eps sqrt(max s), over the largest sqrt(s): F's scale does not matter."""
    F, s, U = correlation(kind)
    paper = U * (np.sqrt(s) + eps * np.sqrt(s.max())) @ U.T
    for scale in (1, 1e-3):
        W = P.directpred_weight(scale * F, eps)
        assert np.allclose(W * np.sqrt(s.max()), paper, atol=1e-6)


@every_spectrum
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_directcopy_needs_no_eigenvectors_for_directset_1(kind, dtype):
    F = 40 * correlation(kind)[0]
    W = P.directcopy_weight(F.to(dtype), 0.3)
    assert np.allclose(W, F.numpy() / np.linalg.norm(F, 2) + 0.3 * np.eye(12), atol=5e-4)


def test_optimal_weight_is_that_of_least_squares():
    z, t = np.random.default_rng(0).normal(size=(2, 50, 12))
    F, C = torch.from_numpy(z.T @ z / 50), torch.from_numpy(t.T @ z / 50)
    ridge = np.sqrt(50 * 0.01 * np.trace(F) / 12) * np.eye(12)         # 12 more rows, targets 0
    W, *_ = np.linalg.lstsq(np.r_[z, ridge], np.r_[t, np.zeros((12, 12))], rcond=None)
    assert np.allclose(P.optimal_weight(F, C).numpy(), W.T)


def make(*flags):
    return P.build(P.parse([*SMALL, *flags]))


@pytest.mark.parametrize("flags", [[], ["--center"]])
def test_F_and_C_are_the_closed_form_weighted_sum_of_their_batches(flags, rho=0.7):
    net = make("--rho", str(rho), *flags)
    batches = torch.randn(5, 4, 8, 12) + torch.randn(12)               # each z1, z2, t1, t2
    for batch in batches:
        net.update_correlations(*batch)
    expected = 0
    for i, (z1, z2, t1, t2) in enumerate(batches.double().numpy()):
        rows = np.hstack([np.r_[z1, z2], np.r_[t2, t1]])               # z, t: [16, 24]
        both = np.cov(rows.T, bias=True) if flags else np.einsum("bi,bj->ij", rows, rows) / 16
        expected = expected + (1 - rho if i else 1) * rho ** (4 - i) * both    # the first is all
    assert np.allclose(net.correlations[0], expected[:12, :12], atol=1e-5)     # E[z z^T]
    assert np.allclose(net.correlations[1], expected[12:, :12], atol=1e-5)     # E[t z^T]


def test_freq_5_sets_exactly_every_fifth_step(watch, monkeypatch):
    """And then to DirectPred's W_p of F, which SGD moves in between."""
    trained = watch(torch.optim.SGD, "step",
                    lambda _, self: self.param_groups[-2]["params"][0].detach().clone())
    found = watch(P.DirectPred, "set_predictor", lambda _, net: (
        len(trained), net.predictor.weight.detach().clone(), net.correlations[0].clone()))
    monkeypatch.setattr(common, "linear_probe", lambda *_, **__: 0.0)
    P.main([*TINY, "--freq", "5", "--epochs", "4", "--lr", "1"])
    assert [step for step, *_ in found] == [5, 10, 15] and len(trained) == 16
    for step, W, F in found:
        assert torch.allclose(W, P.directpred_weight(F, 0.1))
        assert not torch.equal(W, trained[step - 1])
    assert not any(torch.equal(a, b) for a, b in zip(trained, trained[1:]))


def test_symmetric_keeps_the_symmetric_part_after_every_step(monkeypatch):
    seen = []

    def symmetrize(self, real=P.DirectPred.symmetrize):
        before = self.predictor.weight.detach().numpy().copy()
        real(self)
        seen.append(abs(before - before.T).max())
        assert np.allclose(self.predictor.weight.detach(), (before + before.T) / 2)
    monkeypatch.setattr(P.DirectPred, "symmetrize", symmetrize)
    P.main([*TINY, "--predictor", "symmetric", "--epochs", "1"])
    assert len(seen) == 1 + 4 and min(seen) > 1e-3         # when it is built, and every step


def test_only_our_recipe_has_a_bias():
    for flags in ("", "--data cifar10 --predictor-bias"):
        assert P.build(P.parse([*SMALL, *flags.split()])).predictor.bias is not None
    for flags in ("--no-predictor-bias", "--data cifar10", "--data cifar100"):
        assert P.build(P.parse([*SMALL, *flags.split()])).predictor.bias is None


def test_columns_of_the_eigenspace_against_numpy():
    net = make("--predictor", "sgd")
    F, s, U = correlation("steep")
    W = np.random.default_rng(0).normal(size=(12, 12)) + F.numpy()
    net.correlations[0].copy_(F)
    net.predictor.weight.data.copy_(torch.from_numpy(W))
    columns, modes = P.eigenspace(net)
    F, s, U, norm = F.numpy(), s[::-1], U[:, ::-1], np.linalg.norm     # Frobenius
    p, cos = [u @ W @ u for u in U.T], [u @ W @ u / norm(W @ u) for u in U.T]
    top = next(k for k in range(1, 13) if s[:k].sum() >= 0.99 * s.sum())
    assert columns == pytest.approx({
        "align": np.mean(cos[:top]), "asymmetry": norm(W - W.T) / norm(W),
        "commutator": norm(F @ W - W @ F) / norm(F) / norm(W)}, abs=1e-4) and 1 < top < 12
    for key, values in {"s": s, "p": p, "cos": cos}.items():
        assert np.allclose([mode[key] for mode in modes], values, atol=1e-3), key


@pytest.mark.parametrize("flags", [
    "--predictor directset --alpha 2 --eps 0", "--predictor directpred",
    "--predictor directcopy --center", "--predictor optimal --rho 0 --schedule constant",
    "--predictor symmetric", "--predictor sgd", "--predictor sgd --predictor-layers 2"])
def test_what_every_predictor_leaves(flags):
    """Eigenvalues, columns, result.json; where W_p is set from F it has F's eigenvectors."""
    P.main([*TINY, "--epochs", "1", *flags.split()])
    folder, = Path("runs").iterdir()
    assert folder.name == f"directpred-{flags.split()[1]}-patches-s0"
    saved = common.load_run(folder)["tables"]
    result = result_of(folder)
    assert [mode["epoch"] for mode in saved["spectrum"]] == [1] * 12
    assert (folder / "spectrum.png").stat().st_size > 5_000
    ranks = [row["effective_rank"] for row in saved["metrics"]]
    assert result["effective_rank_lowest"] == min(ranks)
    if "layers 2" in flags:                                # there is no W_p
        assert "cos" not in saved["spectrum"][0] and "align" not in result
    elif "sgd" in flags or "symmetric" in flags:
        assert result["align"] < 0.9 and result["commutator"] > 0.01
        assert (result["asymmetry"] > 0.01) == ("sgd" in flags)
    elif "optimal" not in flags:
        assert result["align"] > 0.9999 and max(result["commutator"], result["asymmetry"]) < 1e-5
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"].keys() >= {"knn", "linear"}


@pytest.mark.parametrize("predictor", ["directpred", "directcopy", "optimal", "sgd"])
def test_a_rate_that_is_far_too_high_ends_with_one_line(predictor, capsys):
    with pytest.raises(SystemExit) as stop:                # not with eigh's traceback
        P.main([*SMALL, "--predictor", predictor, "--dry-run",
                *"--lr 9e10 --weight-decay 9e10".split()])
    assert stop.value.code == 2 and "nan or infinite" in capsys.readouterr().err

"""The predictors that are set, F, and what a run leaves, against numpy and closed forms."""
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import common
import directpred as P
import linear_eval

SMALL = "--proj-hidden 32 --proj-dim 12 --pred-hidden 16".split()
TINY = [*SMALL, *"--limit 64 --size 8 --batch-size 16 --eval-every 9".split()]   # 4 steps an epoch
pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def no_figure(monkeypatch):
    """For tests of something else: spectrum.png takes a second."""
    monkeypatch.setattr(P, "draw", lambda run: None)
    monkeypatch.setattr(common, "save_figure", lambda figure, file: None)


# --------------------------------------------------------------------------------- the predictors

SPECTRA = {
    "full": np.random.default_rng(1).uniform(0.1, 3, 12), "identity": np.ones(12),
    "rank 4": np.r_[2, 1, 0.5, 0.1, np.zeros(8)], "rank 1": np.r_[0.7, np.zeros(11)],
    "repeated": np.repeat([5.0, 5, 1, 1, 0, 0], 2), "steep": 0.6 ** np.arange(12)}
KINDS = ["full", "rank 4", "repeated", "rank 1", "identity"]


def correlation(kind):
    """F as float64 [12, 12]"""
    U = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0]
    return torch.from_numpy(U * SPECTRA[kind] @ U.T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1, 2])
def test_directset_weight(kind, alpha, eps=0.07):
    """G = W - eps I is F^alpha / ||F^alpha||: by numpy's eigh, and G^(1/alpha) gives F back."""
    F = correlation(kind)
    W = P.directset_weight(F, alpha, eps).numpy()
    F = F.numpy()
    s, U = np.linalg.eigh(F)
    s = np.clip(s, 0, None)
    expected = sum((sj / s.max()) ** alpha * np.outer(u, u) for sj, u in zip(s, U.T))
    rounding = 2e-16**alpha                            # of an eigenvalue that should be 0
    assert np.allclose(W, expected + eps * np.eye(12), atol=1e-9 + rounding)
    G, F = W - eps * np.eye(12), F / np.linalg.norm(F, 2)
    if alpha <= 1:
        assert np.allclose(np.linalg.matrix_power(G, round(1 / alpha)), F, atol=1e-9)
    else:
        assert np.allclose(G, F @ F)


@pytest.mark.parametrize("kind", KINDS)
def test_directpred_weight_is_the_papers_up_to_its_length(kind, eps=0.1):
    """p_j = sqrt(s_j) + eps sqrt(max s), over the largest sqrt(s): F's scale does not matter."""
    F = correlation(kind)
    s, U = np.linalg.eigh(F.numpy())
    s = np.clip(s, 0, None)
    paper = U * (np.sqrt(s) + eps * np.sqrt(s.max())) @ U.T
    W = P.directpred_weight(F, eps)
    assert np.allclose(W.numpy() * np.sqrt(s.max()), paper, atol=1e-6)
    assert torch.allclose(P.directpred_weight(1e-3 * F, eps), W, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_directcopy_is_directset_1(kind, dtype):
    F = 40 * correlation(kind).to(dtype)
    W = P.directcopy_weight(F, 0.3)
    assert torch.allclose(W, P.directset_weight(F, 1, 0.3), atol=5e-4)
    by_hand = F.numpy() / np.linalg.norm(F.numpy(), 2) + 0.3 * np.eye(12)
    assert np.allclose(W, by_hand, atol=5e-4)


def test_optimal_weight_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(2, 50, 12))
    F, C = torch.from_numpy(z.T @ z / 50), torch.from_numpy(t.T @ z / 50)
    ridge = np.sqrt(50 * 0.01 * np.trace(F) / 12) * np.eye(12)         # 12 more rows, targets 0
    W, *_ = np.linalg.lstsq(np.r_[z, ridge], np.r_[t, np.zeros((12, 12))], rcond=None)
    assert np.allclose(P.optimal_weight(F, C).numpy(), W.T)


# ------------------------------------------------------------------------------------ in the loop

def make(*flags):
    return P.DirectPred(P.parse([*SMALL, *flags]))


def test_F_is_the_closed_form_weighted_sum_of_its_batches(rho=0.7):
    net = make("--rho", str(rho))
    torch.manual_seed(0)
    batches = torch.randn(5, 4, 8, 12)                                 # each z1, z2, t1, t2
    for batch in batches:
        net.update_correlations(*batch)
    F, C = 0, 0
    for i, (z1, z2, t1, t2) in enumerate(batches.double().numpy()):
        weight = (1 - rho if i else 1) * rho ** (4 - i)                # the first is all there is
        z, t = np.r_[z1, z2], np.r_[t2, t1]
        F = F + weight * np.einsum("bi,bj->ij", z, z) / 16
        C = C + weight * np.einsum("bi,bj->ij", t, z) / 16
    assert np.allclose(net.correlations[0], F, atol=1e-6)
    assert np.allclose(net.correlations[1], C, atol=1e-6)


def test_centred_F_and_C_are_covariances():
    net = make("--center")
    z1, z2, t1, t2 = torch.randn(4, 8, 12) + torch.randn(12)
    net.update_correlations(z1, z2, t1, t2)
    both = np.cov(np.r_[z1, z2].T, np.r_[t2, t1].T, bias=True)         # of z and t, [24, 24]
    assert np.allclose(net.correlations[0], both[:12, :12], atol=1e-6)
    assert np.allclose(net.correlations[1], both[12:, :12], atol=1e-6)


@pytest.mark.parametrize("flags, is_set", [
    ("--predictor directpred", True), ("--predictor directcopy --ema 0", True),
    ("--predictor sgd", False), ("--predictor optimal --freq 3", False),
    ("--predictor symmetric --predictor-layers 2 --predictor-bias", False)])
def test_first_step_has_the_gradient_of_the_loss_and_none_where_W_is_set(
        flags, is_set, first_step, no_figure):
    model, x1, x2, grads = first_step(P, *SMALL, *flags.split(), "--size", "8")
    target = model.target or model.encoder
    loss = 0
    for x, other in ((x1, x2), (x2, x1)):
        p, t = model.predictor(model.encoder(x)), target(other).detach()
        p, t = p / p.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
        loss = loss + (p - t).square().sum(1).mean()
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("target.")}
    if is_set:
        del trained["predictor.weight"]
    for name, g in zip(trained, torch.autograd.grad(loss, list(trained.values()))):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name
    assert all(grads[name] is None for name in grads if name not in trained)


def test_before_its_first_step_the_net_is_as_it_was_built(first_step, no_figure):
    """Row 0 has been measured by then; F is empty, so that the first batch is all of it."""
    model, *_ = first_step(P, *SMALL, "--size", "8")
    assert model.correlations.count_nonzero() == 0 and model.started == 0
    torch.manual_seed(0)
    fresh, found = make().state_dict(), model.state_dict()
    assert found.keys() == fresh.keys()
    assert all(torch.equal(found[key], fresh[key]) for key in fresh)


def test_freq_5_sets_exactly_every_fifth_step(in_tmp, monkeypatch, no_figure):
    """At the end of a step W_p is DirectPred's of F, or as SGD left it."""
    models, after_sgd, is_set, untouched = [], [], [], []

    def watch_init(self, args, init=P.DirectPred.__init__):
        init(self, args)
        models.append(self)

    def watch_step(self, step=torch.optim.SGD.step):
        step(self)
        after_sgd.append(models[0].predictor.weight.detach().clone())

    def watch_log(self, *loss, log=common.Run.log, **views):
        W, F = models[0].predictor.weight.detach(), models[0].correlations[0]
        is_set.append(torch.allclose(W, P.directpred_weight(F, 0.1)))
        untouched.append(torch.equal(W, after_sgd[-1]))
        log(self, *loss, **views)

    monkeypatch.setattr(P.DirectPred, "__init__", watch_init)
    monkeypatch.setattr(torch.optim.SGD, "step", watch_step)
    monkeypatch.setattr(common.Run, "log", watch_log)
    P.main([*TINY, "--freq", "5", "--epochs", "4", "--lr", "1"])
    fifth = [step % 5 == 0 for step in range(1, 17)]
    assert is_set == fifth == [not same for same in untouched]
    assert not any(torch.equal(a, b) for a, b in zip(after_sgd[:16], after_sgd[1:16]))


@pytest.mark.parametrize("layers", ["1", "2"])
def test_symmetric_predictor_is_symmetric_after_every_step(layers, in_tmp, monkeypatch, no_figure):
    off = {"symmetric": [], "sgd": []}

    def watch(self, *loss, log=common.Run.log, **views):
        h = self.model.predictor
        first, last = (h, h) if layers == "1" else (h[0], h[3])
        off[self.args.predictor].append((first.weight - last.weight.T).abs().max().item())
        log(self, *loss, **views)

    monkeypatch.setattr(common.Run, "log", watch)
    for predictor in off:
        flags = ["--predictor", predictor, "--predictor-layers", layers]
        P.main([*TINY, "--epochs", "1", *flags])
    assert len(off["symmetric"]) == 4
    assert max(off["symmetric"]) < 1e-6 < 1e-2 < min(off["sgd"])


def test_bias_comes_with_the_recipe_and_can_be_turned():
    found = {flags: P.parse(flags.split()).predictor_bias for flags in (
        "", "--no-predictor-bias", "--data cifar10", "--data cifar10 --predictor-bias")}
    assert list(found.values()) == [True, False, False, True]
    assert make().predictor.bias.requires_grad
    assert make("--no-predictor-bias").predictor.bias is None


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "stl10"])
def test_heads_of_the_paper(data):
    args = P.parse(["--data", data])
    model = P.DirectPred(args)
    projector = [(m.in_features, m.out_features) for m in model.encoder.projector[::3]]
    assert projector == [(512, 512), (512, 128)] and len(model.encoder.projector) == 4
    assert model.predictor.weight.shape == (128, 128) and (args.rho, args.eps) == (0.3, 0.1)


# ---------------------------------------------------------------------------------------- report

def test_columns_of_the_eigenspace_against_numpy():
    net = make("--predictor", "sgd")
    F = correlation("steep").numpy()
    W = np.random.default_rng(0).normal(size=(12, 12)) + F
    net.correlations[0].copy_(torch.from_numpy(F))
    net.predictor.weight.data.copy_(torch.from_numpy(W))
    columns, modes = P.eigenspace(net)
    s, U = np.linalg.eigh(F)
    s, U = s[::-1], U[:, ::-1]
    p, cos = [u @ W @ u for u in U.T], [u @ W @ u / np.linalg.norm(W @ u) for u in U.T]
    top = next(k for k in range(1, 13) if s[:k].sum() >= 0.99 * s.sum())
    assert columns["align"] == pytest.approx(np.mean(cos[:top]), abs=1e-4) and 1 < top < 12
    norm = np.linalg.norm                                              # Frobenius
    commutator = norm(F @ W - W @ F) / norm(F) / norm(W)
    assert columns["commutator"] == pytest.approx(commutator, rel=1e-5)
    assert columns["asymmetry"] == pytest.approx(norm(W - W.T) / norm(W), rel=1e-5)
    expected = {"s": s, "p": p, "cos": cos, "w": np.linalg.eigvalsh((W + W.T) / 2)[::-1]}
    for key, values in expected.items():
        assert np.allclose([mode[key] for mode in modes], values, atol=1e-3), key


def rows(file):
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def test_alignment_is_1_where_W_is_set_and_not_where_it_is_trained(in_tmp, no_figure):
    for predictor in ("directpred", "directset", "directcopy", "sgd"):
        P.main([*TINY, "--epochs", "1", "--predictor", predictor])
        _, last = common.read_csv(f"runs/directpred-{predictor}-patches-s0/metrics.csv")
        if predictor == "sgd":
            assert last["align"] < 0.9 and min(last["commutator"], last["asymmetry"]) > 0.01
        else:
            assert last["align"] > 0.9999 and max(last["commutator"], last["asymmetry"]) < 1e-5


def test_a_resumed_run_goes_on_as_if_uninterrupted(whole_and_cut, no_figure):
    whole, cut = whole_and_cut(P, *SMALL, "--freq", "3", "--size", "8")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert whole["correlations"].abs().sum() > 0
    file = "directpred-directpred-patches-s0/spectrum.csv"
    spectrum = rows(f"whole/{file}")
    assert spectrum == rows(f"cut/{file}")
    assert [row["epoch"] for row in spectrum] == ["1"] * 12 + ["2"] * 12


# ------------------------------------------------------------------------------------------ runs

@pytest.mark.parametrize("flags", [
    "--predictor directset --alpha 2 --eps 0", "--predictor symmetric --ema 0",
    "--predictor optimal --rho 0 --schedule constant",
    "--predictor sgd --predictor-layers 2 --predictor-bias",
    "--data cifar10 --limit 64 --batch-size 4"])
def test_every_predictor_runs_and_linear_eval_reads_it(flags, in_tmp, fake_cifar):
    P.main([*SMALL, *flags.split(), "--dry-run", "--size", "8"])
    folder, = Path("runs").iterdir()
    modes = rows(folder / "spectrum.csv")
    assert len(modes) == 12 and {mode["epoch"] for mode in modes} == {"1"}
    assert ("cos" in modes[0]) == ("layers 2" not in flags)
    assert (folder / "spectrum.png").stat().st_size > 5_000
    result = json.loads((folder / "result.json").read_text())
    ranks = [float(row["effective_rank"]) for row in rows(folder / "metrics.csv")]
    assert result["epoch"] == 1 and result["effective_rank_lowest"] == min(ranks)
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


@pytest.mark.parametrize("predictor", ["directpred", "directcopy", "optimal", "sgd"])
def test_a_rate_that_is_far_too_high_ends_with_one_line(predictor, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:                # not with eigh's traceback
        P.main([*SMALL, "--predictor", predictor, "--dry-run", "--lr", "1e35"])
    assert stop.value.code == 2 and "nan or infinite" in capsys.readouterr().err


@pytest.mark.parametrize("layers, n", [("1", 1), ("2", 2)])
def test_biases_have_their_own_rate_and_do_not_decay(layers, n, in_tmp, monkeypatch):
    seen = []

    def watch(self):
        seen.append([(len(group["params"]), group["lr"], group["weight_decay"])
                     for group in self.optimizer.param_groups])
        raise InterruptedError
    monkeypatch.setattr(common.Run, "epochs", watch)
    flags = "--batch-size 16 --lr 1 --pred-lr 3 --bias-lr 5 --pred-weight-decay 0.25".split()
    with pytest.raises(InterruptedError):
        P.main([*SMALL, "--predictor", "sgd", "--predictor-layers", layers, *flags])
    _, weights, biases = seen[0]
    assert weights == (n, 3 / 16, 0.25) and biases == (n, 5 / 16, 0)


@pytest.mark.parametrize("flags, words", [
    ("--predictor-layers 2", "--predictor-layers"), ("--rho 1", "--rho"), ("--freq 0", "--freq"),
    ("--predictor mlp", "mlp"), ("--eps -1", "--eps"), ("--schedule linear", "--schedule"),
    ("--predictor-layers 3", "--predictor-layers")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        P.main(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not Path("runs").exists()

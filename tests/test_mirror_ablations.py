"""Every variant's gradient against the formula written out by hand, in float64; the heads; the table."""
import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import common
import linear_eval
import mirror_ablations as M

B, DIM = 6, 5


def make(variant, **changed):
    """-> net, z1, z2 in float64; z are leaves, so that their gradient is what f gets."""
    torch.manual_seed(0)
    flags = ["--variant", variant, "--proj-dim", str(DIM), "--pred-hidden", "4"]
    net = M.Siamese(argparse.Namespace(**{**vars(M.parse(flags)), "n_images": 10, **changed})).double()
    for p in net.predictor.parameters() if net.predictor else ():
        if p.ndim == 1 or p.abs().sum() == 0:                              # biases and E - I start at 0, which would hide terms
            nn.init.normal_(p, std=0.3)
    return net, *(torch.randn(B, DIM, dtype=torch.double, requires_grad=True) for _ in range(2))


def unit(z):
    return z / (z * z).sum(1, keepdim=True).sqrt()


def minus_cosine(z, target):
    """Gradient of -mean_i cos(z_i, target_i) with respect to z, by hand: -(T - (T.Z) Z) / |z| / B."""
    Z, T = unit(z.detach()), unit(target.detach())
    return -(T - (T * Z).sum(1, keepdim=True) * Z) / z.detach().norm(dim=1, keepdim=True) / len(z)


def through(h, z, gradient):
    """What z and h's weights get when h(z) gets `gradient`."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(h(z), [z, *h.parameters()], gradient)


def same(found, expected):
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), (found - expected).abs().max()


def both(a, b):
    return [x + y for x, y in zip(a, b)]


# ----------------------------------------------------------------------------------------------------------- gradients

def test_D_is_the_negative_cosine_and_detaches_nothing():
    p, z = (torch.randn(B, DIM, dtype=torch.double, requires_grad=True) for _ in range(2))
    loss = M.D(p, z)
    assert loss.item() == pytest.approx(-np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(p.tolist(), map(np.array, z.tolist()))]))
    loss.backward()
    same(p.grad, minus_cosine(p, z)), same(z.grad, minus_cosine(z, p))


def test_simsiam_gradient_reaches_f_through_h_alone():
    net, z1, z2 = make("simsiam")
    loss, p1, p2 = M.simsiam(net, z1, z2)
    loss.backward()
    one, two = through(net.predictor, z1, minus_cosine(p1, z2) / 2), through(net.predictor, z2, minus_cosine(p2, z1) / 2)
    same(z1.grad, one[0]), same(z2.grad, two[0])
    for p, expected in zip(net.predictor.parameters(), both(one[1:], two[1:])):
        same(p.grad, expected)


def test_mirror_gives_f_the_gradient_of_minus_sgP_Z_and_h_that_of_simsiam():
    net, z1, z2 = make("mirror")
    loss, p1, p2 = M.mirror(net, z1, z2)
    loss.backward()
    same(z1.grad, minus_cosine(z1, p2) / 2), same(z2.grad, minus_cosine(z2, p1) / 2)
    simsiams = both(through(net.predictor, z1, minus_cosine(p1, z2) / 2), through(net.predictor, z2, minus_cosine(p2, z1) / 2))
    for p, expected in zip(net.predictor.parameters(), simsiams[1:]):
        same(p.grad, expected)


def test_naive_has_twice_the_gradient_of_naive_with_stop_gradient():
    """`symmetric` without its predictor is the naive loss with stop-gradient."""
    net, z1, z2 = make("naive")
    M.naive(net, z1, z2)[0].backward()
    whole = z1.grad.clone(), z2.grad.clone()
    same(whole[0], minus_cosine(z1, z2)), same(whole[1], minus_cosine(z2, z1))
    z1.grad = z2.grad = None
    net.predictor = nn.Identity()
    M.symmetric(net, z1, z2)[0].backward()
    same(2 * z1.grad, whole[0]), same(2 * z2.grad, whole[1])


@pytest.mark.parametrize("variant", ["symmetric", "no_stopgrad"])
def test_gradients_through_the_predictor(variant):
    net, z1, z2 = make(variant)
    loss, p1, p2 = M.LOSSES[variant](net, z1, z2)
    loss.backward()
    if variant == "symmetric":
        on_z = 0, 0
        on_p = minus_cosine(p1, p2) / 2, minus_cosine(p2, p1) / 2
    else:
        on_z = minus_cosine(z1, p2) / 2, minus_cosine(z2, p1) / 2
        on_p = minus_cosine(p1, z2) / 2, minus_cosine(p2, z1) / 2
    one, two = through(net.predictor, z1, on_p[0]), through(net.predictor, z2, on_p[1])
    same(z1.grad, one[0] + on_z[0]), same(z2.grad, two[0] + on_z[1])
    for p, expected in zip(net.predictor.parameters(), both(one[1:], two[1:])):
        same(p.grad, expected)


def test_inverse_sends_no_gradient_where_algorithm_4_detaches():
    """f: only from L_enc, through h.  h: from L_pred and L_enc, not from L_inv.  h_inv: only from L_inv, with p a constant."""
    net, z1, z2 = make("inverse")
    loss, p1, p2 = M.inverse(net, z1, z2)
    loss.backward()
    h, h_inv = net.predictor, net.inverse
    t1, t2 = h_inv(p1).detach(), h_inv(p2).detach()
    enc = both(through(h, z1, minus_cosine(p1, t2) / 2), through(h, z2, minus_cosine(p2, t1) / 2))
    same(z1.grad, through(h, z1, minus_cosine(p1, t2) / 2)[0]), same(z2.grad, through(h, z2, minus_cosine(p2, t1) / 2)[0])
    pred = both(through(h, z1, minus_cosine(p1, z2) / 2), through(h, z2, minus_cosine(p2, z1) / 2))
    for p, expected in zip(h.parameters(), both(enc[1:], pred[1:])):
        same(p.grad, expected)
    inv = both(through(h_inv, p1, minus_cosine(t1, z1) / 2), through(h_inv, p2, minus_cosine(t2, z2) / 2))
    for p, expected in zip(h_inv.parameters(), inv[1:]):
        same(p.grad, expected)
    terms = [(p1, z2), (p2, z1), (t1, z1), (t2, z2), (p1, t2), (p2, t1)]                             # each with its 1/2
    assert loss.item() == pytest.approx(-sum((unit(a) * unit(b)).sum(1).mean().item() for a, b in terms) / 2)


def test_moving_average_updates_the_rows_of_its_batch_and_pulls_towards_them():
    net, z1, z2 = make("moving_average", momentum=0.7)
    before, net.images = net.eta.clone(), torch.tensor([7, 0, 3, 9, 2, 4])
    M.moving_average(net, z1, z2)[0].backward()
    Z2 = unit(z2.detach()).float().double()
    for i in range(10):
        j = net.images.tolist().index(i) if i in net.images else None
        expected = before[i] if j is None else 0.7 * before[i] + 0.3 * Z2[j]
        assert torch.allclose(net.eta[i], expected if j is None else expected / expected.norm(), atol=1e-7)
    assert z2.grad is None
    same(z1.grad, minus_cosine(z1, net.eta[net.images]))


def test_same_batch_target_is_the_mean_of_the_other_views():
    net, z1, z2 = make("same_batch")
    others = [z2, *torch.randn(3, B, DIM, dtype=torch.double).unbind()]
    M.same_batch(net, z1, *others)[0].backward()
    same(z1.grad, minus_cosine(z1, sum(others) / 4))
    assert z2.grad is None


def test_bn_after_l2():
    """The loss and its gradient with BN written out: u = (Z - mean) / sd, L = sum (u1 - u2)^2 / 2BD."""
    net, z1, z2 = make("bn_after_l2")
    M.bn_after_l2(net, z1, z2)[0].backward()

    def backward(z, other):
        Z = unit(z.detach())
        sd = (Z.var(0, unbiased=False) + net.bn.eps).sqrt()
        u, v = (Z - Z.mean(0)) / sd, unit(other.detach())
        v = (v - v.mean(0)) / (v.var(0, unbiased=False) + net.bn.eps).sqrt()
        g = (u - v) / B / DIM
        g = (g - g.mean(0) - u * (g * u).mean(0)) / sd                                                # back through BN
        return (g - (g * Z).sum(1, keepdim=True) * Z) / z.detach().norm(dim=1, keepdim=True), ((u - v) ** 2).sum() / (2 * B * DIM)
    same(z1.grad, backward(z1, z2)[0]), same(z2.grad, backward(z2, z1)[0])
    same(M.bn_after_l2(net, z1, z2)[0].detach(), backward(z1, z2)[1])


@pytest.mark.parametrize("variant", ["two_fc", "tanh_fc", "bias"])
def test_predictors_of_section_4_see_the_normalised_z(variant):
    net, z1, z2 = make(variant)
    loss, p1, p2 = M.LOSSES[variant](net, z1, z2)
    h = net.predictor
    W, b = {"two_fc": lambda: (h[1].weight @ h[0].weight, h[1].bias), "tanh_fc": lambda: (h.weight, 0),
            "bias": lambda: (torch.eye(DIM).double(), h.bias)}[variant]()
    W, b = W.detach(), b.detach() if variant != "tanh_fc" else 0
    same(p1.detach(), unit(z1).detach() @ W.T + b), same(p2.detach(), unit(z2).detach() @ W.T + b)
    loss.backward()
    g = minus_cosine(p1, z2) / 2 @ W                                                                  # on Z1
    Z = unit(z1.detach())
    same(z1.grad, (g - (g * Z).sum(1, keepdim=True) * Z) / z1.detach().norm(dim=1, keepdim=True))
    if variant == "bias":                    # A.8 with the right m: d(-cos(P, Z'))/db = -(Z' - cos(P, Z') P) / |p|
        same(h.bias.grad, (minus_cosine(p1, z2) + minus_cosine(p2, z1)).sum(0) / 2)


@pytest.mark.parametrize("variant", ["identity", "linear"])
def test_wen_li_objective(variant):
    """1/2 ||BN[E z1] - sg z2||^2 / D; its gradient on E through BN, written out."""
    net, z1, z2 = make(variant)
    loss, p1, p2 = M.LOSSES[variant](net, z1, z2)
    loss.backward()
    E = (net.predictor.E if variant == "identity" else net.predictor.weight).detach()
    total, on_E = 0, 0
    for z, target in ((z1, z2), (z2, z1)):
        z, target = z.detach(), target.detach()
        y = z @ E.T
        sd = (y.var(0, unbiased=False) + net.bn.eps).sqrt()
        u = (y - y.mean(0)) / sd
        total += ((u - target) ** 2).sum() / (2 * B * DIM) / 2
        g = (u - target) / B / DIM / 2
        on_E += ((g - g.mean(0) - u * (g * u).mean(0)) / sd).T @ z
    same(loss.detach(), total)
    if variant == "identity":
        on_E.fill_diagonal_(0)                                                               # the diagonal is no parameter
        same(net.predictor.change.grad, on_E)
    else:
        same(net.predictor.weight.grad, on_E)


# --------------------------------------------------------------------------------------------------------------- heads

def trained(variant, *flags):
    """The model after two steps with large rates and weight decay, and its metrics.csv."""
    model = M.main(["--variant", variant, "--dry-run", "--lr", "4", "--weight-decay", "0.01", "--pred-weight-decay", "0.1", *flags])
    file, = Path("runs").glob(f"mirror_ablations-{variant}*-patches-s0/metrics.csv")
    return model, list(csv.DictReader(open(file)))


def test_diagonal_of_E_never_moves_and_the_rest_starts_at_0(in_tmp):
    net, *_ = make("identity")
    nn.init.zeros_(net.predictor.change)
    assert torch.equal(net.predictor.E, torch.eye(DIM).double())
    model, rows = trained("identity")
    assert torch.equal(model.predictor.E.diag(), torch.ones(256)) and float(rows[0]["E_max"]) == 0 < float(rows[1]["E_max"])


def test_the_other_heads(in_tmp):
    E = trained("identity_full")[0].predictor.E
    assert (E.diag() - 1).abs().max() > 1e-4
    model, rows = trained("identity_symmetric")
    E = model.predictor.E
    assert (E - E.T).abs().max() < 1e-6 < (E - E.diag().diag()).abs().max() and float(rows[1]["E_asym"]) < 1e-6
    model, rows = trained("identity_frozen")
    assert torch.equal(model.predictor.E, torch.eye(256)) and float(rows[1]["E_max"]) == 0


def test_tanh_holds_the_weights_within_1_after_every_step(in_tmp, monkeypatch):
    seen, real = [], M.constrain

    def watch(net):
        before = net.predictor.weight.detach().clone()
        real(net)
        seen.append((before, net.predictor.weight.detach().clone()))
    monkeypatch.setattr(M, "constrain", watch)
    trained("tanh_fc", "--pred-lr", "1000")
    assert len(seen) == 2 and max(before.abs().max() for before, _ in seen) > 1
    for before, after in seen:
        assert np.allclose(after, np.tanh(before.numpy()), atol=1e-6) and after.abs().max() <= 1


def test_columns_of_the_head():
    net, z1, z2 = make("identity")
    z, E = torch.cat([z1, z2]).detach().numpy(), net.predictor.E.detach().numpy()
    columns = M.head_metrics(net, [z1, z2], M.LOSSES["identity"](net, z1, z2)[1:])
    off = np.abs(E[~np.eye(DIM, dtype=bool)])
    assert columns["E_max"] == pytest.approx(off.max()) and columns["E_mean"] == pytest.approx(off.mean())
    assert columns["E_asym"] == pytest.approx(np.sqrt(((E - E.T) ** 2).sum()) / np.sqrt((E**2).sum()))
    net, *_ = make("simsiam")
    o, b = (z / np.linalg.norm(z, axis=1, keepdims=True)).mean(0), net.predictor[-1].bias.detach().numpy()
    columns = M.head_metrics(net, [z1, z2], M.simsiam(net, z1, z2)[1:])
    assert columns["cos_bias"] == pytest.approx(o @ b / np.linalg.norm(o) / np.linalg.norm(b), abs=1e-6)
    p = torch.cat([net.predictor(z1), net.predictor(z2)]).detach().numpy()
    assert columns["m_o_P"] == pytest.approx(np.linalg.norm((p / np.linalg.norm(p, axis=1, keepdims=True)).mean(0)), rel=1e-5)
    assert set(M.head_metrics(make("naive")[0], [z1, z2], ())) == set()


# ------------------------------------------------------------------------------------------------------ command and table

@pytest.mark.parametrize("m_o, rank, expected", [(0.95, 30, "complete"), (0.949, 4, "dimensional"), (0.949, 4.01, "none"), (0.96, 1, "complete")])
def test_verdict(m_o, rank, expected):
    assert common.verdict(m_o, rank) == expected


def test_settings_of_a_variant_win_over_the_recipe_and_lose_to_the_user():
    assert M.parse(["--variant", "bn_before_l2"]).final_bn == "noaffine" != M.parse([]).final_bn
    assert M.parse(["--variant", "bn_before_l2", "--final-bn", "affine"]).final_bn == "affine"
    assert M.parse(["--variant", "same_batch", "--n-aug", "25"]).label == "same_batch25"


@pytest.mark.parametrize("variant", ["symmetric", "inverse", "moving_average", "bn_after_l2", "identity_full"])     # --all runs every one
def test_variants_run_and_linear_eval_reads_them(variant, in_tmp):
    M.main(["--variant", variant, "--dry-run", "--final-bn", "affine"])
    folder, = Path("runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["verdict"] in ("complete", "dimensional", "none") and 0 <= result["linear"] <= 100
    assert result["verdict"] == common.verdict(*((result["m_o_P"], result["rank_P"]) if variant == "symmetric" else (result["m_o"], result["effective_rank"])))
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


def test_a_resumed_memory_bank_goes_on_as_if_uninterrupted(whole_and_cut):
    a, b = whole_and_cut(M, "--variant", "moving_average")
    assert all(torch.equal(a[k], b[k]) for k in a) and a["eta"].shape == (300, 256)


def few(monkeypatch):
    """--all with four variants."""
    monkeypatch.setattr(M, "VARIANTS", {k: M.VARIANTS[k] for k in ("simsiam", "naive", "symmetric", "same_batch")})
    monkeypatch.setattr(M, "GROUPS", {"some": ["simsiam", "naive", "symmetric"], "others": ["same_batch10", "same_batch25"]})


def test_all_makes_the_table_and_goes_on_where_it_stopped(in_tmp, monkeypatch, capsys):
    few(monkeypatch)
    train, done, stops = M.train, [], ["symmetric"]

    def stop_at_symmetric(args, *rest):
        if args.variant in stops:
            raise KeyboardInterrupt(stops.pop())
        done.append(args.label)
        return train(args, *rest)
    monkeypatch.setattr(M, "train", stop_at_symmetric)
    flags = "--all --limit 200 --epochs 4 --batch-size 32".split()
    with pytest.raises(KeyboardInterrupt):
        M.main(flags)
    assert done == ["simsiam", "naive"]
    M.main(flags)
    assert done[2:] == ["symmetric", "same_batch10", "same_batch25"]                              # the others were not repeated
    folder = Path("runs/mirror_ablations-all-patches-s0")
    assert {"table.csv", "table.md", "variants.png"} < {f.name for f in folder.iterdir()}
    assert "| naive | Table 2 | collapse, 1 | " in (folder / "table.md").read_text()
    rows = {r["variant"]: r for r in csv.DictReader(open(folder / "table.csv"))}
    assert list(rows)[0] == "untrained" and len(rows) == 6 and rows["same_batch25"]["epoch"] == "1" and rows["naive"]["epoch"] == "4"

    M.main("--variant naive --limit 200 --epochs 4 --batch-size 32 --out alone".split())         # as in --all, to the last digit
    alone, inside = (list(csv.DictReader(open(f / "mirror_ablations-naive-patches-s0/metrics.csv"))) for f in (Path("alone"), folder))
    assert [r["loss"] for r in alone] == [r["loss"] for r in inside] and alone[-1]["knn"] == rows["naive"]["knn"]

    M.main([*flags, "--seed", "1"])
    two = [list(csv.DictReader(open(f"runs/mirror_ablations-all-patches-s{s}/table.csv"))) for s in (0, 1)]
    line, = (x for x in Path("runs/mirror_ablations-all-patches-s1/table.md").read_text().splitlines() if x.startswith("| naive "))
    std = [float(r["std"]) for t in two for r in t if r["variant"] == "naive"]
    assert f"| {np.mean(std):.2f} ± {np.std(std, ddof=1):.2f} |" in line
    assert "±" not in (folder / "table.md").read_text()                                      # seed 1 was not there yet
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        M.main("--all --limit 200 --epochs 2 --batch-size 32".split())
    assert stop.value.code == 2 and "was made with another --epochs" in capsys.readouterr().err
    done.clear()
    M.main([*flags, "--only", "symmetric,naive"])                                             # trains nothing, tells of two
    assert [r["variant"] for r in csv.DictReader(open(folder / "table.csv"))] == ["untrained", "naive", "symmetric"] and not done


def test_scan_writes_every_setting(in_tmp, monkeypatch):
    monkeypatch.setattr(M, "SCAN", [(1.0, 0.0), (100.0, 0.0)])
    M.main("--scan --limit 200 --epochs 2 --batch-size 32".split())
    rows = list(csv.DictReader(open("runs/mirror_ablations-scan-patches-s0/scan.csv")))
    assert [(r["pred_lr"], r["epoch"]) for r in rows] == [(lr, e) for lr in ("1.0", "100.0") for e in ("0.0", "1.0", "2.0")]
    assert float(rows[5]["E_max"]) > 3 * float(rows[2]["E_max"]) > 0
    folder = Path("runs/mirror_ablations-scan-patches-s0")
    assert (folder / "scan.png").stat().st_size > 10_000 and len((folder / "table.md").read_text().splitlines()) == 4


@pytest.mark.parametrize("flags, words", [("--all --variant naive", "--variant"), ("--variant nonsense", "nonsense"), ("--scan --variant bias", "--variant"), ("--all --only naive,siamese", "siamese"),
                                          ("--variant same_batch --n-aug 1", "--n-aug")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        M.main(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err and not Path("runs").exists()


def test_memory_bank_is_refused_under_torchrun(tmp_path):
    script = Path(M.__file__)
    out = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script, "--dry-run", "--variant", "moving_average"],
                         cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert out.returncode and "run them without torchrun" in out.stderr

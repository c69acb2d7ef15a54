"""All Siamese nets of mirror_ablations.py and more_ablations.py: every variant's loss and gradient
against the loss written out, in float64; heads, settings, what a run leaves."""
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import common
import linear_eval
import mirror_ablations as M
import more_ablations as X
from test_simsiam import result_of

B, DIM = 6, 5
TINY = "--limit 64 --size 8 --batch-size 16 --eval-every 9 --proj-dim 16 --pred-hidden 8".split()
EVERY = [(script, variant) for script in (M, X) for variant in script.VARIANTS]
pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def make(script, variant, **changed):
    """-> net, its loss, z1, z2 in float64; z are leaves, so that their gradient is what f gets."""
    torch.manual_seed(0)
    args = script.parse(["--variant", variant, "--proj-dim", str(DIM), "--pred-hidden", "4"])
    vars(args).update(changed)
    net = script.build(args).double()
    for p in net.predictor.parameters() if net.predictor else ():
        if p.ndim == 1 or p.abs().sum() == 0:          # would hide terms: biases and E - I are 0
            nn.init.normal_(p, std=0.3)
    z1, z2 = (torch.randn(B, DIM, dtype=torch.double, requires_grad=True) for _ in range(2))
    return net, script.VARIANTS[variant].loss, z1, z2


def unit(z):
    return z / (z * z).sum(1, keepdim=True).sqrt()


def cosine(p, t):
    return (unit(p) * unit(t)).sum(1).mean()


def batch_norm(y):
    return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()


def same(found, expected, parameters):
    """Two losses and their gradients, None where no gradient flows."""
    assert torch.allclose(found, expected)
    for a, b in zip(*(torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
                      for loss in (found, expected))):
        assert a is None if b is None else torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def wen_li(net, z, other, is_fixed=1.0):
    """1/2 ||BN[E z] - sg other||^2 / D, of two directions; is_fixed: E's diagonal stays 1."""
    E = torch.eye(DIM) + net.predictor.change * (1 - is_fixed * torch.eye(DIM))
    return (batch_norm(z @ E.T) - other.detach()).square().sum() / (B * DIM) / 4


BY_HAND = {                                                # in one direction, where z learns
    "simsiam": lambda net, z, other: -cosine(net.predictor(z), other.detach()) / 2,
    "naive": lambda net, z, other: -cosine(z, other) / 2,
    "no_stopgrad": lambda net, z, other: -cosine(net.predictor(z), other) / 2,
    "mirror": lambda net, z, other: -cosine(z, net.predictor(other.detach())) / 2,
    "symmetric": lambda net, z, other: -cosine(net.predictor(z), net.predictor(other).detach()) / 2,
    "bias": lambda net, z, other: -cosine(unit(z) + net.predictor.bias, other.detach()) / 2,
    "inverse": lambda net, z, other: -(                    # Algorithm 4: L_pred, L_inv, L_enc
        cosine(net.predictor(z.detach()), other.detach())
        + cosine(net.inverse(net.predictor(z).detach()), z.detach())
        + cosine(net.predictor(z), net.inverse(net.predictor(other)).detach())) / 2,
    "identity": wen_li, "identity_symmetric": wen_li,
    "identity_full": lambda net, z, other: wen_li(net, z, other, is_fixed=0),
    "linear": lambda net, z, other: (
        batch_norm(z @ net.predictor.weight.T) - other.detach()).square().mean() / 4,
    "mse": lambda net, z, other: (net.predictor(z) - other.detach()).square().mean() / 2,
    "two_fc": lambda net, z, other: -cosine(net.predictor(unit(z)), other.detach()) / 2,
    "fc": lambda net, z, other: -cosine(unit(z) @ net.predictor.weight.T, other.detach()) / 2,
    "fc_of_z": lambda net, z, other: -cosine(z @ net.predictor.weight.T, other.detach()) / 2,
    "bias_of_z": lambda net, z, other: -cosine(z + net.predictor.bias, other.detach()) / 2,
    "bn_after_l2": lambda net, z, other: (
        batch_norm(unit(z)) - batch_norm(unit(other))).square().mean() / 4}
BY_HAND["tanh_fc"] = BY_HAND["fc"]


@pytest.mark.parametrize("script, variant", [pair for pair in EVERY if pair[1] in BY_HAND])
def test_loss_and_gradients_are_those_of_the_loss_by_hand(script, variant):
    net, loss_of, z1, z2 = make(script, variant)
    loss, *p = loss_of(net, z1, z2)
    by_hand = BY_HAND[variant](net, z1, z2) + BY_HAND[variant](net, z2, z1)
    heads = [weight for name, weight in net.named_parameters() if "encoder" not in name]
    same(loss, by_hand, [z1, z2, *heads])
    h = net.predictor
    seen = [unit(z) if variant in ("bias", "two_fc", "fc", "tanh_fc") else z for z in (z1, z2)]
    if h is None:
        assert p == [None, None]
    elif "identity" not in variant and variant != "linear":
        assert all(torch.allclose(a, h(z)) for a, z in zip(p, seen))
    if variant == "two_fc":                                # nothing in it is bent
        assert torch.allclose(h(z1 + z2) + h(0 * z1), h(z1) + h(z2))


def test_same_batch_target_is_the_mean_of_the_other_views():
    net, loss, z1, z2 = make(X, "same_batch")
    others = [z2, *torch.randn(3, B, DIM, dtype=torch.double)]
    loss, *p = loss(net, z1, *others)
    same(loss, -cosine(z1, sum(others).detach() / 4), [z1, z2])
    assert p == [None, None]


@pytest.mark.parametrize("script, variant", EVERY)
def test_settings_are_the_papers_on_cifar_and_a_variants_own_elsewhere(script, variant):
    parse, own = script.parse, script.VARIANTS[variant].settings
    for data, changed in (("cifar10", {}), ("patches", own), ("some/folder", own)):
        recipe = script.RECIPES.get(data, script.RECIPES["other"])
        args = vars(parse(["--data", data, "--variant", variant]))
        assert {key: args[key] for key in recipe} == recipe | changed
        args = parse(["--data", data, "--variant", variant, "--pred-lr", "7", "--final-bn", "none"])
        assert (args.pred_lr, args.final_bn) == (7.0, "none")          # a flag wins


def trained(script, variant, *flags):
    """Four steps with large rates and decay -> model, rows of metrics.csv, result.json."""
    large = "--epochs 1 --lr 4 --pred-weight-decay 0.1".split()
    model = script.main(["--variant", variant, *TINY, *large, *flags])
    folder, = Path("runs").glob(f"{script.__name__}-{variant}*-patches-s0")
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"].keys() >= {"linear"}
    return model, common.load_run(folder)["tables"]["metrics"], result_of(folder)


@pytest.mark.parametrize("script, variant", EVERY)
def test_every_variant_runs(script, variant, capsys):
    """What it prints of its settings and measures of its head, and what its head is held to."""
    model, (_, last), result = trained(script, variant, "--pred-lr", "3")
    own = {key: x for key, x in script.VARIANTS[variant].settings.items()
           if key not in ("pred_lr", "pred_weight_decay")}             # here they were flags
    printed = capsys.readouterr().out
    assert all(f"{key} {x}" in printed for key, x in own.items())
    assert (f"{variant} differs from the other" in printed) == bool(own)
    h = model.predictor
    columns = {"std_P", "m_o_P", "effective_rank_P"} if h is not None else set()
    if "identity" in variant or variant == "linear":
        E = (h.weight if variant == "linear" else h.E).detach().double().numpy()
        off, norm = np.abs(E[~np.eye(16, dtype=bool)]), np.linalg.norm
        E_columns = {"E_max": off.max(), "E_mean": off.mean(), "E_asym": norm(E - E.T) / norm(E)}
        assert {key: last[key] for key in E_columns} == pytest.approx(E_columns, rel=1e-4)
        assert result["E_mean_1"] == last["E_mean"]        # the first epoch is the last
        columns |= E_columns.keys()
        is_fixed = variant not in ("linear", "identity_full")          # neither gradient nor decay
        assert (np.diag(E) == 1).all() == is_fixed
        assert (off.max() > 1e-3) == (variant != "identity_frozen")
        assert (E == E.T).all() == (variant in ("identity_frozen", "identity_symmetric"))
    elif h is not None and variant not in ("fc", "tanh_fc", "fc_of_z"):
        columns.add("cos_bias")
    columns |= {"verdict_P"} if variant == "symmetric" else set()
    assert columns == {key for key in last if key[-2:] == "_P" or key[:2] == "E_" or "cos" in key}


@pytest.mark.parametrize("variant", ["symmetric", "simsiam"])
def test_verdict_of_symmetric_is_of_what_its_loss_compares(variant, monkeypatch):
    """The predictor's large bias makes P collapse, but not Z."""
    def far_from_0(dim, hidden):
        h = nn.Linear(dim, dim)
        nn.init.constant_(h.bias, 5)
        return h
    changed = M.VARIANTS[variant]._replace(predictor=far_from_0)
    monkeypatch.setitem(M.VARIANTS, variant, changed)
    _, rows, result = trained(M, variant, "--final-bn", "noaffine", "--lr", "0.01")
    assert rows[1]["m_o"] < 0.9 and rows[1]["effective_rank"] > 5
    key, word = ("verdict_P", "complete") if variant == "symmetric" else ("verdict", "none")
    assert list(rows[1])[-1] == key and rows[1][key] == result["verdict"] == word


@pytest.mark.parametrize("script, variant", [(M, "simsiam"), (M, "bias"), (X, "two_fc")])
def test_centre_of_P_and_cosine_of_the_bias_by_numpy(script, variant):
    net, loss, z1, z2 = make(script, variant)
    _, p1, p2 = loss(net, z1, z2)
    found = script.head_metrics(net.float(), torch.cat([z1, z2]), p1, p2)
    o, o_P = (unit(torch.cat(both)).mean(0).detach().numpy() for both in ((z1, z2), (p1, p2)))
    bias, norm = list(net.predictor.parameters())[-1].detach().numpy(), np.linalg.norm
    assert found["cos_bias"] == pytest.approx(o @ bias / norm(o) / norm(bias), rel=1e-4)
    assert found["m_o_P"] == pytest.approx(norm(o_P), rel=1e-4)


def test_moving_average_updates_the_rows_of_its_batch_and_pulls_towards_them():
    net, loss, z1, z2 = make(X, "moving_average", bank_momentum=0.7, n_images=10)
    expected, net.images = net.eta.clone(), torch.tensor([7, 0, 3, 9, 2, 4])
    loss, *p = loss(net, z1, z2)
    for i, Z2 in zip(net.images, unit(z2.detach())):
        row = 0.7 * expected[i] + 0.3 * Z2
        expected[i] = row / row.norm()
    assert torch.allclose(net.eta, expected, atol=1e-7)
    same(loss, -cosine(z1, net.eta[net.images]), [z1, z2])
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


@pytest.mark.parametrize("variant", ["tanh_fc", "fc", "fc_of_z"])
def test_tanh_holds_the_weights_of_tanh_fc_alone(variant):
    net, *_ = make(X, variant)
    net.predictor.weight.data.fill_(2)
    net.constrain()
    expected = np.tanh(2) if variant == "tanh_fc" else 2
    assert np.allclose(net.predictor.weight.detach(), expected)


@pytest.mark.parametrize("variant, n", [("moving_average", 2), ("same_batch", 5)])
def test_views_and_which_images_they_are_of(variant, n, watch, monkeypatch):
    """The bank is told; same_batch has as many views as asked for, one of them with gradient."""
    monkeypatch.setattr(common, "augment", lambda x, *_: x.float())
    seen = watch(X.Siamese, "forward", lambda z, net, views: (
        views, net.images, [view.requires_grad for view in z]))
    trained(X, variant, "--n-aug", "5")
    train_x = common.load_data("patches", size=8, limit=64).train_x
    for views, images, learns in seen:
        assert len(views) == n and all(torch.equal(train_x[images], view) for view in views)
        assert learns == [True] + [variant == "moving_average"] * (n - 1)
    assert torch.cat([images for _, images, _ in seen]).sort().values.tolist() == list(range(64))
    assert X.parse("--variant same_batch --n-aug 25".split()).label == "same_batch25"

"""Every variant's gradient against the formula written out by hand, in float64; heads, settings."""
import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import common
import linear_eval
import mirror_ablations as M

B, DIM = 6, 5
TINY = "--limit 64 --size 8 --batch-size 16 --eval-every 9 --proj-dim 16 --pred-hidden 8".split()
pytestmark = pytest.mark.usefixtures("no_curves")


def make(variant, momentum=0.8):
    """-> net, z1, z2 in float64; z are leaves, so that their gradient is what f gets."""
    torch.manual_seed(0)
    args = M.parse(["--variant", variant, "--proj-dim", str(DIM), "--pred-hidden", "4"])
    args = argparse.Namespace(**vars(args) | {"n_images": 10, "bank_momentum": momentum})
    net = M.Siamese(args).double()
    for p in net.predictor.parameters() if net.predictor else ():
        if p.ndim == 1 or p.abs().sum() == 0:          # would hide terms: biases and E - I are 0
            nn.init.normal_(p, std=0.3)
    z1, z2 = (torch.randn(B, DIM, dtype=torch.double, requires_grad=True) for _ in range(2))
    return net, z1, z2


def unit(z):
    return z / (z * z).sum(1, keepdim=True).sqrt()


def minus_cosine(z, target):
    """Gradient of -mean_i cos(z_i, target_i) in z, by hand: -(T - (T.Z) Z) / |z| / B."""
    Z, T = unit(z.detach()), unit(target.detach())
    across = T - (T * Z).sum(1, keepdim=True) * Z
    return -across / z.detach().norm(dim=1, keepdim=True) / len(z)


def through(h, z, gradient):
    """What z and h's weights get when h(z) gets `gradient`."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(h(z), [z, *h.parameters()], gradient)


def same(found, expected):
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), (found - expected).abs().max()


def both(a, b):
    return [x + y for x, y in zip(a, b)]


# ------------------------------------------------------------------------------------- gradients

def test_D_is_the_negative_cosine_and_detaches_nothing():
    p, z = (torch.randn(B, DIM, dtype=torch.double, requires_grad=True) for _ in range(2))
    loss = M.D(p, z)
    loss.backward()
    pairs = list(zip(p.detach().numpy(), z.detach().numpy()))
    cos = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    assert loss.item() == pytest.approx(-np.mean(cos))
    same(p.grad, minus_cosine(p, z))
    same(z.grad, minus_cosine(z, p))


def test_simsiam_gradient_reaches_f_through_h_alone():
    net, z1, z2 = make("simsiam")
    loss, p1, p2 = M.simsiam(net, z1, z2)
    loss.backward()
    one = through(net.predictor, z1, minus_cosine(p1, z2) / 2)
    two = through(net.predictor, z2, minus_cosine(p2, z1) / 2)
    same(z1.grad, one[0])
    same(z2.grad, two[0])
    for p, expected in zip(net.predictor.parameters(), both(one[1:], two[1:])):
        same(p.grad, expected)


def test_mirror_gives_f_the_gradient_of_minus_sgP_Z_and_h_that_of_simsiam():
    net, z1, z2 = make("mirror")
    loss, p1, p2 = M.mirror(net, z1, z2)
    loss.backward()
    same(z1.grad, minus_cosine(z1, p2) / 2)
    same(z2.grad, minus_cosine(z2, p1) / 2)
    one = through(net.predictor, z1, minus_cosine(p1, z2) / 2)
    two = through(net.predictor, z2, minus_cosine(p2, z1) / 2)
    for p, expected in zip(net.predictor.parameters(), both(one[1:], two[1:])):
        same(p.grad, expected)


def test_naive_has_twice_the_gradient_of_naive_with_stop_gradient():
    """`symmetric` without its predictor is the naive loss with stop-gradient."""
    net, z1, z2 = make("naive")
    loss, *p = M.naive(net, z1, z2)
    whole = torch.autograd.grad(loss, [z1, z2])
    assert p == [None, None]
    same(whole[0], minus_cosine(z1, z2))
    same(whole[1], minus_cosine(z2, z1))
    net.predictor = nn.Identity()
    half = torch.autograd.grad(M.symmetric(net, z1, z2)[0], [z1, z2])
    same(2 * half[0], whole[0])
    same(2 * half[1], whole[1])


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
    same(z1.grad, one[0] + on_z[0])
    same(z2.grad, two[0] + on_z[1])
    for p, expected in zip(net.predictor.parameters(), both(one[1:], two[1:])):
        same(p.grad, expected)


def test_inverse_sends_no_gradient_where_algorithm_4_detaches():
    """f learns from L_enc alone, through h; h from L_pred and L_enc; h_inv from L_inv alone."""
    net, z1, z2 = make("inverse")
    loss, p1, p2 = M.inverse(net, z1, z2)
    loss.backward()
    h, h_inv = net.predictor, net.inverse
    t1, t2 = h_inv(p1).detach(), h_inv(p2).detach()
    enc1 = through(h, z1, minus_cosine(p1, t2) / 2)
    enc2 = through(h, z2, minus_cosine(p2, t1) / 2)
    same(z1.grad, enc1[0])
    same(z2.grad, enc2[0])
    pred1 = through(h, z1, minus_cosine(p1, z2) / 2)
    pred2 = through(h, z2, minus_cosine(p2, z1) / 2)
    on_h = both(both(enc1, enc2), both(pred1, pred2))[1:]
    for p, expected in zip(h.parameters(), on_h):
        same(p.grad, expected)
    inv1 = through(h_inv, p1, minus_cosine(t1, z1) / 2)
    inv2 = through(h_inv, p2, minus_cosine(t2, z2) / 2)
    for p, expected in zip(h_inv.parameters(), both(inv1, inv2)[1:]):
        same(p.grad, expected)
    terms = [(p1, z2), (p2, z1), (t1, z1), (t2, z2), (p1, t2), (p2, t1)]       # each with its 1/2
    cosines = sum((unit(a) * unit(b)).sum(1).mean().item() for a, b in terms)
    assert loss.item() == pytest.approx(-cosines / 2)


def test_moving_average_updates_the_rows_of_its_batch_and_pulls_towards_them():
    net, z1, z2 = make("moving_average", momentum=0.7)
    expected, net.images = net.eta.clone(), torch.tensor([7, 0, 3, 9, 2, 4])
    loss, *p = M.moving_average(net, z1, z2)
    loss.backward()
    for i, Z2 in zip(net.images, unit(z2.detach())):
        row = 0.7 * expected[i] + 0.3 * Z2
        expected[i] = row / row.norm()
    assert torch.allclose(net.eta, expected, atol=1e-7)
    assert z2.grad is None and p == [None, None]
    same(z1.grad, minus_cosine(z1, net.eta[net.images]))


def test_same_batch_target_is_the_mean_of_the_other_views():
    net, z1, z2 = make("same_batch")
    others = [z2, *torch.randn(3, B, DIM, dtype=torch.double).unbind()]
    loss, *p = M.same_batch(net, z1, *others)
    loss.backward()
    same(z1.grad, minus_cosine(z1, sum(others) / 4))
    assert z2.grad is None and p == [None, None]


def test_bn_after_l2():
    """Loss and gradient with BN by hand: u = (Z - mean) / sd, L = sum (u1 - u2)^2 / 2BD."""
    net, z1, z2 = make("bn_after_l2")
    loss, *p = M.bn_after_l2(net, z1, z2)
    loss.backward()

    def normalised(z):
        Z = unit(z.detach())
        sd = (Z.var(0, unbiased=False) + net.bn.eps).sqrt()
        return Z, sd, (Z - Z.mean(0)) / sd

    for z, other in ((z1, z2), (z2, z1)):
        (Z, sd, u), (_, _, v) = normalised(z), normalised(other)
        g = (u - v) / B / DIM
        g = (g - g.mean(0) - u * (g * u).mean(0)) / sd                         # back through BN
        across = g - (g * Z).sum(1, keepdim=True) * Z
        same(z.grad, across / z.detach().norm(dim=1, keepdim=True))
    same(loss.detach(), (u - v).square().sum() / (2 * B * DIM))
    assert p == [None, None]


def test_whitening():
    """Against numpy's Cholesky; and correlated dimensions, which bn_after_l2 lets pass, cost."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(200, 32)) @ rng.normal(size=(32, 32))
    white = M.whiten(torch.tensor(Z, dtype=torch.float)).double().numpy()
    for part in (slice(0, 16), slice(16, 32)):
        centred = Z[:, part] - Z[:, part].mean(0)
        L = np.linalg.cholesky(np.cov(centred.T))
        assert np.allclose(white[:, part], np.linalg.solve(L, centred.T).T, atol=2e-2)
        assert np.allclose(np.cov(white[:, part].T), np.eye(16), atol=1e-2)
    line = torch.tensor(rng.normal(size=(200, 1))).float() * torch.ones(1, 32)
    z1, z2 = (line + 1 + 0.01 * torch.randn(200, 32) for _ in range(2))     # one dimension, noise
    net = SimpleNamespace(bn=nn.BatchNorm1d(32, affine=False))
    with_bn, with_whitening = M.bn_after_l2(net, z1, z2)[0], M.whitening(net, z1, z2)[0]
    assert with_bn < 0.3 * with_whitening and with_whitening > 0.5


def test_the_loss_of_whitening_by_hand():
    """Both views in the same random groups; equal views cost nothing."""
    z1, z2 = torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(0))
    assert M.whitening(None, z1, z1)[0] < 1e-10
    torch.manual_seed(1)
    found = M.whitening(None, z1, z2)[0]
    torch.manual_seed(1)
    total = 0
    for group in torch.randperm(32).split(16):
        white = []
        for z in (z1, z2):
            Z = (z / z.norm(dim=1, keepdim=True)).double()[:, group].numpy()
            L = np.linalg.cholesky(np.cov(Z.T))
            white.append(np.linalg.solve(L, (Z - Z.mean(0)).T))
        total += ((white[0] - white[1]) ** 2).sum() / (2 * 200 * 32)
    assert found.item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("variant", ["two_fc", "tanh_fc", "fc", "bias"])
def test_predictors_of_section_4_see_the_normalised_z(variant):
    net, z1, z2 = make(variant)
    loss, p1, p2 = M.LOSSES[variant](net, z1, z2)
    h, W, b = net.predictor, torch.eye(DIM).double(), torch.zeros(DIM)
    if variant == "two_fc":
        W, b = h[1].weight @ h[0].weight, h[1].bias
    elif variant in ("tanh_fc", "fc"):
        W = h.weight
    else:
        b = h.bias
    W, b = W.detach(), b.detach()
    same(p1.detach(), unit(z1).detach() @ W.T + b)
    same(p2.detach(), unit(z2).detach() @ W.T + b)
    loss.backward()
    g, Z = minus_cosine(p1, z2) / 2 @ W, unit(z1.detach())                     # on Z1
    across = g - (g * Z).sum(1, keepdim=True) * Z
    same(z1.grad, across / z1.detach().norm(dim=1, keepdim=True))
    if variant == "bias":                  # A.8: d(-cos(P, Z'))/db = -(Z' - cos(P, Z') P) / |p|
        same(h.bias.grad, (minus_cosine(p1, z2) + minus_cosine(p2, z1)).sum(0) / 2)


def test_the_controls_of_section_4():
    """fc_of_z and bias_of_z see z itself; mse does not normalise; only tanh_fc is held by tanh."""
    for variant in ("fc_of_z", "bias_of_z", "mse"):
        net, z1, z2 = make(variant)
        loss, p1, p2 = M.LOSSES[variant](net, z1, z2)
        loss.backward()
        on_p = minus_cosine(p1, z2) / 2, minus_cosine(p2, z1) / 2
        if variant == "fc_of_z":
            same(p1, z1 @ net.predictor.weight.T)
        elif variant == "bias_of_z":
            same(p1, z1 + net.predictor.bias)
        else:
            on_p = (p1 - z2) / z1.numel(), (p2 - z1) / z1.numel()
            same(loss, ((p1 - z2).square().sum() + (p2 - z1).square().sum()) / z1.numel() / 2)
        same(z1.grad, through(net.predictor, z1, on_p[0])[0])
        same(z2.grad, through(net.predictor, z2, on_p[1])[0])
    for variant, held in (("tanh_fc", True), ("fc", False), ("fc_of_z", False)):
        net = make(variant)[0]
        net.predictor.weight.data.fill_(2)
        net.constrain()
        assert net.predictor.weight.max() == (math.tanh(2) if held else 2)


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
        total += (u - target).square().sum() / (2 * B * DIM) / 2
        g = (u - target) / B / DIM / 2
        on_E += ((g - g.mean(0) - u * (g * u).mean(0)) / sd).T @ z
    same(loss.detach(), total)
    if variant == "identity":
        on_E.fill_diagonal_(0)                                                 # no parameter
        same(net.predictor.change.grad, on_E)
    else:
        same(net.predictor.weight.grad, on_E)


@pytest.mark.parametrize("variant", ["simsiam", "mirror", "naive", "identity"])
def test_first_step_has_the_gradient_of_the_loss(variant, first_step):
    """That of main(), in float32 and through the whole net."""
    model, x1, x2, grads = first_step(M, *TINY, "--variant", variant)
    z1, z2, loss = model.encoder(x1), model.encoder(x2), 0
    h = model.predictor or nn.Identity()
    for z, other in ((z1, z2), (z2, z1)):
        if variant == "simsiam":
            loss = loss - (unit(h(z)) * unit(other).detach()).sum(1).mean() / 2
        elif variant == "mirror":
            loss = loss - (unit(z) * unit(h(other.detach()))).sum(1).mean() / 2
        elif variant == "naive":
            loss = loss - (unit(z) * unit(other)).sum(1).mean() / 2
        else:
            p = (h(z) - h(z).mean(0)) / (h(z).var(0, unbiased=False) + 1e-5).sqrt()
            loss = loss + (p - other.detach()).square().mean() / 4
    names, params = zip(*model.named_parameters())
    for name, g in zip(names, torch.autograd.grad(loss, params)):
        assert torch.allclose(grads[name], g, rtol=1e-3, atol=1e-5), name


# ----------------------------------------------------------------------------------------- heads

def trained(variant, *flags):
    """The model after four steps with large rates and decay, and the last row of metrics.csv."""
    large = "--epochs 1 --lr 4 --weight-decay 0.01 --pred-weight-decay 0.1".split()
    model = M.main(["--variant", variant, *TINY, *large, *flags])
    return model, common.read_csv(f"runs/mirror_ablations-{variant}-patches-s0/metrics.csv")[-1]


def test_diagonal_of_E_never_moves_and_the_rest_starts_at_0(in_tmp):
    start = M.IdentityHead(DIM)
    assert torch.equal(start.E, torch.eye(DIM)) and start.change.requires_grad
    model, row = trained("identity")
    assert torch.equal(model.predictor.E.diag(), torch.ones(16)) and row["E_max"] > 1e-3


def test_the_other_heads(in_tmp):
    E = trained("identity_full")[0].predictor.E
    assert (E.diag() - 1).abs().max() > 1e-4
    model, row = trained("identity_symmetric")
    E = model.predictor.E
    assert (E - E.T).abs().max() < 1e-6 < (E - E.diag().diag()).abs().max()
    assert row["E_asym"] < 1e-6 < row["E_mean"]
    model, row = trained("identity_frozen")
    assert torch.equal(model.predictor.E, torch.eye(16)) and row["E_max"] == 0


def test_tanh_holds_the_weights_within_1_after_every_step(in_tmp, monkeypatch):
    seen = []

    def watch(self, constrain=M.Siamese.constrain):
        before = self.predictor.weight.detach().clone()
        constrain(self)
        seen.append((before, self.predictor.weight.detach().clone()))

    monkeypatch.setattr(M.Siamese, "constrain", watch)
    trained("tanh_fc", "--pred-lr", "1000")
    assert len(seen) == 4 and max(before.abs().max() for before, _ in seen) > 1
    for before, after in seen:
        assert np.allclose(after, np.tanh(before.numpy()), atol=1e-6) and after.abs().max() <= 1


def test_columns_of_the_head():
    net, z1, z2 = make("identity")
    E = net.predictor.E.detach().numpy()
    off = np.abs(E[~np.eye(DIM, dtype=bool)])
    asymmetry = np.sqrt(np.square(E - E.T).sum() / np.square(E).sum())
    expected = {"E_max": off.max(), "E_mean": off.mean(), "E_asym": asymmetry}
    assert M.head_metrics(net, [z1, z2]) == pytest.approx(expected)
    net, *_ = make("simsiam")
    o = unit(torch.cat([z1, z2])).mean(0).detach().numpy()
    b = net.predictor[-1].bias.detach().numpy()
    cos = o @ b / np.linalg.norm(o) / np.linalg.norm(b)
    with torch.no_grad():
        assert M.head_metrics(net.float(), [z1, z2]) == pytest.approx({"cos_bias": cos}, abs=1e-6)
    assert M.head_metrics(make("naive")[0], [z1, z2]) == {}


# -------------------------------------------------------------------------------------- settings

@pytest.mark.parametrize("data, final_bn", [("cifar10", "noaffine"), ("cifar100", "noaffine")])
@pytest.mark.parametrize("variant", M.OURS)
def test_a_variant_keeps_the_papers_recipe_on_cifar(variant, data, final_bn):
    args = M.parse(["--data", data, "--variant", variant])
    assert (args.pred_lr, args.inverse_lr, args.final_bn) == (1.0, 1.0, final_bn)
    assert vars(args) | M.RECIPES[data] == vars(args)
    args = M.parse(["--data", data, "--variant", variant, "--pred-lr", "7", "--final-bn", "none"])
    assert (args.pred_lr, args.final_bn) == (7.0, "none")


@pytest.mark.parametrize("data", ["patches", "some/folder"])
def test_elsewhere_it_brings_its_own_settings_and_a_flag_wins(data):
    plain, bias, linear, inverse = (M.parse(["--data", data, "--variant", variant]) for variant in (
        "simsiam", "bias", "linear", "inverse"))
    assert (plain.pred_lr, plain.final_bn, plain.inverse_lr) == (10.0, "none", 1.0)
    assert (bias.pred_lr, bias.final_bn) == (50.0, "none")
    assert (linear.pred_lr, linear.final_bn) == (100.0, "noaffine")
    assert (inverse.pred_lr, inverse.final_bn, inverse.inverse_lr) == (1.0, "noaffine", 10.0)
    flags = "--variant linear --pred-lr 7 --final-bn affine".split()
    linear = M.parse(["--data", data, *flags])
    assert (linear.pred_lr, linear.final_bn) == (7.0, "affine")


def test_rates_and_decays_of_the_heads(in_tmp, monkeypatch):
    seen = []

    def watch(self, *loss, log=common.Run.log, **views):
        seen.append([(g["lr"], g["weight_decay"]) for g in self.optimizer.param_groups])
        log(self, *loss, **views)

    monkeypatch.setattr(common.Run, "log", watch)
    flags = "--lr 1.6 --pred-lr 2 --inverse-lr 3 --weight-decay 0.01 --pred-weight-decay 0.02"
    M.main([*TINY, "--variant", "inverse", "--epochs", "3", *flags.split()])   # 1 of warm-up
    encoder, *heads = zip(*seen)
    assert [set(head) for head in heads] == [{(0.2, 0.02)}, {(0.1 * 3.0, 0.02)}]
    rates, decays = zip(*encoder)
    cosine = [0.05 * (1 + np.cos(np.pi * (i + 0.5) / 8)) for i in range(8)]
    assert rates == pytest.approx([0.0125, 0.0375, 0.0625, 0.0875, *cosine])
    assert set(decays) == {0.01}


# ------------------------------------------------------------------------------------------ runs

def test_measuring_row_0_changes_nothing_that_trains(in_tmp, monkeypatch):
    """The first step is the same as without it: bank, BatchNorm's averages, random numbers."""
    class Stop(Exception):
        pass

    models, seen = [], []

    def step(self):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append([*models[-1].state_dict().values(), *grads, torch.get_rng_state()])
        raise Stop

    def build(args, Siamese=M.Siamese):
        models.append(Siamese(args))
        return models[-1]

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    monkeypatch.setattr(M, "Siamese", build)
    for measure in (common.Run.measure_untrained, lambda self: None):
        monkeypatch.setattr(common.Run, "measure_untrained", measure)
        with pytest.raises(Stop):
            M.main([*TINY, "--variant", "moving_average"])
    measured, not_measured = seen
    assert models[0].eta.shape == (64, 16)
    assert all(torch.equal(a, b) for a, b in zip(measured, not_measured, strict=True))


@pytest.mark.parametrize("variant", M.OURS)
def test_every_variant_runs(variant, in_tmp):
    M.main([*TINY, "--variant", variant, "--epochs", "1"])
    folder, = Path("runs").iterdir()
    assert folder.name.startswith(f"mirror_ablations-{variant}")
    result = json.loads((folder / "result.json").read_text())
    has_predictor = variant not in ("naive", "moving_average", "same_batch", "bn_after_l2",
                                 "whitening")
    assert ("m_o_P" in result) == has_predictor
    assert result["verdict"] in ("none", "dimensional", "complete")
    is_matrix = variant.startswith("identity") or variant == "linear"
    assert ("E_mean_1" in result) == is_matrix
    if is_matrix:                                      # of epoch 1, which is the last
        assert result["E_mean_1"] == result["E_mean"]
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"]["epoch"] == 1


def test_verdict_of_symmetric_is_on_what_its_loss_compares():
    last = {"m_o": 0.1, "effective_rank": 30, "m_o_P": 0.99, "effective_rank_P": 30}
    for variant, expected in (("symmetric", {"verdict": "complete"}), ("mirror", {})):
        args = SimpleNamespace(variant=variant)
        run = SimpleNamespace(args=args, history=[{}, last], is_first=True)
        assert M.report(run) == expected


def test_the_bank_is_told_which_images_these_are(in_tmp, monkeypatch):
    seen = []

    def watch(self, views, images, forward=M.Siamese.forward):
        seen.append((views, images))
        return forward(self, views, images)

    monkeypatch.setattr(common, "augment", lambda x, *_: x.float())
    monkeypatch.setattr(M.Siamese, "forward", watch)
    M.main([*TINY, "--variant", "moving_average", "--epochs", "1"])
    train_x = common.load_data("patches", size=8, limit=64).train_x
    for views, images in seen:
        assert len(views) == 2 and all(torch.equal(train_x[images], view) for view in views)
    assert torch.cat([images for _, images in seen]).sort().values.tolist() == list(range(64))


def test_collapses_where_the_paper_says(in_tmp):
    flags = "--limit 400 --size 16 --batch-size 32 --epochs 2 --eval-every 9 --proj-dim 64".split()
    for variant in ("simsiam", "naive", "mirror", "no_stopgrad"):
        M.main([*flags, "--variant", variant])
        row = common.read_csv(f"runs/mirror_ablations-{variant}-patches-s0/metrics.csv")[-1]
        if variant == "simsiam":
            assert row["std"] > 0.4 and row["m_o"] < 0.9, row
        else:
            assert row["std"] < 0.3 and row["m_o"] > 0.97, (variant, row)


def test_a_resumed_memory_bank_goes_on_as_if_uninterrupted(whole_and_cut):
    flags = "--variant moving_average --proj-dim 12 --size 8".split()
    whole, cut = whole_and_cut(M, *flags)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert whole["eta"].shape == (300, 12)


def test_label_of_same_batch_has_its_number_of_views():
    assert M.parse("--variant same_batch --n-aug 25".split()).label == "same_batch25"


@pytest.mark.parametrize("flags, words", [
    ("--variant nonsense", "nonsense"), ("--variant same_batch --n-aug 1", "--n-aug"),
    ("--bank-momentum 1.5", "--bank-momentum"), ("--bank-momentum 1", "--bank-momentum"),
    ("--bank-momentum -0.1", "--bank-momentum"), ("--inverse-lr 0", "--inverse-lr")])
def test_bad_input(flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        M.main(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_memory_bank_is_refused_under_torchrun(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr(common, "world_size", lambda: 2)
    with pytest.raises(SystemExit) as stop:
        M.main(["--variant", "moving_average"])
    assert stop.value.code == 2 and "without torchrun" in capsys.readouterr().err
    assert not Path("runs").exists()

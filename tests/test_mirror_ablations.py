"""All Siamese nets of mirror_ablations.py and more_ablations.py: every variant's gradient against
its formula written out by hand, in float64; heads, settings, what a run leaves."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import common
import linear_eval
import mirror_ablations as M
import more_ablations as X
from test_simsiam import same_gradients

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


def across(z, gradient):
    """What z gets when unit(z) gets `gradient`, by hand."""
    Z = unit(z.detach())
    return (gradient - (gradient * Z).sum(1, keepdim=True) * Z) / z.detach().norm(dim=1)[:, None]


def minus_cosine(z, target):
    """Gradient of -mean_i cos(z_i, target_i) in z, by hand: -(T - (T.Z) Z) / |z| / B."""
    return -across(z, unit(target.detach())) / len(z)


def through(h, z, gradient):
    """What z and h's weights get when h(z) gets `gradient`."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(h(z), [z, *h.parameters()], gradient)


def same(found, expected):
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), (found - expected).abs().max()


# ------------------------------------------------------------------------------------- gradients

SEE_UNIT_Z = ("bias", "two_fc", "tanh_fc", "fc")           # these predictors see the normalised z


@pytest.mark.parametrize("script, variant", [
    *[(M, name) for name in ("simsiam", "mirror", "symmetric", "no_stopgrad", "bias")],
    *[(X, name) for name in ("mse", "two_fc", "tanh_fc", "fc", "fc_of_z", "bias_of_z")]])
def test_gradients_with_a_predictor(script, variant):
    """h learns in all of them; f through h, except in mirror, where it is on the path without."""
    net, loss, z1, z2 = make(script, variant)
    h, (loss, p1, p2) = net.predictor, loss(net, z1, z2)
    loss.backward()
    t1, t2 = (p2, p1) if variant == "symmetric" else (z2, z1)          # of p1, of p2
    on_h = []
    for z, p, t, other_p in ((z1, p1, t1, p2), (z2, p2, t2, p1)):
        seen = unit(z) if variant in SEE_UNIT_Z else z
        same(p, h(seen))
        on_p = (p - t).detach() / z.numel() if variant == "mse" else minus_cosine(p, t) / 2
        on_z, *rest = through(h, seen, on_p)
        on_h.append(rest)
        if variant in SEE_UNIT_Z:
            on_z = across(z, on_z)
        if variant in ("mirror", "no_stopgrad"):           # z is a target that learns
            on_z = minus_cosine(z, other_p) / 2 + (0 if variant == "mirror" else on_z)
        same(z.grad, on_z)
    for p, a, b in zip(h.parameters(), *on_h, strict=True):
        same(p.grad, a + b)
    if "fc" in variant or "bias" in variant:               # nothing in them is bent
        same(h(z1 + z2) + h(0 * z1), h(z1) + h(z2))


def test_naive_has_twice_the_gradient_of_naive_with_stop_gradient():
    """`symmetric` without its predictor is the naive loss with stop-gradient."""
    net, loss, z1, z2 = make(M, "naive")
    loss, *p = loss(net, z1, z2)
    whole = torch.autograd.grad(loss, [z1, z2])
    net.predictor = nn.Identity()
    half = torch.autograd.grad(M.symmetric(net, z1, z2)[0], [z1, z2])
    for found, found_half, z, other in zip(whole, half, (z1, z2), (z2, z1)):
        same(found, minus_cosine(z, other))
        same(2 * found_half, found)
    assert p == [None, None]


def test_inverse_sends_no_gradient_where_algorithm_4_detaches():
    """f learns from L_enc alone, through h; h from L_pred and L_enc; h_inv from L_inv alone."""
    net, loss, z1, z2 = make(M, "inverse")
    loss, p1, p2 = loss(net, z1, z2)
    loss.backward()
    h, h_inv = net.predictor, net.inverse
    t1, t2 = h_inv(p1).detach(), h_inv(p2).detach()
    on_h, on_inv = [], []
    for z, p, t, other, other_t in ((z1, p1, t1, z2, t2), (z2, p2, t2, z1, t1)):
        enc = through(h, z, minus_cosine(p, other_t) / 2)
        same(z.grad, enc[0])
        on_h += [enc[1:], through(h, z, minus_cosine(p, other) / 2)[1:]]
        on_inv.append(through(h_inv, p, minus_cosine(t, z) / 2)[1:])
    for net, parts in ((h, on_h), (h_inv, on_inv)):
        for p, *each in zip(net.parameters(), *parts, strict=True):
            same(p.grad, sum(each))
    terms = [(p1, z2), (p2, z1), (t1, z1), (t2, z2), (p1, t2), (p2, t1)]       # each with its 1/2
    cosines = sum((unit(a) * unit(b)).sum(1).mean().item() for a, b in terms)
    assert loss.item() == pytest.approx(-cosines / 2)


@pytest.mark.parametrize("script, variant", [
    (M, "identity"), (X, "linear"), (X, "identity_full"), (X, "identity_symmetric")])
def test_wen_li_objective(script, variant):
    """1/2 ||BN[E z1] - sg z2||^2 / D; its gradient on E through BN, written out."""
    net, loss, z1, z2 = make(script, variant)
    loss, p1, p2 = loss(net, z1, z2)
    loss.backward()
    weight, = net.predictor.parameters()
    E = (weight if variant == "linear" else net.predictor.E).detach()
    total, on_E = 0, 0
    for z, target in ((z1.detach(), z2.detach()), (z2.detach(), z1.detach())):
        y = z @ E.T
        sd = (y.var(0, unbiased=False) + net.bn.eps).sqrt()
        u = (y - y.mean(0)) / sd
        total += (u - target).square().sum() / (2 * B * DIM) / 2
        g = (u - target) / B / DIM / 2
        on_E += ((g - g.mean(0) - u * (g * u).mean(0)) / sd).T @ z
    same(loss.detach(), total)
    if variant in ("identity", "identity_symmetric"):
        on_E.fill_diagonal_(0)                             # no parameter
    same(weight.grad, on_E)


IN_ONE_DIRECTION = {
    "simsiam": lambda h, z, other: -(unit(h(z)) * unit(other).detach()).sum(1).mean() / 2,
    "mirror": lambda h, z, other: -(unit(z) * unit(h(other.detach()))).sum(1).mean() / 2,
    "naive": lambda h, z, other: -(unit(z) * unit(other)).sum(1).mean() / 2,
    "mse": lambda h, z, other: (h(z) - other.detach()).square().mean() / 2}


@pytest.mark.parametrize("variant", IN_ONE_DIRECTION)
def test_first_step_has_the_gradient_of_the_loss(variant, first_step):
    """That of main(), in float32 and through the whole net."""
    script, loss = X if variant == "mse" else M, IN_ONE_DIRECTION[variant]
    model, x1, x2, grads = first_step(script, *TINY, "--variant", variant)
    z1, z2 = model.encoder(x1), model.encoder(x2)
    h = model.predictor
    same_gradients(loss(h, z1, z2) + loss(h, z2, z1), model, grads)


# ------------------------------------------------------------------------------------------ runs

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
    saved, result = common.load_run(folder), json.loads((folder / "result.json").read_text())
    assert linear_eval.main([str(folder), "--epochs", "1"])["trained"].keys() >= {"linear"}
    return model, saved["tables"]["metrics"], result


@pytest.mark.parametrize("script, variant", EVERY)
def test_every_variant_runs(script, variant, capsys):
    """What it prints of its settings and measures of its head, and what its head is held to."""
    model, (_, last), result = trained(script, variant, "--pred-lr", "3")
    lines = [line for line in capsys.readouterr().out.splitlines() if " differs from the " in line]
    own = [f"{key} {x}" for key, x in script.VARIANTS[variant].settings.items()
           if key not in ("pred_lr", "pred_weight_decay")]             # here they were flags
    printed = f"{variant} differs from the other variants in {', '.join(own)}: "
    assert len(lines) == bool(own) and all(line.startswith(printed) for line in lines)
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
    """P has collapsed, Z has not."""
    def of_P(net, z, p1, p2):
        p1.fill_(1)                                        # The loop looks at p1 and p2 after this.
        p2.fill_(1 + 1e-5)
        p2[0] *= 1.1
        p2[0, 0] = 0
        return {}
    monkeypatch.setattr(M, "head_metrics", torch.no_grad()(of_P))
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


@pytest.mark.parametrize("variant", ["simsiam", "naive", "mirror", "no_stopgrad"])
def test_collapses_where_the_paper_says(variant):
    flags = "--limit 400 --size 16 --batch-size 32 --epochs 2 --eval-every 9 --proj-dim 64".split()
    M.main([*flags, "--variant", variant])
    result = json.loads(Path(f"runs/mirror_ablations-{variant}-patches-s0/result.json").read_text())
    if variant == "simsiam":
        assert result["std"] > 0.4 and result["m_o"] < 0.9, result
    else:
        assert result["std"] < 0.3 and result["m_o"] > 0.97, result

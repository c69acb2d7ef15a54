"""Of all scripts what they share: first step, target, heads, collapse, resuming, bad input."""
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import byol
import common
import directclr
import directpred
import gradient_components as components
import knobs
import mirror_ablations as mirror
import more_ablations as more
import simsiam
import toy_patch
import toy_sphere


pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def result_of(folder):
    return json.loads(Path(folder, "result.json").read_text())


def same_gradients(loss, model, grads, without=("target.",)):
    """Those of main()'s first step are those of a loss written out; where it has none, None."""
    trained = {name: p for name, p in model.named_parameters() if not name.startswith(without)}
    expected = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    expected = dict(zip(trained, expected, strict=True))
    for name, found in grads.items():
        if expected.get(name) is None:
            assert found is None, name
        else:
            assert torch.allclose(found, expected[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("script", [simsiam, byol, directpred, mirror, more, knobs])
def test_D_is_the_negative_cosine_and_detaches_nothing(script):
    p, z = (randn(5, 7, seed=seed).requires_grad_() for seed in (0, 1))
    by_hand = -sum((a @ b) / (a @ a).sqrt() / (b @ b).sqrt() for a, b in zip(p, z)) / 5
    assert torch.allclose(script.D(p, z), by_hand)
    P, Z = p / p.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
    cos = (P * Z).sum(1, keepdim=True)                     # d(-cos) / dp = -(Z - cos P) / |p|
    on_p, on_z = torch.autograd.grad(script.D(p, z), [p, z])
    assert torch.allclose(on_p, -(Z - cos * P) / p.norm(dim=1, keepdim=True) / 5)
    assert torch.allclose(on_z, -(P - cos * Z) / z.norm(dim=1, keepdim=True) / 5)


SMALL = "--size 8 --proj-dim 24 --pred-hidden 16".split()
W_IS_SET = "--predictor directpred", "--predictor directcopy --no-predictor-bias"


@pytest.mark.parametrize("script, flags", [
    (simsiam, ""), (mirror, "--variant simsiam"), (more, "--variant fc_of_z"), (knobs, ""),
    (knobs, "--pair own"), (knobs, "--predictor none"), (knobs, "--no-stopgrad"),
    (knobs, "--variant byol"), (knobs, "--variant byol --no-stopgrad"), (byol, ""),
    (byol, "--predictor none"), (byol, "--no-stopgrad"),
    *[(directpred, flags) for flags in W_IS_SET], (directpred, "--predictor optimal --freq 3"),
    (directpred, "--predictor sgd"), (directpred, "--predictor sgd --predictor-layers 2")])
def test_first_step_has_the_gradient_of_the_paper(script, flags, first_step):
    """Of BYOL's equation 2, ||p/|p| - t/|t|||^2 in both directions; a quarter of it is SimSiam's
    Algorithm 1, as 1 - cos is half of it.  None reaches the target, nor a W_p that is set."""
    model, x1, x2, grads = first_step(script, *SMALL, *flags.split())
    z = [model.encoder(x1), model.encoder(x2)]
    t = z
    if "--no-stopgrad" not in flags:
        f = getattr(model, "target", None) or model.encoder
        t = [f(x1).detach(), f(x2).detach()]
    loss, share = 0, 1 if script in (byol, directpred) else 1 / 4
    for i in (0, 1):
        p, target = model.predictor(z[i]), t[i if "own" in flags else 1 - i]
        P, T = p / p.norm(dim=1, keepdim=True), target / target.norm(dim=1, keepdim=True)
        loss = loss + share * (P - T).square().sum(1).mean()
    stops = ("target.", "predictor.weight") if flags in W_IS_SET else ("target.",)
    same_gradients(loss, model, grads, stops)
    if "--predictor none" in flags:
        assert not list(model.predictor.parameters())


@pytest.mark.parametrize("script, flags", [
    (byol, []), (directpred, []), (knobs, ["--variant", "byol"])])
def test_target_is_the_closed_form_average_of_weights_and_bn_buffers(script, flags, m=0.9, steps=7):
    """After k steps m^k f'_0 + (1 - m) sum_i m^(k-i) f_i, all of it; it starts as a copy."""
    model = script.build(script.parse([*SMALL, *flags])).double()
    online, target = model.encoder.state_dict(), model.target.state_dict()    # live views
    names = [key for key, value in online.items() if value.is_floating_point()]
    assert any("running_var" in key for key in names)
    assert all(torch.equal(target[key], online[key]) for key in names)
    expected = {key: m**steps * target[key] for key in names}
    for i in range(1, steps + 1):
        for key in names:
            online[key].normal_()
            expected[key] += (1 - m) * m ** (steps - i) * online[key]
        model.update_target(m)
    for key in names:
        assert torch.allclose(target[key], expected[key], rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("script", [byol, directpred])
@pytest.mark.parametrize("m", ["0", "1"])
def test_a_target_of_momentum_0_is_the_net_and_one_of_momentum_1_stays(script, m):
    flags = [*SMALL, *"--limit 64 --batch-size 16 --epochs 1 --eval-every 9 --ema".split(), m]
    model = script.main(flags)
    torch.manual_seed(0)
    first = script.build(script.parse(flags)).encoder.state_dict()
    last, target = model.encoder.state_dict(), model.target.state_dict()
    for name, _ in model.encoder.named_parameters():
        assert torch.equal(target[name], (first if m == "1" else last)[name])
        assert not torch.equal(first[name], last[name])


H = "LBRL", [2048, 512, 2048]


@pytest.mark.parametrize("script, flags, f, h", [
    (simsiam, "--data cifar10", ("LBRLB", [512, 2048, 2048]), H),
    (simsiam, "--data cifar100 --final-bn affine", ("LBRLBRLB", [512, 2048, 2048, 2048]), H),
    (simsiam, "--data cifar10 --final-bn none", ("LBRL", [512, 2048, 2048]), H),
    (byol, "--data cifar10", ("LBRL", [512, 1024, 256]), ("LBRL", [256, 1024, 256])),
    (directpred, "--data cifar100", ("LBRL", [512, 512, 128]), ("L", [128, 128])),
    (knobs, "--no-pred-bn --pred-hidden 64", ("LBRLB", [96, 256, 256]), ("LRL", [256, 64, 256])),
    (knobs, "--no-proj-bn --final-bn none --predictor none", ("LRL", [96, 256, 256]), ("I", []))])
def test_heads_of_the_papers_and_the_final_batch_norm(script, flags, f, h):
    """The letters are the layers: Linear, BatchNorm1d, ReLU, Identity."""
    args = script.parse(flags.split())
    model = script.build(args)
    for net, (letters, widths) in ((model.encoder.projector, f), (model.predictor, h)):
        layers = [layer for layer in net.modules() if not isinstance(layer, nn.Sequential)]
        assert "".join(type(layer).__name__[0] for layer in layers) == letters
        linear = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)]
        assert linear == [*zip(widths[1:], widths)]
    last = model.encoder.projector[-1]
    assert args.final_bn == "none" or last.affine == (args.final_bn == "affine")


@pytest.mark.parametrize("script, flags, collapses", [
    (simsiam, "--lr 1 --warmup-epochs 0", False), (simsiam, "--lr 1 --warmup-epochs 0", True),
    (byol, "--lr 0.2", False), (byol, "--lr 0.2 --no-stopgrad", True),
    (mirror, "--variant simsiam", False), (mirror, "--variant naive", True),
    (mirror, "--variant mirror", True), (mirror, "--variant no_stopgrad", True)])
def test_what_collapses_within_three_epochs(script, flags, collapses, monkeypatch):
    """SimSiam does when every `detach` is taken away."""
    if script is simsiam and collapses:
        monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    short = "--limit 320 --size 16 --batch-size 32 --epochs 3 --eval-every 9 --final-bn none"
    script.main([*short.split(), *flags.split()])
    result = result_of(*Path("runs").iterdir())
    if collapses:
        assert result["m_o"] > 0.97 and result["std"] < 0.25, result
        assert result["verdict"] == "complete"
        assert result["loss"] < (0.2 if script is byol else -0.95)       # as good as it can be
    else:
        assert result["m_o"] < 0.9 and result["std"] > 0.4 and result["verdict"] == "none", result


@pytest.mark.parametrize("script, flags, table", [
    (simsiam, "", ""), (byol, "", ""), (directpred, "--freq 3", "spectrum.csv"),
    (directclr, "--direct-mode random", "spectrum.csv"),
    (mirror, "--variant identity --pred-lr 50 --lr 4", ""), (more, "", ""),
    (components, "--loss simsiam:1+random:1", "steps.csv")])
def test_a_resumed_run_is_the_same_bit_for_bit(script, flags, table, whole_and_cut, monkeypatch):
    """Weights, target, F, bank, results and a further csv."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_: None)       # takes a second
    whole, cut = whole_and_cut(script, "--size", "8", "--proj-dim", "16", *flags.split())
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    (one,), (two,) = Path("whole").iterdir(), Path("cut").iterdir()
    assert not table or (one / table).read_text() == (two / table).read_text() != ""
    results = []
    for folder in (one, two):
        first, second, last = common.load_run(folder)["tables"]["metrics"]
        result = result_of(folder)
        assert last.items() <= result.items() and result["knn_untrained"] == first["knn"]
        assert {"linear", "linear_z", "knn_z", "verdict"} <= result.keys()
        if "E_mean" in last:                               # after the first epoch and at the end
            assert result["E_mean_1"] == second["E_mean"] != last["E_mean"]
        results.append(result | {"seconds": 0, "images_per_second": 0})
    assert results[0] == results[1]


BAD = {byol: ["--ema 1.1", "--ema -0.1", "--pred-lr 0"],
       directpred: ["--min-scale 2", "--predictor-layers 2", "--rho 1", "--freq 0", "--eps -1"],
       directclr: ["--temperature 0", "--d0 97", "--d0 0", "--d0 513 --data cifar10"],
       mirror: ["--inverse-lr 0"], knobs: ["--jitter-p 2"], toy_sphere: ["--nets nothing"],
       toy_patch: ["--d 2", "--steps 0", "--batch-size 1"],
       more: ["--n-aug 1", "--bank-momentum 1", "--bank-momentum -0.1",
              "--proj-dim 24 --variant whitening"],
       components: ["--loss simsiam:1+nave:1", "--loss simsiam+naive:1", "--loss naive:0",
                    "--loss nave --dry-run", "--epochs 0", "--bias-lr -1"]}


@pytest.mark.parametrize("script, flags", [
    (script, flags) for script, cases in BAD.items() for flags in cases])
def test_bad_input_ends_with_one_line(script, flags, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and flags.split()[0] in error and error.count("\n") == 1
    assert not list(in_tmp.iterdir())

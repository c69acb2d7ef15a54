"""SimSiam; and of every script the cosine, resuming, result.json and bad input."""
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
import mirror_ablations as mirror
import more_ablations as more
import simsiam

pytestmark = pytest.mark.usefixtures("no_curves", "in_tmp")


@pytest.mark.parametrize("script", [simsiam, byol, directpred, mirror, more])
def test_D_is_the_negative_cosine_and_detaches_nothing(script):
    torch.manual_seed(0)
    p, z = (torch.randn(5, 7, dtype=torch.double, requires_grad=True) for _ in range(2))
    by_hand = -sum((a @ b) / (a @ a).sqrt() / (b @ b).sqrt() for a, b in zip(p, z)) / 5
    assert torch.allclose(script.D(p, z), by_hand)
    P, Z = p / p.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
    cos = (P * Z).sum(1, keepdim=True)                     # d(-cos) / dp = -(Z - cos P) / |p|
    on_p, on_z = torch.autograd.grad(script.D(p, z), [p, z])
    assert torch.allclose(on_p, -(Z - cos * P) / p.norm(dim=1, keepdim=True) / 5)
    assert torch.allclose(on_z, -(P - cos * Z) / z.norm(dim=1, keepdim=True) / 5)


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


def test_training_step_has_the_gradient_of_the_paper_and_stops_it_at_z(first_step):
    """The first step of main() against Algorithm 1, written out with constant targets."""
    flags = "--size 8 --proj-dim 32 --pred-hidden 16".split()
    model, x1, x2, grads = first_step(simsiam, *flags)
    z1, z2 = model.encoder(x1), model.encoder(x2)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    cosine = nn.CosineSimilarity(dim=1)
    loss = -(cosine(p1, z2.detach()).mean() + cosine(p2, z1.detach()).mean()) / 2
    same_gradients(loss, model, grads)


@pytest.mark.parametrize("data, final_bn, layers", [
    ("cifar10", "noaffine", 2), ("cifar100", "affine", 3), ("cifar10", "none", 2)])
def test_heads_of_the_papers_and_the_final_batch_norm(data, final_bn, layers):
    model = simsiam.build(simsiam.parse(["--data", data, "--final-bn", final_bn]))
    f, h = model.encoder.projector, model.predictor
    widths = [[tuple(m.weight.shape) for m in net if isinstance(m, nn.Linear)] for net in (f, h)]
    assert widths == [[(2048, 512), *[(2048, 2048)] * (layers - 1)], [(512, 2048), (2048, 512)]]
    block, last = ["Linear", "BatchNorm1d", "ReLU"], ["Linear", "BatchNorm1d"]
    last = last[:1] if final_bn == "none" else last
    assert [type(m).__name__ for m in f] == block * (layers - 1) + last
    assert [type(m).__name__ for m in h] == [*block, "Linear"]
    assert final_bn == "none" or f[-1].affine == (final_bn == "affine")


def test_learns_in_a_few_epochs_and_a_net_without_stop_gradient_collapses(monkeypatch):
    """SimSiam keeps its std; with `detach` taken away the net goes to m_o = 1."""
    flags = "--limit 320 --size 16 --batch-size 32 --epochs 3 --warmup-epochs 0 --lr 1".split()
    flags += ["--eval-every", "9", "--final-bn", "none"]
    simsiam.main(flags)
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    simsiam.main(flags)
    healthy, collapsed = (json.loads(Path(f"runs/simsiam-patches-s0{n}/result.json").read_text())
                          for n in ("", "-2"))
    assert healthy["std"] > 0.4 and healthy["m_o"] < 0.95, healthy
    assert collapsed["m_o"] > 0.97 and collapsed["std"] < 0.25, collapsed
    assert collapsed["loss"] < -0.95 and collapsed["verdict"] == "complete", collapsed


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
        result = json.loads((folder / "result.json").read_text())
        assert last.items() <= result.items() and result["knn_untrained"] == first["knn"]
        assert {"linear", "linear_z", "knn_z", "verdict"} <= result.keys()
        if "E_mean" in last:                               # after the first epoch and at the end
            assert result["E_mean_1"] == second["E_mean"] != last["E_mean"]
        results.append(result | {"seconds": 0, "images_per_second": 0})
    assert results[0] == results[1]


@pytest.mark.parametrize("script, flags, words", [
    (byol, "--ema 1.1", "--ema"), (byol, "--ema -0.1", "--ema"),
    (byol, "--pred-lr 0", "--pred-lr"), (directpred, "--min-scale 2", "--min-scale"),
    (directpred, "--predictor-layers 2", "--predictor-layers"), (directpred, "--rho 1", "--rho"),
    (directpred, "--freq 0", "--freq"), (directpred, "--eps -1", "--eps"),
    (directclr, "--temperature 0", "--temperature"), (directclr, "--d0 97", "more than 96"),
    (directclr, "--d0 0", "--d0"), (directclr, "--data cifar10 --d0 513", "more than 512"),
    (mirror, "--inverse-lr 0", "--inverse-lr"), (more, "--n-aug 1", "--n-aug"),
    (more, "--bank-momentum 1", "--bank-mom"), (more, "--bank-momentum -0.1", "--bank-mom"),
    (more, "--variant whitening --proj-dim 24", "groups of 16"),
    (components, "--loss simsiam:1+nave:1", "nave"), (components, "--loss naive:0", "epochs"),
    (components, "--loss simsiam+naive:1", "epochs"), (components, "--epochs 0", "--epochs"),
    (components, "--loss nave --dry-run", "nave"), (components, "--bias-lr -1", "--bias-lr")])
def test_bad_input_ends_with_one_line(script, flags, words, in_tmp, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not list(in_tmp.iterdir())

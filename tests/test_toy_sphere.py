"""toy_sphere.py: which nets collapse, and to what; the script leaves its film and its picture."""
from pathlib import Path

import pytest
import torch
from PIL import Image

import common
import toy_sphere


@pytest.mark.parametrize("name, m_o, rank", [
    ("naive", (0.9, 1), (1, 3)), ("mirror", (0.9, 1), (1, 3)), ("naive_bn", (0, 0.5), (1, 2.3)),
    ("simsiam", (0, 0.3), (2.4, 3)), ("infonce", (0, 0.2), (2.7, 3))])
def test_what_collapses_within_100_steps(name, m_o, rank):
    film, y = toy_sphere.simulate(name, steps=100, seed=9, every=10)
    assert film.shape == (11, 400, 3) and y.unique().tolist() == list(range(8))
    assert torch.allclose(film.norm(dim=2), torch.ones(11, 400), atol=1e-5)
    found = common.collapse_metrics(film[-1])
    assert m_o[0] <= found["m_o"] <= m_o[1] + 1e-4
    assert rank[0] <= found["effective_rank"] <= rank[1] + 1e-4


def test_it_leaves_a_film_and_a_picture(in_tmp, monkeypatch, capsys):
    short = toy_sphere.simulate
    monkeypatch.setattr(toy_sphere, "simulate", lambda name, seed: short(name, 30, seed))
    toy_sphere.main(["--nets", "bias,symmetric"])
    folder = Path("runs/toy_sphere-s0")
    with Image.open(folder / "toy_sphere.gif") as film:
        assert film.n_frames > 5
    assert (folder / "toy_sphere.png").stat().st_size > 20_000
    assert "bias" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        toy_sphere.main(["--nets", "nothing"])
    assert stop.value.code == 2 and "naive_bn" in capsys.readouterr().err

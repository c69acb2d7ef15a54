"""--data FOLDER: what is used, what is skipped, and what is refused in one sentence."""
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import common
import directclr
import linear_eval
import simsiam

SMALL = "--size 16 --batch-size 8 --epochs 1 --proj-dim 16".split()


def pictures(folder, photos, n):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(photos[i % 25].permute(1, 2, 0).numpy()).save(f"{folder}/{i:02}.png")


@pytest.mark.parametrize("script", [simsiam, directclr])
def test_any_images_without_labels(script, in_tmp, photos, no_curves, capsys):
    pictures("pics", photos, 15)
    pictures("pics/deep/er", photos, 25)
    script.main(["--data", "pics", *SMALL])
    out = capsys.readouterr().out
    assert "pics: no labels" in out and "a tenth" in out and "linear probe 0" not in out
    run, = Path("runs").iterdir()
    result = (run / "result.json").read_text()
    assert "verdict" in result and "knn" not in result and "linear" not in result
    with pytest.raises(SystemExit):
        linear_eval.main([str(run)])
    assert "pics has no labels" in capsys.readouterr().err
    data = common.load_data("pics", size=32)
    assert len(data.train_x) + len(data.test_x) == 40 and data.classes == 0
    used = torch.cat([data.train_x, data.test_x]).flatten(1).unique(dim=0)
    assert torch.equal(used, photos.flatten(1).unique(dim=0))                # each of them
    assert len(common.load_data("pics", size=16, limit=10).train_x) == 10


def test_classes_are_folders(in_tmp, photos, image_folder, no_curves):
    d = common.load_data("pics", size=32)
    assert d.train_x.shape == (24, 3, 32, 32) and d.train_y.tolist() == [0] * 12 + [1] * 12
    assert torch.equal(d.train_x[0], photos[0])            # 32 x 32 and RGB: nothing may change
    assert torch.equal(d.train_x[9, 0], d.train_x[9, 1])   # 009.png is grayscale
    Path("pics/test").rename("pics/val")
    assert torch.equal(common.load_data("pics", size=32).test_x, d.test_x)
    for name, n in (("a", 30), ("b", 20), ("c", 10)):
        pictures(f"more/train/{name}", photos, n)
    d = common.load_data("more", size=16)                  # neither test/ nor val/
    assert torch.cat([d.train_y, d.test_y]).bincount().tolist() == [30, 20, 10]
    simsiam.main(["--data", "more", *SMALL])
    assert json.loads(Path("runs/simsiam-more-s0/result.json").read_text())["linear"] >= 0


def test_kinds_of_files_and_what_cannot_be_read(in_tmp, photos, monkeypatch, capsys):
    """Capitals, links, CMYK, 16 bits, one pixel, umlauts are used; what is broken is counted."""
    pics = Path("pics")
    pictures(pics, photos, 20)
    image = Image.open(pics / "03.png")
    image.save(pics / "für 1.JPG")
    image.convert("CMYK").save(pics / "cmyk.jpg")
    Image.new("RGB", (1, 1), (200, 0, 0)).save(pics / "pixel.png")
    (pics / "link.png").symlink_to("00.png")
    ramp = torch.arange(32).mul(2000).repeat(32, 1)
    Image.fromarray(ramp.to(torch.uint16).numpy()).save(pics / "00.png")   # 16 bits a pixel
    (pics / "notes.txt").write_text("no image")
    data = common.load_data("pics", size=32)
    assert len(data.train_x) + len(data.test_x) == 24 and "skipped" not in capsys.readouterr().out
    used = torch.cat([data.train_x, data.test_x])[:, 0].float()
    assert (used - ramp / 256).abs().amax((1, 2)).min() <= 1.5
    (pics / "04.png").write_bytes((pics / "05.png").read_bytes()[:100])
    (pics / "link.png").unlink()
    (pics / "link.png").symlink_to("nowhere.png")
    Image.new("RGB", (400, 400)).save(pics / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    data = common.load_data("pics", size=16)
    assert len(data.train_x) + len(data.test_x) == 22
    out = capsys.readouterr().out
    skipped = re.findall(r"(\S+) \(unreadable\)", out)
    assert sorted(skipped) == ["pics/04.png", "pics/huge.png", "pics/link.png"]


@pytest.mark.parametrize("folder, words", [
    ("nowhere", "no such data set"), ("empty", "no readable images"),
    ("corrupt/1.jpg", "no such data set"), ("corrupt", "no readable images"),
    ("one", "readable images"), ("unlike", "the classes of train/"),
    ("few", "--batch-size 8 is larger than the 5 images")])
def test_folders_that_are_refused(folder, words, in_tmp, photos, capsys):
    for name, n in (("empty", 0), ("corrupt", 0), ("one", 1), ("few", 6),
                    ("unlike/train/a", 12), ("unlike/train/b", 12), ("unlike/test/b", 12)):
        pictures(name, photos, n)
    for i in range(12):
        Path(f"corrupt/{i}.jpg").write_bytes(b"x" * 50)
    with pytest.raises(SystemExit) as stop:
        common.cli(lambda: simsiam.main(["--data", folder, *SMALL]))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and words in error
    assert not Path("runs").exists()

"""--data FOLDER: what is used, what is skipped, and what is refused in one sentence."""
import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

import common
import compare
import directclr
import linear_eval
import simsiam

SMALL = "--size 16 --batch-size 8 --epochs 1 --proj-dim 16 --pred-hidden 8".split()


def picture(file, photos, i=0, mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(photos[i % 25].permute(1, 2, 0).numpy())
    image.convert(mode).save(file)


def refused(capsys, folder, *words):
    with pytest.raises(SystemExit) as stop:
        simsiam.main(["--data", str(folder), *SMALL])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not Path("runs").exists()


# ---------------------------------------------------------------------------------------- layouts

@pytest.mark.parametrize("deep", [False, True])
def test_any_images_without_labels(deep, in_tmp, photos, capsys):
    for i in range(40):
        place = in_tmp / "pics" / (f"{i % 3}/{i % 2}/x" if deep else "")
        picture(place / f"{i:02}.png", photos, i)
    simsiam.main(["--data", "pics", *SMALL])
    out = capsys.readouterr().out
    assert "no labels" in out and "every tenth" in out and "probe 0" not in out
    run = Path("runs/simsiam-pics-s0")
    with open(run / "metrics.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert all(1 <= float(row["test_rank_r"]) <= 4 for row in rows)          # of four images
    assert len(rows) == 2 and "knn" not in rows[0] and (run / "curves.png").exists()
    result = (run / "result.json").read_text()
    assert "verdict" in result and "knn" not in result and "linear" not in result
    with pytest.raises(SystemExit) as stop:
        linear_eval.main([str(run)])
    assert stop.value.code == 2 and "no labels" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        compare.main([str(run)])
    assert stop.value.code == 0 and "untrained" not in capsys.readouterr().out
    data = common.load_data("pics", size=16)
    assert len(data.train_x) == 36 and len(data.test_x) == 4 and data.classes == []
    assert len(common.load_data("pics", size=16, limit=10).train_x) == 10
    both = torch.cat([data.train_x, data.test_x]).flatten(1)
    assert len(both.unique(dim=0)) == 25                   # the 25 photos, each used


def test_directclr_without_labels(in_tmp, photos, no_curves):
    for i in range(20):
        picture(in_tmp / "pics" / f"{i}.png", photos, i)
    directclr.main(["--data", "pics", "--size", "16", "--batch-size", "8", "--epochs", "1"])
    result = Path("runs/directclr-direct-pics-s0/result.json").read_text()
    assert "test_rank_r" in result and "linear" not in result


def test_a_tenth_of_each_class_is_held_out(in_tmp, photos, no_curves, capsys):
    for c, n in (("a", 30), ("b", 20), ("c", 10)):
        for i in range(n):
            picture(in_tmp / "pics" / "train" / c / f"{i:02}.png", photos, i)
    data = common.load_data("pics", size=16)
    assert data.test_y.bincount().tolist() == [3, 2, 1]
    assert data.train_y.bincount().tolist() == [27, 18, 9] and data.classes == ["a", "b", "c"]
    again = common.load_data("pics", size=16)              # a fixed rule
    assert torch.equal(data.test_x, again.test_x)
    simsiam.main(["--data", "pics", *SMALL])
    assert "knn" in Path("runs/simsiam-pics-s0/result.json").read_text()
    assert "every tenth" in capsys.readouterr().out


def test_kinds_of_files(in_tmp, photos, capsys):
    """Endings in capitals, links, CMYK, 16 bits, one pixel, spaces and umlauts: all are used."""
    pics = in_tmp / "pics"
    for i in range(12):
        picture(pics / f"{i:02}.png", photos, i)
    picture(pics / "IMG 1.JPG", photos, 1)
    picture(pics / "für Öl.PNG", photos, 2)
    picture(pics / "cmyk.jpg", photos, 3, "CMYK")
    (pics / "link.png").symlink_to(pics / "00.png")
    ramp = torch.arange(32).mul(2000).repeat(32, 1)
    Image.fromarray(ramp.to(torch.uint16).numpy()).save(pics / "deep.png")
    Image.new("RGB", (1, 1), (200, 0, 0)).save(pics / "pixel.png")
    (pics / "notes.txt").write_text("no image")
    data = common.load_data("pics", size=16)
    assert len(data.train_x) + len(data.test_x) == 18
    deep = common.decode(pics / "deep.png", 32)
    assert (deep[0, 0].float() - ramp[0] / 256).abs().max() <= 1.5
    assert "skipped" not in capsys.readouterr().out


def test_what_cannot_be_read_is_skipped_and_counted(in_tmp, photos, capsys, monkeypatch):
    pics = in_tmp / "pics"
    for i in range(20):
        picture(pics / f"{i:02}.png", photos, i)
    (pics / "03.png").write_bytes(b"no image")
    (pics / "04.png").write_bytes((pics / "05.png").read_bytes()[:100])
    (pics / "gone.png").symlink_to(pics / "nowhere.png")
    Image.new("RGB", (400, 400)).save(pics / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    data = common.load_data("pics", size=16)
    out = capsys.readouterr().out
    assert len(data.train_x) + len(data.test_x) == 18
    assert out.count("skipped") >= 1 and "03.png" in out and "huge.png" in out


# ---------------------------------------------------------------------------------------- refused

def test_bad_folders(capsys, in_tmp, photos):
    (in_tmp / "empty").mkdir()
    refused(capsys, "empty", "no readable image")
    refused(capsys, "nowhere", "no such data set or folder", "patches")
    (in_tmp / "text").mkdir()
    (in_tmp / "text" / "a.txt").write_text("x")
    refused(capsys, "text", "no readable image")
    refused(capsys, "text/a.txt", "no such data set or folder")
    picture(in_tmp / "one" / "a.png", photos)
    refused(capsys, "one", "no readable image")
    for i in range(12):
        (in_tmp / "corrupt").mkdir(exist_ok=True)
        (in_tmp / "corrupt" / f"{i}.jpg").write_bytes(b"x" * 50)
    refused(capsys, "corrupt", "no readable image", "files")
    (in_tmp / "links").mkdir()
    (in_tmp / "links" / "a.png").symlink_to(in_tmp / "gone.png")
    refused(capsys, "links", "no readable image")
    for i in range(12):
        picture(in_tmp / "single" / "train" / "a" / f"{i}.png", photos, i)
        picture(in_tmp / "flat" / "train" / f"{i}.png", photos, i)
    refused(capsys, "single", "1 class", "two or more", "without labels")
    refused(capsys, "flat", "0 class", "name flat/train itself")
    for c in "ab":
        for i in range(12):
            picture(in_tmp / "more" / "train" / c / f"{i}.png", photos, i)
            picture(in_tmp / "more" / "test" / c / f"{i}.png", photos, i)
            picture(in_tmp / "more" / "test" / "z" / f"{i}.png", photos, i)
    refused(capsys, "more", "test/ has the class z", "train/ lacks")
    for i in range(6):
        picture(in_tmp / "few" / f"{i}.png", photos, i)
    refused(capsys, "few", "--batch-size 8 is larger")


def test_more_images_than_memory(capsys, in_tmp, photos, monkeypatch):
    """Said before anything is read, with a --limit that does fit."""
    for i in range(40):
        picture(in_tmp / "pics" / f"{i:02}.png", photos, i)
    assert common.memory() > 2**20                         # of this machine
    monkeypatch.setattr(common, "memory", lambda: 20 * 2 * 3 * 16 * 16)      # 20 images' worth
    monkeypatch.setattr(common, "decode", lambda *a: pytest.fail("read"))
    refused(capsys, "pics", "36 images to train on", "--limit 16 fits", "--size")
    monkeypatch.undo()
    monkeypatch.chdir(in_tmp)
    monkeypatch.setattr(common, "memory", lambda: 20 * 2 * 3 * 16 * 16)
    simsiam.main(["--data", "pics", *SMALL, "--limit", "16"])

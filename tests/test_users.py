"""Faults that users of such repositories report, each kind with its members."""
import io
import json
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import common
import compare
import linear_eval
import simsiam

ROOT = Path(__file__).resolve().parent.parent
SHORT = "--size 8 --limit 64 --batch-size 32 --epochs 1 --proj-dim 16 --pred-hidden 8".split()
PICTURE = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)


def refused(capsys, words, call, *args):
    """The call ends with status 2 and with one sentence that has these words."""
    with pytest.raises(SystemExit) as stop:
        common.cli(lambda: call(*args))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and words in error, error


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("a b")
    simsiam.main([*SHORT, "--out", str(out)])
    return out / "simsiam-patches-s0"


@pytest.fixture
def run(finished, in_tmp, no_curves):
    """A copy of a finished run of one epoch, in a folder whose path has a space."""
    shutil.copytree(finished, "a b/run")
    return Path("a b/run")


# --------------------------------------------------------- no direction at all is read as health

z = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows, word", [
    (z, "none"), (0 * z, "dead"), (0 * z + z[:1], "dead"), (1e-30 * z, "dead"),
    (torch.cat([z[:32], 0 * z[32:]]), "dead"), (z[:1] + 1e-7 * z, "dead"),
    (z[:1] + 1e-2 * z, "complete"), (z * float("nan"), "nan"),
    (torch.cat([z[:62], 0 * z[:2]]), "none"), (z[:, :1] * z[:1], "dimensional")])
def test_verdict(rows, word):
    assert common.verdict(common.collapse_metrics(rows)) == word


@pytest.mark.parametrize("part", ["projector", "backbone"])
def test_a_dead_net_is_called_dead(part, in_tmp, monkeypatch, capsys):
    """After the first epoch all weights of a part are 0: z is 0, or the features r are."""
    def zero(self, epoch, *args, real=common.Log.row, **columns):
        if epoch:
            for weight in getattr(self.model.encoder, part).parameters():
                weight.data.zero_()
            views = [self.model.encoder(self.x)] * 2
            columns |= common.measure(self.model.encoder, self.data, self.args, 1, torch.cat(views))
        real(self, epoch, *args, **columns)

    def init(self, args, model, optimizer, data, real=common.Log.__init__):
        self.data, self.x = data, common.augment(data.train_x[:8], data.mean, data.std)
        real(self, args, model, optimizer, data)
    titles = []
    monkeypatch.setattr(common.Log, "row", zero)
    monkeypatch.setattr(common.Log, "__init__", init)
    monkeypatch.setattr(common.Figure, "suptitle", lambda _, title: titles.append(title))
    simsiam.main([*SHORT, "--final-bn", "none"])
    line = capsys.readouterr().out.splitlines()[-2].split()
    result = json.loads(Path("runs/simsiam-patches-s0/result.json").read_text())
    assert line[-1] == result["verdict"] == "dead" and line[-4] == "-"
    assert result["effective_rank"] > 0 and titles == ["collapse: dead"]


# ------------------------------------------------------------------ pictures that are hard to read

black = np.zeros((9, 9), dtype=np.uint8)
alpha = np.full((9, 9), 255, dtype=np.uint8)
alpha[:4] = 0                                              # The upper half is transparent.
icon = Image.fromarray(np.dstack([black, black, black, alpha]))
palette = Image.fromarray(PICTURE).quantize(4)
palette.info["transparency"] = 0
turned = Image.fromarray(PICTURE)
turned.getexif()[274] = 6                                  # to be turned clockwise


@pytest.mark.parametrize("name, image, top", [
    ("float.tif", Image.fromarray(PICTURE[..., 0] / np.float32(255)), "unknown range"),
    ("int.tif", Image.fromarray(PICTURE[..., 0].astype(np.int32)), "unknown range"),
    ("short.tif", Image.fromarray(PICTURE[..., 0].astype(np.uint16)), "unknown range"),
    ("short.png", Image.fromarray(PICTURE[..., 0].astype(np.uint16)), "unknown range"),
    ("deep.png", Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 256), PICTURE[0, 0, 0]),
    ("icon.png", icon, 255), ("icon.gif", icon, 255), ("icon.webp", icon, 255),
    ("gray.png", icon.convert("LA"), 255), ("turned.png", turned, PICTURE[-1, 0]),
    ("photo.bmp", Image.fromarray(PICTURE), PICTURE[0, 0])])
def test_kinds_of_images(name, image, top, in_tmp, capsys):
    image.save(name, **({"exif": image.getexif()} if name == "turned.png" else {}))
    if isinstance(top, str):
        refused(capsys, "no readable images", common.read_images, [(Path(name), 0)], 9)
        return
    x, y = common.read_images([(Path(name), 3)], 9)
    assert np.allclose(x[0, :, 0, 0], top, atol=2) and y.tolist() == [[3]]


def test_what_is_skipped_is_counted_with_its_reason(in_tmp, capsys):
    Image.fromarray(PICTURE).save("good.png")
    Image.fromarray(PICTURE[..., 0] / np.float32(255)).save("float.tif")
    Path("bad.jpg").write_bytes(b"no picture")
    files = [(Path(name), 0) for name in ("good.png", "float.tif", "bad.jpg")]
    assert len(common.read_images(files, 9)[0]) == 1
    assert ("skipped 2 of 3 images: float.tif (numbers of an unknown range), bad.jpg (unreadable)"
            in capsys.readouterr().out)


def test_images_that_are_all_the_same(in_tmp, capsys):
    Path("pics").mkdir()
    for i in range(20):
        Image.fromarray(PICTURE).save(f"pics/{i}.png")
    refused(capsys, "all images are the same", simsiam.main, ["--data", "pics", *SHORT])
    Path("patches").mkdir()
    assert simsiam.parse([]).data == "patches"             # not the folder of this name
    assert not Path("runs").exists()


# -------------------------------------------------------------------------- what counts as data

TWO = [f"train/{c}/{i}.png" for c in "ab" for i in range(9)]
TESTS = [f"{c}/0.png" for c in "ab"]


def make_files(*names):
    for name in names:
        Path("pics", name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile("one.png", Path("pics", name))


@pytest.mark.parametrize("extra, classes, said", [
    ([], 2, "a tenth"), ([f"valid/{name}" for name in TESTS], 2, ""),
    (["train/.ipynb_checkpoints/x.png"], 2, ""), (["train/__pycache__/x.png"], 2, ""),
    (["train/a/._0.png"], 2, ""), (["train/loose.png"], 2, "train/loose.png"),
    (["train/a/notes.txt"], 2, "train/a/notes.txt"), (["extra/a/1.png"], 2, "extra/a/1.png"),
    (["train/a/deep/x.gif"], 2, ""), (["train/empty/notes.txt"], 2, "notes.txt"),
    ([f"{part}/{name}" for part in ("test", "val") for name in TESTS], 2, "val/a/0.png"),
    (["train/a/run/args.json", "train/a/run/curves.png"], 2, "train/a/run")])
def test_what_is_an_image_and_what_a_class(extra, classes, said, in_tmp, capsys):
    Image.fromarray(PICTURE).save("one.png")
    make_files(*TWO, *extra)
    train, test = common.find_images(Path("pics"))
    names = sorted(str(file.relative_to("pics")) for file, _ in train + test)
    used = [name for name in extra if name.endswith(("x.gif", "0.png")) and "._" not in name
            and not (name.startswith("val/"))]
    assert names == sorted([*TWO, *used])
    assert all(y == (f"{file}".split("/")[2] == "b") for file, y in train + test)
    assert said in capsys.readouterr().out


def test_links_one_class_and_this_repository(in_tmp, capsys):
    Image.fromarray(PICTURE).save("one.png")
    make_files(*TWO)
    Path("else").mkdir()
    Path("pics/train/a").rename("else/a")
    Path("pics/train/a").symlink_to(Path("else/a").resolve())              # a class elsewhere
    Path("pics/train/b/loop").symlink_to(Path("pics").resolve())
    train, test = common.find_images(Path("pics"))
    assert len(train + test) == len(TWO)
    Path("pics/train/a").unlink()
    train, test = common.find_images(Path("pics"))
    assert {y for _, y in train + test} == {-1} and "no labels" in capsys.readouterr().out
    assert common.find_images(ROOT) == [[], []]


def test_a_new_photo_does_not_move_the_others(in_tmp):
    Image.fromarray(PICTURE).save("one.png")
    make_files(*[f"{i}.png" for i in range(400)])
    before = {file for file, _ in common.find_images(Path("pics"))[1]}
    make_files("00.png", "new.png")
    after = {file for file, _ in common.find_images(Path("pics"))[1]}
    assert before == {file for file in after if file.name not in ("00.png", "new.png")}
    assert 20 < len(before) < 60
    Path("pics").rename("moved")
    moved = {file.name for file, _ in common.find_images(Path("moved"))[1]}
    assert moved == {file.name for file in after}


# ------------------------------------------------------------- a run's identity, and its records

def test_runs_are_told_apart_by_their_settings(run, capsys):
    def copy(name, **changes):
        shutil.copytree(run, name)
        saved = json.loads(Path(name, "args.json").read_text())
        saved["args"] |= changes
        Path(name, "args.json").write_text(json.dumps(saved))
    changed = {"lr": 0.1}, {"lr": 0.1, "seed": 1}, {"lr": 0.1}, {"device": "x"}
    for i, changes in enumerate(changed):
        copy(f"{i}/run", **changes)
    jobs = compare.finished([str(run), "0/run", "1/run", "2/run", "3/run", "0/run"])
    assert [(job.label, job.seed) for job in jobs] == [
        ("simsiam, lr 0.4", "0"), ("simsiam, lr 0.1", "0"), ("simsiam, lr 0.1", "1"),
        ("simsiam, lr 0.1 (2/run)", "0"), ("simsiam, lr 0.4 (3/run)", "0")]


def stop_after(epoch, monkeypatch):
    def row(self, number, *args, real=common.Log.row, **columns):
        if number > epoch:
            raise KeyboardInterrupt
        real(self, number, *args, **columns)
    monkeypatch.setattr(common.Log, "row", row)


def test_flags_beside_resume_are_recorded(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        refused(capsys, '--resume "a b/run"', simsiam.main,
                ["--resume", str(run), "--epochs", "3", "--weight-decay", "0.5"])
    assert json.loads((run / "args.json").read_text())["args"]["epochs"] == 3
    simsiam.main(["--resume", str(run)])                   # the printed command
    assert "learning rate jumps" not in capsys.readouterr().out
    assert json.loads((run / "result.json").read_text())["epoch"] == 3
    optimizer = common.load_run(run)["optimizer"]
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.5}


@pytest.mark.parametrize("flags, said, epochs, kept", [
    ("--epochs 2", "learning rate jumps", 2, False), ("--epochs 1", "", 1, True),
    ("--epochs 0", "", 1, True), ("--dry-run", "", 1, True)])
def test_what_a_flag_beside_resume_does(flags, said, epochs, kept, run, capsys):
    before = (run / "result.json").read_text()
    simsiam.main(["--resume", str(run), *flags.split()])
    assert said in capsys.readouterr().out
    assert json.loads((run / "args.json").read_text())["args"]["epochs"] == epochs
    assert ((run / "result.json").read_text() == before) == kept


# ----------------------------------------------------------------------------- the last word wins

@pytest.mark.parametrize("line, words", [
    ("simsiam.py --lr 0.1, 0.4, 1.6", "'0.1,'"), ("simsiam.py --lr 0.1 0.4", "'0.4'"),
    ("simsiam.py --seed 0 1 2", "'1'"), ("simsiam.py --lr 0.1,", "'0.1,'"),
    ("simsiam.py --lr 0.1 --lr 0.4", "twice"), ("simsiam.py --seed 0 --seed 1", "twice"),
    ("simsiam.py byol.py", "'byol.py'"), ("/nowhere/none.py --lr 1", "no script"),
    ("simsiam.py --lr=0.1 0.4", "'--lr=0.1'"), ("common.py --lr 1", "cannot be compared")])
def test_words_that_would_be_ignored(line, words, in_tmp, capsys):
    refused(capsys, words, compare.main, line.split())
    assert not Path("runs").exists()


@pytest.mark.parametrize("script", ["./simsiam.py", str(ROOT / "simsiam.py"), "simsiam.py"])
def test_a_script_may_be_a_path(script, in_tmp, monkeypatch):
    jobs = []
    monkeypatch.setattr(compare, "train_all", lambda todo, n: jobs.extend(todo) or "")
    if script.startswith("."):
        monkeypatch.chdir(ROOT)
    compare.main([script, "--lr", "0.1,0.4", "--seed=0,0", "--out", str(in_tmp)])
    assert [job.label for job in jobs] == ["lr 0.1", "lr 0.4"]


# ------------------------------------------------------- a checkpoint elsewhere, and the world

def test_a_folder_is_found_from_another_directory(in_tmp, photos, no_curves, monkeypatch):
    for i in range(40):
        Path(f"pics/train/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[i % 25].permute(1, 2, 0).numpy()).save(f"pics/train/{i % 2}/{i}.png")
    simsiam.main(["--data", "pics", *SHORT, "--batch-size", "16"])
    run = Path("runs/simsiam-pics-s0").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    found = linear_eval.main([str(run)])["trained"]
    Path("../pics").rename("moved")
    assert linear_eval.main([str(run), "--data", "moved"])["trained"] == found


@pytest.mark.parametrize("name, stream", [("stderr", None), ("stdout", None), ("stdout", "ascii")])
def test_streams_that_are_closed_or_lack_letters(name, stream, in_tmp, monkeypatch, no_curves):
    monkeypatch.setattr(sys, "stderr", sys.stderr)         # Both are restored at the end.
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    setattr(sys, name, stream and io.TextIOWrapper(io.BytesIO(), stream))
    common.cli(lambda: simsiam.main(["--dry-run", "--out", "für"]))
    assert (in_tmp / "für/simsiam-patches-s0/result.json").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(),
                                   torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried"),
                                   BrokenPipeError(32, "Broken pipe")])
def test_errors_of_the_machine_end_in_a_sentence(error, capsys):
    def main():
        raise error
    refused(capsys, (str(error) or "out of memory").splitlines()[0], main)


def test_a_second_ctrl_c_does_not_cut_the_first_off(capsys, monkeypatch):
    handled = []
    monkeypatch.setattr(signal, "signal", lambda *what: handled.append(what))

    def main():
        raise KeyboardInterrupt
    refused(capsys, "stopped", main)
    assert handled == [(signal.SIGINT, signal.SIG_IGN)]


def test_a_thread_and_a_seed(in_tmp, no_curves, capsys):
    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=simsiam.main, args=(["--dry-run"],))
    thread.start()
    thread.join()
    assert Path("runs/simsiam-patches-s0/result.json").exists()
    assert signal.getsignal(signal.SIGINT) == handler
    refused(capsys, "--seed cannot be", simsiam.main, ["--seed", "180000000000"])
    simsiam.main(["--dry-run", "--seed", "99999999999"])

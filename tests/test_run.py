"""The run folder: resume, kill, Ctrl-C, a full disk, flags, and what bad input says."""
import csv
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

import common
import linear_eval
import simsiam
import supervised

ROOT = Path(__file__).resolve().parent.parent
SHORT = "--size 8 --limit 96 --batch-size 32 --epochs 4 --proj-dim 32 --pred-hidden 16".split()
COLUMNS = ("epoch seconds images_per_second lr loss std m_o m_r effective_rank covariance dead knn "
           "verdict")
FILES = "args.json backbone.pt curves.png last.pt metrics.csv result.json"
FOLDER = Path("runs/simsiam-patches-s0")


def rows(folder):
    with open(Path(folder) / "metrics.csv", newline="") as f:
        return list(csv.DictReader(f))


def tensors(folder):
    """Weights and momentum of last.pt, and backbone.pt.  -> {name: tensor}"""
    saved = common.load_run(folder)
    momentum = {f"momentum {k}": state["momentum_buffer"]
                for k, state in saved["optimizer"]["state"].items()}
    backbone = torch.load(Path(folder) / "backbone.pt", weights_only=True)
    return saved["model"] | momentum | {f"backbone {k}": v for k, v in backbone.items()}


def assert_same_run(a, b):
    timed = ("seconds", "images_per_second")
    untimed = [[{k: v for k, v in row.items() if k not in timed} for row in rows(folder)]
               for folder in (a, b)]
    a, b = tensors(a), tensors(b)
    assert untimed[0] == untimed[1] and a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def start(folder):
    """A shell's background jobs ignore SIGINT, and hand that on: here it is not ignored."""
    return subprocess.Popen([sys.executable, ROOT / "simsiam.py", *SHORT], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def refused(capsys, flags, *words, script=simsiam):
    """Ends with status 2 and with one line on stderr that has these words."""
    with pytest.raises(SystemExit) as stop:
        common.cli(lambda: script.main([str(flag) for flag in flags]))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "error: " in error, error
    assert all(word in error for word in words), error


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    simsiam.main([*SHORT, "--out", str(folder)])
    return folder / "simsiam-patches-s0"


def test_a_run_leaves_what_the_readme_says(uninterrupted):
    assert sorted(f.name for f in uninterrupted.iterdir()) == FILES.split()
    args = json.loads((uninterrupted / "args.json").read_text())["args"]
    assert args["proj_dim"] == 32 and args["lr"] == simsiam.RECIPES["patches"]["lr"]
    table = rows(uninterrupted)
    assert list(table[0]) == COLUMNS.split() and [int(r["epoch"]) for r in table] == [0, 1, 2, 3, 4]
    seconds = [float(r["seconds"]) for r in table]
    assert seconds[0] == 0 and seconds == sorted(seconds) and all(r["knn"] for r in table)
    assert table[0]["loss"] == "" and all(r["loss"] for r in table[1:])
    assert (uninterrupted / "curves.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((uninterrupted / "result.json").read_text())
    assert result["knn_untrained"] == float(table[0]["knn"]) and 0 < result["linear"] < 100
    assert result["knn"] == float(table[-1]["knn"]) and result["verdict"] == table[-1]["verdict"]


def test_nothing_is_overwritten_and_a_seed_repeats_itself(uninterrupted, capsys):
    before = {file: file.read_bytes() for file in uninterrupted.iterdir()}
    simsiam.main([*SHORT, "--out", str(uninterrupted.parent)])
    assert before == {file: file.read_bytes() for file in uninterrupted.iterdir()}
    second = uninterrupted.with_name("simsiam-patches-s0-2")
    assert_same_run(second, uninterrupted)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{second}: 96 training images, cpu, ")
    assert out[1].split()[-1] == "verdict" and out[6].split()[-1] == rows(second)[-1]["verdict"]
    assert common.new_folder(second.parent, uninterrupted.name).name == "simsiam-patches-s0-3"


def test_another_seed_and_knn_now_and_then(uninterrupted, in_tmp, no_curves):
    simsiam.main([*SHORT, "--seed", "1", "--eval-every", "3"])
    table = rows("runs/simsiam-patches-s1")
    assert table[-1]["loss"] != rows(uninterrupted)[-1]["loss"]
    assert [bool(r["knn"]) for r in table] == [True, False, False, True, True]


def test_measuring_changes_nothing_and_is_not_in_the_seconds(uninterrupted, in_tmp, monkeypatch):
    """Whatever is measured, in row 0 and later, the net trains the same, to the bit."""
    def nothing(encoder, data, args, epoch=0, z=None):
        time.sleep(1.5 * (epoch == 1))
        return {"m_o": 0.5, "effective_rank": 9.0}
    monkeypatch.setattr(common, "measure", nothing)
    simsiam.main(SHORT)
    a, b = tensors(FOLDER), tensors(uninterrupted)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert 0 < float(rows(FOLDER)[1]["seconds"]) < 1.5


# --------------------------------------------------------------------------- kill, Ctrl-C, bad luck

@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_resumed_it_is_the_same_run(sent, uninterrupted, tmp_path, no_curves):
    process = start(tmp_path)
    epoch, pause = 1, 0.0
    if sent == signal.SIGKILL:                             # another moment every time
        epoch, pause = random.randint(1, 3), random.uniform(0, 0.3)
    while process.stdout.readline().split()[0] != str(epoch):
        pass
    time.sleep(pause)
    process.send_signal(sent)
    error = process.communicate(timeout=60)[1]
    if sent == signal.SIGINT:                              # Ctrl-C
        assert process.returncode == 2 and error.count("\n") == 1
        assert error.startswith('error: stopped; python simsiam.py --resume "runs/')
    folder = tmp_path / FOLDER
    finished = len(common.load_run(folder)["tables"]["metrics"])
    assert finished >= epoch, f"killed {pause:.2f} s after epoch {epoch}"
    simsiam.main(["--resume", str(folder)])
    assert_same_run(folder, uninterrupted)
    simsiam.main(["--resume", str(folder)])                # nothing left to do
    assert_same_run(folder, uninterrupted)
    simsiam.main(["--resume", str(folder), "--epochs", "5"])
    assert len(rows(folder)) == 6


def test_death_in_every_write_one_after_the_other(uninterrupted, in_tmp, no_curves, monkeypatch):
    """Killed and resumed in each write of each epoch: metrics.csv, backbone.pt, last.pt."""
    files, flags = ("metrics.csv", "backbone.pt", "last.pt"), SHORT
    deaths = {(file, epoch) for file in files for epoch in (1, 2, 3, 4)}

    def replace(part, file, real=Path.replace):
        if (FOLDER / "last.pt").exists():
            now = file.name, len(common.load_run(FOLDER)["tables"]["metrics"])
            if now in deaths:
                deaths.remove(now)
                os.truncate(part, part.stat().st_size // 2)
                raise MemoryError
        return real(part, file)
    monkeypatch.setattr(Path, "replace", replace)
    for _ in range(12):
        with pytest.raises(MemoryError):
            simsiam.main(flags)
        flags = ["--resume", str(FOLDER)]
    simsiam.main(flags)
    assert_same_run(FOLDER, uninterrupted)


def test_a_closed_pipe(tmp_path):
    process = start(tmp_path)
    process.stdout.readline()
    process.stdout.close()                                 # as `python simsiam.py | head -1` does
    error = process.stderr.read()
    assert error.startswith("error: [Errno 32] Broken pipe;") and error.count("\n") == 1
    assert process.wait() == 2


def test_a_failed_write_is_one_sentence(capsys, in_tmp):
    Path("file").touch()
    refused(capsys, ["--size", 9, "--out", "file/runs"], "Not a directory: 'file/runs/simsiam")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))        # the net has more bytes
    try:
        refused(capsys, SHORT, "[Errno")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("broken", ["loss", "weight"])
def test_nan_stops_and_keeps_the_last_good_epoch(broken, capsys, in_tmp, monkeypatch):
    def row(self, epoch, loss=0.0, *seconds, real=common.Log.row, **columns):
        if epoch == 2 and broken == "loss":
            loss = math.nan
        if epoch == 2 and broken == "weight":
            next(self.model.parameters()).data[0] = math.inf
        real(self, epoch, loss, *seconds, **columns)
    monkeypatch.setattr(common.Log, "row", row)
    refused(capsys, SHORT, "nan or infinite in epoch 2", "--lr")
    assert len(rows(FOLDER)) == 2 and all(v.isfinite().all() for v in tensors(FOLDER).values())


# -------------------------------------------------------------------------------- flags, bad input

@pytest.mark.parametrize("flags", [
    "--data mnist", "--epochs -1", "--epochs two", "--lr nan", "--weight-decay -1", "--limit -5",
    "--size 0", "--eval-every 0", "--batch-size 1", "--batch-size 5000", "--device warp",
    "--device cuda:99", "--arch vgg", "--final-bn maybe", "--no-such-flag"])
def test_bad_flags(flags, capsys, in_tmp):
    name, *value = flags.split()
    refused(capsys, ["--size", 9, name, *value], name)
    assert not Path("runs").exists()


def test_no_connection(capsys, in_tmp, monkeypatch):
    def download(self):
        raise URLError("no route")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    refused(capsys, ["--data", "cifar10"], "cifar10", "no route", "--data patches")


class Touch:
    def __reduce__(self):
        return os.mkdir, ("broken-into",)


@pytest.mark.parametrize("what", ["half", "code", "none"])
def test_bad_checkpoints(what, uninterrupted, capsys, in_tmp):
    FOLDER.mkdir(parents=True)
    whole, last = (uninterrupted / "last.pt").read_bytes(), FOLDER / "last.pt"
    if what == "half":
        last.write_bytes(whole[:len(whole) // 2])
    elif what == "code":
        torch.save({"model": Touch()}, last)
    refused(capsys, ["--resume", FOLDER], str(FOLDER), "no run folder")
    refused(capsys, [FOLDER], str(FOLDER), "no run folder", script=linear_eval)
    assert not Path("broken-into").exists()
    assert sorted(FOLDER.iterdir()) == ([] if what == "none" else [last])


@pytest.mark.parametrize("script, flags", [(simsiam, ["--proj-dim", 24]), (supervised, [])])
def test_another_net_is_refused(script, flags, uninterrupted, capsys):
    refused(capsys, ["--resume", uninterrupted, *flags], "does not fit", script=script)


def test_every_label_of_an_image_has_its_columns(in_tmp, no_curves, monkeypatch):
    simsiam.main([*SHORT, "--data", "strong_weak", "--epochs", "1"])
    run = Path("runs/simsiam-strong_weak-s0")
    last, result = rows(run)[-1], json.loads((run / "result.json").read_text())
    assert list(last)[-3:-1] == ["knn", "knn_weak"] and last["knn"] != last["knn_weak"]
    found, seen = linear_eval.main([str(run)])["trained"], []
    assert found.keys() == {f"{probe}{net}{label}" for probe in ("knn", "linear")
                            for net in ("", "_z") for label in ("", "_weak")}
    assert all(found[name] == pytest.approx(result[name], abs=0.2) for name in found)
    monkeypatch.setattr(common, "linear_probe", lambda *a, **k: seen.append(k) or 0.0)
    linear_eval.main([str(run), *"--epochs 7 --lr 0.3 --batch-size 50".split()])
    assert seen == [{"epochs": 7, "lr": 0.3, "batch_size": 50}] * 8

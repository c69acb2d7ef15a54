"""The run folder: resume, kill, Ctrl-C, torchrun, flags, and what bad input says."""
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import common
import linear_eval
import simsiam

ROOT = Path(__file__).resolve().parent.parent
SHORT = "--limit 192 --batch-size 32 --epochs 5 --proj-dim 64 --pred-hidden 16".split()
COLUMNS = "epoch seconds images_per_second lr loss std m_o m_r effective_rank covariance knn".split()


def rows(folder):
    return list(csv.DictReader(open(Path(folder) / "metrics.csv")))


def untimed(folder):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows(folder)]


def weights(folder):
    saved = torch.load(Path(folder) / "last.pt", weights_only=True)
    momentum = {f"momentum {k}": v["momentum_buffer"] for k, v in saved["optimizer"]["state"].items()}
    return {**saved["model"], **momentum, **{f"b {k}": v for k, v in torch.load(Path(folder) / "backbone.pt", weights_only=True).items()}}


def assert_same_run(a, b):
    assert untimed(a) == untimed(b)
    wa, wb = weights(a), weights(b)
    assert wa.keys() == wb.keys() and all(torch.equal(wa[k], wb[k]) for k in wa)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run([sys.executable, ROOT / "simsiam.py", *SHORT], cwd=folder, check=True, capture_output=True)
    return folder / "runs" / "simsiam-patches-s0"


def test_a_run_leaves_what_the_readme_says(uninterrupted):
    assert sorted(f.name for f in uninterrupted.iterdir()) == ["args.json", "backbone.pt", "curves.png", "last.pt", "metrics.csv"]
    info = json.loads((uninterrupted / "args.json").read_text())
    assert info["torch"] == torch.__version__ and info["args"]["proj_dim"] == 64 and info["args"]["lr"] == simsiam.RECIPES["patches"]["lr"]
    table = rows(uninterrupted)
    assert list(table[0]) == COLUMNS and [int(r["epoch"]) for r in table] == list(range(6))
    assert float(table[0]["seconds"]) == 0 and sorted(float(r["seconds"]) for r in table) == [float(r["seconds"]) for r in table]
    assert all(r["knn"] for r in table)
    assert (uninterrupted / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_is_overwritten_and_a_seed_repeats_itself(uninterrupted, run_script, tmp_path):
    for name in ("simsiam-patches-s0", "simsiam-patches-s0-2"):
        run_script("simsiam.py", *SHORT)
        assert_same_run(tmp_path / "runs" / name, uninterrupted)
    run_script("simsiam.py", *SHORT, "--seed", 1, "--eval-every", 2)
    table = rows(tmp_path / "runs" / "simsiam-patches-s1")
    assert table[-1]["loss"] != rows(uninterrupted)[-1]["loss"] and [bool(r["knn"]) for r in table] == [True, False, True, False, True, True]


@pytest.mark.parametrize("attempt", range(2))
def test_kill_at_a_random_moment_and_resume(attempt, uninterrupted, run_script, tmp_path):
    rng = random.Random()                                              # another moment every time the tests run
    process = subprocess.Popen([sys.executable, ROOT / "simsiam.py", *SHORT], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "simsiam-patches-s0"
    wanted = rng.randint(0, 4)
    for line in process.stdout:
        if re.match(rf" *{wanted} ", line):
            break
    pause = rng.uniform(0, 0.3)
    time.sleep(pause)
    process.kill()
    process.wait()
    result = run_script("simsiam.py", "--resume", folder)
    assert result.returncode == 0, result.stderr
    print(f"killed {pause:.2f} s after epoch {wanted}")
    assert_same_run(folder, uninterrupted)
    finished = rows(folder)
    again = run_script("simsiam.py", "--resume", folder)               # a finished run has nothing left to do: not even times change
    assert again.returncode == 0 and rows(folder) == finished
    assert_same_run(folder, uninterrupted)


KILL_IN_WRITE = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch, simsiam
real, calls = torch.save, []
def save(obj, file, *rest):
    real(obj, file, *rest)
    calls.append(file)
    if len(calls) == {when}:                        # half of the file has reached the disk when the process dies
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
simsiam.main({flags!r})
"""


@pytest.mark.parametrize("when", [pytest.param(random.Random().randint(1, 11), id="random"), 12])       # 12 writes, 2 an epoch
def test_kill_during_a_checkpoint_write_and_resume(when, uninterrupted, run_script, tmp_path):
    code = KILL_IN_WRITE.format(root=str(ROOT), when=when, flags=SHORT)
    died = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    folder = tmp_path / "runs" / "simsiam-patches-s0"
    assert any(f.suffix == ".part" for f in folder.iterdir()), when
    result = run_script("simsiam.py", "--resume", folder)
    assert result.returncode == 0, (when, result.stderr)
    assert_same_run(folder, uninterrupted)


def test_ctrl_c_keeps_the_epochs_and_says_how_to_go_on(uninterrupted, run_script, tmp_path):
    process = subprocess.Popen([sys.executable, ROOT / "simsiam.py", *SHORT], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if re.match(r" *2 ", line):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    command = re.search(r"python simsiam.py --resume (\S+)", out)
    assert command, out
    folder = tmp_path / command[1]
    assert len(rows(folder)) >= 3 and (folder / "curves.png").exists()
    assert run_script("simsiam.py", "--resume", command[1]).returncode == 0
    assert_same_run(folder, uninterrupted)


# ------------------------------------------------------------------------------------------------------------ torchrun

RANKS = """
import sys
sys.path.insert(0, {root!r})
import torch, common, simsiam
import torch.distributed as dist
drawn = []
augment = common.augment
common.augment = lambda x, *rest: (drawn.append((x.clone(), out := augment(x, *rest))), out)[1]
destroy, dist.destroy_process_group = dist.destroy_process_group, lambda: None       # main() ends it; the test still needs it
model = simsiam.main({flags!r})
mine = torch.cat([p.detach().flatten() for p in model.parameters()])
all_ranks = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(all_ranks, mine)
images = torch.cat([x for x, _ in drawn[2:8:2]])                     # epoch 1: three steps, each batch is drawn from twice
views = torch.cat([v.contiguous() for _, v in drawn[2:8:2]])
both = [torch.empty_like(images) for _ in range(2)]
dist.all_gather(both, images)
both_views = [torch.empty_like(views) for _ in range(2)]
dist.all_gather(both_views, views)
if dist.get_rank() == 0:
    print("RANKS", torch.equal(*all_ranks), mine.numel(), len(images), len(torch.cat(both).flatten(1).unique(dim=0)),
          len(torch.cat(both_views).flatten(1).unique(dim=0)))
destroy()
"""


def test_two_ranks_share_the_batch_and_end_with_identical_weights(tmp_path):
    script = tmp_path / "ranks.py"
    flags = "--limit 96 --batch-size 32 --epochs 2 --proj-dim 64 --pred-hidden 16".split()
    script.write_text(RANKS.format(root=str(ROOT), flags=flags))
    out = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script], cwd=tmp_path,
                         capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert out.returncode == 0, out.stderr[-2000:]
    found = re.search(r"RANKS (\w+) (\d+) (\d+) (\d+) (\d+)", out.stdout)
    identical, parameters, mine, drawn, views = found.groups()
    assert identical == "True" and int(parameters) > 100_000
    assert (mine, drawn, views) == ("48", "96", "96")                # half an epoch each, together every image once, all different
    assert [f.name for f in (tmp_path / "runs").iterdir()] == ["simsiam-patches-s0"]                # rank 0 alone writes
    assert len(rows(tmp_path / "runs" / "simsiam-patches-s0")) == 3 and out.stdout.count("training images") == 1


# --------------------------------------------------------------------------------------------------------------- flags

EVERY_FLAG = [
    "--data cifar10 --data-dir data", "--data cifar100", "--data pics --size 24", "--limit 64", "--arch resnet18", "--arch small",
    "--epochs 2", "--batch-size 8", "--lr 0.1", "--weight-decay 0", "--warmup-epochs 1", "--proj-layers 3", "--proj-dim 48",
    "--pred-hidden 8", "--final-bn none", "--final-bn affine", "--seed 7", "--device cpu", "--eval-every 3", "--out deep/er",
]


@pytest.mark.parametrize("flags", EVERY_FLAG)
def test_every_flag_works(flags, in_tmp, fake_cifar, image_folder):
    simsiam.main([*flags.split(), "--dry-run"])
    folder, = Path("deep/er" if "--out" in flags else "runs").iterdir()
    assert [int(r["epoch"]) for r in rows(folder)] == [0, 1]
    saved = json.loads((folder / "args.json").read_text())["args"]
    name, value = flags.split()[-2:]
    if name not in ("--epochs", "--batch-size", "--warmup-epochs", "--data-dir"):          # --dry-run cuts the first three short
        assert str(saved[name[2:].replace("-", "_")]) in (value, f"{value}.0")


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        simsiam.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in "data data-dir size limit arch epochs batch-size lr weight-decay seed device eval-every out resume compile dry-run".split():
        assert f"--{name}" in text


# ----------------------------------------------------------------------------------------------------------- bad input

def refused(capsys, flags, *words, script=simsiam):
    """Ends with status 2 and one line on stderr that has these words; leaves no run folder behind."""
    before = sorted(Path("runs").glob("*"))
    with pytest.raises(SystemExit) as stop:
        script.main(flags.split() if isinstance(flags, str) else flags)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert sorted(Path("runs").glob("*")) == before


@pytest.mark.parametrize("flags, words", [
    ("--data mnist", ["mnist", "no such data set or folder", "patches"]),
    ("--epochs 0", ["--epochs", "more than zero"]),
    ("--epochs -3", ["--epochs", "-3"]),
    ("--epochs two", ["--epochs", "two"]),
    ("--lr -0.1", ["--lr", "more than zero"]),
    ("--lr nan", ["--lr", "nan"]),
    ("--weight-decay -1", ["--weight-decay", "zero or more"]),
    ("--limit -5", ["--limit", "zero or more"]),
    ("--size 0", ["--size", "more than zero"]),
    ("--size 4", ["--size", "at least 7"]),
    ("--eval-every 0", ["--eval-every"]),
    ("--batch-size 1", ["--batch-size", "at least 2"]),
    ("--batch-size 5000", ["--batch-size 5000", "4000", "lower it"]),
    ("--limit 20 --batch-size 32", ["--batch-size 32", "20 training images"]),
    ("--device warp", ["--device warp", "--device cpu"]),
    ("--arch vgg", ["vgg", "small"]),
    ("--final-bn maybe", ["maybe", "noaffine"]),
    ("--no-such-flag", ["--no-such-flag", "--help"]),
    ("--resume nowhere", ["nowhere", "not a run folder"]),
])
def test_bad_flags(flags, words, capsys, in_tmp):
    refused(capsys, flags, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(capsys, in_tmp):
    refused(capsys, "--device cuda", "--device cuda", "--device cpu")


def test_no_network(capsys, in_tmp, monkeypatch):
    from urllib.error import URLError
    monkeypatch.setattr(common.torchvision.datasets.CIFAR10, "download", lambda self: (_ for _ in ()).throw(URLError("no route")))
    refused(capsys, "--data cifar10", "cifar10", "no route", "patches")


def test_bad_folders(capsys, in_tmp, image_folder):
    (in_tmp / "empty").mkdir()
    refused(capsys, "--data empty", "train/", "test/")
    for name in ("test", "val"):
        shutil.copytree(image_folder / "train", in_tmp / "no_test" / "train", dirs_exist_ok=True)
    refused(capsys, "--data no_test", "test/ (or val/)")
    shutil.copytree(image_folder, in_tmp / "one_class")
    shutil.rmtree(in_tmp / "one_class" / "train" / "dogs")
    refused(capsys, "--data one_class", "1 class", "two or more")
    shutil.copytree(image_folder, in_tmp / "one_image")
    for f in list((in_tmp / "one_image" / "train").glob("*/*"))[1:]:
        f.unlink()
    refused(capsys, "--data one_image", "1 training images", "--batch-size")
    shutil.copytree(image_folder, in_tmp / "no_images")
    for f in (in_tmp / "no_images" / "train").glob("*/*"):
        f.unlink()
    refused(capsys, "--data no_images", "no readable image", "train")
    shutil.copytree(image_folder, in_tmp / "all_bad")
    for f in (in_tmp / "all_bad" / "train").glob("*/*"):
        f.write_bytes(b"not an image")
    refused(capsys, "--data all_bad", "no readable image", "of 24 files", "cats")


def test_unwritable_out(capsys, in_tmp):
    (in_tmp / "file").write_text("")
    refused(capsys, "--dry-run --out file/runs", "--out", "cannot write")


def test_bad_checkpoints(capsys, in_tmp):
    simsiam.main(["--dry-run"])
    run = Path("runs/simsiam-patches-s0")
    whole = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(whole[: len(whole) // 2])
    refused(capsys, f"--resume {run}", "last.pt", "truncated")
    refused(capsys, [str(run)], "last.pt", "truncated", script=linear_eval)
    torch.save({"weights": torch.ones(3)}, run / "last.pt")                                # a checkpoint of something else
    refused(capsys, f"--resume {run}", "last.pt", "no checkpoint")
    refused(capsys, [str(run)], "last.pt", "no checkpoint", script=linear_eval)
    (run / "last.pt").write_bytes(whole)
    refused(capsys, f"--resume {run} --proj-dim 24", "last.pt", "does not fit")
    refused(capsys, ["runs"], "not a run folder", script=linear_eval)
    refused(capsys, [str(run), "--epochs", "0"], "--epochs", script=linear_eval)
    (run / "args.json").write_text("{")
    refused(capsys, f"--resume {run}", "not a run folder")


class Touch:
    def __reduce__(self):
        return os.mkdir, ("broken-into",)


def test_a_checkpoint_cannot_run_code(capsys, in_tmp):
    simsiam.main(["--dry-run"])
    run = Path("runs/simsiam-patches-s0")
    torch.save({"model": Touch()}, run / "last.pt")
    refused(capsys, f"--resume {run}", "last.pt")
    assert not Path("broken-into").exists()


def test_nan_stops_and_keeps_the_last_good_checkpoint(capsys, in_tmp, monkeypatch):
    loss = simsiam.D
    calls = []

    def broken(p, z):
        calls.append(1)
        return loss(p, z) * (float("nan") if len(calls) > 20 else 1)

    monkeypatch.setattr(simsiam, "D", broken)
    with pytest.raises(SystemExit) as stop:
        simsiam.main(SHORT)                                              # 6 steps of 2 losses an epoch: breaks in epoch 2
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "nan" in err and "epoch 2" in err and "--lr" in err and err.count("\n") == 1
    run = Path("runs/simsiam-patches-s0")
    assert len(rows(run)) == 2 and all(v.isfinite().all() for v in weights(run).values())


def test_a_far_too_high_rate_is_refused_in_words(capsys, in_tmp):
    with pytest.raises(SystemExit) as stop:
        simsiam.main([*SHORT, "--lr", "1e30"])
    assert stop.value.code == 2 and "Lower --lr" in capsys.readouterr().err

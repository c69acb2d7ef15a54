"""The run folder: resume, kill, Ctrl-C, torchrun, flags, and what bad input says."""
import copy
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
import directpred
import linear_eval
import simsiam

ROOT = Path(__file__).resolve().parent.parent
SHORT = "--size 16 --limit 96 --batch-size 32 --epochs 4 --proj-dim 32 --pred-hidden 16".split()
COLUMNS = ("epoch seconds images_per_second lr loss std m_o m_r effective_rank covariance knn "
           "test_rank_r test_auc_r")
FILES = ["args.json", "backbone.pt", "curves.png", "last.pt", "metrics.csv", "result.json"]
FOLDER = Path("runs/simsiam-patches-s0")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.usefixtures("no_curves")          # but in `uninterrupted` and with Ctrl-C


def rows(folder):
    with open(Path(folder) / "metrics.csv", newline="") as f:
        return list(csv.DictReader(f))


def untimed(folder):
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows(folder)]


def tensors(model, optimizer):
    """Of two state dicts, {name: tensor}."""
    momentum = {f"momentum {k}": state["momentum_buffer"]
                for k, state in optimizer["state"].items()}
    return {**model, **momentum}


def weights(folder):
    saved = torch.load(Path(folder) / "last.pt", weights_only=True)
    backbone = torch.load(Path(folder) / "backbone.pt", weights_only=True)
    backbone = {f"b {k}": v for k, v in backbone.items()}
    return {**tensors(saved["model"], saved["optimizer"]), **backbone}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same_run(a, b):
    assert untimed(a) == untimed(b)
    assert same(weights(a), weights(b))


def start(folder, *flags):
    return subprocess.Popen([sys.executable, ROOT / "simsiam.py", *(flags or SHORT)], cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_epoch(process, epoch):
    for line in process.stdout:
        if re.match(rf" *{epoch} ", line):
            break


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    simsiam.main([*SHORT, "--out", str(folder)])
    return folder / "simsiam-patches-s0"


def test_a_run_leaves_what_the_readme_says(uninterrupted):
    assert sorted(f.name for f in uninterrupted.iterdir()) == FILES
    info = json.loads((uninterrupted / "args.json").read_text())
    assert info["torch"] == torch.__version__ and info["args"]["proj_dim"] == 32
    assert info["args"]["lr"] == simsiam.RECIPES["patches"]["lr"]
    table = rows(uninterrupted)
    assert list(table[0]) == COLUMNS.split() and [int(r["epoch"]) for r in table] == [0, 1, 2, 3, 4]
    seconds = [float(r["seconds"]) for r in table]
    assert seconds[0] == 0 and seconds == sorted(seconds) and all(r["knn"] for r in table)
    assert table[0]["loss"] == "" and all(r["loss"] for r in table[1:])
    assert (uninterrupted / "curves.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((uninterrupted / "result.json").read_text())
    assert result["knn_untrained"] == float(table[0]["knn"]) and 0 < result["linear"] < 100
    assert result["knn"] == float(table[-1]["knn"]) and result["verdict"] == common.verdict(
        float(table[-1]["m_o"]), float(table[-1]["effective_rank"]))


def test_nothing_is_overwritten_and_a_seed_repeats_itself(uninterrupted, capsys):
    before = {file: file.read_bytes() for file in uninterrupted.iterdir()}
    simsiam.main([*SHORT, "--out", str(uninterrupted.parent)])
    assert before == {file: file.read_bytes() for file in uninterrupted.iterdir()}
    second = uninterrupted.with_name("simsiam-patches-s0-2")
    assert_same_run(second, uninterrupted)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"{second}: 96 training images, ") and line.endswith(", 1 process")


def test_another_seed_and_knn_now_and_then(uninterrupted, in_tmp):
    simsiam.main([*SHORT, "--seed", "1", "--eval-every", "3", "--epochs", "4"])
    table = rows("runs/simsiam-patches-s1")
    assert table[-1]["loss"] != rows(uninterrupted)[-1]["loss"]
    assert [bool(r["knn"]) for r in table] == [True, False, False, True, True]


# ------------------------------------------------------------------------- row 0, csv and the clock

def test_measuring_the_untrained_net_changes_nothing(in_tmp, monkeypatch):
    """With row 0 and without it, the same at every step and at the end, to the bit."""
    seen, real = [], common.Run.batches

    def watch(self):
        for x in real(self):
            state = tensors(self.model.state_dict(), self.optimizer.state_dict())
            seen.append(copy.deepcopy(state) | {"x": x, "random": torch.get_rng_state()})
            yield x

    def nothing(self):
        self.history.append(dict.fromkeys(COLUMNS.split(), 0.0))

    monkeypatch.setattr(common.Run, "batches", watch)
    simsiam.main([*SHORT, "--epochs", "1", "--out", "with"])
    monkeypatch.setattr(common.Run, "measure_untrained", nothing)
    simsiam.main([*SHORT, "--epochs", "1", "--out", "without"])
    with_it, without = seen[1:4], seen[4:]                 # [0] measured the untrained net
    assert len(without) == 3 and all(map(same, with_it, without))
    ends = weights("with/simsiam-patches-s0"), weights("without/simsiam-patches-s0")
    assert same(*ends) and any(name.endswith("num_batches_tracked") for name in ends[0])
    torch.manual_seed(0)
    fresh = simsiam.build(simsiam.parse(SHORT)).state_dict()
    assert fresh.keys() == without[0].keys() - {"x", "random"}
    assert all(torch.equal(fresh[k], without[0][k]) for k in fresh)


def test_row_0_is_of_a_freshly_built_net(uninterrupted):
    data = common.load_data("patches", size=16, limit=96)
    torch.manual_seed(0)
    net = simsiam.build(simsiam.parse(SHORT)).to(memory_format=torch.channels_last)
    knn = common.knn_accuracy(*common.labelled_features(net.encoder.backbone, data))
    assert float(rows(uninterrupted)[0]["knn"]) == pytest.approx(knn)


def test_rows_beyond_the_checkpoint_are_forgotten(uninterrupted, in_tmp, monkeypatch):
    """A kill between metrics.csv and last.pt leaves a row too much, or a part of one."""
    real = common.Run.end_epoch

    def stop_after_2(self):
        real(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(common.Run, "end_epoch", stop_after_2)
        simsiam.main(SHORT)
    with open(FOLDER / "metrics.csv", "a") as f:
        f.write("3,1,1,1,1,1,1,1,1,1,1\n4,1,1")
    simsiam.main(["--resume", str(FOLDER)])
    assert_same_run(FOLDER, uninterrupted)


def test_csv_files_are_appended_to(tmp_path):
    file = tmp_path / "x.csv"
    common.append_csv(file, [{"epoch": 0}, {"epoch": 1, "loss": 0.5, "knn": float("nan")}])
    inode = file.stat().st_ino
    common.append_csv(file, [{"epoch": 2, "loss": 0.25}])
    assert file.read_text() == "epoch,loss,knn\n0,,\n1,0.5,\n2,0.25,\n"
    assert file.stat().st_ino == inode                     # the same file, not a new one
    with pytest.raises(ValueError):
        common.append_csv(file, [{"epoch": 3, "other": 1}])


def test_seconds_are_of_training_alone(in_tmp, monkeypatch):
    def slow(*_):
        time.sleep(1)
        return 10.0
    monkeypatch.setattr(common, "knn_accuracy", slow)
    simsiam.main(["--dry-run"])
    assert 0 < float(rows(FOLDER)[-1]["seconds"]) < 0.9


# ------------------------------------------------------------------------------------ kill, Ctrl-C

def test_kill_at_a_random_moment_and_resume(uninterrupted, tmp_path):
    process = start(tmp_path)
    wanted = random.randint(0, 3)                          # another moment every time the tests run
    wait_for_epoch(process, wanted)
    pause = random.uniform(0, 0.3)
    time.sleep(pause)
    process.kill()
    process.communicate()
    print(f"killed {pause:.2f} s after epoch {wanted}")
    folder = tmp_path / FOLDER
    simsiam.main(["--resume", str(folder)])
    assert_same_run(folder, uninterrupted)
    finished = rows(folder)
    simsiam.main(["--resume", str(folder)])                # nothing left to do
    assert rows(folder) == finished
    assert_same_run(folder, uninterrupted)


def test_death_in_every_write_one_after_the_other(uninterrupted, in_tmp, monkeypatch):
    """Resumed and stopped again, in each of the 8 writes: backbone.pt and last.pt of 4 epochs."""
    class Death(BaseException):
        pass

    real, flags = torch.save, SHORT
    for name, epoch in ((n, e) for e in (1, 2, 3, 4) for n in ("backbone.pt", "last.pt")):
        def save(content, file):
            real(content, file)
            saved = FOLDER / "last.pt"
            done = torch.load(saved, weights_only=True)["epoch"] if saved.exists() else 0
            if file.name == f"{name}.part" and done == epoch - 1:
                os.truncate(file, file.stat().st_size // 2)
                raise Death
        monkeypatch.setattr(torch, "save", save)
        with pytest.raises(Death):
            simsiam.main(flags)
        flags = ["--resume", str(FOLDER)]
    monkeypatch.setattr(torch, "save", real)
    simsiam.main(flags)
    assert_same_run(FOLDER, uninterrupted)


def test_ctrl_c_keeps_the_epochs_and_says_how_to_go_on(uninterrupted, tmp_path):
    process = start(tmp_path)
    wait_for_epoch(process, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    command = re.search(r"python simsiam.py --resume (\S+)", out)
    assert command, out
    folder = tmp_path / command[1]
    epochs = torch.load(folder / "last.pt", weights_only=True)["epoch"]
    assert f"stopped; {epochs} finished epochs are saved" in out and epochs >= 1
    assert (folder / "curves.png").exists()
    simsiam.main(["--resume", str(folder)])
    assert_same_run(folder, uninterrupted)


# ---------------------------------------------------------------------------------------- torchrun

RANKS = """
import json, sys
sys.path.insert(0, {root!r})
import torch, common, simsiam
import torch.distributed as dist
drawn, augment, seen = [], common.augment, []
def record(x, *rest):
    view = augment(x, *rest)
    drawn.append((x.clone(), view.contiguous()))
    return view
common.augment = record
log = common.Run.log
def watch(self, loss, z):
    seen.append((loss.detach().clone(), torch.cat(z).detach()))
    log(self, loss, z=z)
common.Run.log = watch
destroy, dist.destroy_process_group = dist.destroy_process_group, lambda: None
model = simsiam.main({flags!r})
def both(x):
    parts = [torch.empty_like(x) for _ in range(2)]
    dist.all_gather(parts, x)
    return parts
a, b = both(torch.cat([p.detach().flatten() for p in model.parameters()]))
images = torch.cat([x for x, _ in drawn[2:8:2]])     # epoch 1: three steps, two draws from each
views = torch.cat([view for _, view in drawn[2:8:2]])
losses = torch.stack(both(torch.stack([loss for loss, _ in seen[-3:]]))).mean().item()
Z = torch.nn.functional.normalize(torch.cat(both(seen[-1][1])), dim=1)
found = {{"equal": torch.equal(a, b), "mine": len(images), "loss": losses,
         "drawn": len(torch.cat(both(images)).flatten(1).unique(dim=0)),
         "views": len(torch.cat(both(views)).flatten(1).unique(dim=0)),
         "m_o": Z.mean(0).norm().item(), "std": 8 * Z.std(0).mean().item()}}    # sqrt(64)
if dist.get_rank() == 0:
    print("RANKS", json.dumps(found))
destroy()
"""


def test_two_ranks_share_the_batch_and_the_columns_are_of_both(tmp_path):
    script = tmp_path / "ranks.py"
    flags = "--limit 96 --batch-size 32 --epochs 2 --proj-dim 64 --pred-hidden 16".split()
    script.write_text(RANKS.format(root=str(ROOT), flags=flags))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300,
                         env=ONE_THREAD)
    assert out.returncode == 0, out.stderr[-2000:]
    found = json.loads(re.search(r"RANKS (.*)", out.stdout)[1])
    assert found["equal"] and found["mine"] == 48          # half an epoch each, together
    assert found["drawn"] == 96 and found["views"] == 96   # every image once, all views different
    folder, = (tmp_path / "runs").iterdir()                # rank 0 alone writes
    last = rows(folder)[-1]
    assert len(rows(folder)) == 3 and out.stdout.count(", cpu, 2 processes\n") == 1
    for name in ("loss", "m_o", "std"):
        assert float(last[name]) == pytest.approx(found[name], rel=1e-4), name


ALL_RANKS = """
import sys
sys.path.insert(0, {root!r})
import torch, common, byol, directclr, directpred, mirror_ablations
import torch.distributed as dist
rank, flags = int(sys.argv[1]), "--limit 32 --size 8 --batch-size 16 --epochs 1 --proj-dim 16"
dist.init_process_group("gloo", "file://{folder}/store", rank=rank, world_size=2)
destroy, dist.destroy_process_group = dist.destroy_process_group, lambda: None
common.Run.draw = common.save_figure = lambda *_: None                                 # for speed
for script, more in ((byol, ""), (directpred, ""), (directclr, "--d0 8"), (mirror_ablations, "")):
    model = script.main([*flags.split(), *more.split(), "--out", "{folder}"])
    torch.save(model.state_dict(), "{folder}/" + script.__name__ + str(rank))
destroy()
"""


def test_two_ranks_end_with_the_same_net(tmp_path):
    """Weights, BYOL's target net, DirectPred's F; BatchNorm's averages are a rank's own."""
    code = ALL_RANKS.format(root=str(ROOT), folder=tmp_path)
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(rank)], env=ONE_THREAD, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in (0, 1)]
    for process in ranks:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
    for script in ("byol", "directpred", "directclr", "mirror_ablations"):
        a, b = (torch.load(tmp_path / f"{script}{rank}", weights_only=True) for rank in (0, 1))
        differ = [name for name in a if not torch.equal(a[name], b[name])]
        assert not [name for name in differ if ".running_" not in name], script
        assert len(a) > 30 and len(differ) > 3             # which they see half a batch each for
        if script == "directpred":
            F, W = a["correlations"][0], a["predictor.weight"]
            assert torch.allclose(W, directpred.directpred_weight(F, 0.1)) and F.norm() > 0


def test_a_killed_rank_ends_the_other(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
               ROOT / "simsiam.py", *SHORT, "--epochs", "1000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, env=ONE_THREAD)
    wait_for_epoch(process, 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "SIGKILL" in error
    folder, = (tmp_path / "runs").iterdir()
    assert torch.load(folder / "last.pt", weights_only=True)["epoch"] >= 1


# ------------------------------------------------------------------------------------------- flags

@pytest.mark.parametrize("flags", [
    "--data cifar10 --data-dir data --arch small --limit 64 --batch-size 8 --seed 7",
    "--data pics --size 24 --arch resnet18 --lr 0.1 --weight-decay 0 --device cpu",
    "--proj-layers 3 --proj-dim 48 --pred-hidden 8 --final-bn affine --eval-every 3 --out deep/er"])
def test_every_flag_works(flags, in_tmp, fake_cifar, image_folder):
    simsiam.main([*flags.split(), "--dry-run"])
    folder, = Path("deep/er" if "--out" in flags else "runs").iterdir()
    assert [int(r["epoch"]) for r in rows(folder)] == [0, 1]
    saved = json.loads((folder / "args.json").read_text())["args"]
    words = iter(flags.split())
    for name, value in zip(words, words):
        assert str(saved[name[2:].replace("-", "_")]) in (value, f"{value}.0")


def test_compile(uninterrupted, in_tmp, monkeypatch):
    """A compiled run trains the same net and saves it under the same names."""
    compiled, real = [], torch.compile

    def compile_without_compiler(part):
        compiled.append(getattr(part, "__name__", "net"))
        return real(part, backend="eager")
    parts = [name for name in vars(common) if name.startswith(("resized_", "adjust_"))]
    for name in parts:
        monkeypatch.setattr(common, name, getattr(common, name))       # taken back at the end
    monkeypatch.setattr(torch, "compile", compile_without_compiler)
    simsiam.main([*SHORT, "--compile"])
    assert compiled == [*parts, "net"] and len(parts) == 5
    a, b = weights(FOLDER), weights(uninterrupted)
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)
    simsiam.main(["--resume", str(FOLDER), "--epochs", "5"])
    assert compiled == [*parts, "net"] * 2 and len(rows(FOLDER)) == 6


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compile_with_a_compiler(in_tmp):
    """Nothing is compiled again after its first time, and the names in the files stay."""
    command = [sys.executable, ROOT / "simsiam.py", *SHORT, "--epochs", "2", "--compile"]
    out = subprocess.run(command, capture_output=True, text=True,
                         env={**ONE_THREAD, "TORCH_LOGS": "recompiles"})
    assert out.returncode == 0 and "Recompiling" not in out.stderr, out.stderr
    names = simsiam.build(simsiam.parse(SHORT)).state_dict()
    assert torch.load(FOLDER / "last.pt", weights_only=True)["model"].keys() == names.keys()


def test_every_label_of_an_image_has_its_columns(in_tmp, capsys):
    simsiam.main([*SHORT, "--data", "strong_weak", "--epochs", "1"])
    run = Path("runs/simsiam-strong_weak-s0")
    last, result = rows(run)[-1], json.loads((run / "result.json").read_text())
    assert list(last)[-4:-2] == ["knn", "knn_weak"] and last["knn"] != last["knn_weak"]
    assert result["linear"] != result["linear_weak"] > 0
    on_z = linear_eval.main([str(run), "--layer", "projection"])["trained"]
    assert on_z["top1"] == pytest.approx(result["linear_z"], abs=0.2)
    assert on_z["top1_weak"] == pytest.approx(result["linear_z_weak"], abs=0.2)
    found = linear_eval.main([str(run), "--epochs", "100"])["trained"]
    assert found["top1_weak"] == pytest.approx(result["linear_weak"], abs=0.2)
    assert found["knn_weak"] == pytest.approx(float(last["knn_weak"]), abs=0.01)
    assert "epoch 1, weak" in capsys.readouterr().out


def test_linear_eval_hands_its_flags_on(in_tmp, monkeypatch):
    simsiam.main([*SHORT, "--epochs", "1"])
    seen = []
    monkeypatch.setattr(common, "linear_probe", lambda *a: seen.append(a[4:]) or (0.0, 0.0))
    linear_eval.main([str(FOLDER), *"--epochs 7 --lr 0.3 --batch-size 50".split()])
    assert seen == [(7, 0.3, 50)] * 2


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        simsiam.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in (*common.FLAGS, *simsiam.RECIPES["patches"]):
        assert "--" + name.replace("_", "-") in text


# --------------------------------------------------------------------------------------- bad input

def refused(capsys, flags, *words, script=simsiam):
    """Ends with status 2 and one line on stderr with these words; leaves no run folder behind."""
    before = sorted(Path("runs").glob("*"))
    with pytest.raises(SystemExit) as stop:
        script.main(flags.split() if isinstance(flags, str) else flags)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert sorted(Path("runs").glob("*")) == before


@pytest.mark.parametrize("flags, words", [
    ("--data mnist", ["mnist", "no such data set or folder", "patches"]),
    ("--epochs -1", ["--epochs", "more than zero"]),
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

    def download(self):
        raise URLError("no route")
    monkeypatch.setattr(common.torchvision.datasets.CIFAR10, "download", download)
    refused(capsys, "--data cifar10", "cifar10", "no route", "patches")


def test_unwritable_out(capsys, in_tmp):
    (in_tmp / "file").write_text("")
    refused(capsys, "--dry-run --out file/runs", "--out", "cannot write")


def test_bad_checkpoints(capsys, in_tmp):
    simsiam.main(["--dry-run"])
    run = FOLDER
    whole = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(whole[: len(whole) // 2])
    refused(capsys, f"--resume {run}", "last.pt", "truncated")
    refused(capsys, [str(run)], "last.pt", "truncated", script=linear_eval)
    torch.save({"weights": torch.ones(3)}, run / "last.pt")  # a checkpoint of something else
    refused(capsys, f"--resume {run}", "last.pt", "no checkpoint")
    refused(capsys, [str(run)], "last.pt", "no checkpoint", script=linear_eval)
    (run / "last.pt").write_bytes(whole)
    refused(capsys, f"--resume {run} --proj-dim 24", "last.pt", "does not fit")
    refused(capsys, ["runs"], "not a run folder", script=linear_eval)
    refused(capsys, [str(run), "--epochs", "0"], "--epochs", script=linear_eval)
    table = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(table.splitlines(keepends=True)[0])
    refused(capsys, f"--resume {run}", "metrics.csv", "start a new run")
    (run / "metrics.csv").unlink()
    refused(capsys, f"--resume {run}", "metrics.csv", "start a new run")
    for text in ("{", "{}", "[]"):
        (run / "args.json").write_text(text)
        refused(capsys, f"--resume {run}", "not a run folder")
        refused(capsys, [str(run)], "not a run folder", script=linear_eval)


def test_a_run_of_another_script_is_left_alone(capsys, in_tmp):
    run = Path("runs/toy_patch-s0")
    run.mkdir(parents=True)
    args = {"script": "toy_patch", "seed": 0, "device": "cpu", "out": "runs"}
    (run / "args.json").write_text(json.dumps({"args": args}))
    (run / "toy_patch.csv").write_text("1,2\n3,4\n")
    refused(capsys, f"--resume {run} --dry-run", "made by toy_patch.py")
    refused(capsys, [str(run)], "toy_patch.py", script=linear_eval)
    assert sorted(f.name for f in run.iterdir()) == ["args.json", "toy_patch.csv"]
    assert (run / "toy_patch.csv").read_text() == "1,2\n3,4\n"


@pytest.mark.parametrize("text", ["", "epo", "epoch,sec"])
def test_kill_while_the_csv_is_made(text, in_tmp):
    simsiam.main(["--dry-run"])
    (FOLDER / "last.pt").unlink()
    (FOLDER / "metrics.csv").write_text(text)
    (FOLDER / "mine.csv").write_text("student,mark\nAnn,3")
    simsiam.main(["--resume", str(FOLDER)])
    assert [row["epoch"] for row in rows(FOLDER)] == ["0", "1"]
    assert (FOLDER / "mine.csv").read_text() == "student,mark\nAnn,3"


class Touch:
    def __reduce__(self):
        return os.mkdir, ("broken-into",)


def test_a_checkpoint_cannot_run_code(capsys, in_tmp):
    simsiam.main(["--dry-run"])
    run = FOLDER
    torch.save({"model": Touch()}, run / "last.pt")
    refused(capsys, f"--resume {run}", "last.pt")
    assert not Path("broken-into").exists()


def test_nan_stops_and_keeps_the_last_good_checkpoint(capsys, in_tmp, monkeypatch):
    loss = simsiam.D
    calls = []

    def broken(p, z):
        calls.append(1)
        return loss(p, z) * (float("nan") if len(calls) > 10 else 1)

    monkeypatch.setattr(simsiam, "D", broken)
    with pytest.raises(SystemExit) as stop:
        simsiam.main(SHORT)  # 3 steps of 2 losses an epoch: breaks in epoch 2
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "nan" in err and "epoch 2" in err and "--lr" in err
    assert err.count("\n") == 1
    run = FOLDER
    assert len(rows(run)) == 2 and all(v.isfinite().all() for v in weights(run).values())


def test_a_far_too_high_rate_is_refused_in_words(capsys, in_tmp):
    with pytest.raises(SystemExit) as stop:
        simsiam.main([*SHORT, "--lr", "1e30"])
    assert stop.value.code == 2 and "Lower --lr" in capsys.readouterr().err

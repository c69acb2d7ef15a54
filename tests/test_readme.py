"""The READMEs' commands run as they stand, and their tables are those that compare.py makes."""
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import compare

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
READMES = [ROOT / "README.md", RESULTS / "README.md"]


def commands(text):
    """The lines of the bash blocks, without their comments."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).splitlines()
    return [line.split(" #")[0].strip() for line in lines]


COMMANDS = commands(READMES[0].read_text())
PYTHON = {part for file in READMES for line in commands(file.read_text())
          for part in line.split(" && ") if part.startswith("python ")}
COMPARE = sorted(command for command in PYTHON if command.startswith("python compare.py "))
TRAIN = sorted(command for command in PYTHON if "compare.py" not in command
               and "--compile" not in command)             # test_run.py compiles where it can


def test_the_first_two_commands_are_there_and_ci_runs_the_tests():
    assert COMMANDS[0] == "pip install -r requirements.txt && python simsiam.py"
    assert "`pip install -r requirements.txt && pytest`" in READMES[0].read_text()
    assert "pip install -q -r requirements.txt && pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", TRAIN)
def test_command_that_trains(command, in_tmp, fake_cifar, image_folder, monkeypatch):
    """With --dry-run; cifar10 and cifar100 are a few images in their file formats."""
    (in_tmp / "path" / "to").mkdir(parents=True)
    image_folder.rename(in_tmp / "path" / "to" / "folder")

    def run(line):
        script, *flags = shlex.split(line)[1:]
        monkeypatch.setattr(sys, "argv", [script, *flags])
        runpy.run_path(str(ROOT / script), run_name="__main__")

    if "runs/" in command:                                 # of the run that the first command makes
        run("python simsiam.py --dry-run")
    run(command if "linear_eval" in command else command + " --dry-run")
    assert list(Path("runs").rglob("result.json"))


@pytest.mark.parametrize("command", COMPARE)
def test_command_that_compares(command, in_tmp, monkeypatch):
    """It plans runs with valid flags, and one for each row and seed; what it trains is tested
    in test_compare.py."""
    planned = []
    monkeypatch.setattr(compare, "train_all", lambda jobs, n: planned.extend(jobs) or [])
    what, *flags = shlex.split(command)[2:]
    with pytest.raises(SystemExit) as stop:
        compare.main([what, *flags])
    seeds = flags[flags.index("--seed") + 1].count(",") + 1 if "--seed" in flags else 1
    if what in compare.TABLES and "--only" not in flags:
        assert len(planned) == seeds * len(compare.TABLES[what].rows)
    assert planned and len(planned) % seeds == 0 and not stop.value.code


def test_every_table_has_its_command_and_its_place():
    text = READMES[1].read_text()
    for name in compare.TABLES:
        assert f"\n## {name}\n" in text and re.search(rf"^python compare.py {name}\b", text, re.M)
        assert f"<!-- table {name} -->" in text and (RESULTS / f"{name}.csv").exists(), name
    for file in RESULTS.glob("*.csv"):
        data_of_a_picture = file.stem.startswith("toy_") or f"({file.stem}.png)" in text
        assert re.search(rf"<!-- table {file.stem}( -->|;)", text) or data_of_a_picture, file
    shown = "".join(readme.read_text() for readme in READMES)
    for file in RESULTS.glob("*.png"):
        assert f"{file.name})" in shown, f"{file} is shown nowhere"


@pytest.mark.parametrize("readme", READMES, ids=["README", "results"])
def test_the_tables_are_what_compare_makes_of_the_csv_files(readme):
    text = readme.read_text()
    assert text.count("<!-- table") > 3 and compare.fill(text, RESULTS) == text
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (readme.parent / link).exists(), link


def test_the_torchrun_command_is_what_test_run_starts():
    assert "torchrun --nproc-per-node=2 simsiam.py" in COMMANDS


def test_loading_the_backbone_into_torchvision(in_tmp, fake_cifar):
    import simsiam
    simsiam.main("--data cifar10 --dry-run".split())
    code, = re.findall(r"```python\n(.*?)```", READMES[0].read_text(), re.S)
    names = {"torch": torch, "torchvision": torchvision}
    exec(code, names)
    saved = torch.load("runs/simsiam-cifar10-s0/backbone.pt", weights_only=True)
    assert torch.equal(names["net"].layer4[1].conv2.weight, saved["layer4.1.conv2.weight"])


def test_bench_gpu_in_a_small_form(capsys):
    import bench_gpu
    bench_gpu.main("--device cpu --arch small --batch-size 8 16 --steps 1 --rounds 1 "
                   "--no-compile".split())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["8", "no"], ["16", "no"]]
    assert all(float(row[2]) > 0 and row[4] == "-" for row in rows)
    assert 1.8 < float(rows[1][6]) * float(rows[1][3]) / float(rows[0][6]) / float(rows[0][3]) < 2.2

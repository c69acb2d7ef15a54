"""The README's commands run as they stand (with --dry-run where they train), and its numbers are those of results/."""
import csv
import json
import re
import runpy
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split(" #")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]


def python_commands():
    for command in COMMANDS:
        for part in command.split(" && "):
            if part.startswith("python ") and not any(word in part for word in ("bench_", "--compile", "toy_")):      # test_toys runs those
                yield part


def test_the_first_two_commands_are_there_and_ci_runs_the_tests():
    assert COMMANDS[0] == "pip install -r requirements.txt && python simsiam.py"
    assert "pip install -r requirements.txt && pytest" in COMMANDS
    assert "pip install -q -r requirements.txt && pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", sorted(set(python_commands())))
def test_command(command, in_tmp, fake_cifar, image_folder, monkeypatch):
    """cifar10 and cifar100 are read from a few images in their file formats; path/to/folder is a folder of images."""
    (in_tmp / "path" / "to").mkdir(parents=True)
    image_folder.rename(in_tmp / "path" / "to" / "folder")
    (in_tmp / "data" / "cifar10_jpeg").symlink_to(in_tmp / "path" / "to" / "folder")

    def run(line):
        script, *flags = shlex.split(line)[1:]
        monkeypatch.setattr(sys, "argv", [script, *flags])
        runpy.run_path(str(ROOT / script), run_name="__main__")

    if "runs/" in command:                                              # it needs the run that the first command makes
        run("python simsiam.py --dry-run --epochs 1")
    run(command if "linear_eval" in command else command + " --dry-run")
    assert list(Path("runs").rglob("metrics.csv"))


def test_torchrun_command(tmp_path):
    command, = (c for c in COMMANDS if c.startswith("torchrun"))
    _, flag, script = command.split()
    out = subprocess.run([sys.executable, "-m", "torch.distributed.run", flag, ROOT / script, "--dry-run"], cwd=tmp_path,
                         capture_output=True, text=True, timeout=300)
    assert out.returncode == 0 and "2 ranks" in out.stdout, out.stderr[-2000:]


def test_loading_the_backbone_into_torchvision(in_tmp, fake_cifar):
    import simsiam
    simsiam.main("--data cifar10 --dry-run".split())
    code, = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {"torch": torch, "torchvision": torchvision}
    exec(code, names)
    saved = torch.load("runs/simsiam-cifar10-s0/backbone.pt", weights_only=True)
    assert torch.equal(names["net"].layer4[1].conv2.weight, saved["layer4.1.conv2.weight"])


@pytest.mark.parametrize("label, files", [("`python simsiam.py --seed 0` (1, 2)", "simsiam-patches-s?.csv"),
                                          ("`python simsiam.py --data data/cifar10_jpeg --limit 5000 --eval-every 10`", "simsiam-cifar10_jpeg-s0.csv")])
def test_results_table_is_made_of_the_files_in_results(label, files):
    row, = (line for line in README.splitlines() if label in line)
    cells = [c.strip() for c in row.strip("|").split("|")]
    tables = [list(csv.DictReader(open(f))) for f in sorted((ROOT / "results").glob(files))]
    assert len(tables) == (3 if "?" in files else 1)

    def cell(values):
        values = torch.tensor([float(v) for v in values])
        return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else f"{values[0]:.1f}"
    assert cells[2] == cell([t[0]["knn"] for t in tables]) and cells[3] == cell([t[-1]["knn"] for t in tables])
    probes = [json.loads(f.read_text()) for f in sorted((ROOT / "results").glob(files.replace(".csv", "-linear_eval.json")))]
    assert cells[4] == cell([p["untrained"]["top1"] for p in probes]) and cells[5] == cell([p["trained"]["top1"] for p in probes])
    assert cells[6] == cell([t[-1]["effective_rank"] for t in tables])
    assert cells[7] == f"{sum(float(t[-1]['seconds']) for t in tables) / len(tables):.0f}"


def test_speed_table_is_made_of_the_file_in_results():
    bench = (ROOT / "results" / "bench.txt").read_text()
    numbers = re.findall(r" ([\d.]+)(?: \w+/s)?$", bench, re.M)
    rows = [[c.strip() for c in line.strip("|").split("|")][1:] for line in README.splitlines() if line.startswith("| `python tests/bench_")]
    assert rows == [numbers[:3], [numbers[3], *numbers[5:]]]


# ------------------------------------------------------------------------------------------------------- mirror_ablations

RESULTS = ROOT / "results"


def markdown(text):
    """-> {first cell: the other cells}"""
    return {cells[0]: cells[1:] for line in text.splitlines() if line.startswith("| ") and "---" not in line for cells in [[c.strip() for c in line.strip("|\n ").split("|")]]}


@pytest.mark.parametrize("data, seeds", [("patches", 3), ("cifar10_jpeg", 1)])
def test_ablation_tables_are_those_of_results(data, seeds):
    text = (RESULTS / f"mirror_ablations-all-{data}.md").read_text()
    assert text in README
    tables = [{row["variant"]: row for row in csv.DictReader(open(f))} for f in sorted(RESULTS.glob(f"mirror_ablations-all-{data}-s?.csv"))]
    assert len(tables) == seeds
    rows = markdown(text)
    header = rows.pop("variant")
    assert set(rows) == set(tables[0])
    for name, cells in rows.items():
        for column, key, digits in (("kNN", "knn", 1), ("linear", "linear", 1), ("m_o", "m_o", 2), ("rank", "effective_rank", 1)):
            x = [float(t[name][key]) for t in tables]
            cell = f"{statistics.mean(x):.{digits}f}" + (f" ± {statistics.stdev(x):.{digits}f}" if seeds > 1 else "")
            assert cells[header.index(column)] == cell, (name, column)
        if name != "untrained":
            P = name == "symmetric"
            found = [(float(t[name]["m_o_P" if P else "m_o"]), float(t[name]["rank_P" if P else "effective_rank"])) for t in tables]
            assert [t[name]["verdict"] for t in tables] == ["complete" if m >= 0.95 else "dimensional" if r <= 4 else "none" for m, r in found]


def test_scan_table_is_that_of_results():
    text = (RESULTS / "mirror_ablations-scan-patches-s0.md").read_text()
    assert text in README
    rows = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(open(RESULTS / "mirror_ablations-scan-patches-s0.csv"))]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    assert len(lines) == 8
    for line, last in zip(lines, (r for r in rows if r["epoch"] == 12)):
        first, = (r for r in rows if r["epoch"] == 1 and all(r[k] == last[k] for k in ("pred_lr", "pred_weight_decay")))
        assert line[:9] == [f"{last['pred_lr']:.0f}", f"{last['pred_weight_decay']:.4f}", f"{first['E_mean']:.4f}", f"{last['E_mean']:.4f}",
                            f"{last['E_asym']:.2f}", "none" if last["effective_rank"] > 4 else "dimensional", f"{last['m_o']:.2f}",
                            f"{last['effective_rank']:.1f}", f"{last['knn']:.1f}"]


def test_numbers_in_the_text_about_the_head_are_those_of_results():
    rows = {int(r["epoch"]): float(r["E_mean"]) for r in csv.DictReader(open(RESULTS / "mirror_ablations-identity-patches-s0-24epochs.csv"))}
    assert f"mean off-diagonal {rows[1]:.3f} after 1 epoch, {rows[12]:.3f} after 12, {rows[24]:.3f} after 24)" in README.replace("\n", " ")
    table = markdown((RESULTS / "mirror_ablations-all-patches.md").read_text())
    rank = {name: cells[table["variant"].index("rank")] for name, cells in table.items()}
    text = README.replace("\n", " ")
    assert f"with rank {rank['identity_frozen']}, with E at 100 times the encoder's rate with {rank['identity']}." in text
    assert f"`identity_symmetric`, rank {rank['identity_symmetric']}, collapsed" in text


# ------------------------------------------------------------------------------------------------------ byol, directpred

def mean_std(values, digits):
    x = [float(v) for v in values]
    return f"{statistics.mean(x):.{digits}f}" + (f" ± {statistics.stdev(x):.{digits}f}" if len(x) > 1 else "")


@pytest.mark.parametrize("flags, label", [("", ""), (" --predictor none", "-none"), (" --predictor none --ema 0", "-none-no_ema"),
                                          (" --no-stopgrad", "-no_stopgrad")])
def test_byol_table_is_made_of_the_files_in_results(flags, label):
    row, = (line for line in README.splitlines() if line.startswith(f"| `python byol.py{flags}` |"))
    last = [list(csv.DictReader(open(f)))[-1] for f in sorted(RESULTS.glob(f"byol{label}-patches-s?.csv"))]
    assert len(last) == 3 and {r["epoch"] for r in last} == {"18"}
    expected = [mean_std([r[key] for r in last], d) for key, d in (("knn", 1), ("std", 2), ("m_o", 2), ("effective_rank", 1))]
    assert [c.strip() for c in row.strip("|").split("|")][1:] == expected


TABLES = [f for name in ("directpred-sweep-*.md", "directclr-*.md", "gradient_components-*.md") for f in sorted(RESULTS.glob(name))]
KEYS = {"kNN": ("knn", 1), "linear": ("linear", 1), "m_o": ("m_o", 2), "rank": ("effective_rank", 1), "align": ("align", 3),
        "on r[:d0]": ("linear_first", 1), "rank of r": ("test_rank_r", 1), "rank of z": ("test_rank_z", 1), "alive in r": ("alive_r", 0),
        "m_r": ("m_r", 2), "m_o before": ("m_o_before", 2), "m_r before": ("m_r_before", 2), "highest m_r": ("m_r_highest", 2),
        "m_o of P": ("m_o_P", 2), "std": ("std", 2), "eta_p": ("eta_p", 2), "eta_z": ("eta_z", 2), "covariance": ("covariance", 4),
        "length of b": ("b", 3), "predicted": ("b_theory", 3), "cosine": ("b_cos", 3)}


@pytest.mark.parametrize("file", TABLES, ids=lambda f: f.stem)
def test_tables_are_those_of_results(file):
    assert file.read_text() in README
    lines = [[c.strip() for c in line.strip().strip("|").split("|")] for line in file.read_text().splitlines()]
    header = lines.pop(0)
    tables = [{row[header[0] or "name"]: row for row in csv.DictReader(open(f))} for f in sorted(RESULTS.glob(f"{file.stem}-s?.csv"))]
    assert tables and [line[0] for line in lines[1:]] == list(tables[0])
    columns = [column for column in KEYS if column in header]
    assert len(columns) >= 4
    for line in lines[1:]:
        for column in columns:
            key, digits = KEYS[column]
            assert line[header.index(column)] == mean_std([t[line[0]][key] for t in tables], digits), (line[0], column)


def test_numbers_in_the_text_about_byol_and_directpred_are_those_of_results():
    text = README.replace("\n", " ")
    last = {f.stem: list(csv.DictReader(open(f)))[-1] for f in RESULTS.glob("*cifar10_jpeg-s0.csv")}
    for name, words in (("byol-cifar10_jpeg-s0", "BYOL"), ("directpred-directpred-cifar10_jpeg-s0", "DirectPred")):
        assert f"{words} reaches a kNN accuracy of {float(last[name]['knn']):.1f} %" in text
    rows = [list(csv.DictReader(open(f))) for f in sorted(RESULTS.glob("directpred-sgd-patches-s?.csv"))]
    assert len(rows) == 3
    for key, words in (("align", "rises from {} after the first epoch to {} at the end"), ("asymmetry", "asymmetry falls from {} to {},"),
                       ("commutator", "the commutator ‖FW_p - W_pF‖ from {} to {} (")):
        assert words.format(*(mean_std([r[i][key] for r in rows], 2) for i in (1, -1))) in text


def test_text_about_directclr_says_what_the_tables_say():
    seeds = [{r["name"]: r for r in csv.DictReader(open(f))} for f in sorted(RESULTS.glob("directclr-all-patches-s?.csv"))]
    assert len(seeds) == 3
    linear = {name: statistics.mean(float(s[name]["linear"]) for s in seeds) for name in seeds[0]}
    assert linear["none"] > linear["linear"] > linear["mlp"] and linear["none"] > linear["direct"]          # reversed on patches
    assert all(float(s["direct"]["linear_rest"]) > float(s["direct"]["linear_first"]) for s in seeds)
    for seed in range(3):                                                  # a cliff after nine dimensions
        s_none, s_direct = ([float(r["eigenvalue"]) for r in csv.DictReader(open(RESULTS / f"directclr-{name}-patches-s{seed}-spectrum.csv"))
                             if r["space"] == "r"] for name in ("none", "direct"))
        assert s_none[9] < 0.1 * s_none[8] and s_direct[9] > 0.3 * s_direct[8]
    mode = {r["name"]: float(r["linear"]) for r in csv.DictReader(open(RESULTS / "directclr-sweep-mode-patches-s0.csv"))}
    assert f"cost {mode['prefix'] - mode['random']:.1f} points of the probe" in README and abs(mode["prefix"] - mode["orthogonal"]) < 2
    d0 = {r["name"]: r for r in csv.DictReader(open(RESULTS / "directclr-sweep-d0-patches-s0.csv"))}
    assert f"({float(d0['d0 6']['linear_rest']):.1f} against {float(d0['d0 6']['linear_first']):.1f} at d0 = 6)" in README
    assert sorted(d0, key=lambda name: float(d0[name]["linear"]))[-2:] in (["d0 24", "d0 48"], ["d0 48", "d0 24"])
    tau = {float(r["name"].split()[1]): r for r in csv.DictReader(open(RESULTS / "directclr-sweep-temperature-patches-s0.csv"))}
    healthy = [float(tau[t]["covariance"]) for t in (0.2, 0.5, 1, 5)]
    assert healthy == sorted(healthy) and float(tau[5]["linear"]) < float(tau[1]["linear"]) and min(float(tau[t]["m_o"]) for t in (0.05, 0.1)) >= 0.95
    cifar = {r["name"]: r for r in csv.DictReader(open(RESULTS / "directclr-all-cifar10_jpeg-s0.csv"))}
    by_linear, by_knn = (sorted(cifar, key=lambda name: float(cifar[name][key])) for key in ("linear", "knn"))
    assert by_linear[0] == "none" == by_knn[-1] and by_linear[-1] == "direct"
    assert f"(rank {float(cifar['none']['test_rank_r']):.1f})" in README


def test_numbers_in_the_text_about_weight_decay_are_those_of_results():
    rows = list(csv.DictReader(open(RESULTS / "directpred-sweep-weight-decay-patches-s0.csv")))
    ranks = [f"{float(r['effective_rank']):.1f}" for r in rows]
    assert f"(rank {ranks[0]} without any, {ranks[-1]} at the largest)" in README.replace("\n", " ")


@pytest.mark.parametrize("toy", ["toy_patch", "toy_dynamics", "toy_infonce", "toy_landscape"])
def test_pictures_of_the_theory_have_their_numbers_beside_them(toy):
    rows = list(csv.DictReader(open(RESULTS / f"{toy}-s0.csv")))
    assert f"results/{toy}-s0.png" in README and (RESULTS / f"{toy}-s0.png").exists() and len(rows) > 5
    if toy == "toy_patch":
        frozen_v1, frozen_both, v1, both, unfinished, turned = (next(int(r["measured"]) for r in csv.DictReader(open(RESULTS / "toy_patch-random-s0.csv"))
                                                                     if r["what"].startswith(what)) for what in (
            "E frozen: only v1", "E frozen: both", "E trained: only v1", "E trained: both", "E trained: unfinished", "only v1 when frozen"))
        text = README.replace("\n", " ")
        assert f"with the head frozen {frozen_v1} learn only v1 and {frozen_both} both" in text
        assert f"trained {v1} and {both}, {unfinished} are not done after 2600 steps, and only {turned} turn" in text
    if toy == "toy_infonce":
        live = [r["measured"] for r in rows if "over 1e-4" in r["what"]]
        assert f"{live[0]}, {live[1]} and {live[2]} of 16 with 1, 2, 3 layers" in README.replace("\n", " ")


def test_cost_of_setting_the_predictor_is_that_of_results():
    ratio = re.search(r"^directpred +[\d.]+ ms +([\d.]+)$", (RESULTS / "bench_directpred.txt").read_text(), re.M)[1]
    assert f"({float(ratio):.2f} times, D = 128, `python tests/bench_directpred.py`" in README.replace("\n", " ")


def test_text_about_the_gradient_says_what_the_tables_say():
    def seeds(experiment):
        found = [{r["arm"]: {k: v if k.startswith("verdict") else float(v) for k, v in r.items() if k not in ("arm", "paper") and v}
                  for r in csv.DictReader(open(f))} for f in sorted(RESULTS.glob(f"gradient_components-{experiment}-patches-s?.csv"))]
        assert len(found) == 3
        return found
    for s in seeds("conjecture"):
        for start in ("from init", "from SimSiam"):
            centre, residual, random = (s[f"{name}, {start}"] for name in ("centre", "residual", "random"))
            assert centre["m_o"] > 0.95 and residual["m_o"] < 0.1 and abs(random["m_o"] - random["m_o_before"]) < 0.2
    triplet = seeds("triplet")
    assert all([arm for arm, r in s.items() if r["verdict"] == "complete"] == ["Z_b + r_e"] for s in triplet)
    better = sum(s["Z_b + o_e"]["knn"] > s["Z_b + o_e + r_e"]["knn"] for s in triplet)
    assert f"which is so for {['none', 'one', 'two'][better]} of three seeds" in README.replace("\n", " ")
    for s in seeds("simsiam"):
        assert [arm for arm, r in s.items() if r["verdict_P"] == "complete"] == ["P_b"]
        assert sorted(s, key=lambda arm: s[arm]["knn"]) == ["P_b", "P_b + o_e", "P_b + o_e + r_e", "P_b + r_e"]
    for s in seeds("center"):
        assert s["SimSiam"]["eta_p"] < -0.3 and s["Mirror SimSiam"]["eta_z"] > 0.05
    for s in seeds("recover"):
        assert all(s[arm]["m_r"] > 3 * s[arm]["m_r_before"] for arm in ("of z", "of z, standardised"))
        assert s["of z, normalised"]["m_r_highest"] < 1.5 * s["of z, normalised"]["m_r_before"]
    for s in seeds("infonce"):
        assert s["InfoNCE"]["covariance"] < s["SimSiam"]["covariance"] < s["InfoNCE, Z_b + o_e"]["covariance"]
        assert s["InfoNCE, Z_b + o_e"]["knn"] < min(s["InfoNCE"]["knn"], s["SimSiam"]["knn"]) - 20
        r, o = ({float(k.split()[1]): v for k, v in s["InfoNCE"].items() if k.startswith(letter)} for letter in ("cos_r ", "cos_o "))
        assert len(r) == 7 and min(r.values()) > 0.5 > max(o.values()) and max(r, key=r.get) in (0.5, 1.0)
    cifar = {r["arm"]: float(r["covariance"]) for r in csv.DictReader(open(RESULTS / "gradient_components-infonce-cifar10_jpeg-s0.csv"))}
    assert cifar["InfoNCE"] < cifar["SimSiam"] < cifar["InfoNCE, Z_b + o_e"]
    for s in seeds("bias"):
        assert abs(s["bias"]["b_theory"] / s["bias"]["b"] - 1) < 0.05 and s["bias"]["b_cos"] > 0.97
    ten = json.loads((RESULTS / "gradient_components-bias10-patches-s2.json").read_text())
    assert f"b is {ten['b']:.1f} long and {ten['b_theory']:.1f} predicted, with a cosine of {ten['b_cos']:.3f} " in README.replace("\n", " ")
    second_reading = csv.DictReader(open(RESULTS / "gradient_components-simsiam-simsiam_h-patches-s0.csv"))
    assert [r["arm"] for r in second_reading if r["verdict_P"] == "complete"] == ["P_b + r_e", "P_b"]

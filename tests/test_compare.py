"""compare.py: what it trains, how it goes on, and what it makes of the results."""
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import common
import compare

ROOT = Path(__file__).resolve().parent.parent
TINY = "--limit 96 --batch-size 32 --epochs 3 --eval-every 9 --proj-dim 16 --pred-hidden 8".split()
PRODUCT = ["simsiam.py", "--lr", "0.1,0.4", *TINY]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(folder, *flags):
    """As from a terminal: a shell that runs us in the background would have it ignore Ctrl-C."""
    return subprocess.Popen([sys.executable, ROOT / "compare.py", *PRODUCT, *flags], cwd=folder,
                            env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                            text=True)


def table(folder):
    """table.csv, but for times and the commit."""
    file, = Path(folder).glob("runs/simsiam-*/table.csv")
    with open(file, newline="") as f:
        rows = list(csv.DictReader(f))
    timed = ("seconds", "images_per_second", "commit")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder, out


# ------------------------------------------------------------------------------------ what to train

def test_product_of_flags():
    what, flags = compare.read_command("byol.py --lr 1,2 --no-stopgrad --ema=0,0.5".split())
    assert what == ["byol.py"]
    assert compare.product_of(flags) == [
        ("lr 1, ema 0", "--lr 1 --no-stopgrad --ema 0".split()),
        ("lr 1, ema 0.5", "--lr 1 --no-stopgrad --ema 0.5".split()),
        ("lr 2, ema 0", "--lr 2 --no-stopgrad --ema 0".split()),
        ("lr 2, ema 0.5", "--lr 2 --no-stopgrad --ema 0.5".split())]


@pytest.mark.parametrize("data", ["patches", "cifar10", "cifar100"])
@pytest.mark.parametrize("name", compare.TABLES)
def test_the_rows_of_a_table_are_valid_and_no_net_is_trained_twice(name, data, tmp_path):
    table = compare.TABLES[name]
    flags = {} if data == "patches" else {"--data": data}
    jobs = compare.plan(table.script, compare.rows_of(table, flags), ["0"], tmp_path)
    scripts = {job.script: compare.importlib.import_module(job.script[:-3]) for job in jobs}
    settings = [vars(scripts[job.script].parse(job.argv)) for job in jobs]
    seen = [{k: v for k, v in s.items() if k not in ("out", "label")} for s in settings]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert len({job.folder for job in jobs}) == len(jobs)


def test_the_claims_about_directclr_ask_for_the_weak_label_where_there_is_one():
    of_r, less = (claim for _, _, _, claim in compare.TABLES["d0"].rows if claim)
    run = {"linear": 90.0, "linear_first": 80.0}
    rows = {"d0 17": {"linear": 91.0}}
    assert of_r(run, rows) and not of_r(run | {"linear_first": 86.0}, rows)
    assert less(run, rows) and not less({"linear": 92.0}, rows)
    weak = run | {"linear_weak": 40.0, "linear_first_weak": 38.0}
    rows = {"d0 17": {"linear": 91.0, "linear_weak": 39.0}}
    assert not of_r(weak, rows) and of_r(weak | {"linear_first_weak": 26.0}, rows)
    assert not less(weak, rows) and less(weak | {"linear_weak": 36.0}, rows)


def test_both_labels_have_to_be_above_the_frozen_heads():
    both = next(claim for label, *_, claim in compare.TABLES["phases"].rows
                if label == "identity head")
    rows = {"frozen head": {"linear_z": 80.0, "linear_z_weak": 34.0}}
    assert both({"linear_z": 81.0, "linear_z_weak": 35.0}, rows)
    assert not both({"linear_z": 81.0, "linear_z_weak": 33.0}, rows)
    assert not both({"linear_z": 79.0, "linear_z_weak": 35.0}, rows)


def test_r_b_has_to_lower_m_o_less_than_r_a():
    claim = compare.TABLES["conjecture"].rows[2]
    assert claim[0] == "residual_b from init"
    rows = {"residual from init": {"m_o": 0.1}}
    found = [claim[3]({"m_o": m_o, "m_o_before": 0.6}, rows) for m_o in (0.05, 0.2, 0.7)]
    assert found == [False, True, False]


def test_decay_of_W_p_alone_has_to_bring_five_points():
    claim = compare.TABLES["symmetric"].rows[4]
    assert "--weight-decay 0 " in claim[1] and "--pred-weight-decay 5e-3" in claim[1]
    rows = {"symmetric no EMA": {"linear": 20.0}}
    assert [claim[3]({"linear": found}, rows) for found in (15, 24, 26)] == [False, False, True]


RANK, RANK_P = {"effective_rank_before": 2.0}, {"verdict": "complete"}
COS_R = {"cos_r_0.1": 0.7, "cos_r_0.2": 0.7, "cos_r_0.5": 0.8}


@pytest.mark.parametrize("name, label, others, yes, no", [
    ("mirror", "naive", {}, [{"verdict": "complete"}], [{"verdict": "dimensional"}]),
    ("mirror", "bias", {}, [{"verdict": "dimensional"}], [{"verdict": "complete"}]),
    ("mirror", "whitening", {}, [{"verdict": "none"}], [{"verdict": "dimensional"}]),
    ("mirror", "identity_frozen", {}, [{"verdict": "dimensional"}, {"verdict": "complete"}],
     [{"verdict": "none"}]),
    ("bias", "bias", {}, [{"b_cos": 0.98, "b": 2.0, "b_theory": 2.08}],
     [{"b_cos": 0.96, "b": 2.0, "b_theory": 2.0}, {"b_cos": 0.98, "b": 2.0, "b_theory": 2.2}]),
    ("center", "SimSiam", {}, [{"eta_p": -0.5}], [{"eta_p": -0.2}, {"eta_p": -0.8},
                                                  {"eta_p": 0.5}]),
    ("center", "Mirror SimSiam", {}, [{"eta_z": 0.2}], [{"eta_z": -0.1}, {"eta_z": 0.5}]),
    ("conjecture", "centre from init", {}, [{"m_o_before": 0.1, "m_o": 0.5}],
     [{"m_o_before": 0.1, "m_o": 0.15}, {"m_o_before": 0.5, "m_o": 0.1}]),
    ("conjecture", "residual from init", {}, [{"m_o_before": 0.6, "m_o": 0.2}],
     [{"m_o_before": 0.6, "m_o": 0.55}, {"m_o_before": 0.2, "m_o": 0.6}]),
    ("conjecture", "random from init", {}, [{"m_o_before": 0.6, "m_o": 0.55}],
     [{"m_o_before": 0.6, "m_o": 0.4}, {"m_o_before": 0.6, "m_o": 0.8}]),
    ("recover", "of z", {}, [RANK | {"effective_rank": 9.0}], [RANK | {"effective_rank": 2.5}]),
    ("infonce", "SimSiam", {"without r_e": {"covariance": 0.2}}, [{"covariance": 0.1}],
     [{"covariance": 0.3}]),
    ("infonce", "without r_e", {"InfoNCE": {"linear": 60.0}}, [{"linear": 50.0}],
     [{"linear": 65.0}]),
    ("infonce", "InfoNCE batch 8", {}, [COS_R | {"cos_r_0.1": 0.9}, COS_R | {"cos_r_0.2": 0.9}],
     [COS_R, COS_R | {"cos_r_0.2": 0.9, "cos_r_1.0": 0.95}]),
    ("temperature", "tau 0.1", {"tau 0.05": {"covariance": 0.1}}, [{"covariance": 0.2}],
     [{"covariance": 0.05}]),
    ("simsiam-components", "P_b", {}, [{"verdict_P": "complete"}],
     [RANK_P | {"verdict_P": "none"}]),
    ("simsiam-components", "P_b + o_e + r_e", {}, [RANK_P | {"verdict_P": "none"}],
     [{"verdict_P": "complete"}]),
    ("simsiam-components", "P_b + r_e (h: SimSiam)", {}, [{"verdict_P": "dimensional"}],
     [{"verdict_P": "complete"}]),
    ("predictor", "trained 2 layers", {}, [{"effective_rank": 4.0, "effective_rank_lowest": 3.0}],
     [{"effective_rank": 3.5, "effective_rank_lowest": 3.0}]),
    ("predictor", "DirectPred", {"trained": {"linear": 82.0}}, [{"linear": 80.0}],
     [{"linear": 78.0}]),
    ("predictor", "least squares", {"trained": {"linear": 82.0}}, [{"linear": 70.0}],
     [{"linear": 78.0}]),
    ("directset", "DirectPred F centred", {"DirectPred": {"linear": 48.0}}, [{"linear": 14.0}],
     [{"linear": 44.0}]),
    ("directset", "DirectCopy no decay", {"DirectCopy": {"linear": 46.0}}, [{"linear": 43.0}],
     [{"linear": 45.0}]),
    ("scan", "rate 1 decay 0", {}, [{"E_mean_1": 0.2, "E_mean": 0.1}],
     [{"E_mean_1": 0.2, "E_mean": 0.3}]),
    ("weak", "mirror", {"SimSiam": {"linear_weak": 40.0}}, [{"linear_weak": 25.0}],
     [{"linear_weak": 35.0}]),
    ("weak", "SimCLR none 32 epochs", {"DirectCLR 32 epochs": {"linear_weak": 40.0}},
     [{"linear_weak": 31.0}], [{"linear_weak": 33.0}]),
    ("cifar10", "SimCLR none", {"SimCLR linear": {"linear": 60.0}}, [{"linear": 50.0}],
     [{"linear": 57.0}])])
def test_what_a_claim_asks_for(name, label, others, yes, no):
    claim, = (row[3] for row in compare.TABLES[name].rows if row[0] == label)
    assert all(claim(run, others) for run in yes) and not any(claim(run, others) for run in no)


def test_flags_tuned_for_patches_stay_there(tmp_path):
    table = compare.TABLES["bias"]
    assert "--lr" in compare.rows_of(table, {})[0][1]
    assert "--lr" not in compare.rows_of(table, {"--data": "cifar10"})[0][1]


# ------------------------------------------------------------------------------------------- go on

def wait_for_an_epoch(folder, process):
    """Until a run that is not finished has saved an epoch, or there is nothing left to do."""
    while process.poll() is None:
        time.sleep(0.1)
        saved = [file.parent for file in folder.rglob("last.pt")]
        if any(not (run / "result.json").exists() for run in saved):
            return


def test_it_trains_the_product_and_leaves_table_and_picture(uninterrupted):
    folder, out = uninterrupted
    rows = table(folder)
    found = [(row["label"], row["seed"]) for row in rows]
    assert found == [("lr 0.1", "0"), ("lr 0.4", "0")]
    run = folder / "runs/simsiam-lr-limit-batch-size-epochs-eval-every-proj-dim-pred-hidden"
    result = json.loads((run / "lr_0.4/simsiam-patches-s0/result.json").read_text())
    assert float(rows[1]["knn"]) == pytest.approx(result["knn"], rel=1e-5)
    assert (run / "curves.png").stat().st_size > 10_000
    assert (run / "table.md").read_text() in out and "training" not in rows[0]


def test_ctrl_c_then_kills_at_random_moments_then_two_at_once(uninterrupted, tmp_path):
    """Whatever happens, the same command ends with the table of an uninterrupted one."""
    process = start(tmp_path, "--jobs", "2")
    wait_for_an_epoch(tmp_path, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert out.strip() == "stopped; the same command goes on from here"
    running = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert not running.stdout                              # no child is left

    process = start(tmp_path)
    wait_for_an_epoch(tmp_path, process)
    time.sleep(random.uniform(0, 2))
    process.kill()
    process.communicate()

    process = start(tmp_path)
    wait_for_an_epoch(tmp_path, process)
    time.sleep(random.uniform(0, 2))
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    for child in children.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == (1 if children.stdout else 0), err

    last = start(tmp_path, "--jobs", "2")
    assert last.wait(timeout=300) == 0, last.stderr.read()
    assert table(tmp_path) == table(uninterrupted[0])


def run_compare(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        compare.main(list(words))
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_a_failing_run_is_reported_and_the_others_go_on(in_tmp, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, _ = run_compare(capsys, "simsiam.py", "--lr", "0.1,1e30", "--dry-run")
    assert code == 1
    line, = [line for line in out.splitlines() if line.startswith("failed")]
    assert line.startswith("failed: lr 1e30, seed 0: error: the loss or a weight became nan")
    assert "| lr 0.1 |" in out and "| lr 1e30 |" not in out
    finished = str(next(Path("runs").rglob("result.json")).parent)
    code, out, _ = run_compare(capsys, finished, finished)
    assert code == 0 and f"| {Path(finished).name} |" in out


def test_other_settings_are_refused(in_tmp, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["directclr", "--dry-run", "--only", "none"]
    code, out, _ = run_compare(capsys, *flags)
    assert code == 0 and Path("runs/directclr/table-only.md").read_text() in out
    assert not Path("runs/directclr/table.md").exists()    # a selection is not the table
    code, _, err = run_compare(capsys, *flags, "--lr", "0.3")
    assert code == 2 and err.count("\n") == 1 and "--lr 1.0, not 0.3" in err
    code, _, err = run_compare(capsys, "directclr", "--only", "nothing")
    assert code == 2 and "no row 'nothing'" in err


@pytest.mark.parametrize("words, says", [
    ("simsiam.py --learning 1", "--learning"), ("mirror --lr two", "--lr"),
    ("nothing", "no table"), ("toy_patch.py --m 2", "toy_patch"), ("mirror --jobs 0", "--jobs")])
def test_bad_input_is_found_before_anything_trains(words, says, in_tmp, capsys):
    code, _, err = run_compare(capsys, *words.split())
    assert code == 2 and says in err and err.count("\n") == 1 and not Path("runs").exists()


# ------------------------------------------------------------------------------------------ report

def records(**seeds):
    return [{"label": label, "seed": str(seed), "verdict": verdict, "knn": knn, "linear": knn,
             "knn_untrained": 20.0}
            for label, rows in seeds.items() for seed, (verdict, knn) in enumerate(rows)]


def test_mean_std_verdicts_and_what_is_missing(tmp_path):
    values = [("complete", 71.5), ("none", 80.25), ("none", 77.0)]
    found = records(naive=values, simsiam=[("none", 90.0)])
    compare.save_records(found, tmp_path / "x.csv")
    assert compare.read_records(tmp_path / "x.csv") == found
    text = compare.markdown(found, ["knn", "verdict"], compare.TABLES["mirror"])
    x = np.array([knn for _, knn in values])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[2] == ["naive", "collapse, 1", "1 of 3", f"{x.mean():.1f} ± {x.std(ddof=1):.1f}",
                        "complete (1 of 3), none (2 of 3)"]
    assert lines[3] == ["simsiam (seed 0 alone)", "66.62", "yes", "90.0", "none"]
    assert lines[4] == ["untrained net", "", "", "20.0 ± 0.0", ""]


def test_a_claim_about_other_rows_needs_them():
    table = compare.TABLES["directclr"]
    found = records(none=[("none", 60.0)], linear=[("none", 70.0)])
    text = compare.markdown(found, ["linear"], table)
    assert "| none | 51.5, lowest | yes |" in text and "| linear | 61.1 | yes |" in text
    text = compare.markdown(records(direct=[("none", 60.0)]), ["linear"], table)
    assert "| direct | 62.7 |  |" in text
    found = records(linear=[("none", 70.0), ("none", 65.0)], none=[("none", 60.0)])
    text = compare.markdown(found, ["linear"], table)      # seed 1 has nothing to compare with
    assert "| linear | 61.1 | yes (seed 0 alone) | 67.5 ± 3.5 |" in text


def test_fill_makes_the_tables_between_the_comments(tmp_path):
    compare.save_records(records(naive=[("complete", 30.0)], simsiam=[("none", 80.0)]),
                         tmp_path / "mirror.csv")
    head = "a\n<!-- table mirror; rows: naive; columns: knn -->"
    text = compare.fill(f"{head}\nold\n<!-- end -->\nb", tmp_path)
    assert text == (f"{head}\n|  | the paper | as the paper? | knn |\n| --- | --- | --- | --- |\n"
                    "| naive | collapse, 1 | yes | 30.0 |\n| untrained net |  |  | 20.0 |\n"
                    "<!-- end -->\nb")
    assert compare.fill(text, tmp_path) == text


def test_finished_runs_side_by_side_again_and_again(uninterrupted, in_tmp, capsys):
    """As in `python compare.py runs/*`, where an earlier comparison lies among the runs."""
    Path("runs/compared").mkdir(parents=True)
    runs = [str(file.parent) for file in sorted(uninterrupted[0].rglob("result.json"))]
    with pytest.raises(SystemExit) as stop:
        compare.main([*runs, "runs/compared"])
    assert stop.value.code == 0 and len(runs) == 2
    rows = compare.read_records(Path("runs/compared/table.csv"))
    assert [row["label"] for row in rows] == ["simsiam-patches-s0"] * 2
    with pytest.raises(SystemExit) as stop:
        compare.main([*runs, "runs/none"])
    assert stop.value.code == 2 and "runs/none" in capsys.readouterr().err


def test_listing_names_every_table(capsys):
    compare.main([])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == list(compare.TABLES)


def test_points_are_means_with_their_spread_and_their_rank_correlation():
    found = [{"label": label, "seed": str(seed), "verdict": verdict, "test_a": a + seed, "b": b}
             for label, a, b, verdict in (("x", 1, 5, "none"), ("y", 2, 9, "complete"),
                                          ("z", 3, 7, "none")) for seed in (0, 1)]
    figure = compare.draw_points(found, "test_a", "b")
    axis = figure.axes[0]
    means = [container[0].get_xydata()[0].tolist() for container in axis.containers]
    assert means == [[1.5, 5], [2.5, 9], [3.5, 7]]
    across, up = (lines.get_segments()[0] for lines in axis.containers[0][2])
    assert np.allclose(across[:, 0], 1.5 + np.std([1, 2], ddof=1) * np.array([-1, 1]))
    assert np.allclose(up[:, 1], 5)                        # as in the table: over seeds - 1
    title = "rank correlation 0.50, without what collapsed 1.00"             # 1 2 3 against 1 3 2
    assert axis.get_title() == title
    assert [text.get_text() for text in axis.texts] == ["x", "z", "y"]       # from below
    heights = [text.xyann[1] for text in axis.texts]
    assert heights == sorted(heights)
    ranks = [record | {"test_rank_r": record["test_a"]} for record in found]
    assert compare.draw_points(ranks, "test_rank_r", "b").axes[0].get_xscale() == "log"
    assert axis.get_xscale() == "linear"


def test_a_column_that_one_row_has_not_is_drawn_of_the_others(tmp_path):
    jobs = []
    for label, columns in (("x", {"a": 1.0, "b": 2.0}), ("y", {"a": 3.0})):
        (tmp_path / label).mkdir()
        rows = [{"epoch": epoch, **columns} for epoch in (0, 1)]
        common.append_csv(tmp_path / label / "metrics.csv", rows)
        (tmp_path / label / "result.json").write_text('{"verdict": "none"}')
        jobs.append(compare.Job(label, "0", "", [], tmp_path / label))
    a, b = compare.draw(jobs, ["a", "b"], "metrics.csv").axes
    assert [list(line.get_ydata()) for line in a.lines] == [[1, 1], [3, 3]]
    assert [list(line.get_ydata()) for line in b.lines] == [[2, 2], []]


def test_curves_are_means_with_a_band_dashed_by_what_most_seeds_did(tmp_path):
    """Two of three seeds collapse completely; the rank is left out where m_o says so of a seed."""
    jobs, m_o = [], [[0.1, 0.5, 0.96], [0.2, 0.4, 0.99], [0.3, 0.3, 0.3]]
    for seed, verdict in enumerate(("complete", "none", "complete")):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rows = [{"epoch": 7 * i, "m_o": m_o[seed][i], "effective_rank": 10.0 * seed + i}
                for i in range(3)]
        common.append_csv(folder / "metrics.csv", rows)
        common.append_csv(folder / "steps.csv", [{"epoch": 1, "step": step, "m_o": 0.5, "m_o_P": 1}
                                                 for step in (5, 6)])
        result = {"verdict": verdict, "verdict_P": "dimensional"}
        (folder / "result.json").write_text(json.dumps(result))
        jobs.append(compare.Job("x", str(seed), "", [], folder))
    of_m_o, of_rank = compare.draw(jobs, ["m_o", "effective_rank"], "metrics.csv").axes
    line, = of_m_o.lines
    assert line.get_linestyle() == "--" and list(line.get_xdata()) == [0, 7, 14]
    mean, spread = np.mean(m_o, 0), np.std(m_o, 0, ddof=1)
    assert np.allclose(line.get_ydata(), mean)
    band = of_m_o.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx((mean - spread).min())
    assert band[:, 1].max() == pytest.approx((mean + spread).max())
    assert list(of_rank.lines[0].get_ydata()) == [10, 11]
    line, = compare.draw(jobs, ["m_o"], "steps.csv").axes[0].lines
    assert list(line.get_xdata()) == [5, 6] and line.get_linestyle() == "--"
    line, = compare.draw(jobs, ["m_o", "m_o_P"], "steps.csv").axes[0].lines
    assert line.get_linestyle() == "-."                    # of P
    for job in jobs:                                       # of a script without one of P
        (job.folder / "result.json").write_text('{"verdict": "complete"}')
    line, = compare.draw(jobs, ["m_o_P"], "steps.csv").axes[0].lines
    assert line.get_linestyle() == "--"


def test_seconds_count_only_where_a_run_had_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(compare.torch, "get_num_threads", lambda: 4)
    jobs = []
    for threads in (1, 10_000):
        folder = tmp_path / str(threads)
        folder.mkdir()
        info = {"args": {"script": "simsiam"}, "git": "0123456789", "threads": threads}
        (folder / "args.json").write_text(json.dumps(info))
        result = {"verdict": "none", "seconds": 7.0, "images_per_second": 3.0}
        (folder / "result.json").write_text(json.dumps(result))
        jobs.append(compare.Job("row", str(threads), "simsiam.py", [], folder))
    few, all_of_them = compare.read_results(jobs)
    assert all_of_them["seconds"] == 7 and all_of_them["commit"] == "0123456"
    assert "seconds" not in few and "images_per_second" not in few


def test_saving_a_selection_replaces_those_rows_alone(tmp_path, capsys):
    tmp_path /= "new"                                      # which save makes
    table = compare.Table("", "", [("a", "", "", None), ("b", "", "", None), ("c", "", "", None)])

    def save(only, seed="0", **rows):
        found = records(**{label: [("none", knn)] for label, knn in rows.items()})
        found = [record | {"seed": seed} for record in found]
        figures = {"": compare.draw_points(found, "knn", "knn")}
        compare.save(found, figures, tmp_path, table, "t", only)
        saved = compare.read_records(tmp_path / "t.csv")
        return {r["label"] + r["seed"].strip("0"): r["knn"] for r in saved}
    assert save("", a=1.0, c=3.0) == {"a": 1, "c": 3}
    picture = (tmp_path / "t.png").read_bytes()
    with pytest.raises(SystemExit) as stop:
        save("", a=9.0)
    assert stop.value.code == 2 and "would lose (c of seed 0)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        save("", "1", a=9.0, c=9.0)                        # nor another seed's
    assert list(save("b,c", c=8.0, b=2.0).items()) == [("a", 1), ("b", 2), ("c", 8)]
    both = {"a": 1, "b": 2, "c": 8, "c1": 7}               # a further seed stands beside the first
    assert list(save("c", "1", c=7.0).items()) == list(both.items())
    assert (tmp_path / "t.png").read_bytes() == picture    # of all rows


@pytest.mark.parametrize("ranks, word", [
    ([9], "reproduced, 1 of 1, one seed"), ([9, 9], "reproduced, 1 of 1"),
    ([9, 1], "not, 0 of 1")])                              # every seed has to show it
def test_overview_counts_rows_that_every_seed_shows(tmp_path, ranks, word):
    records = [{"label": "simsiam", "seed": str(seed), "commit": "abc", "m_o": 0.1,
                "verdict": "none" if rank > 4 else "dimensional"}
               for seed, rank in enumerate(ranks)]
    compare.save_records(records, tmp_path / "simsiam.csv")
    assert {line[0]: line[4] for line in compare.overview(tmp_path)}["simsiam"] == word


def test_overview_says_where_some_rows_have_one_seed(tmp_path):
    """none < linear by seed 0, which alone can say so; direct > linear by no seed."""
    found = records(direct=[("none", 66.0)] * 3, linear=[("none", 70.0)] * 3, none=[("none", 60.0)])
    compare.save_records(found, tmp_path / "directclr.csv")
    words = {line[0]: line[4] for line in compare.overview(tmp_path)}
    assert words["directclr"] == "in part, 2 of 3, some of one seed"


def test_overview_says_how_many_rows_a_table_has_yet(tmp_path):
    compare.save_records(records(naive=[("complete", 20.0)]), tmp_path / "mirror.csv")
    runs = {line[0]: line[2] for line in compare.overview(tmp_path)}
    assert runs["mirror"] == f"1 of {len(compare.TABLES['mirror'].rows)}"
    assert runs["simsiam"] == "1"                          # a table without a csv: what it has


def test_overview_says_of_how_many_rows_its_minutes_are(tmp_path):
    """naive 60 and 120 s, a seed 90; mirror 90 s; inverse trained beside another: not timed."""
    found = records(naive=[("complete", 20.0)] * 2, mirror=[("complete", 20.0)],
                    inverse=[("none", 60.0)])
    for record, seconds in zip(found, (60, 120, 90)):
        record["seconds"] = seconds
    compare.save_records(found, tmp_path / "mirror.csv")
    compare.save_records(found[:3], tmp_path / "controls.csv")
    minutes = {line[0]: line[3] for line in compare.overview(tmp_path)}
    assert minutes["mirror"] == "3 (2 of 3)"
    assert minutes["controls"] == "3"                      # every row timed: no more to say
    assert minutes["simsiam"] == ""

"""compare.py and results/reproduce.py: what they train and what they make of it."""
import csv
import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import common
import compare

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "results"))
import reproduce                                           # noqa: E402
from tables import CLAIMS, TABLES, AsGood, Claim, Row, Table              # noqa: E402

# A script that trains nothing, with the flags and the run folder of ours.
FAKE = '''
import argparse, json, os, sys, time
from pathlib import Path

def parse(argv=None):
    parser = argparse.ArgumentParser()
    for name, value in (("lr", 0.1), ("wait", 0.0), ("seed", 0), ("out", ""), ("resume", "")):
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.set_defaults(script="fake", label="", data="")
    return parser.parse_args(argv)

if __name__ == "__main__":
    args = parse()
    folder = Path(args.resume or f"{args.out}/fake-s{args.seed}")
    folder.mkdir(parents=True, exist_ok=bool(args.resume))
    if not args.resume:
        (folder / "args.json").write_text(json.dumps({"args": vars(args)}))
    (folder / "last.pt").touch()
    if args.lr > 1:
        sys.exit("the loss is nan")
    time.sleep(args.wait)
    (folder / "metrics.csv").write_text("epoch,m_o,verdict\\n0,0.5,none\\n1,0.2,none\\n")
    found = {"verdict": "none", "knn": 100 * args.lr + args.seed, "resumed": len(args.resume)}
    found |= {key: os.environ.get(key, "") for key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    (folder / "result.json").write_text(json.dumps(found))
'''


@pytest.fixture
def fake(in_tmp, monkeypatch):
    Path("fake.py").write_text(FAKE)
    monkeypatch.setattr(compare, "HERE", in_tmp)
    monkeypatch.syspath_prepend(str(in_tmp))
    sys.modules.pop("fake", None)


def run(capsys, *words, main=compare.main):
    """-> exit status, stdout, stderr"""
    status = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def results(folder):
    return [json.loads(file.read_text()) for file in sorted(Path(folder).rglob("result.json"))]


def test_product_of_flags():
    rows = compare.product_of("byol.py --lr 1,2 --no-stopgrad --ema 0,0.5".split())
    assert rows == [(f"lr {lr}, ema {ema}", f"byol.py --lr {lr} --no-stopgrad --ema {ema}".split())
                    for lr in ("1", "2") for ema in ("0", "0.5")]


def test_it_trains_the_product_over_seeds_once(fake, capsys):
    command = "fake.py", "--lr", "0.1,0.4", "--seed", "0,1,2", "--jobs", "2"
    code, out, _ = run(capsys, *command)
    folder = Path("runs/fake-lr")
    assert code == 0 and (folder / "table.md").read_text() in out
    assert "| lr 0.1 | none | 11.0 ± 1.0 |" in out and "| lr 0.4 | none | 41.0 ± 1.0 |" in out
    assert (folder / "curves.png").stat().st_size > 5000
    knn = [row["knn"] for row in compare.read_csv(folder / "table.csv")]
    assert knn == [10, 11, 12, 40, 41, 42]
    Path("fake.py").write_text("")                       # nothing is left to train
    assert run(capsys, *command)[0] == 0


def test_runs_that_were_stopped_go_on(fake, capsys):
    """Seed 0 had saved an epoch, seed 1 nothing yet."""
    run(capsys, "fake.py", "--seed", "0,1")
    for name in ("fake-s0/result.json", "fake-s1/result.json", "fake-s1/last.pt"):
        Path("runs/fake/as_given", name).unlink()
    assert run(capsys, "fake.py", "--seed", "0,1")[0] == 0
    assert [run["resumed"] > 0 for run in results("runs")] == [True, False]


def test_ctrl_c_stops_the_runs(fake, capsys):
    def interrupt():
        while len(list(Path("runs").rglob("last.pt"))) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    code, out, _ = run(capsys, "fake.py", "--wait", "600", "--seed", "0,1,2", "--jobs", "2")
    signal.signal(signal.SIGINT, before)
    assert code == 130 and out == "stopped; the same command goes on from here\n"
    assert len(list(Path("runs").rglob("last.pt"))) == 2 and not results("runs")


def test_a_failing_run_is_reported_and_other_settings_are_refused(fake, capsys):
    code, out, _ = run(capsys, "fake.py", "--lr", "0.1,2")
    assert code == 1 and "| lr 0.1 | none | 10.0 |" in out and "| lr 2 |" not in out
    assert out.endswith("failed: lr 2, seed 0: the loss is nan\n")
    run(capsys, "fake.py", "--lr", "0.2")
    code, _, err = run(capsys, "fake.py", "--lr", "0.3")
    assert code == 2 and err.count("\n") == 1 and "has another lr" in err


def test_every_job_gets_the_next_gpu_and_its_share_of_the_cpu(fake, capsys, monkeypatch):
    monkeypatch.setattr(compare.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    run(capsys, "fake.py", "--seed", "0,1,2,3", "--jobs", "4")
    found = [(run["CUDA_VISIBLE_DEVICES"], run["OMP_NUM_THREADS"]) for run in results("runs")]
    assert found == [("0", "2"), ("1", "2"), ("2", "2"), ("0", "2")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")      # the user's choice on a shared machine
    run(capsys, "fake.py", "--seed", "0,1", "--jobs", "2", "--out", "chosen")
    assert [run["CUDA_VISIBLE_DEVICES"] for run in results("chosen")] == ["5", "7"]


def test_a_real_script_and_a_finished_run_beside_other_folders(in_tmp, capsys):
    code, out, _ = run(capsys, "simsiam.py", "--dry-run")
    folder, = Path("runs").rglob("simsiam-patches-s0")
    result = json.loads((folder / "result.json").read_text())
    assert code == 0 and f"| as given | {result['verdict']} |" in out
    Path("runs/compared").mkdir()                          # an earlier comparison: `runs/*` has it
    code, out, _ = run(capsys, folder, "runs/compared", "--curves", "m_o")
    assert code == 0 and f"| simsiam | {result['verdict']} |" in out
    assert run(capsys, folder, "runs/none")[0] == 2
    code, _, err = run(capsys, folder, "--curves", "x")
    assert code == 2 and "effective_rank" in err           # says which columns there are


@pytest.mark.parametrize("main, words, says", [
    (compare.main, "simsiam.py --learning 1", "--learning"), (compare.main, "nobody", "nobody"),
    (compare.main, "toy_patch.py --m 2", "toy_patch"), (reproduce.main, "nobody", "nobody"),
    (reproduce.main, "byol --only nobody", "no row 'nobody'")])
def test_bad_input_is_found_before_anything_trains(main, words, says, in_tmp, capsys):
    code, _, err = run(capsys, *words.split(), main=main)
    assert code == 2 and says in err and not Path("runs").exists()


def records(**rows):
    """records(naive=[30.0, 80.0]): for each label a run a seed, with its kNN and linear probe"""
    return [{"label": label, "seed": str(seed), "verdict": "none", "knn": knn, "linear": knn,
             "knn_untrained": 20.0}
            for label, seeds in rows.items() for seed, knn in enumerate(seeds)]


def test_cells_are_means_with_their_spread_and_words_with_their_count():
    assert compare.cell([1.0, 2.0, 6.0], 2) == "3.00 ± 2.65"         # the root of 14 / 2
    assert compare.cell([0.25], 2) == "0.25" and compare.cell([], 2) == ""
    assert compare.cell(["complete", "none", "none"], 2) == "complete (1 of 3), none (2 of 3)"


def test_curves_are_means_with_a_band_dashed_by_what_most_seeds_did(tmp_path):
    """From complete collapse on, a rank says nothing.  Label y has none, and a gap in its m_o."""
    m_o = np.array([[0.1, 0.5, 0.96], [0.2, 0.4, 0.99], [0.3, 0.3, 0.3], [0.1, np.nan, 0.3]])
    verdicts, found = ("complete", "none", "complete", "dimensional"), []
    for i, label in enumerate("xxxy"):
        rank = 10 * i if label == "x" else np.nan
        rows = [{"epoch": 7 * j, "m_o": m_o[i][j], "effective_rank": rank + j, "loss": j or np.nan,
                 "verdict": "none"} for j in range(3)]
        (tmp_path / str(i)).mkdir()
        common.write_csv(tmp_path / str(i) / "metrics.csv", rows)
        found.append({"label": label, "verdict": verdicts[i], "folder": str(tmp_path / str(i))})
    columns = ["m_o", "effective_rank", "loss", "knn"]     # nobody has knn
    of_m_o, of_rank, of_loss = compare.draw(found, columns, "metrics.csv").axes
    x, y = of_m_o.lines
    assert (x.get_linestyle(), y.get_linestyle()) == ("--", "-.")
    mean, spread = np.mean(m_o[:3], 0), np.std(m_o[:3], 0, ddof=1)
    assert list(x.get_xdata()) == [0, 7, 14] and np.allclose(x.get_ydata(), mean)
    band = of_m_o.collections[0].get_paths()[0].vertices[:, 1]
    assert np.allclose((band.min(), band.max()), ((mean - spread).min(), (mean + spread).max()))
    assert list(y.get_xdata()) == [0, 14]
    assert [list(line.get_ydata()) for line in of_rank.lines] == [[10, 11], []]
    assert list(of_loss.lines[0].get_ydata()) == [1, 2]


@pytest.mark.parametrize("data", ["", "cifar10"])
@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_a_table_are_valid_and_no_net_is_trained_twice(name, data, tmp_path):
    jobs = compare.plan(reproduce.rows_of(TABLES[name], data), "0", tmp_path)
    settings = []
    for job in jobs:
        args = vars(__import__(job.script[:-3]).parse(job.argv))
        settings.append({key: args[key] for key in args if key not in ("out", "label")})
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])
    assert len({job.folder for job in jobs}) == len(jobs)
    if name == "bias":                                     # flags tuned for patches stay there
        assert ("--lr" in jobs[0].argv) == (data == "")


COS_R = {f"cos_r_{tau}": 0.7 for tau in ("0.05", "0.1", "0.2", "0.3", "0.5", "1.0")}
START, LOWEST, WEAK_Z = dict(m_o_before=0.6), dict(effective_rank_lowest=3), dict(linear_z_weak=34)
MOVED = {"centre from init": START | dict(m_o=1), "residual from init": START | dict(m_o=0.2)}


@pytest.mark.parametrize("name, label, others, yes, no", [         # others: rows of the same seed
    ("mirror", "naive", {}, dict(verdict="complete"), dict(verdict="dimensional")),
    ("mirror", "bias", {}, dict(verdict="dimensional"), dict(verdict="complete")),
    ("mirror", "identity_frozen", {}, dict(verdict="dimensional"), dict(verdict="none")),
    ("mirror", "moving_average", {}, dict(std=0.3), dict(std=0.1)),
    ("simsiam-components", "P_b", {}, dict(verdict_P="complete"), dict(verdict_P="none")),
    ("bias", "bias", {}, dict(b_cos=0.98, b=2, b_theory=2.08), dict(b_cos=0.98, b=2, b_theory=2.2)),
    ("conjecture", "centre from init", {}, START | dict(m_o=0.8), START | dict(m_o=0.65)),
    ("conjecture", "residual_b from init", {"residual from init": dict(m_o=0.1)},
     START | dict(m_o=0.2), START | dict(m_o=0.05)),
    ("conjecture", "random from init", MOVED, START | dict(m_o=0.7), START | dict(m_o=0.85)),
    ("center", "Mirror SimSiam", {}, dict(eta_z=0.01), dict(eta_z=-0.01)),
    ("recover", "of z", {}, dict(m_r_before=0.7, m_r_highest=0.9),
     dict(m_r_before=0.7, m_r_highest=0.75)),
    ("mode", "random", {"prefix": dict(linear=80)}, dict(linear=74), dict(linear=76)),
    ("infonce", "InfoNCE", {}, COS_R, COS_R | {"cos_r_0.05": 0.4}),
    ("predictor", "trained 2 layers", {}, LOWEST | dict(effective_rank=4),
     LOWEST | dict(effective_rank=3.5)),
    ("symmetric", "symmetric no EMA decay of W_p alone", {"symmetric no EMA": dict(linear=20)},
     dict(linear=26), dict(linear=24)),
    ("phases", "identity head", {"frozen head": WEAK_Z | dict(linear_z=80)},
     dict(linear_z=81, linear_z_weak=35), dict(linear_z=79, linear_z_weak=35)),
    ("d0", "d0 17", {}, dict(linear_weak=40, linear_first_weak=30),
     dict(linear_weak=40, linear_first_weak=38))])
def test_what_a_claim_asks_for(name, label, others, yes, no):
    rule, = (row.rule for row in TABLES[name].rows if row.label == label)
    assert rule(yes, others) and not rule(no, others)


class Anything(dict):
    """A run with any verdict, and any number in every column."""

    def __missing__(self, key):
        self[key] = np.random.choice([1.0, 100.0]) * np.random.uniform(-1, 1)
        if key.startswith("verdict"):
            self[key] = str(np.random.choice(["none", "dimensional", "complete"]))
        return self[key]


def may_hold_and_may_fail(rule):
    np.random.seed(0)
    return len({bool(rule(Anything(), defaultdict(Anything))) for _ in range(300)}) == 2


def test_every_rule_can_hold_and_can_fail_and_says_where_the_paper_says_it():
    for name, table in TABLES.items():
        for row in table.rows:
            assert bool(row.place) == (row.says != "ours") and bool(row.place or not row.rule)
            # In `bias` it is too rare by chance: it stands above.
            if row.rule and name != "bias" and not isinstance(row.rule, AsGood):
                assert may_hold_and_may_fail(row.rule), (name, row.label)


def test_every_claim_can_fail():
    for claim in CLAIMS:
        if claim.table in TABLES and callable(claim.holds):
            assert may_hold_and_may_fail(lambda run, rows: claim.holds(rows)), claim.sentence
        elif claim.table in TABLES:
            rules = {row.label: row.rule for row in TABLES[claim.table].rows}
            assert all(rules[label] for label in claim.holds)
        else:                                              # One of its numbers, changed, breaks it.
            with open(ROOT / "results" / f"{claim.table}-s0.csv", newline="") as f:
                found = {line["what"]: float(line["measured"]) for line in csv.DictReader(f)}
            assert claim.holds(found)
            assert not all(claim.holds(found | {what: number}) for what in found
                           for number in (1e9, -1e9)), claim.sentence


def test_the_paper_stands_beside_what_was_found():
    """A claim about other rows needs them, with the same seed."""
    found = records(naive=[71.5, 80.25, 77.0], simsiam=[90.0])
    found[0]["verdict"] = "complete"
    text = reproduce.markdown(found, TABLES["mirror"], ["knn"])
    assert text == ("|  | the paper | as the paper? | knn |\n| --- | --- | --- | --- |\n"
                    "| naive | collapse, 1 | 1 of 3 | 76.2 ± 4.4 |\n"
                    "| simsiam (seed 0 alone) | 66.62 | yes | 90.0 |\n"
                    "| untrained net |  |  | 20.0 ± 0.0 |\n")
    found = records(random=[50.0, 65.0], prefix=[60.0])
    text = reproduce.markdown(found, TABLES["mode"], ["linear"])
    assert "| random | 43.0 | yes (seed 0 alone) | 57.5 ± 10.6 |" in text
    assert "| random | 43.0 |  |" in reproduce.markdown(found[:2], TABLES["mode"], ["linear"])
    table = Table("", "", 1, "", [Row("rho", ""), *TABLES["mode"].rows])
    text = reproduce.markdown(records(rho=[50.0]) + found, table, ["linear"])
    assert "| rho (seed 0 alone) | ours |  | 50.0 |" in text


def test_as_good_is_judged_on_the_mean_over_seeds():
    found = records(trained=[90.0] * 3, one=[80.0, 91.0, 92.0])            # 2.33 below
    for points, word in ((3, "yes"), (2, "no")):
        assert reproduce.as_the_paper(AsGood("trained", "linear", points), found[3:], found) == word
    assert reproduce.as_the_paper(AsGood("nobody"), found[3:], found) == ""


@pytest.fixture
def other_results(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "HERE", tmp_path / "results")
    reproduce.HERE.mkdir()
    (tmp_path / "README.md").write_text("a\n<!-- claims -->\nold\n<!-- end -->\nb\n")
    return reproduce.HERE


def test_filling_makes_the_tables_and_leaves_what_was_written_by_hand(other_results, capsys):
    found = records(naive=[30.0], simsiam=[80.0], bias=[40.0] * 2)
    found[0]["verdict"] = "complete"
    common.write_csv(other_results / "mirror.csv", found)
    common.write_csv(other_results / "simsiam.csv", records(simsiam=[80.0] * 2))
    page = other_results / "page.md"
    before = ("a\n<!-- table mirror; rows: naive; columns: knn -->\nold\n<!-- end -->\nb\n"
              "<!-- table byol -->\nby hand\n<!-- end -->\n")              # It has no csv.
    page.write_text(before)
    reproduce.main(["--fill"])
    assert capsys.readouterr().out.count("filled") == 2
    assert page.read_text() == before.replace(
        "old\n", "|  | the paper | as the paper? | knn |\n| --- | --- | --- | --- |\n"
        "| naive (seed 0 alone) | collapse, 1 | yes | 30.0 |\n| untrained net |  |  | 20.0 |\n")
    overview = (other_results.parent / "README.md").read_text()
    assert overview.startswith("a\n<!--") and overview.endswith("->\nb\n")
    yes, no = overview.split("**What we could not show, and why**")
    assert "(Chen & He) | `python results/reproduce.py simsiam` | yes, 2 seeds |" in yes
    assert "(Zhang, Table 1) | `python results/reproduce.py mirror` | not trained |" in no
    assert "all z become one point" in no                  # of its three rows one is there
    reproduce.main(["--fill"])                             # nothing has changed: it says nothing
    assert capsys.readouterr().out == ""


def test_a_claim_is_shown_if_every_seed_shows_it(other_results):
    claim = Claim("", "", "mode", ["random", "orthogonal"])
    lowest = Claim("", "", "mode", lambda rows: rows["random"]["linear"] < 65)
    theory = Claim("", "", "toy_x", lambda found: found["a"] < 1)

    def shown(claim, **rows):
        common.write_csv(other_results / "mode.csv", records(**rows))
        return reproduce.shown(claim)
    rows = {"prefix": [70.0] * 3, "random": [60.0] * 3, "orthogonal": [69.0] * 2}
    assert shown(claim, **rows) == (True, 2)
    assert shown(claim, **rows | {"random": [60.0, 66.0, 60.0]})[0] is False
    assert shown(claim, prefix=rows["prefix"]) == (False, 0)
    assert shown(lowest, random=[60.0] * 3) == (True, 3)
    assert shown(lowest, random=[60.0, 66.0]) == (False, 2)
    for seed, measured in ((0, 0.5), (1, 0.9)):
        rows = [{"what": "a", "measured": measured}]
        common.write_csv(other_results / f"toy_x-s{seed}.csv", rows)
    assert reproduce.shown(theory) == (True, 2)


def test_saving_replaces_the_same_rows_and_seeds_alone(other_results):
    table = Table("", "", 1, "", [Row(label, "") for label in "abc"])

    def save(seed="0", **rows):
        found = [{"label": label, "seed": seed, "verdict": "none", "knn": knn, "linear": knn,
                  "folder": "runs/x"} for label, knn in rows.items()]
        reproduce.save("t", table, found, reproduce.draw_points(found, "knn", "linear"))
        return [(row["label"], row["seed"], row["knn"])
                for row in compare.read_csv(other_results / "t.csv")]
    assert save(c=3.0, a=1.0) == [("a", "0", 1), ("c", "0", 3)]
    picture = (other_results / "t.png").read_bytes()
    assert save(c=8.0, b=2.0) == [("a", "0", 1), ("b", "0", 2), ("c", "0", 8)]
    assert save("1", a=7.0, b=1.0)[:2] == [("a", "0", 1), ("a", "1", 7)]
    assert (other_results / "t.png").read_bytes() == picture       # it shows all rows


def test_points_are_means_and_their_rank_correlation():
    found = [{"label": str(a), "verdict": "none", "a": a + seed, "b": b} for seed in (0, 1)
             for a, b in enumerate((2, 1, 0, 3, 4, 5, 6, 7, 9, 8))]
    found.append({"label": "far", "verdict": "none", "a": 99, "b": 0})
    axis = reproduce.draw_points(found, "a", "b", "far").axes[0]
    points = [container[0].get_xydata()[0].tolist() for container in axis.containers]
    assert points[:3] == [[0.5, 2], [1.5, 1], [2.5, 0]] and len(points) == 10
    assert [text.get_text() for text in axis.texts][:3] == ["2", "1", "0"]             # from below
    assert axis.get_title() == f"rank correlation {1 - 6 * (4 + 4 + 1 + 1) / 990:.2f}"

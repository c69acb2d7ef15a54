"""Train a script with several values of its flags, and show the runs in one table and one picture.

    python compare.py simsiam.py --lr 0.1,0.4,1.6 --final-bn none,noaffine --seed 0,1,2 --jobs 2
    python compare.py runs/a runs/b                          shows runs that are finished already

The first command trains every combination of the values, here 18 runs, two at a time.  If it is
given again, it trains what is missing, and goes on with runs that were stopped.  With several GPUs
each run gets the next one.  Both commands write table.md and table.csv (mean and standard deviation
over seeds) and curves.png.  A curve is dashed if most of its nets collapsed completely, so that all
images get the same vector, and dash-dotted if the vectors kept few dimensions.
"""
import argparse
import csv
import importlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

import common

HERE = Path(__file__).resolve().parent
COLUMNS = "verdict knn_untrained knn knn_weak linear linear_weak std m_o effective_rank loss"
ONE_DIGIT = ("knn", "linear", "effective_rank", "test_rank")       # digits after the point
WORDS = ("label", "seed", "folder", "commit", "verdict", "verdict_P")     # columns that hold words
LOG_SCALE = ("r", "z", "covariance")
TITLES = {"std": "std (0: complete collapse)", "m_o": "m_o (1: complete collapse)",
          "effective_rank": "effective rank", "E_mean": "mean |off-diagonal| of E",
          "knn": "kNN accuracy (%)", "knn_weak": "kNN, weak label (%)",
          "linear": "linear probe (%)", "linear_weak": "linear probe, weak label (%)",
          "r": "eigenvalues of r", "z": "eigenvalues of z", "index": "number of the eigenvalue"}
LINES = {"none": "-", "dimensional": "-.", "complete": "--", "dead": ":"}
# Settings in which runs of one row may differ
NO_DIFFERENCE = ("seed", "out", "resume", "device", "eval_every", "n_images", "label", "compile")
# label: of the run's row in the table.  argv: flags of the script.  folder: where the run is put.
Job = namedtuple("Job", "label seed script argv folder")


# -------------------------------------------------------------------------------------------- train

def make_parser(file, doc):
    """A parser for our own flags.  Its parse_known_args also returns those of the script."""
    parser = argparse.ArgumentParser(Path(file).name, description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", default="0", help="seeds to train with, such as 0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    parser.add_argument("--out", default="runs", help="folder for the runs and their comparison")
    return parser


def check(words, argv):
    """End the program if a word would be ignored.  words: a script or a table, and its flags"""
    for word, before in zip(words[1:], words):
        lone = not word.startswith("--") and not before.startswith("--")
        if lone or "" in word.split(",") or word.startswith("--") and "=" in word:
            common.fail(f"cannot read {word!r}: write values without spaces, as in --lr 0.1,0.4")
    given = [word.split("=")[0] for word in (sys.argv[1:] if argv is None else argv)]
    for word in given:
        if word.startswith("--") and given.count(word) > 1:
            common.fail(f"{word} is given twice")


def product_of(words):
    """Every combination: ["a.py", "--lr", "1,2"] -> [("lr 1", ["a.py", "--lr", "1"]), ...]"""
    rows = []
    for chosen in product(*(word.split(",") for word in words)):
        varied = [f"{flag[2:]} {value}" for flag, word, value in zip(words, words[1:], chosen[1:])
                  if "," in word]
        rows.append((", ".join(varied) or "as given", list(chosen)))
    return rows


def plan(rows, seeds, folder):
    """A Job for each row and seed.  Wrong flags, or a run with other settings, end the program."""
    jobs = []
    for label, (script, *flags) in rows:
        module = importlib.import_module(script.removesuffix(".py"))
        if not hasattr(module, "parse"):
            common.fail(f"{script} cannot be compared: run it by itself")
        out = folder / re.sub(r"[^\w.+-]+", "_", label)
        for seed in dict.fromkeys(seeds.split(",")):
            argv = [*flags, "--seed", seed, "--out", str(out)]
            args = module.parse(argv)
            job, saved = Job(label, seed, script, argv, out / common.run_name(args)), vars(args)
            if (job.folder / "last.pt").exists():
                saved = json.loads((job.folder / "args.json").read_text())["args"]
            other = [name for name, value in vars(args).items() if saved.get(name) != value
                     and name not in NO_DIFFERENCE]
            if other:
                common.fail(f"{job.folder} has another {', '.join(other)}: choose another --out")
            jobs.append(job)
    return jobs


def train(job, i, n, processes):
    """Run job i; n jobs run at the same time.  -> a line that says how it failed, if it did"""
    flags, environment = job.argv, dict(os.environ)
    if (job.folder / "last.pt").exists():
        flags = ["--resume", str(job.folder)]
    elif job.folder.exists():                              # It was stopped before its first row.
        shutil.rmtree(job.folder)
    if n > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // n)))
    gpus = ",".join(str(gpu) for gpu in range(torch.cuda.device_count()))
    gpus = environment.get("CUDA_VISIBLE_DEVICES", gpus).split(",")
    if len(gpus) > 1 and "--device" not in job.argv:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
    # Because of the pipe, a run whose output nobody reads any more stops when it prints next.
    process = subprocess.Popen([sys.executable, str(HERE / job.script), *flags], env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes.append(process)
    lines = process.communicate()[0].strip().splitlines() or ["no output"]
    return f"failed: {job.label}, seed {job.seed}: {lines[-1]}\n" if process.returncode else ""


def train_all(jobs, n):
    """Train the jobs that are not finished, n at the same time.  -> a line for each that failed"""
    todo = [job for job in jobs if not (job.folder / "result.json").exists()]
    processes = []
    with ThreadPoolExecutor(max(1, n)) as pool:
        futures = [pool.submit(train, job, i, n, processes) for i, job in enumerate(todo)]
        try:
            done = tqdm(as_completed(futures), "runs", len(todo), disable=None)
            return "".join(future.result() for future in done)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()                        # A run loses only its current epoch.
            print("stopped; the same command goes on from here")
            raise SystemExit(130)


# ------------------------------------------------------------------------------------------- report

def read_results(jobs):
    """A record for each finished job: its label, seed and folder, and all of its result.json"""
    return [{"label": job.label, "seed": job.seed, "folder": str(job.folder),
             **json.loads((job.folder / "result.json").read_text())}
            for job in jobs if (job.folder / "result.json").exists()]


def read_csv(file):
    """The rows of a csv file, [{column: number or word}], without their empty cells"""
    with open(file, newline="") as f:
        return [{name: value if name in WORDS else float(value)
                 for name, value in row.items() if value} for row in csv.DictReader(f)]


def by_label(records):
    """{label: the records of its seeds}"""
    return {label: [record for record in records if record["label"] == label]
            for label in dict.fromkeys(record["label"] for record in records)}


def cell(values, digits):
    """A cell of the table.  Numbers become mean ± standard deviation, and words are counted."""
    if values and isinstance(values[0], str):
        counts = Counter(values).items()
        return ", ".join(word if n == len(values) else f"{word} ({n} of {len(values)})"
                         for word, n in counts)
    mean = f"{statistics.fmean(values):.{digits}f}" if values else ""
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown(records, columns, digits={}):
    """The table in Markdown, a line for each label.  digits: {column: digits after the point}"""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for label, mine in by_label(records).items():
        lines.append([label])
        for column in columns:
            n = digits.get(column, 1 if column.startswith(ONE_DIGIT) else 2)
            lines[-1].append(cell([record[column] for record in mine if column in record], n))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(records, columns, name):
    """Draw columns of the csv file `name` of the runs: the mean over seeds, in a band of one
    standard deviation.  A row of panels shows six labels at most.  -> Figure"""
    from matplotlib.figure import Figure                   # This import takes a second.
    rows = {label: [read_csv(Path(record["folder"], name)) for record in mine]
            for label, mine in by_label(records).items()}
    known = dict.fromkeys(column for runs in rows.values() for row in runs[0] for column in row)
    columns = [column for column in columns if column in known]
    if not columns:
        common.fail(f"--curves: {name} has the columns {', '.join(known)}")
    height = math.ceil(len(rows) / 6)
    figure = Figure(figsize=(3.4 * len(columns) + 2.5, 2.9 * height + 0.5), layout="constrained")
    axes = figure.subplots(height, len(columns), squeeze=False, sharey="col")
    verdict = "verdict_P" if "m_o_P" in columns else "verdict"         # about the predictions P
    x = next(column for column in ("step", "index", "epoch") if column in known)
    for i, (label, runs) in enumerate(rows.items()):
        verdicts = Counter(record.get(verdict, record["verdict"]) for record in records
                           if record["label"] == label)
        word = verdicts.most_common(1)[0][0]
        style = {"color": f"C{i % 6}", "linestyle": LINES[word],
                 "label": f"{label} (dead)" if word == "dead" else label}
        for axis, column in zip(axes[i // 6], columns):
            values = torch.tensor([[row.get(column, math.nan) for row in run] for run in runs])
            if column == "effective_rank" and name == "metrics.csv":
                # If all images are one point, this rank is only that of the noise around it.
                point = [[row.get("m_o", 0) >= 0.95 or row.get("dead", 0) > 0.1 for row in run]
                         for run in runs]
                values[torch.tensor(point)] = math.nan
            mean, spread = values.mean(0), values.std(0, correction=min(1, len(runs) - 1))
            shown = ~mean.isnan()                          # Some epochs have no kNN.
            at = torch.tensor([row[x] for row in runs[0]])[shown]
            axis.plot(at, mean[shown], **style)
            axis.fill_between(at, (mean - spread)[shown], (mean + spread)[shown],
                              color=style["color"], alpha=0.15)
            axis.set(xlabel=TITLES.get(x, x), title=TITLES.get(column, column),
                     yscale="log" if column in LOG_SCALE else "linear")
    for axis in axes[:, -1]:
        axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def report(folder, records, text, figure):
    folder.mkdir(parents=True, exist_ok=True)
    common.write_csv(folder / "table.csv", records)
    (folder / "table.md").write_text(text, encoding="utf-8")
    figure.savefig(folder / "curves.png")
    print(f"{text}\n{folder}: table.md, table.csv, curves.png")


def finished(words):
    """Jobs of the finished runs.  Other folders, such as earlier comparisons, are left out.
    A label says in which settings a run differs from the others of its script."""
    runs = [Path(word) for word in words if Path(word, "result.json").exists()]
    if not runs or not all(Path(word).is_dir() for word in words):
        common.fail(f"neither a script nor finished runs: {' '.join(words) or 'see --help'}")
    saved, jobs = {run: json.loads((run / "args.json").read_text())["args"] for run in runs}, []
    for run, args in saved.items():
        others = [other for other in saved.values() if other["script"] == args["script"]]
        differ = [f"{name} {value}" for name, value in args.items() if name not in NO_DIFFERENCE
                  and any(other.get(name) != value for other in others)]
        label = ", ".join([args["script"], *differ])
        if any(job.label == label and job.seed == str(args["seed"]) for job in jobs):
            label = f"{label} ({run})"                     # the same run once more
        jobs.append(Job(label, str(args["seed"]), "", [], run))
    return jobs


def main(argv=None):
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--csv", default="metrics.csv", help="csv file to draw (metrics.csv)")
    parser.add_argument("--curves", default="std,m_o,effective_rank,knn", help="columns to draw")
    own, words = parser.parse_known_args(argv)
    if words and words[0].endswith(".py"):
        check(words, argv)
        script = Path(words[0])
        elsewhere = script.exists() and script.resolve().parent != HERE
        if elsewhere or not (HERE / script.name).exists():
            common.fail(f"{script} is no script beside compare.py")
        flags = [word[2:] for word in words if word.startswith("--")]
        folder = Path(own.out, "-".join([script.stem, *flags]))
        jobs = plan(product_of([script.name, *words[1:]]), own.seed, folder)
        failed = train_all(jobs, own.jobs)
    else:
        folder, jobs, failed = Path(own.out, "compared"), finished(words), ""
    records = read_results(jobs)
    if records:
        columns = [column for column in COLUMNS.split() if column in records[0]]
        figure = draw(records, own.curves.split(","), own.csv)
        report(folder, records, markdown(records, columns), figure)
    print(failed, end="")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    common.cli(main)

"""Many runs side by side: the papers' tables by name, or any flag of any script over its values.

    python compare.py                                  the tables it knows
    python compare.py mirror --seed 0,1,2 --jobs 2     a table: trains what is missing, prints it
    python compare.py mirror --only naive,mirror --data data/cifar10_jpeg --limit 5000 --epochs 20
    python compare.py simsiam.py --lr 0.1,0.4,1.6 --final-bn none,noaffine --seed 0,1,2
    python compare.py runs/a runs/b                    finished runs

A run is a script started with the flags that stand in the table and those given here, which win.
The same command goes on where it stopped.  Beside the runs it leaves table.md, table.csv and
curves.png: mean and standard deviation over seeds; dashed where it collapsed completely,
dash-dotted where dimensions were lost.

    --seed 0,1,2     seeds                          --only A,B       these rows of the table alone
    --jobs N         N runs at once                 --out FOLDER     default: runs
    --csv FILE       draw from this file of a run   --curves A,B     draw these columns of it
    --points A,B     curves-points.png: a row's B against its A, both from result.json
    --save FOLDER    also write the csv and the picture there, and fill the tables of its README.md
                     and of ours; with --only, those rows of these seeds alone
"""
import csv
import importlib
import json
import math
import os
import re
import shutil
import signal
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
from tables import TABLES, Table

HERE = Path(__file__).resolve().parent
DIGITS = {0: "seconds alive_r alive_z dims_z",             # a column's digits in a table, else 2
          1: "knn knn_weak linear linear_weak linear_z linear_z_weak linear_first linear_rest "
             "linear_first_weak linear_rest_weak effective_rank effective_rank_before "
             "effective_rank_lowest effective_rank_P test_rank_r test_rank_z",
          3: "test_auc_r align commutator asymmetry cos_bias b b_theory b_cos",
          4: "covariance E_mean E_mean_1"}
# a column's name in a figure, if not its own
MEANS = {"std": "std (0: complete collapse)", "m_o": "m_o (1: complete collapse)",
         "m_o_P": "m_o of P", "test_rank_r": "effective rank of r, test images",
         "test_auc_r": "area under r's cumulative singular values, test images",
         "b": "length of b", "b_theory": "length predicted",
         "effective_rank": "effective rank", "knn": "kNN accuracy (%)",
         "knn_weak": "kNN, weak label (%)", "linear": "linear probe (%)",
         "linear_weak": "linear probe, weak label (%)",
         "r": "eigenvalues of r, largest = 1", "z": "eigenvalues of z, largest = 1"}


# ------------------------------------------------------------------------------------ what to train

Job = namedtuple("Job", "label seed script argv folder")


def read_command(argv):
    """"mirror --seed 0,1" -> ["mirror"], {"--seed": "0,1"}; a flag without a value has ""."""
    what, flags = [], {}
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            flags[name] = value
        elif flags:
            flags[name] = word
        else:
            what.append(word)
    return what, flags


def rows_of(table, flags):
    """-> [(label, flags as a list)] of a table, with the user's flags behind"""
    ours = "" if flags.get("--data") in ("cifar10", "cifar100") else table.ours
    mine = [word for pair in flags.items() for word in pair if word]
    return [(label, f"{row} {ours}".split() + mine) for label, row, *_ in table.rows]


def product_of(flags):
    """-> [(label, flags as a list)], a row for each combination of values"""
    choices = [[(name, value) for value in values.split(",")] for name, values in flags.items()]
    rows = []
    for pairs in product(*choices):
        several = [f"{name[2:]} {value}" for name, value in pairs if "," in flags[name]]
        words = [word for pair in pairs for word in pair if word]
        rows.append((", ".join(several) or "as given", words))
    return rows


def plan(script, rows, seeds, folder):
    """-> jobs, all of them checked: bad flags and runs with other settings end it here"""
    jobs = []
    for label, flags in rows:
        if flags and flags[0].endswith(".py"):             # a table of several scripts
            script, *flags = flags
        module = importlib.import_module(script.removesuffix(".py"))
        if not hasattr(module, "parse"):
            common.fail(f"{script} trains no net: run it by itself")
        out = folder / re.sub(r"[^\w.+-]+", "_", label)
        for seed in seeds:
            argv = [*flags, "--seed", seed, "--out", str(out)]
            args = module.parse(argv)
            job = Job(label, seed, script, argv, out / common.run_name(args))
            if (job.folder / "args.json").exists():
                saved = common.read_run(job.folder)["args"]
                free = ("out", "resume", "device", "eval_every")         # the last epoch counts
                for name, value in vars(args).items():
                    if name not in free and saved.get(name) != value:
                        common.fail(f"{job.folder} was made with --{name.replace('_', '-')} "
                                    f"{saved.get(name)}, not {value}: name another --out")
            jobs.append(job)
    return jobs


# -------------------------------------------------------------------------------------------- train

def train(job, slots, threads, running):
    """One run, in a process of its own.  -> what went wrong, or ""

    Its output comes through a pipe: if we are killed, its next print fails and it stops, before it
    writes into a folder that somebody else may go on with by then."""
    command = [sys.executable, str(HERE / job.script), *job.argv]
    if (job.folder / "args.json").exists():
        command = [*command[:2], "--resume", str(job.folder)]
    elif job.folder.exists():                              # killed before its first word
        shutil.rmtree(job.folder)
    slot, environment, gpus = slots.pop(), dict(os.environ), torch.cuda.device_count()
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    if gpus > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=environment, start_new_session=True)
    running.add(process)
    lines = [line.strip() for line in process.stdout if line.strip()]
    running.discard(process)
    slots.add(slot)
    return "" if process.wait() == 0 else (lines or ["no output"])[-1]


def train_all(jobs, n):
    """The jobs that are not done, n at once.  -> [(job, what went wrong)]"""
    todo = [job for job in jobs if not (job.folder / "result.json").exists()]
    failed, running, slots = [], set(), set(range(n))
    threads = max(1, os.cpu_count() // n) if n > 1 else None
    pool = ThreadPoolExecutor(n)
    futures = {pool.submit(train, job, slots, threads, running): job for job in todo}
    done = len(jobs) - len(todo)
    bar = tqdm(as_completed(futures), "runs", len(jobs), initial=done, disable=None)
    try:
        for future in bar:
            if why := future.result():
                failed.append((futures[future], why))
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.send_signal(signal.SIGINT)
        pool.shutdown()
        bar.close()
        print("stopped; the same command goes on from here")
        raise SystemExit(130)
    return failed


# ------------------------------------------------------------------------------------------- report

def read_results(jobs):
    """-> a dict for each job, which must be finished: label, seed, and what result.json says"""
    records = []
    for job in jobs:
        info = common.read_run(job.folder)
        record = {"label": job.label, "seed": job.seed, "commit": info["git"][:7],
                  **json.loads((job.folder / "result.json").read_text())}
        if info.get("threads", 9999) < torch.get_num_threads():          # one of several at once
            del record["seconds"], record["images_per_second"]
        records.append(record)
    return records


def save_records(records, file):
    columns = list(dict.fromkeys(key for record in records for key in record))
    with open(file, "w", newline="") as f:
        table = csv.DictWriter(f, columns, restval="")
        table.writeheader()
        for record in records:
            table.writerow({key: f"{value:.6g}" if isinstance(value, float) else value
                            for key, value in record.items()})


def read_records(file):
    """What save_records wrote; numbers are floats, empty cells are left out."""
    words = ("label", "seed", "commit", "verdict", "verdict_P")
    with open(file, newline="") as f:
        return [{k: v if k in words else float(v) for k, v in row.items() if v}
                for row in csv.DictReader(f)]


def by_label(records):
    """-> {label: its records}, in the order in which they come"""
    rows = {record["label"]: [] for record in records}
    for record in records:
        rows[record["label"]].append(record)
    return rows


def cell(values, digits):
    """Mean and standard deviation of numbers; words with how often they come."""
    if not values:
        return ""
    if isinstance(values[0], str):
        counts = Counter(values)
        if len(counts) == 1:
            return values[0]
        return ", ".join(f"{word} ({n} of {len(values)})" for word, n in counts.items())
    x = torch.tensor(values, dtype=torch.double)
    spread = f" ± {x.std():.{digits}f}" if len(x) > 1 else ""
    return f"{x.mean():.{digits}f}{spread}"


def as_the_paper(claim, records, everything):
    """-> yes, no or 1 of 3: for how many seeds the claim holds; "" where nothing is claimed

    A seed counts where the rows that the claim names have it as well."""
    held = {}
    for record in records if claim else []:
        rows = {other["label"]: other for other in everything if other["seed"] == record["seed"]}
        try:
            held[record["seed"]] = claim(record, rows)
        except KeyError:                                   # a row is missing
            continue
    if not held:
        return ""
    right = sum(held.values())
    word = "yes" if right == len(held) else f"{right} of {len(held)}" if right else "no"
    return word if len(held) == len(records) else f"{word} (seed {', '.join(held)} alone)"


def markdown(records, columns, table, only=()):
    """The table as Markdown: a line for each label that has a run."""
    seeds = list(dict.fromkeys(record["seed"] for record in records))
    says = {label: (number, claim) for label, _, number, claim in table.rows if number or claim}
    head = ["", *(["the paper", "as the paper?"] if says else []), *columns]
    lines = [head, ["---"] * len(head)]
    rows = by_label(records)
    for label, mine in rows.items():
        if only and label not in only:
            continue
        line, found = [label], [record["seed"] for record in mine]
        if len(found) < len(seeds):
            line = [f"{label} (seed {', '.join(found)} alone)"]
        if says:
            number, claim = says.get(label, ("", None))
            line += [number, as_the_paper(claim, mine, records)]
        for column in columns:
            digits = next((n for n, names in DIGITS.items() if column in names.split()), 2)
            line.append(cell([record[column] for record in mine if column in record], digits))
        lines.append(line)
    if "knn" in columns and "knn_untrained" in records[0]:
        untrained = [record["knn_untrained"] for record in rows[records[0]["label"]]]
        cells = [cell(untrained, 1) if name == "knn" else "" for name in head[1:]]
        lines.append(["untrained net", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def overview(results):
    """-> for each table: name, the paper's claim, runs, minutes of a seed, how many rows are as
    the paper"""
    lines = []
    for name, table in TABLES.items():
        line = [name, table.paper, str(len(table.rows)), "", ""]
        if (results / f"{name}.csv").exists():
            records = read_records(results / f"{name}.csv")
            rows = by_label(records)
            seconds = [[r["seconds"] for r in mine if "seconds" in r] for mine in rows.values()]
            seconds = [timed for timed in seconds if timed]    # not what trained beside another
            some = "" if len(seconds) == len(rows) else f" ({len(seconds)} of {len(rows)})"
            line[3] = f"{sum(map(statistics.mean, seconds)) / 60:.0f}{some}" if seconds else ""
            if len(rows) < len(table.rows):
                line[2] = f"{len(rows)} of {line[2]}"
            found = [as_the_paper(claim, rows.get(label, []), records)
                     for label, _, _, claim in table.rows]
            held = [word.startswith("yes") for word in found if word]
            word = "reproduced" if all(held) else "in part" if any(held) else "not"
            seeds = {len(mine) for mine in rows.values()}
            line[4] = f"{word}, {sum(held)} of {len(held)}" if held else "nothing claimed"
            line[4] += ", one seed" if seeds == {1} else ", some of one seed" if 1 in seeds else ""
        lines.append(line)
    return lines


def fill(text, results):
    """README's tables, made again from results/*.csv.  Each stands between two comments:

    <!-- table mirror; rows: naive | mirror; columns: knn std --> and <!-- end -->, where rows and
    columns may be left away; <!-- overview --> stands before a line for each table"""
    def make(match):
        stem, *rest = [part.strip() for part in match[1].split(";")]
        if not (results / f"{stem}.csv").exists():
            return match[0]
        choice = {name: words.strip() for name, words in (part.split(":", 1) for part in rest)}
        only = [label.strip() for label in choice.get("rows", "").split("|") if label.strip()]
        table, records = TABLES[stem.split(".")[0]], read_records(results / f"{stem}.csv")
        columns = choice.get("columns", table.columns).split()
        return f"<!-- table {match[1]} -->\n{markdown(records, columns, table, only)}<!-- end -->"

    def make_overview(match):
        lines = ["| claim | command | runs | minutes | reproduced here? |", "|---" * 5 + "|"]
        for name, paper, runs, minutes, held in overview(results):
            link = f"[{held}](results/README.md#{name})"
            lines.append(f"| {paper} | `python compare.py {name}` | {runs} | {minutes} | {link} |")
        return "<!-- overview -->\n" + "\n".join(lines) + "\n<!-- end -->"
    text = re.sub(r"<!-- table (.*?) -->\n.*?<!-- end -->", make, text, flags=re.S)
    return re.sub(r"<!-- overview -->\n.*?<!-- end -->", make_overview, text, flags=re.S)


def draw(jobs, columns, name):
    """Mean over seeds and a band of one standard deviation; up to six rows a row of panels.

    name: the csv of a run that has the columns; against epoch, step or index, whichever it has"""
    from matplotlib.figure import Figure
    labels = list(dict.fromkeys(job.label for job in jobs))
    n = math.ceil(len(labels) / math.ceil(len(labels) / 6))
    groups = [labels[i:i + n] for i in range(0, len(labels), n)]
    known = common.read_csv(jobs[0].folder / name)[0]
    columns = [column for column in columns if column in known]      # no knn without labels
    size = 3.4 * len(columns) + 2.5, 0.5 + 2.9 * len(groups)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(groups), len(columns), squeeze=False, sharey="col")
    cool = ("#08519c", "#1a9850", "#41b6c4", "#6a51a3", "#525252", "#a6d854")
    warm = ("#b10026", "#fd8d3c", "#e7298a", "#8c510a", "#fec44f", "#67001f")
    for group, panels in zip(groups, axes):
        for i, label in enumerate(group):
            mine = [job for job in jobs if job.label == label]
            key = "verdict_P" if "m_o_P" in columns else "verdict"
            results = [json.loads((job.folder / "result.json").read_text()) for job in mine]
            verdicts = [result.get(key, result["verdict"]) for result in results]
            verdict = statistics.median_high(verdicts)     # of most; complete < dimensional < none
            style = {"none": dict(color=cool[i]), "dimensional": dict(color=warm[i], ls="-."),
                     "complete": dict(color=warm[i], ls="--")}[verdict]
            runs = [common.read_csv(job.folder / name) for job in mine]
            x = next(key for key in ("step", "index", "epoch") if key in runs[0][0])
            for axis, column in zip(panels, columns):
                values = [[row.get(column, math.nan) for row in run] for run in runs]
                values = torch.tensor(values)              # nan: a column that this row has not
                if column == "effective_rank" and name == "metrics.csv":   # else the rank of noise
                    m_o = torch.tensor([[row["m_o"] for row in run] for run in runs])
                    values[m_o >= 0.95] = math.nan
                mean, shown = values.mean(0), ~values.mean(0).isnan()
                at = torch.tensor([row[x] for row in runs[0]])[shown].tolist()
                axis.plot(at, mean[shown].tolist(), label=label, **style)
                if len(runs) > 1:
                    low, high = (mean + sign * values.std(0) for sign in (-1, 1))
                    axis.fill_between(at, low[shown].tolist(), high[shown].tolist(), alpha=0.15,
                                      color=style["color"], lw=0)
                axis.set(xlabel=x, title=MEANS.get(column, column))
                if name == "spectrum.csv" or column in ("E_max", "E_mean", "covariance"):
                    axis.set_yscale("log")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def rank_correlation(points):
    """Spearman's.  points: [(y, x, ...)] without ties"""
    ranks = torch.tensor([point[:2] for point in points]).argsort(0).argsort(0).double()
    return torch.corrcoef(ranks.T)[0, 1].item() if len(points) > 1 else math.nan


def draw_points(records, x, y, off_scale=""):
    """A point a row: the means of columns x and y over seeds, with their standard deviations.

    The names stand at the right, in the order of y; above Spearman's rank correlation, where x is
    to forecast y.  off_scale: a row that is left out"""
    from matplotlib.figure import Figure
    points, rows = [], by_label(records)
    rows.pop(off_scale, None)
    figure = Figure(figsize=(8, max(6.2, 0.2 * len(rows))), layout="constrained")
    axis = figure.subplots()
    colors = {"none": "#08519c", "dimensional": "#fd8d3c", "complete": "#b10026"}
    for label, mine in rows.items():
        values = torch.tensor([[record[x], record[y]] for record in mine], dtype=torch.double)
        mean = values.mean(0).tolist()
        spread = values.std(0, correction=min(1, len(mine) - 1)).tolist()
        verdict = statistics.median_high(record["verdict"] for record in mine)
        color = colors[verdict]                            # of most; complete < dimensional < none
        axis.errorbar(*mean, spread[1], spread[0], "o", color=color, ms=5, lw=1)
        points.append((mean[1], mean[0], label, color))
    points.sort()
    low, high = axis.get_ylim()
    gap, free = (high - low) / max(31, len(points)), low   # names must not overlap
    for i, (at_y, at_x, label, color) in enumerate(points):
        free = max(free, min(at_y, high - gap * (len(points) - i)))
        line = {"arrowstyle": "-", "lw": 0.5, "color": "0.7", "relpos": (0, 0.5)}
        axis.annotate(label, (at_x, at_y), (1.04, free), textcoords=("axes fraction", "data"),
                      va="center", fontsize=9, color=color, arrowprops=line)
        free += gap
    for verdict, color in colors.items():
        axis.plot([], [], "o", color=color, label=f"collapse: {verdict}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    axis.set(xlabel=MEANS.get(x, x), ylabel=MEANS.get(y, y))
    if y == f"{x}_weak":                                   # two labels of the same images
        axis.set_xlabel(MEANS[y].replace("weak", "strong"))
    if "rank" in x:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        ticks = [rank for rank in (1, 2, 3, 5, 10, 20, 30, 50) if low < rank < high]
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
    if x.startswith("test_"):
        healthy = [point for point in points if point[3] == colors["none"]]
        axis.set_title(f"rank correlation {rank_correlation(points):.2f}, without what collapsed "
                       f"{rank_correlation(healthy):.2f}")
    axis.grid(alpha=0.3)
    return figure


def all_points(records, pairs):
    """pairs: "x y; x2 y2" -> {"-points": figure, "-points1": figure}"""
    return {f"-points{i or ''}": draw_points(records, *pair.split())
            for i, pair in enumerate(pairs.split(";")) if pair}


# --------------------------------------------------------------------------------------------- main

def choose(what, flags, own):
    """-> jobs, table or None, folder of the comparison"""
    seeds, out = own["--seed"].split(","), Path(own["--out"])
    runs = [Path(folder) for folder in what if (Path(folder) / "args.json").exists()]
    if runs and all(Path(folder).is_dir() for folder in what):       # runs/* has comparisons too
        jobs = [Job(run.name, str(common.read_run(run)["args"]["seed"]), "", [], run)
                for run in runs]
        return jobs, None, out / "compared"
    if len(what) == 1 and what[0] in TABLES:
        table, data = TABLES[what[0]], Path(flags.get("--data", "patches")).name
        stem = what[0] if data == "patches" else f"{what[0]}.{data}"
        rows = rows_of(table, flags)
        only = [label.strip() for label in own["--only"].split(",") if own["--only"]]
        if unknown := set(only) - {label for label, _ in rows}:
            labels = ", ".join(label for label, _ in rows)
            common.fail(f"--only: {what[0]} has no row {unknown.pop()!r}; its rows are {labels}")
        rows = [row for row in rows if not only or row[0] in only]
        return plan(table.script, rows, seeds, out / stem), table, out / stem
    if len(what) == 1 and what[0].endswith(".py") and (HERE / what[0]).exists():
        stem = "-".join([Path(what[0]).stem, *(name[2:] for name in flags)])
        return plan(what[0], product_of(flags), seeds, out / stem), None, out / stem
    common.fail(f"{' '.join(what)}: no table, no script and no finished runs; "
                f"python compare.py lists the tables")


def main(argv=None):
    what, flags = read_command(sys.argv[1:] if argv is None else argv)
    if "--help" in flags:
        print(__doc__)
        return
    if not what:
        for name, paper, runs, minutes, held in overview(HERE / "results"):
            print(f"{name:20}{runs:>8} runs{minutes:>5} min   {held:28} {paper}".rstrip())
        return
    own = {"--seed": "0", "--jobs": "1", "--only": "", "--out": "runs", "--csv": "", "--curves": "",
           "--points": "", "--save": ""}
    own |= {name: flags.pop(name) for name in list(flags) if name in own}
    if not own["--jobs"].isdecimal() or own["--jobs"] == "0":
        common.fail(f"--jobs must be a number of runs, one or more, not {own['--jobs']}")
    jobs, table, folder = choose(what, flags, own)
    failed = train_all(jobs, int(own["--jobs"]))
    missing = "".join(f"failed: {job.label}, seed {job.seed}: {why}\n" for job, why in failed)
    jobs = [job for job in jobs if (job.folder / "result.json").exists()]
    if jobs:
        report(jobs, table or Table("", "", []), folder, own, missing)
    else:
        print(missing)
    raise SystemExit(1 if failed else 0)


def report(jobs, table, folder, own, missing):
    """table.csv, table.md, curves.png; of a selection of rows under another name"""
    records, name = read_results(jobs), own["--csv"] or table.csv
    columns = [*table.columns.split(), "seconds"]
    text = f"{markdown(records, columns, table)}\n{missing}"
    figures = {"": draw(jobs, (own["--curves"] or table.curves).replace(",", " ").split(), name)}
    figures |= all_points(records, own["--points"].replace(",", " ") or table.points)
    only = "-only" if own["--only"] else ""
    folder.mkdir(parents=True, exist_ok=True)
    save_records(records, folder / f"table{only}.csv")
    (folder / f"table{only}.md").write_text(text, encoding="utf-8")
    for kind, figure in figures.items():
        common.save_figure(figure, folder / f"curves{kind}{only}.png")
    print(f"{text}{folder}: table{only}.md, table{only}.csv, curves{only}.png")
    if own["--save"]:
        save(records, figures, Path(own["--save"]), table, folder.name, own["--only"])


def save(records, figures, results, table, stem, only):
    """results/mirror.csv and .png, and the tables in results/README.md and in ours.

    only: these rows alone are put in the place of the old ones, seed by seed; the curves stay."""
    file, new = results / f"{stem}.csv", {(record["label"], record["seed"]) for record in records}
    old = read_records(file) if file.exists() else []
    others = [record for record in old if (record["label"], record["seed"]) not in new]
    if others and not only:
        lost = ", ".join(f"{record['label']} of seed {record['seed']}" for record in others)
        common.fail(f"{file} has rows that this would lose ({lost}): see --only")
    order = [row[0] for row in table.rows] + [record["label"] for record in others + records]
    everything = sorted(others + records, key=lambda r: (order.index(r["label"]), int(r["seed"])))
    results.mkdir(parents=True, exist_ok=True)
    save_records(everything, file)
    if others:                                             # the curves of their runs are not here
        figures = all_points(everything, table.points)
    for kind, figure in figures.items():
        common.save_figure(figure, results / f"{stem}{kind}.png")
    for readme in (results / "README.md", results.parent / "README.md"):
        if readme.exists():
            readme.write_text(fill(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()

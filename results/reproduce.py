"""Train the tables of results/, and say which of the papers' claims hold in them.

    python results/reproduce.py                                    lists the tables
    python results/reproduce.py mirror --seed 0,1,2 --jobs 2       trains and prints this table
    python results/reproduce.py mirror --only naive,mirror --data path/to/folder --epochs 20
    python results/reproduce.py --fill                             fills the pages with the tables

Each row of a table is a run of a script, with the flags of tables.py and those given here, which
win over them.  Only missing runs are trained.  A row is "as the paper" if its claim in tables.py
holds for every seed.  --save puts the runs into results/NAME.csv, in place of those with the same
row and seed, and the picture into results/NAME.png.  Then it fills the tables of README.md and of
the pages again.  On another data set the name is NAME.DATA, such as mirror.cifar10_jpeg.
"""
import csv
import re
import sys
from collections import Counter
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import common                                              # noqa: E402
import compare                                             # noqa: E402
from tables import CLAIMS, TABLES, THEORY, AsGood              # noqa: E402

DIGITS = {"seconds": 0, "alive_r": 0, "alive_z": 0, "test_auc_r": 3, "align": 3,
          "commutator": 3, "asymmetry": 3, "cos_bias": 3, "b": 3, "b_theory": 3, "b_cos": 3,
          "covariance": 4, "E_mean": 4, "E_mean_1": 4}
COLORS = {"none": "#08519c", "dimensional": "#fd8d3c", "complete": "#b10026", "dead": "black"}


# ------------------------------------------------------------------------------------------- claims

def as_the_paper(rule, mine, records):
    """For how many seeds of a row does its rule hold?  -> "yes", "no", "1 of 3"; "" without a rule
    A seed counts if the rows with which the rule compares it have this seed too."""
    held = {}
    for record in mine if rule else []:
        rows = {other["label"]: other for other in records if other["seed"] == record["seed"]}
        try:
            held[record["seed"]] = (rule.gap if isinstance(rule, AsGood) else rule)(record, rows)
        except KeyError:                                   # A row that the rule needs is missing.
            continue
    n = len(held)
    if n == 0:
        return ""
    if isinstance(rule, AsGood):                           # It is about the mean over seeds.
        right = n if sum(held.values()) > 0 else 0
    else:
        right = sum(held.values())
    word = "yes" if right == n else "no" if right == 0 else f"{right} of {n}"
    return word if n == len(mine) else f"{word} (seed {', '.join(held)} alone)"


def shown(claim):
    """Is the claim shown, and by how many seeds?  -> (False, 0) if nothing was trained"""
    if claim.table not in TABLES:                          # A theory has a file for each seed.
        held = []
        for file in sorted(HERE.glob(f"{claim.table}-s*.csv")):
            lines = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
            held.append(claim.holds({line["what"]: float(line["measured"]) for line in lines}))
        return all(held), len(held)
    file = HERE / f"{claim.table}.csv"
    records = compare.read_csv(file) if file.exists() else []
    if callable(claim.holds):
        held = []
        for seed in dict.fromkeys(record["seed"] for record in records):
            try:
                held.append(claim.holds({record["label"]: record for record in records
                                         if record["seed"] == seed}))
            except KeyError:                               # This seed lacks one of the rows.
                continue
        return all(held), len(held)
    rules = {row.label: row.rule for row in TABLES[claim.table].rows}
    rows = compare.by_label(records)
    words = [as_the_paper(rules[label], rows.get(label, []), records) for label in claim.holds]
    return (all(word.startswith("yes") for word in words),
            min(len(rows.get(label, [])) for label in claim.holds))


def list_claims():
    """Make README's table: what was shown, and by how many seeds, and then what was not."""
    yes = "| claim | command | shown? | page |\n| --- | --- | --- | --- |\n"
    no = "| **What we could not show, and why** | | | |\n"
    for claim in CLAIMS:
        table = claim.table
        if table in TABLES:
            command, page = f"python results/reproduce.py {table}", TABLES[table].page
        else:
            command, page = f"python {table}.py", THEORY[table]
        held, seeds = shown(claim)
        start = f"| {claim.sentence} ({claim.place}) | `{command}` |"
        end = f"| [{page}](results/{page}.md#{table}) |\n"
        if held and seeds:
            yes += f"{start} yes, {seeds} seeds {end}"
        else:
            no += f"{start} {claim.why if seeds else 'not trained'} {end}"
    return yes + no


# ---------------------------------------------------------------------------------------- Markdown

def markdown(records, table, columns, only=()):
    """The table in Markdown.  If a row has a claim, what the paper says stands beside all rows."""
    of_paper = {row.label: row for row in table.rows}
    rows, lines = compare.by_label(records), []
    most = max(len(mine) for mine in rows.values())
    for label, mine in rows.items():
        row, seeds = of_paper[label], ", ".join(record["seed"] for record in mine)
        name = label if len(mine) == most else f"{label} (seed {seeds} alone)"
        words = {"label": name, "the paper": row.says,
                 "as the paper?": as_the_paper(row.rule, mine, records)}
        lines += [record | words for record in mine if not only or label in only]
    if "knn" in columns:
        lines += [{"label": "untrained net", "knn": record["knn_untrained"]}
                  for record in rows[records[0]["label"]] if "knn_untrained" in record]
    if any(row.rule for row in table.rows):
        columns = ["the paper", "as the paper?", *columns]
    return compare.markdown(lines, columns, DIGITS)


def fill(text):
    """Make the tables of a page's text again, from the csv files.  -> the new text
    A table stands between <!-- table mirror; rows: naive | mirror; columns: knn std --> and
    <!-- end -->.  Rows and columns may be left out.  Claims begin with <!-- claims -->."""
    def make(match):
        stem, *choices = [part.strip() for part in match[1].split(";")]
        if not (HERE / f"{stem}.csv").exists():
            return match[0]
        table, choice = TABLES[stem.split(".")[0]], dict(part.split(":", 1) for part in choices)
        only = [label.strip() for label in choice.get("rows", "").split("|") if label.strip()]
        columns = choice.get("columns", table.columns).split()
        made = markdown(compare.read_csv(HERE / f"{stem}.csv"), table, columns, only)
        return f"<!-- table {match[1]} -->\n{made}<!-- end -->"

    text = re.sub(r"<!-- table (.*?) -->\n.*?<!-- end -->", make, text, flags=re.S)
    return re.sub(r"<!-- claims -->\n.*?<!-- end -->",
                  lambda _: f"<!-- claims -->\n{list_claims()}<!-- end -->", text, flags=re.S)


def fill_pages():
    for page in (HERE.parent / "README.md", *sorted(HERE.glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if fill(text) != text:
            page.write_text(fill(text), encoding="utf-8")
            print(f"{page}: tables filled")


# ----------------------------------------------------------------------------------------- figures

def draw_points(records, x, y, left_out=""):
    """Draw a point for each row: the means of columns x and y, with their standard deviations.
    The rows' names stand at the right, in the order of y.  The title has Spearman's correlation."""
    from matplotlib.figure import Figure
    rows, points = compare.by_label(records), []
    rows.pop(left_out, None)
    figure = Figure(figsize=(8, 4 + 0.12 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for label, mine in rows.items():
        values = torch.tensor([[record[x], record[y]] for record in mine], dtype=torch.double)
        mean, std = values.mean(0), values.std(0, correction=min(1, len(mine) - 1))
        color = COLORS[Counter(record["verdict"] for record in mine).most_common(1)[0][0]]
        axis.errorbar(*mean, std[1], std[0], "o", color=color, markersize=5, linewidth=1)
        points.append((*mean.tolist(), label, color))
    points.sort(key=lambda point: point[1])
    for i, (*at, label, color) in enumerate(points):
        axis.annotate(label, at, (1.04, (i + 0.5) / len(points)), va="center", color=color,
                      textcoords="axes fraction", fontsize=9,
                      arrowprops={"arrowstyle": "-", "color": "0.7", "relpos": (0, 0.5)})
    dead = any(record["verdict"] == "dead" for record in records)
    for verdict, color in COLORS.items():
        if verdict != "dead" or dead:
            axis.plot([], [], "o", color=color, label=f"collapse: {verdict}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    ranks = torch.tensor([point[:2] for point in points]).argsort(0).argsort(0).double()
    axis.set(xlabel=compare.TITLES.get(x, x), ylabel=compare.TITLES.get(y, y))
    if y == f"{x}_weak":
        axis.set_xlabel(compare.TITLES[y].replace("weak", "strong"))
    if len(rows) > 9:                                      # With fewer it says nothing.
        axis.set_title(f"rank correlation {torch.corrcoef(ranks.T)[0, 1]:.2f}")
    if "rank" in x:
        ticks = [rank for rank in (1, 2, 5, 10, 20, 50) if rank < axis.get_xlim()[1]]
        axis.set_xscale("log")
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
    axis.grid(alpha=0.3)
    return figure


# ------------------------------------------------------------------------------------------- train

def rows_of(table, data="", flags=()):
    """[(label, [script, flags])].  The flags of the command line come last, and so they win."""
    rows = []
    for label, flags_of_row, *_ in table.rows:
        words = flags_of_row.split()
        if not words or not words[0].endswith(".py"):
            words = [table.script, *words]
        if data not in ("cifar10", "cifar100"):
            words += table.ours.split()
        rows.append((label, [*words, *(["--data", data] if data else []), *flags]))
    return rows


def save(stem, table, records, figure):
    """Write results/STEM.csv and its pictures, but the curves only if all of its runs are new."""
    file = HERE / f"{stem}.csv"
    made = {(record["label"], record["seed"]) for record in records}
    old = compare.read_csv(file) if file.exists() else []
    old = [record for record in old if (record["label"], record["seed"]) not in made]
    place = {row.label: i for i, row in enumerate(table.rows)}
    everything = sorted(old + records, key=lambda record: (place[record["label"]], record["seed"]))
    common.write_csv(file, [{name: f"{value:.6g}" if isinstance(value, float) else value
                             for name, value in record.items() if name != "folder"}
                            for record in everything])
    for i, pair in enumerate(table.points.split(";") if table.points else []):
        picture = draw_points(everything, *pair.split())
        picture.suptitle(table.title)
        picture.savefig(HERE / f"{stem}-points{i or ''}.png")
    if not old:
        figure.savefig(HERE / f"{stem}.png")
    fill_pages()


def main(argv=None):
    parser = compare.make_parser(__file__, __doc__)
    parser.add_argument("--data", default="", help="another data set, or a folder of images")
    parser.add_argument("--only", default="", help="train these rows alone, such as naive,mirror")
    parser.add_argument("--save", action="store_true", help="put the runs into results/")
    parser.add_argument("--fill", action="store_true", help="fill the pages from the csv files")
    own, words = parser.parse_known_args(argv)
    if own.fill:
        return fill_pages()
    if not words:
        return list_tables()
    name, *flags = words
    if name not in TABLES:
        common.fail(f"there is no table {name}: python results/reproduce.py lists them")
    compare.check(words, argv)
    table = TABLES[name]
    stem = f"{name}.{Path(own.data).name}" if own.data else name
    rows = rows_of(table, own.data, flags)
    only = [label.strip() for label in own.only.split(",") if label.strip()]
    if unknown := set(only) - {label for label, _ in rows}:
        common.fail(f"--only: {name} has no row {unknown.pop()!r}; its rows are "
                    f"{', '.join(label for label, _ in rows)}")
    rows = [row for row in rows if not only or row[0] in only]
    folder = Path(own.out, stem)
    jobs = compare.plan(rows, own.seed, folder)
    failed = compare.train_all(jobs, own.jobs)
    records = compare.read_results(jobs)
    if records:
        figure = compare.draw(records, table.curves.split(), table.csv)
        figure.suptitle(table.title)
        compare.report(folder, records, markdown(records, table, table.columns.split()), figure)
        if own.save:
            save(stem, table, records, figure)
    print(failed, end="")
    if failed:
        raise SystemExit(1)


def list_tables():
    print("name                runs   minutes   its question\n")
    for name, table in TABLES.items():
        print(f"{name:20}{len(table.rows):4}{table.minutes:10}   {table.title}")
    print("\nminutes: about so many for one seed, on two CPU cores")


if __name__ == "__main__":
    common.cli(main)

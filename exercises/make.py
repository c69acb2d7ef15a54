"""Make a folder to hand out to students: a sheet with tasks, and the scripts without solutions.

    python exercises/make.py                              lists the sheets
    python exercises/make.py collapse --out my_course     makes the folder my_course
    python exercises/make.py collapse --notebook --out my_course       the sheet as a notebook too

The scripts are those of this repository.  The functions that a sheet asks for lose their bodies.
They keep their signatures and docstrings.  hidden.py lists other lines that would help too much.
"""
import argparse
import ast
import json
import re
import shutil
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

from hidden import HIDDEN

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# fill: files, each with the functions that lose their bodies.  copy: files that stay as they are.
# minutes: how long the runs of the sheet take
Sheet = namedtuple("Sheet", "title fill copy minutes")
SHEETS = {
    "collapse": Sheet("Which part of SimSiam prevents collapse?", {
        "mirror_ablations.py": ("D", "simsiam", "no_stopgrad", "naive", "mirror", "symmetric",
                                "inverse", "bias"),
        "common.py": ("collapse_metrics",)}, ("compare.py",), 8),
    "target": Sheet("A slow target, and a predictor that is set: what does it learn?", {
        "byol.py": ("BYOL.update_target",),
        "directpred.py": ("DirectPred.update_target", "DirectPred.update_correlations",
                          "directset_weight", "directpred_weight", "directcopy_weight",
                          "optimal_weight")}, ("common.py", "compare.py"), 12),
    "contrast": Sheet("Contrast: where do the dimensions go?", {
        "directclr.py": ("info_nce", "one_way", "Direct.forward", "spectrum"),
        "toy_infonce.py": ("info_nce", "spectrum", "gradient_of_theorem")},
        ("common.py", "compare.py"), 8),
    "gradients": Sheet("Which half of the gradient matters?", {
        "gradient_components.py": ("letters", "components", "surrogate", "decorrelation_loss",
                                   "eta")}, ("common.py", "compare.py"), 8),
    "theory": Sheet("Predict, then run: linear models of collapse", {
        "toy_dynamics.py": ("lemma1", "no_predictor", "decoupled", "fixed_points"),
        "toy_patch.py": ("batch_norm", "phi"),
        "toy_landscape.py": ("spectral", "B_spectral", "rank_of_theory")}, ("common.py",), 2),
}


def fail(why):
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(2)


def find(tree, name, file):
    """The function in the syntax tree of a file.  `Class.method` is looked up in its class."""
    node = tree
    for part in name.split("."):
        inside = [child for child in node.body if getattr(child, "name", "") == part]
        if not inside:
            fail(f"{file} has no function {name} any more: write its new name into SHEETS")
        node = inside[-1]
    return node


def without_bodies(source, names, file):
    """The text of the file, in which the functions named keep only signature and docstring."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    nodes = [(find(tree, name, file), name) for name in names]
    # From the end of the file, so that the line numbers of what stands above still hold.
    for node, name in sorted(nodes, key=lambda pair: -pair[0].lineno):
        if ast.get_docstring(node) is None:
            fail(f"{file}: {name} has no docstring, but a student has nothing else to go by")
        doc, last = node.body[0], node.body[-1]
        indent = " " * node.body[0].col_offset
        stop = f'{indent}raise NotImplementedError("{name} is still to be written")\n'
        lines[doc.end_lineno:last.end_lineno] = [stop]
    return "".join(lines)


def hand_out(name, file):
    """The text of a script as the sheet of this name has it"""
    text = (ROOT / file).read_text(encoding="utf-8")
    for old, new in HIDDEN.get(name, {}).get(file, ()):
        if old not in text:
            fail(f"{file} has these lines of hidden.py no more, so change them there:\n{old}")
        text = text.replace(old, new)
    return without_bodies(text, SHEETS[name].fill.get(file, ()), file)


# ------------------------------------------------------------------------------------ the notebook

def cell(kind, text):
    """A cell of a notebook: kind is "markdown" or "code"."""
    own = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": text.strip().splitlines(True), **own}


def function_cells(text, name, file):
    """A cell with a function of the file, and a cell that checks it."""
    node, place = find(ast.parse(text), name, file), f"{file[:-3]}.{name}"
    first = min(part.lineno for part in (node, *node.decorator_list))
    source = textwrap.dedent("\n".join(text.splitlines()[first - 1:node.end_lineno]))
    return [cell("code", f"{source}\n\n\n{place} = {node.name}"),
            cell("code", f'checking.show(check.CHECKS, "{place}")')]


def run_cell(line):
    """A cell for a command of the sheet, such as `python byol.py --ema 0    # a comment`"""
    command, _, comment = line.partition("#")
    _, script, *words = command.split()
    argv = [f'*sorted(glob.glob("{word}"))' if "*" in word else f'"{word}"' for word in words]
    run = f"with checking.a_run():\n    {script[:-3]}.main([{', '.join(argv)}])"
    return cell("code", f"#{comment}\n{run}" if comment else run)


def notebook(name, texts):
    """The sheet as a notebook, from NOTEBOOK.md, SHEET.md and the texts of the scripts.  -> dict"""
    places = [(file, own) for file, names in SHEETS[name].fill.items() for own in names]
    imports = [f"import {file[:-3]}" for file in ("check.py", "checking.py", *sorted(texts))]
    imports += [f"from {file[:-3]} import *" for file in SHEETS[name].fill]
    intro = (HERE / "NOTEBOOK.md").read_text(encoding="utf-8")
    intro = intro.format(name=name, imports="\n".join(imports))
    intro, first, _ = re.split(r"^```.*\n", intro, flags=re.M)
    cells = [cell("markdown", intro), cell("code", first)]
    sheet = (HERE / name / "SHEET.md").read_text(encoding="utf-8")
    for section in re.split(r"^(?=## )", sheet, flags=re.M):
        # Commands stand between two lines with ```, and a question begins with its number.
        text, commands, rest = (re.split(r"^```.*\n", section, flags=re.M) + ["", ""])[:3]
        text, *questions = re.split(r"^(?=\d\. )", text, flags=re.M)
        cells.append(cell("markdown", text))
        if section.startswith("## Predict"):
            cells.append(cell("markdown", "**Your predictions:** (write them here)"))
        if section.startswith("## Write"):
            for file, own in places:
                cells += function_cells(texts[file], own, file)
            cells.append(cell("code", "checking.show(check.CHECKS)"))
        for question in questions:
            cells += [cell("markdown", question), cell("markdown", "**Your answer:** (write here)")]
        cells += [run_cell(line) for line in commands.splitlines()]
        cells += [cell("markdown", rest)] if rest else []
    for i, one in enumerate(cells):
        one["id"] = f"cell-{i}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


def make(name, out, as_notebook=False):
    sheet = SHEETS[name]
    if out.exists():
        fail(f"{out} exists already: name a new folder with --out")
    texts = {file: hand_out(name, file) for file in (*sheet.fill, *sheet.copy)}
    out.mkdir(parents=True)
    for file, text in texts.items():
        (out / file).write_text(text, encoding="utf-8")
    for file in (ROOT / "requirements.txt", HERE / "checking.py", HERE / name / "check.py",
                 HERE / name / "SHEET.md"):
        shutil.copyfile(file, out / file.name)
    if as_notebook:
        zipped = shutil.make_archive(out.with_name(f".{out.name}"), "zip", out)
        shutil.move(zipped, out / f"{name}.zip")           # It must not hold itself.
        (out / f"{name}.ipynb").write_text(json.dumps(notebook(name, texts), indent=1))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", nargs="?", choices=SHEETS,
                        help="the sheet to make a folder of; without it all sheets are listed")
    parser.add_argument("--notebook", action="store_true",
                        help="also make the sheet as a notebook, and a zip of the other files")
    parser.add_argument("--out", type=Path, help="the folder to make; it must not exist yet")
    args = parser.parse_args(argv)
    if args.sheet is None:
        for name, sheet in SHEETS.items():
            n = sum(map(len, sheet.fill.values()))
            print(f"{name:10} {n:2} functions, {sheet.minutes:2} minutes of runs   {sheet.title}")
        return
    if args.out is None:
        fail(f"name a new folder: python exercises/make.py {args.sheet} --out FOLDER")
    make(args.sheet, args.out, args.notebook)
    then = "read SHEET.md in it first, then run python check.py there"
    print(f"{args.out} is made: {f'open {args.sheet}.ipynb in it' if args.notebook else then}")


if __name__ == "__main__":
    main()

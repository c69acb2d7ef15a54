"""Make a folder to hand out to students: a sheet with tasks, and the scripts without solutions.

    python exercises/make.py                              lists the sheets
    python exercises/make.py collapse --out my_course     makes the folder my_course

The scripts are those of this repository.  Only the functions that a sheet asks for lose their
bodies.  They keep their signatures and docstrings.
"""
import argparse
import ast
import shutil
import sys
from collections import namedtuple
from pathlib import Path

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


def make(name, out):
    sheet = SHEETS[name]
    if out.exists():
        fail(f"{out} exists already: name a new folder with --out")
    texts = {file: without_bodies((ROOT / file).read_text(encoding="utf-8"), names, file)
             for file, names in sheet.fill.items()}
    out.mkdir(parents=True)
    for file, text in texts.items():
        (out / file).write_text(text, encoding="utf-8")
    files = [ROOT / file for file in (*sheet.copy, "requirements.txt")]
    for file in (*files, HERE / "checking.py", HERE / name / "check.py", HERE / name / "SHEET.md"):
        shutil.copyfile(file, out / file.name)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", nargs="?", choices=SHEETS,
                        help="the sheet to make a folder of; without it all sheets are listed")
    parser.add_argument("--out", type=Path, help="the folder to make; it must not exist yet")
    args = parser.parse_args(argv)
    if args.sheet is None:
        for name, sheet in SHEETS.items():
            n = sum(map(len, sheet.fill.values()))
            print(f"{name:10} {n:2} functions, {sheet.minutes:2} minutes of runs   {sheet.title}")
        return
    if args.out is None:
        fail(f"name a new folder: python exercises/make.py {args.sheet} --out FOLDER")
    make(args.sheet, args.out)
    print(f"{args.out} is made: read SHEET.md in it first, then run python check.py there")


if __name__ == "__main__":
    main()

"""The course kit: what is handed out, and that every check can fail and names the mistake."""
import ast
import contextlib
import importlib
import json
import re
import runpy
import shutil
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

import common

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "exercises"))
import checking
import make

CASES = [(sheet, file, name) for sheet, s in make.SHEETS.items()
         for file, names in s.fill.items() for name in names]
MISTAKES = {sheet: importlib.import_module(f"mistakes_{sheet}").MISTAKES for sheet in make.SHEETS}


def function(file, name):
    """What stands above and below the docstring of a script's function, without indentation"""
    source = (ROOT / file).read_text()
    lines, node = source.splitlines(), make.find(ast.parse(source), name, file)
    docstring, body, *_ = node.body
    return [textwrap.dedent("\n".join(lines[first:last])) for first, last in
            ((node.lineno - 1, docstring.lineno - 1), (body.lineno - 1, node.end_lineno))]


def wrong_versions(sheet, file, name):
    """Yield each one's hint, and its body: the script's with something replaced, or a new one."""
    for words, *changes in MISTAKES[sheet][f"{file[:-3]}.{name}"]:
        wrong = function(file, name)[1] if len(changes) > 1 else changes[0]
        for old, new in zip(changes[::2], changes[1::2]):
            assert old in wrong, f"{file}: {name} has no {old!r} any more"
            wrong = wrong.replace(old, new)
        yield words, wrong


@pytest.mark.parametrize("sheet, file, name", CASES)
def test_a_wrong_version_is_named(sheet, file, name, monkeypatch):
    checks = runpy.run_path(f"{ROOT}/exercises/{sheet}/check.py")["CHECKS"]
    module, head = importlib.import_module(file[:-3]), function(file, name)[0]
    versions = [*wrong_versions(sheet, file, name)]
    assert len(versions) >= 2
    *owner, own = name.split(".")
    for words, wrong in versions:
        scope = {}
        exec(f"{head}\n{textwrap.indent(wrong, '    ')}", vars(module), scope)
        with monkeypatch.context() as patch:
            patch.setattr(getattr(module, owner[0]) if owner else module, own, scope[own])
            said = checking.run({own: checks[f"{file[:-3]}.{name}"]})[own]
        assert words in said, (wrong, said)


def filled(text, name, body):
    """The text of a script or of a cell, with a body in the place of the function's stub"""
    return re.sub(rf'( +)raise NotImplementedError\("{name} is .*\n?',
                  lambda stub: textwrap.indent(body, stub[1]) + "\n", text)


def shape(text):
    """The text without its comments, and with all names and all numbers alike"""
    text = re.sub(r"[A-Za-z_][\w.]*", "_", re.sub(r"#.*", "", text))
    return re.sub(r"\s", "", re.sub(r"\d[\w.]*", "0", text))


@contextlib.contextmanager
def inside(folder, scripts):
    """Be in a folder where nothing from outside can be imported, and where pictures are empty."""
    ours = (ROOT, ROOT / "exercises", ROOT / "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *(x for x in sys.path if Path(x) not in ours)])
        for file in scripts:
            patch.setitem(sys.modules, file.stem, None)    # restored at the end
            del sys.modules[file.stem]
        patch.setattr("matplotlib.figure.Figure.savefig", lambda _, file, **__: Path(file).touch())
        yield patch


def run(folder, commands):
    """Run commands in a sheet's folder.  -> {command: its exit status, 0 or None if it is right}"""
    ends = {}
    with inside(folder, folder.glob("*.py")) as patch:
        importlib.import_module("common").make_patches = common.make_patches       # for speed
        for command in commands:
            words = [str(x) for word in command.split() for x in [*Path().glob(word)] or [word]]
            patch.setattr(sys, "argv", words)
            try:
                ends[command] = runpy.run_path(words[0], run_name="__main__") and 0
            except SystemExit as e:
                ends[command] = e.code
    return ends


@pytest.mark.parametrize("sheet", make.SHEETS)
def test_the_folder(sheet, tmp_path, capsys):
    """Nothing is right at first, in kind words, and no solution is in it, even in other letters.
    With the real bodies all is right, and the sheet's commands run."""
    folder, cases = tmp_path / "course", [case[1:] for case in CASES if case[0] == sheet]
    make.main([sheet, "--notebook", "--out", str(folder)])
    with pytest.raises(SystemExit):                        # nothing is overwritten
        make.main([sheet, "--out", str(folder)])
    texts = [file.read_text() for file in folder.iterdir() if file.suffix in (".py", ".md")]
    book = json.loads((folder / f"{sheet}.ipynb").read_text())
    given = shape("\n".join(texts + ["".join(cell["source"]) for cell in book["cells"]]))
    for file, name in cases:
        body = function(file, name)[1]
        parts = [shape(ast.get_source_segment(body, node)) for node in ast.walk(ast.parse(body))
                 if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Call))]
        long = [part for part in parts if len(re.sub("[_0]", "", part)) >= 9]
        assert not [part for part in long if part in given], name
    capsys.readouterr()
    assert run(folder, ["check.py"]) == {"check.py": 1}
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"{file[:-3]}.{name}" for file, name in cases]
    assert last.startswith("0 of ") and all("not written yet" in line for line in lines), lines
    for file, name in cases:
        text = filled((folder / file).read_text(), name, function(file, name)[1])
        (folder / file).write_text(text)
    sheet_text = (folder / "SHEET.md").read_text()
    assert len(sheet_text) < 6500                          # two pages
    commands = re.findall(r"^python ((?!toy_[dil]).*?)(?:  +#.*)?$", sheet_text, re.M)
    short = {"compare.py": "", "toy_patch.py": " --steps 9"}           # the other toys take longer
    commands = [line + short.get(line.split()[0], " --dry-run") for line in commands]
    assert not any(run(folder, ["check.py --grade", *commands]).values()), capsys.readouterr().err


@pytest.mark.parametrize("sheet", make.SHEETS)
def test_the_notebook(sheet, tmp_path, capsys):
    """All cells run beside the zip alone.  They say what is missing, which mistake a wrong version
    has, and that the real bodies are right.  A run shows its pictures."""
    def said(text):
        text = re.sub(r"(\n    (?!toy|compare)\w+\.main\(\[)", r'\1"--dry-run", ', text)
        exec(text.replace("toy_patch.main([", 'toy_patch.main(["--steps", "9", '), names)
        return capsys.readouterr().out

    made, names = tmp_path / "made", {}
    make.main([sheet, "--notebook", "--out", str(made)])
    shutil.copy(made / f"{sheet}.zip", tmp_path)
    book = json.loads((made / f"{sheet}.ipynb").read_text())
    ids = {cell["id"] for cell in book["cells"]}
    assert (book["nbformat"], book["nbformat_minor"], len(ids)) == (4, 5, len(book["cells"]))
    first, *code = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    with inside(tmp_path, made.glob("*.py")):
        assert "PyTorch has found the device" in said(first)
        names["common"].make_patches = common.make_patches
        for text in code:
            words = "not written yet" if "show" in text else "The run stops here" * ("main" in text)
            assert words in said(text) or "compare.main" in text, text
        for _, file, name in [case for case in CASES if case[0] == sheet]:
            i, = [i for i, text in enumerate(code) if f"\n{file[:-3]}.{name} = " in text]
            right = f"{file[:-3]}.{name}  right", function(file, name)[1]
            for words, body in (next(wrong_versions(sheet, file, name)), right):
                said(filled(code[i], name, body))
                assert words in said(code[i + 1])
        runs = [text for text in code if "a_run" in text and not re.search("toy_[dil]", text)]
        assert ".png" in said(runs[0])


X, X2, W = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
SAME = [("contrast", "toy_infonce", lambda m: m.loss_of_theorem(W, X, X2)),
        ("theory", "toy_landscape", lambda m: m.barlow(X, X2)),
        ("theory", "toy_dynamics", lambda m: m.one_dimensional(0.2, 0.02)(X[0].abs())),
        ("theory", "toy_dynamics", lambda m: [m.directset_limit(1, e, 0.2) for e in (0.1, 0.3)]),
        ("gradients", "gradient_components", lambda m: [
            (m.LOSSES["centre"](v), m.measure(["infonce"], 0, v)) for v in m.letters(X, X2, W, X)])]


@pytest.mark.parametrize("sheet, name, value", SAME)
def test_what_a_sheet_has_for_hidden_lines_computes_the_same(sheet, name, value):
    text, module = (ROOT / f"{name}.py").read_text(), types.ModuleType(name)
    for old, new in make.HIDDEN[sheet][f"{name}.py"]:
        text = text.replace(old, new)
    exec(text, vars(module))
    torch.testing.assert_close(value(module), value(importlib.import_module(name)))


def test_what_is_gone_is_named(capsys):
    with pytest.raises(SystemExit):
        make.without_bodies("x = 1\n", ["collapse_metric"], "common.py")
    assert "collapse_metric " in capsys.readouterr().err


def test_the_lecturers_readme_has_every_sheet(capsys):
    make.main([])
    sheets = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    text = (ROOT / "exercises" / "README.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.M) == sheets == list(make.SHEETS)

"""The course kit: what is handed out, and that every check can fail and names the mistake."""
import ast
import importlib
import re
import runpy
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

import common

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "exercises"))
import checking
import make

CASES = [(sheet, file, name) for sheet, s in make.SHEETS.items()
         for file, names in s.fill.items() for name in names]


@pytest.mark.parametrize("sheet, file, name", CASES)
def test_a_wrong_version_is_named(sheet, file, name, monkeypatch):
    """Each is a body that a student may write: the script's own with something replaced."""
    checks = runpy.run_path(f"{ROOT}/exercises/{sheet}/check.py")["CHECKS"]
    module = importlib.import_module(file[:-3])
    wrongs = importlib.import_module(f"mistakes_{sheet}").MISTAKES[f"{file[:-3]}.{name}"]
    assert len(wrongs) >= 2
    node = make.find(ast.parse((ROOT / file).read_text()), name, file)
    lines, (docstring, body, *_) = (ROOT / file).read_text().splitlines(), node.body
    head = textwrap.dedent("\n".join(lines[node.lineno - 1:docstring.lineno - 1]))
    right = textwrap.dedent("\n".join(lines[body.lineno - 1:node.end_lineno]))
    *owner, own = name.split(".")
    for words, *changes in wrongs:
        wrong = right if len(changes) > 1 else changes[0]  # else all of it is replaced
        for old, new in zip(changes[::2], changes[1::2]):
            assert old in wrong, f"{file}: {name} has no {old!r} any more"
            wrong = wrong.replace(old, new)
        scope = {}
        exec(f"{head}\n{textwrap.indent(wrong, '    ')}", vars(module), scope)
        with monkeypatch.context() as patch:
            patch.setattr(getattr(module, owner[0]) if owner else module, own, scope[own])
            said = checking.run({own: checks[f"{file[:-3]}.{name}"]})[own]
        assert words in said, (wrong, said)


def run(folder, commands):
    """Run commands in a sheet's folder, where nothing from outside can be imported.
    -> {command: what it ends with, 0 or None if all is right}"""
    ours, ends = (ROOT, ROOT / "exercises", ROOT / "tests"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *(x for x in sys.path if Path(x) not in ours)])
        for file in folder.glob("*.py"):
            patch.setitem(sys.modules, file.stem, None)    # restored at the end
            del sys.modules[file.stem]
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)   # for speed
        importlib.import_module("common").make_patches = common.make_patches       # likewise
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
    """Nothing is right at first, in kind words, and no solution is in it.  With the real bodies all
    is right, and the sheet's commands run."""
    folder, cases = tmp_path / "course", [case[1:] for case in CASES if case[0] == sheet]
    make.main([sheet, "--out", str(folder)])
    with pytest.raises(SystemExit):                        # nothing is overwritten
        make.main([sheet, "--out", str(folder)])
    text = "\n".join(file.read_text() for file in folder.iterdir())
    for file, name in cases:
        source = (ROOT / file).read_text()
        body = make.find(ast.parse(source), name, file).body[1:]
        parts = [ast.get_source_segment(source, part) for part in body]
        assert not [part for part in parts if len(part) > 40 and part in text], name
    capsys.readouterr()
    assert run(folder, ["check.py"]) == {"check.py": 1}
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"{file[:-3]}.{name}" for file, name in cases]
    assert last.startswith("0 of ") and all("not written yet" in line for line in lines), lines
    for file, _ in cases:
        shutil.copyfile(ROOT / file, folder / file)
    sheet_text = (folder / "SHEET.md").read_text()
    assert len(sheet_text) < 6500                          # two pages
    commands = re.findall(r"^python ((?!toy_[dil]).*?)(?:  +#.*)?$", sheet_text, re.M)
    short = {"compare.py": "", "toy_patch.py": " --steps 9"}           # the other toys take longer
    commands = [line + short.get(line.split()[0], " --dry-run") for line in commands]
    assert not any(run(folder, ["check.py --grade", *commands]).values()), capsys.readouterr().err


def test_a_function_that_is_gone_is_named(capsys):
    with pytest.raises(SystemExit):
        make.without_bodies("x = 1\n", ["collapse_metric"], "common.py")
    assert "collapse_metric " in capsys.readouterr().err


def test_the_lecturers_readme_has_every_sheet(capsys):
    make.main([])
    sheets = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    text = (ROOT / "exercises" / "README.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.M) == sheets == list(make.SHEETS)

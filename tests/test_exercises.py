"""The course kit: what is handed out, and that every check can fail and names the mistake."""
import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "exercises"))
import make

CASES = [(sheet, file, name) for sheet, s in make.SHEETS.items()
         for file, names in s.fill.items() for name in names]


def load_check(sheet):
    """The sheet's check.py, on the scripts as they are."""
    spec = importlib.util.spec_from_file_location("check", ROOT / "exercises" / sheet / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(check, function, capsys):
    """What check.py says about one function."""
    with pytest.raises(SystemExit) as stop:
        check.checking.main({function: check.CHECKS[function]}, [])
    name, says = capsys.readouterr().out.splitlines()[0].split(maxsplit=1)
    assert name == function
    return says, stop.value.code


@pytest.mark.parametrize("sheet", make.SHEETS)
def test_the_real_bodies_are_right(sheet, capsys):
    check = load_check(sheet)
    with pytest.raises(SystemExit) as stop:
        check.checking.main(check.CHECKS, ["--grade"])
    grade = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and grade["points"] == grade["of"] == len(check.CHECKS)
    names = {f"{file[:-3]}.{name}" for s, file, name in CASES if s == sheet}
    assert set(grade["functions"]) == names


@pytest.mark.parametrize("sheet, file, name", CASES)
def test_a_wrong_version_is_named(sheet, file, name, capsys, monkeypatch):
    """At least two a function, each a body that a student may write."""
    check, module = load_check(sheet), importlib.import_module(file[:-3])
    mistakes = importlib.import_module(f"mistakes_{sheet}").MISTAKES
    wrongs = mistakes[f"{file[:-3]}.{name}"]
    assert len(wrongs) >= 2
    source = (ROOT / file).read_text()
    node = make.find(ast.parse(source), name, file)
    owner = getattr(module, name.split(".")[0]) if "." in name else module
    for body, words in wrongs.items():
        first = min(n.lineno for n in (node, *node.decorator_list))
        head = source.splitlines()[first - 1:node.body[0].lineno - 1]
        code = textwrap.dedent("\n".join(head)) + "\n"
        code += textwrap.indent(textwrap.dedent(body).strip(), "    ")
        scope = {}
        with monkeypatch.context() as patch:
            exec(compile(code, "wrong", "exec"), vars(module), scope)
            function = scope[name.split(".")[-1]]
            patch.setattr(owner, name.split(".")[-1], function)
            said, status = told(check, f"{file[:-3]}.{name}", capsys)
        assert words in said and status == 1, (body, said)


@pytest.mark.parametrize("sheet", make.SHEETS)
def test_the_folder(sheet, tmp_path):
    """Nothing is right at first, in kind words; with the real bodies all is, and the sheet's
    commands run (the toys' are in test_toys.py); nothing comes from outside the folder, and no
    solution is in it."""
    folder = tmp_path / "course"
    make.main([sheet, "--out", str(folder)])
    with pytest.raises(SystemExit):                        # nothing is overwritten
        make.main([sheet, "--out", str(folder)])
    assert {f.name for f in folder.iterdir()} <= {
        *make.SHEETS[sheet].fill, *make.SHEETS[sheet].copy, "requirements.txt", "check.py",
        "checking.py", "SHEET.md"}
    text = "\n".join(f.read_text() for f in folder.iterdir())
    sheet_text = (folder / "SHEET.md").read_text()
    code = "\n".join((folder / file).read_text() for file in make.SHEETS[sheet].fill)
    for name in re.findall(r"`(?:self|net)\.(\w+)", sheet_text):
        assert re.search(rf'\.{name}\b|"{name}"', code), name
    for s, file, name in CASES:
        if s == sheet:
            source = (ROOT / file).read_text()
            body = make.find(ast.parse(source), name, file).body[1:]
            long = [ast.get_source_segment(source, part) for part in body]
            assert not [part for part in long if len(part) > 40 and part in text], name
    run = [sys.executable, "-I", "-c", "import sys, runpy; sys.path.insert(0, '.'); "
           "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"]
    out = subprocess.run([*run, "check.py"], cwd=folder, capture_output=True, text=True)
    lines = out.stdout.splitlines()
    assert out.returncode == 1 and lines[-1].startswith("0 of "), out
    assert all("not written yet" in line for line in lines[:-1]), out.stdout
    for file in make.SHEETS[sheet].fill:
        shutil.copyfile(ROOT / file, folder / file)
    block = "".join(part.split("```")[0] for part in sheet_text.split("```bash\n")[1:])
    commands = ["check.py", *(line.split(" #")[0].split("python ")[1].strip()
                              for line in block.splitlines() if "compare.py" not in line)]
    commands[1:] = [command + " --dry-run" for command in commands[1:] if "toy_" not in command]
    loop = ("import sys, runpy, shlex; sys.path.insert(0, '.'); import common\n"
            "common.Run.draw = common.save_figure = lambda *_: None\n"       # for speed
            "import functools; common.make_patches = functools.cache(common.make_patches)\n"
            "for command in %r:\n"
            "    sys.argv = shlex.split(command)\n"
            "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "    except SystemExit as e: assert not e.code, command\n")
    out = subprocess.run([sys.executable, "-I", "-c", loop % commands], cwd=folder, text=True,
                         capture_output=True)
    assert out.returncode == 0, out.stderr[-2000:]
    assert len(sheet_text) < 6500                          # two pages


def test_a_function_that_is_gone_is_named(monkeypatch, tmp_path, capsys):
    changed = make.SHEETS["collapse"]._replace(fill={"common.py": ("collapse_metric",)})
    monkeypatch.setitem(make.SHEETS, "collapse", changed)
    with pytest.raises(SystemExit) as stop:
        make.main(["collapse", "--out", str(tmp_path / "x")])
    assert stop.value.code == 2 and "collapse_metric " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_list(capsys):
    make.main([])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(make.SHEETS)


def test_lecturers_readme_names_every_sheet_and_command():
    text = (ROOT / "exercises" / "README.md").read_text()
    for sheet in make.SHEETS:
        assert f"## {sheet}" in text
    for line in text.split("```bash\n")[1].split("```")[0].splitlines():
        words = shlex.split(line.split(" #")[0])
        assert words[0] in ("python", "cd")

"""The pages' commands work as they stand; their links, tables and lists of files are whole."""
import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import common
import compare
import linear_eval
import simsiam

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "results"), str(ROOT / "exercises")]
import reproduce                                           # noqa: E402

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "results").glob("*.md")), ROOT / "exercises" / "README.md"]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text):
    """The lines of the bash blocks, without comments, each part of && by itself."""
    lines = "\n".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split(" #")[0].split(" && ")]


PYTHON = sorted({command for page in PAGES[:-1] for command in commands(TEXT[page])
                 if command.startswith("python ")})        # test_exercises.py has the others


@pytest.mark.parametrize("command", PYTHON)
def test_command(command, in_tmp, fake_cifar, image_folder, no_curves, monkeypatch):
    """Training is --dry-run; cifar10 and own folders are a few images; compare.py and reproduce.py
    plan their runs; of the others the flags are read."""
    _, file, *flags = shlex.split(command)
    module, planned = importlib.import_module(Path(file).stem), []
    assert (ROOT / file).exists()
    if "runs/" in command:
        simsiam.main(["--dry-run"])                        # the run that README makes first
    if hasattr(module, "parse"):
        for i, flag in enumerate(flags):
            if flag == "--data" and flags[i + 1] not in (*common.PATCHES, "cifar10", "cifar100"):
                flags[i + 1] = str(image_folder)
        module.main([*flags, "--dry-run", "--arch", "small"])              # ResNet-18 takes long
        assert list(Path("runs").rglob("result.json"))
    elif module is linear_eval:
        assert module.main(flags)["trained"]["linear"] > 0
    elif module in (compare, reproduce):
        monkeypatch.setattr(compare, "train_all", lambda jobs, n: planned.extend(jobs) or "")
        monkeypatch.setattr(compare, "finished", lambda words: planned.extend(words) or [])
        monkeypatch.setattr(reproduce, "fill_pages", lambda: planned.append("pages"))
        try:
            module.main(flags)
        except SystemExit as stop:
            assert stop.code == 0
        seeds = flags[flags.index("--seed") + 1].count(",") + 1 if "--seed" in flags else 1
        assert len(planned) % seeds == 0 and bool(planned) == bool(flags)
        if flags and flags[0] in reproduce.TABLES and "--only" not in flags:
            assert len(planned) == seeds * len(reproduce.TABLES[flags[0]].rows)
    else:
        def parse_args(self, argv=None, real=argparse.ArgumentParser.parse_args):
            real(self, argv)
            raise KeyboardInterrupt
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(KeyboardInterrupt):
            module.main(flags)


def headings(page):
    """-> the anchors that GitHub makes of a page's headings"""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_tables_are_those_of_the_csv_files(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link
    assert reproduce.fill(TEXT[page]) == TEXT[page]


def test_every_file_is_named_and_every_result_is_shown():
    for file in ROOT.glob("*.py"):
        assert file.name in TEXT[README], f"{file.name} is not in README.md"
    everything = "\n".join(TEXT.values())
    for file in (ROOT / "results").glob("*.*"):
        shown = re.escape(file.name)
        if file.suffix == ".csv":                          # of a toy the picture of seed 0 is shown
            stem = re.escape(re.sub(r"-s\d$", "-s0", file.stem))
            shown = rf"<!-- table {stem}( -->|;)|{stem}.png"
        if file.suffix != ".py":
            assert re.search(shown, everything), f"{file.name} is shown nowhere"


def test_a_picture_goes_through_the_saved_backbone(in_tmp, photos):
    """The snippet's features are those of torchvision's transforms and of the trained net."""
    model = simsiam.main(["--dry-run"])
    transforms, image = torchvision.transforms, torchvision.transforms.ToPILImage()(photos[0])
    image.save("picture.png")
    code, = [code for code in blocks("python", TEXT[README]) if "backbone.pt" in code]
    names = {}
    exec(code, names)
    saved = json.loads(Path("runs/simsiam-patches-s0/args.json").read_text())
    x = transforms.Normalize(saved["mean"], saved["std"])(transforms.ToTensor()(image))
    with torch.no_grad():
        by_hand = model.encoder.backbone.eval()(x[None])
    assert torch.allclose(names["r"], by_hand, atol=1e-4) and by_hand.std() > 0

import functools
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")              # nets this small gain nothing from more

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Plain `pytest` runs the whole suite in two processes, half the time on two cores: these files in
# the second one, whose report follows the first one's.
SECOND = ("test_compare.py", "test_toys.py", "test_exercises.py", "test_run.py")


def pytest_configure(config):
    if not config.invocation_params.args and os.cpu_count() > 1:
        files = [str(ROOT / "tests" / name) for name in SECOND]
        config.second_report = tempfile.TemporaryFile("w+")
        config.second = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files], cwd=ROOT,
            stdout=config.second_report, stderr=subprocess.STDOUT)


def pytest_ignore_collect(collection_path, config):
    if hasattr(config, "second") and collection_path.name in SECOND:
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "second"):
        session.exitstatus = session.exitstatus or session.config.second.wait()


def pytest_terminal_summary(terminalreporter, config):
    if hasattr(config, "second"):
        config.second_report.seek(0)
        terminalreporter.write(config.second_report.read())


@pytest.fixture(scope="session", autouse=True)
def made_once():
    """Images of `patches` are the same every time: made once for all tests of a process."""
    import common
    common.make_patches = functools.cache(common.make_patches)


@pytest.fixture
def no_curves(monkeypatch):
    """A run draws no curves.png, which takes a second; test_run.py looks at that."""
    import common
    monkeypatch.setattr(common.Run, "draw", lambda self: None)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def photos():
    """Smooth coloured random images, more like photographs than noise.  uint8 [25, 3, 32, 32]"""
    g = torch.Generator().manual_seed(5)
    x = torch.rand(25, 3, 6, 6, generator=g)
    x = torch.nn.functional.interpolate(x, size=32, mode="bicubic")
    x = x + 0.05 * torch.randn(25, 3, 32, 32, generator=g)
    return x.clamp(0, 1).mul(255).round().to(torch.uint8)


@pytest.fixture
def image_folder(tmp_path, photos):
    """train/ and test/ with two classes; grayscale, RGBA and odd sizes among the images."""
    sizes, modes = [(32, 32), (50, 33), (20, 70)], ["RGB", "L", "RGBA", "P"]
    for part in ("train", "test"):
        for c, name in enumerate(("cats", "dogs")):
            (tmp_path / "pics" / part / name).mkdir(parents=True)
            for i in range(12):
                image = Image.fromarray(photos[(i + 12 * c) % 25].permute(1, 2, 0).numpy())
                image = image.resize(sizes[i % 3]).convert(modes[i % 4])
                image.save(tmp_path / "pics" / part / name / f"{i:03}.png")
    return tmp_path / "pics"


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """A data folder with 300 + 60 images in the file formats that torchvision's loaders read."""
    rng = np.random.default_rng(0)

    def dump(folder, name, content):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(n, key, classes):
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        return {"data": pixels, key: [i % classes for i in range(n)],
                "coarse_labels": [i % classes // 5 for i in range(n)]}

    c10, c100 = torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100
    root = tmp_path / "data"
    folder = root / c10.base_folder
    train = [dump(folder, f"data_batch_{i}", batch(60, "labels", 10)) for i in range(1, 6)]
    monkeypatch.setattr(c10, "train_list", train)
    monkeypatch.setattr(c10, "test_list", [dump(folder, "test_batch", batch(60, "labels", 10))])
    names = dump(folder, "batches.meta", {"label_names": [f"c{i}" for i in range(10)]})
    monkeypatch.setattr(c10, "meta", {"filename": names[0], "key": "label_names", "md5": names[1]})
    folder = root / c100.base_folder
    monkeypatch.setattr(c100, "train_list", [dump(folder, "train", batch(300, "fine_labels", 100))])
    monkeypatch.setattr(c100, "test_list", [dump(folder, "test", batch(100, "fine_labels", 100))])
    names = dump(folder, "meta", {"fine_label_names": [f"c{i}" for i in range(100)]})
    meta = {"filename": names[0], "key": "fine_label_names", "md5": names[1]}
    monkeypatch.setattr(c100, "meta", meta)
    return root


@pytest.fixture
def first_step(monkeypatch, in_tmp):
    """first_step(module, *flags) -> model as before its first training step, its two views, and
    {name: gradient of that step or None}."""
    def run(module, *flags):
        import common
        grads, batches = [], []
        real_step, real_batches = torch.optim.SGD.step, common.Run.batches

        def step(self, *a, **k):
            parameters = [p for group in self.param_groups for p in group["params"]]
            grads.append({id(p): None if p.grad is None else p.grad.clone() for p in parameters})
            return real_step(self, *a, **k)

        def views(x, *_, **__):
            return (x.float() / 255 - 0.5).flip(3) * torch.rand(len(x), 1, 1, 1)

        def record(self):
            for x in real_batches(self):
                state = {k: v.clone() for k, v in self.model.state_dict().items()}
                batches.append((x.clone(), torch.get_rng_state(), state))
                yield x

        monkeypatch.setattr(torch.optim.SGD, "step", step)
        monkeypatch.setattr(common, "augment", views)
        monkeypatch.setattr(common.Run, "batches", record)
        model = module.main(["--dry-run", *flags])
        x, rng, state = batches[1]                         # [0] measured the untrained net
        torch.set_rng_state(rng)
        x1, x2 = views(x), views(x)
        model.load_state_dict(state)
        return model, x1, x2, {name: grads[0].get(id(p)) for name, p in model.named_parameters()}
    return run


@pytest.fixture
def whole_and_cut(monkeypatch, in_tmp):
    """whole_and_cut(module, *flags) -> last.pt's model of a run of two epochs, and of one that
    stopped after the first and was resumed."""
    def run(module, *flags):
        import common
        flags = [*flags, "--limit", "300", "--epochs", "2", "--out"]
        real_end = common.Run.end_epoch

        def stop_after_1(self, *a, **k):
            real_end(self, *a, **k)
            if self.epoch == 1 and not self.args.resume:
                raise KeyboardInterrupt
        module.main([*flags, "whole"])
        monkeypatch.setattr(common.Run, "end_epoch", stop_after_1)
        with pytest.raises(KeyboardInterrupt):
            module.main([*flags, "cut"])
        folder, = Path("cut").iterdir()
        module.main(["--resume", str(folder)])
        files = [Path(out) / folder.name / "last.pt" for out in ("whole", "cut")]
        return [torch.load(file, weights_only=True)["model"] for file in files]
    return run

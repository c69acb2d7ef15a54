import copy
import functools
import os
import pickle
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core a process

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common


@pytest.fixture(scope="session", autouse=True)
def made_once():
    """Images of `patches` are the same every time: made once for all tests of a process."""
    common.make_patches = functools.cache(common.make_patches)


@pytest.fixture
def no_curves(monkeypatch):
    """A run draws no curves.png, which takes a second; test_run.py looks at that."""
    def savefig(self, file, real=common.Figure.savefig, **more):
        if Path(file).name != "curves.png":
            real(self, file, **more)
    monkeypatch.setattr(common.Figure, "savefig", savefig)


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
    for part in ("train/cats", "train/dogs", "test/cats", "test/dogs"):
        (tmp_path / "pics" / part).mkdir(parents=True)
        for i in range(12):
            image = photos[i + 12 * part.endswith("dogs")].permute(1, 2, 0).numpy()
            image = Image.fromarray(image).resize(sizes[i % 3]).convert(modes[i % 4])
            image.save(tmp_path / "pics" / part / f"{i:03}.png")
    return tmp_path / "pics"


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """A data folder with 100 images a file, in the formats that torchvision's loaders read."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    rng = np.random.default_rng(0)
    for data, key, classes in ((torchvision.datasets.CIFAR10, "labels", 10),
                               (torchvision.datasets.CIFAR100, "fine_labels", 100)):
        folder = tmp_path / "data" / data.base_folder
        folder.mkdir(parents=True)
        names = {data.meta["key"]: [f"c{i}" for i in range(classes)]}
        (folder / data.meta["filename"]).write_bytes(pickle.dumps(names))
        for file, _ in data.train_list + data.test_list:
            batch = {"data": rng.integers(0, 256, (100, 3072), dtype=np.uint8),
                     key: [i % classes for i in range(100)]}
            (folder / file).write_bytes(pickle.dumps(batch))
    return tmp_path / "data"


@pytest.fixture
def first_step(monkeypatch, in_tmp):
    """first_step(module, *flags) -> model as before its first training step, its first two views,
    and {name: gradient of that step, or None}.  The run ends there."""
    def run(module, *flags):
        seen = {}

        def init(self, args, model, *rest, real=common.Log.__init__):
            seen["model"] = model
            real(self, args, model, *rest)

        def batches(*args, real=common.batches, **kwargs):
            for both in real(*args, **kwargs):             # first the one that measures row 0
                seen.update(state=copy.deepcopy(seen["model"].state_dict()), views=[])
                yield both

        def augment(x, *_, **__):
            seen["views"].append((x.float() / 255 - 0.5).flip(3) * torch.rand(len(x), 1, 1, 1))
            return seen["views"][-1]

        def step(self):
            seen["grads"] = {id(p): p.grad for group in self.param_groups for p in group["params"]}
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(common.Log, "__init__", init)
            patch.setattr(common, "batches", batches)
            patch.setattr(common, "augment", augment)
            patch.setattr(torch.optim.SGD, "step", step)
            module.main(["--dry-run", *flags])
        seen["model"].load_state_dict(seen["state"])
        names = seen["model"].named_parameters()
        return seen["model"], *seen["views"][:2], {k: seen["grads"].get(id(p)) for k, p in names}
    return run


@pytest.fixture
def whole_and_cut(monkeypatch, in_tmp):
    """whole_and_cut(module, *flags) -> last.pt's model of a run of two epochs, and of one that
    stopped after the first and was resumed."""
    def run(module, *flags):
        def stop_after_1(self, epoch, *args, real=common.Log.row, **columns):
            real(self, epoch, *args, **columns)
            if epoch == 1:
                raise KeyboardInterrupt

        flags = [*flags, "--limit", "300", "--epochs", "2", "--out"]
        module.main([*flags, "whole"])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(common.Log, "row", stop_after_1)
            module.main([*flags, "cut"])
        folder, = Path("cut").iterdir()
        module.main(["--resume", str(folder)])
        return [common.load_run(Path(out) / folder.name)["model"] for out in ("whole", "cut")]
    return run


@pytest.fixture
def watch(monkeypatch):
    """watch(owner, name, see) -> a list of see(result, *arguments) of all calls of owner.name."""
    def start(owner, name, see):
        real, seen = getattr(owner, name), []

        def watched(*args, **kwargs):
            result = real(*args, **kwargs)
            seen.append(see(result, *args, **kwargs))
            return result

        monkeypatch.setattr(owner, name, watched)
        return seen
    return start

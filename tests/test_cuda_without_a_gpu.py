"""The CUDA path of every script, on CPU tensors that carry a label: devices, host waits, bfloat16.

`Cuda` labels the storage of what is made on, or moved to, "cuda:0".  As on a GPU, an operation on
a labelled and an unlabelled tensor fails; one that makes the host wait fails inside a step."""
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import byol
import common
import directclr
import directpred
import gradient_components
import mirror_ablations
import simsiam
import supervised

CpuGenerator = torch.Generator
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_linalg_eigh", "linalg_qr",
         "_unique2")
# of the operations in CUDA autocast's list of those that run in float32, what losses may use
FLOAT32 = ("cosine_similarity", "mse_loss", "cross_entropy", "log_softmax", "softmax", "norm",
           "normalize", "sum", "prod", "exp", "log", "pow", "__pow__", "rsqrt", "reciprocal")


def on_gpu(x):
    return hasattr(x.untyped_storage(), "on_gpu")


def label(x, gpu=True):
    if gpu and isinstance(x, torch.Tensor):
        x.untyped_storage().on_gpu = True
    return x


def is_gpu(device):
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


class Operations(TorchDispatchMode):
    """What a GPU would say to each operation, in forward and backward."""

    def __init__(self, cuda):
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        name, gpu = op.overloadpacket.__name__, any(map(on_gpu, tensors))
        mixed = gpu and any(x.ndim > 0 and not on_gpu(x) for x in tensors)
        if mixed and name == "copy_":
            self.cuda.wait("copy between host and GPU")
        elif mixed:
            raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU")
        by_mask = name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
        if gpu and (name in WAITS or by_mask):
            self.cuda.wait(name)
        return tree_map(lambda x: label(x, gpu), op(*args, **kwargs or {}))


class Cuda(TorchFunctionMode):
    def __init__(self, allowed=()):
        super().__init__()
        self.allowed, self.in_step, self.generators = allowed, False, []

    def wait(self, why):
        if self.in_step and why not in self.allowed:
            raise RuntimeError(f"the host waits for the GPU inside a step: {why}")

    def __torch_function__(self, f, types, args=(), kwargs=None):
        name, kwargs = getattr(f, "__name__", ""), dict(kwargs or {})
        if f == torch.Tensor.device.__get__:
            return GPU if on_gpu(args[0]) else CPU
        if name == "__deepcopy__":
            return label(f(*args, **kwargs), on_gpu(args[0]))
        if name in ("tolist", "numpy") and on_gpu(args[0]):
            assert name != "numpy", "numpy() of a tensor on cuda:0"
            self.wait(name)
        if name in ("to", "cpu"):
            return self.move(f, *args, **kwargs)
        if torch.is_autocast_enabled("cpu") and name in FLOAT32:
            args = tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and
                            x.is_floating_point() else x, args)
        gpu = is_gpu(kwargs.get("device"))
        if gpu:                                            # torch.zeros(..., device=) and the like
            kwargs["device"] = CPU
            generator = kwargs.get("generator")
            assert generator is None or any(generator is g for g in self.generators), "of the CPU"
        return label(f(*args, **kwargs), gpu)

    def move(self, f, x, *args, **kwargs):
        devices = [d for d in (*args, *kwargs.values()) if isinstance(d, (str, torch.device))]
        target = is_gpu(devices[0]) if devices else on_gpu(x) and f.__name__ == "to"
        args = [CPU if is_gpu(a) else a for a in args]
        kwargs = {key: CPU if is_gpu(a) else a for key, a in kwargs.items()}
        out = f(x, *args, **kwargs)
        if target != on_gpu(x):
            self.wait("copy between host and GPU")
            with _disable_current_modes():
                out = label(out.clone(), target)           # a new storage
        return out

    def Generator(self, device="cpu"):
        generator = CpuGenerator()
        if is_gpu(device):
            self.generators.append(generator)
        return generator


class Stop(Exception):
    pass


def first_step(monkeypatch, script, flags, cuda, device):
    """-> loss and gradient of the first step.  On the CPU it stops there; on cuda it runs on."""
    found, log, batches = [], common.Run.log, common.Run.batches
    features, probe = common.labelled_features, common.linear_probe

    def watch(self, loss, **views):
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        with _disable_current_modes():
            found.append((loss.detach().clone(), torch.cat(grads).clone()))
        if device == "cpu":
            raise Stop
        log(self, loss, **views)

    def steps(self):
        for x in batches(self):
            cuda.in_step = True
            try:
                yield x
            finally:                                       # row 0 takes one batch alone
                cuda.in_step = False

    changes = {
        common.Run: dict(log=watch, batches=steps), torch: dict(Generator=cuda.Generator),
        common: dict(autocast=lambda d: torch.autocast("cpu", torch.bfloat16, d.type == "cuda"),
                     labelled_features=lambda net, data, few=0: features(net, data, few=True),
                     linear_probe=lambda *a: probe(*a[:4], epochs=1), save_figure=lambda *_: None),
        torch.cuda: dict(set_device=id, synchronize=int, get_device_name=str)}
    with monkeypatch.context() as patch:
        for module, names in changes.items():
            for name, value in names.items():
                patch.setattr(module, name, value)
        argv = [*SMALL.split(), *flags.split(), "--device", device]
        if device == "cpu":
            with pytest.raises(Stop):
                script.main(argv)
        else:
            with cuda, Operations(cuda):
                script.main(argv)
    return found[0]


SMALL = "--limit 128 --batch-size 64 --epochs 1 --size 16"
DIMS = "--proj-dim 32 --pred-hidden 16"
CASES = [(simsiam, DIMS), (supervised, "")]
CASES += [(byol, f"{DIMS} --proj-hidden 32 {flags}") for flags in (
    "", "--predictor linear", "--predictor none --ema 0", "--no-stopgrad",
    "--ema-schedule cosine --solarize-p 0.5")]
CASES += [(directpred, f"{DIMS} --proj-hidden 32 {flags}") for flags in (
    *(f"--predictor {name}" for name in directpred.CHOICES["predictor"]),
    "--predictor sgd --predictor-layers 2", "--ema 0 --freq 2 --schedule constant")]
CASES += [(directclr, f"--proj-dim 32 --proj-hidden 32 {flags}") for flags in (
    "--projector mlp", "--projector linear --negatives both", "--projector none",
    *(f"--direct-mode {mode}" for mode in directclr.CHOICES["direct_mode"]))]
CASES += [(mirror_ablations, f"{DIMS} --variant {name}") for name in mirror_ablations.LOSSES]
CASES += [(gradient_components, f"{DIMS} --loss {name}")
          for name in (*gradient_components.SURROGATES, *gradient_components.LOSSES)]
CASES += [(gradient_components, f"{DIMS} --without o_e --predictor-loss simsiam")]


def check(monkeypatch, script, flags):
    """No CPU tensor among the GPU's, no wait in a step, bfloat16 next to float32."""
    cuda = Cuda(allowed=["_linalg_eigh"] if script is directpred else [])    # PyTorch has no other
    loss, grad = first_step(monkeypatch, script, flags, cuda, "cpu")
    loss16, grad16 = first_step(monkeypatch, script, flags, cuda, "cuda")
    assert loss16.dtype == grad16.dtype == torch.float32
    assert abs(loss16 - loss) <= 0.004 * max(1, abs(loss)), f"loss {loss16}, in float32 {loss}"
    assert F.cosine_similarity(grad, grad16, dim=0) >= 0.95
    assert not torch.equal(grad, grad16)                   # it did run in bfloat16


@pytest.mark.parametrize("script, flags", CASES)
def test_trains_on_a_gpu(script, flags, in_tmp, no_curves, monkeypatch):
    check(monkeypatch, script, flags)


def test_a_run_goes_on_on_a_gpu(in_tmp, no_curves, monkeypatch):
    first_step(monkeypatch, simsiam, "--proj-dim 32", Cuda(), "cuda")
    again = "--resume runs/simsiam-patches-s0 --epochs 2"  # momentum and weights from the disk
    first_step(monkeypatch, simsiam, again, Cuda(), "cuda")
    assert len(common.read_csv(Path("runs/simsiam-patches-s0/metrics.csv"))) == 3


real = {"boxes": common.random_boxes, "augment": common.augment, "D": simsiam.D,
        "info_nce": directclr.info_nce}
@pytest.mark.parametrize("module, name, fault, why", [
    (common, "random_boxes", lambda n, size, area, device: real["boxes"](n, size, area, CPU),
     "on the CPU"),
    (common, "augment", lambda x, *a: real["augment"](x[torch.arange(len(x))], *a), "on the CPU"),
    (simsiam, "D", lambda p, z: real["D"](p, z) + 0 * p.sum().item(), "waits.*_local_scalar"),
    (simsiam, "D", lambda p, z: real["D"](p, z) + 0 * p[p > 0].sum(), "waits.*index"),
    (simsiam, "D", lambda p, z: real["D"](p, z.cpu().to(p.device)), "waits.*copy"),
    (directclr, "info_nce", lambda z, *a: real["info_nce"](z, *a) * (
        0.95 if z.dtype == torch.bfloat16 else 1), "loss .* in float32"),
])
def test_a_fault_is_found(module, name, fault, why, in_tmp, no_curves, monkeypatch):
    monkeypatch.setattr(module, name, fault)
    script = simsiam if module is common else module
    with pytest.raises((RuntimeError, AssertionError), match=why):
        check(monkeypatch, script, "--proj-dim 32")

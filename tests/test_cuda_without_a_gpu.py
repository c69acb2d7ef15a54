"""The CUDA path of every script, on CPU tensors that carry a label: devices, host waits, bfloat16.

`Cuda` labels the storage of what is made on, or moved to, "cuda:0".  As on a GPU, an operation on
a labelled and an unlabelled tensor fails; one that makes the host wait fails inside a step."""
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import byol
import common
import directclr
import directpred
import gradient_components
import knobs
import mirror_ablations
import more_ablations
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


def label(x, gpu):
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
        if mixed and name != "copy_":
            raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU")
        by_mask = name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
        if mixed or gpu and (name in WAITS or by_mask):
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
            self.wait("copy_")
            with _disable_current_modes():
                out = label(out.clone(), target)           # a new storage
        return out

    def Generator(self, device="cpu"):
        generator = CpuGenerator()
        if is_gpu(device):
            self.generators.append(generator)
        return generator


def first_step(monkeypatch, script, flags, cuda, device):
    """-> loss and gradient of the first step.  On the CPU it stops there; on cuda it runs on."""
    found, models, probe, patches = [], [], common.linear_probe, common.make_patches

    def init(self, args, model, *rest, real=common.Log.__init__):
        models.append(model)
        real(self, args, model, *rest)

    def backward(loss, real=torch.Tensor.backward, **_):
        real(loss)
        grads = [p.grad.flatten() for p in models[0].parameters() if p.grad is not None]
        with _disable_current_modes():
            found.append((loss.detach().clone(), torch.cat(grads).clone()))
        if device == "cpu":
            raise KeyboardInterrupt

    def batches(*args, real=common.batches, **kwargs):
        for both in real(*args, **kwargs):
            cuda.in_step = True
            try:
                yield both
            finally:                                       # row 0 takes one batch alone
                cuda.in_step = False

    flags = ["--device", device, *"--batch-size 64 --epochs 1 --size 16".split(), *flags.split()]
    with monkeypatch.context() as patch:
        patch.setattr(common.Log, "__init__", init)
        patch.setattr(torch.Tensor, "backward", backward)
        patch.setattr(torch, "Generator", cuda.Generator)
        patch.setattr(Figure, "savefig", lambda *_: None)
        patch.setattr(common, "batches", batches)
        patch.setattr(common, "autocast", lambda device: torch.autocast(
            "cpu", torch.bfloat16, device.type == "cuda"))
        # The next two save time.
        patch.setattr(common, "linear_probe", lambda *features, **_: probe(*features, epochs=1))
        patch.setattr(common, "make_patches", lambda kind, n, *more: patches(kind, 128, *more))
        if device == "cuda":
            with cuda, Operations(cuda):
                script.main(flags)
        else:
            with pytest.raises(KeyboardInterrupt):
                script.main(flags)
    return found[0]


SCRIPTS = {                                                # the losses and nets of each script
    simsiam: [""], supervised: [""], byol: ["", "--predictor none", "--no-stopgrad"],
    directpred: ["--predictor directpred", "--predictor directcopy", "--predictor optimal --center",
                 "--predictor symmetric", "--predictor sgd --predictor-layers 2", "--freq 2"],
    directclr: ["--projector mlp", "--projector linear --negatives both", "--projector none",
                "--direct-mode random", "--direct-mode orthogonal"],
    gradient_components: [f"--loss {name}" for name in (
        "simsiam --without o_e --predictor-loss simsiam", "triplet", "infonce", "mirror", "bias",
        "random", "decorrelate_standardised")],
    knobs: ["--variant byol", "--pair own --optimizer adam", "--target-every 2"]}
for script in (mirror_ablations, more_ablations):          # a variant for each of their losses
    last = {variant.loss: name for name, variant in script.VARIANTS.items()}
    SCRIPTS[script] = [f"--variant {name}" for name in last.values()]


def check(monkeypatch, script, flags):
    """No CPU tensor among the GPU's, no wait in a step, bfloat16 next to float32."""
    cuda = Cuda(allowed=["_linalg_eigh"] if script is directpred else [])    # PyTorch has no other
    loss, grad = first_step(monkeypatch, script, flags, cuda, "cpu")
    loss16, grad16 = first_step(monkeypatch, script, flags, cuda, "cuda")
    assert loss16.dtype == grad16.dtype == torch.float32
    assert abs(loss16 - loss) <= 0.004 * max(1, abs(loss)), f"loss {loss16}, in float32 {loss}"
    assert F.cosine_similarity(grad, grad16, dim=0) >= 0.95
    assert not torch.equal(grad, grad16)                   # it did run in bfloat16


@pytest.mark.parametrize("script, flags", [
    (script, flags) for script, cases in SCRIPTS.items() for flags in cases])
def test_trains_on_a_gpu(script, flags, in_tmp, monkeypatch):
    if script is not supervised:
        flags += " --proj-dim 32"
    check(monkeypatch, script, flags)


def test_a_run_goes_on_on_a_gpu(in_tmp, monkeypatch):
    first_step(monkeypatch, simsiam, "--proj-dim 32", Cuda(), "cuda")
    again = "--resume runs/simsiam-patches-s0 --epochs 2"  # momentum and weights from the disk
    first_step(monkeypatch, simsiam, again, Cuda(), "cuda")
    assert len(common.load_run("runs/simsiam-patches-s0")["tables"]["metrics"]) == 3


@pytest.mark.parametrize("fault, why", [
    (lambda p, z: 0 * (p + torch.zeros(p.shape)).sum(), "on the CPU"),
    (lambda p, z: 0 * p.sum().item(), "waits.*_local_scalar"),
    (lambda p, z: 0 * p[p > 0].sum(), "waits.*index"),
    (lambda p, z: 0 * z.cpu().to(p.device).sum(), "waits.*copy"),
    (lambda p, z: 0.05 * (p.dtype == torch.bfloat16), "loss .* in float32")])
def test_a_fault_is_found(fault, why, in_tmp, monkeypatch):
    monkeypatch.setattr(simsiam, "D", lambda p, z, real=simsiam.D: real(p, z) + fault(p, z))
    with pytest.raises((RuntimeError, AssertionError), match=why):
        check(monkeypatch, simsiam, "--proj-dim 32")

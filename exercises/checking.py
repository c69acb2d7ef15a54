"""What the sheets' check.py share.  It knows no solution: a check compares with a definition.

    python check.py             a line a function: right, or what differs
    python check.py --grade     points as JSON, one for each function that is right
"""
import json
import sys

import torch


class Wrong(Exception):
    """What differs, in words for the student."""


def same(found, expected, tolerance):
    """Numbers, tensors, or tuples of them: do they agree, relative to the largest entry?"""
    if isinstance(expected, (tuple, list)):
        return len(found) == len(expected) and all(
            same(f, e, tolerance) for f, e in zip(found, expected))
    found, expected = (torch.as_tensor(x, dtype=torch.double) for x in (found, expected))
    if found.shape != expected.shape or not found.isfinite().all():
        return False
    return bool((found - expected).abs().max() <= tolerance * max(1, expected.abs().max()))


def compare(found, expected, mistakes={}, what="the value", tolerance=1e-5):
    """mistakes: {what a student may have done, in words: the value that this would give}"""
    if found is None:
        raise Wrong(f"{what}: nothing is returned")
    if same(found, expected, tolerance):
        return
    for words, value in mistakes.items():
        if same(found, value, tolerance):
            raise Wrong(f"{what}: {words}")
    for f, e in zip(*((x,) if torch.is_tensor(x) or not isinstance(x, (tuple, list)) else x
                      for x in (found, expected))):
        f, e = torch.as_tensor(f, dtype=torch.double), torch.as_tensor(e, dtype=torch.double)
        if f.shape != e.shape:
            raise Wrong(f"{what} has the shape {list(f.shape)}, not {list(e.shape)}")
        apart = (f - e).abs()
        if not same(f, e, tolerance):
            at = tuple(int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
            where = f" at {list(at)}" if at else ""
            raise Wrong(f"{what}: largest difference from the definition {apart.max():.3g}{where} "
                        f"(yours {f[at]:.5g}, expected {e[at]:.5g})")


def slope(f, x, h=1e-6):
    """The gradient of f: tensor -> number at x, by central differences.  x: of doubles"""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x).flatten()
        step[i] = h
        step = step.view_as(x)
        gradient.view(-1)[i] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


def gradients(loss, *inputs):
    """Autograd's, with zeros where the loss does not depend on an input."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found))


def run(checks):
    """-> {function: "" where it is right, else what differs}"""
    found = {}
    for name, check in checks.items():
        torch.manual_seed(0)
        try:
            check()
            found[name] = ""
        except NotImplementedError:
            found[name] = "not written yet: its docstring says what it returns"
        except Wrong as e:
            found[name] = str(e)
        except Exception as e:                             # whatever a student's code may raise
            found[name] = f"stops with {type(e).__name__}: {str(e).partition(chr(10))[0]}"
    return found


def main(checks, argv=None):
    found = run(checks)
    right = [name for name, why in found.items() if not why]
    if "--grade" in (sys.argv[1:] if argv is None else argv):
        points = {name: int(not why) for name, why in found.items()}
        print(json.dumps({"points": len(right), "of": len(found), "functions": points}))
    else:
        width = max(map(len, found))
        for name, why in found.items():
            print(f"{name:{width}}  {why or 'right'}")
        print(f"{len(right)} of {len(found)} are right")
    raise SystemExit(0 if len(right) == len(found) else 1)

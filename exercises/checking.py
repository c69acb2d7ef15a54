"""What the check.py of all sheets share: compare a student's values with expected ones, and report.

No solution stands here or in a check.py.  A check compares with a definition, written in loops.

    python check.py             prints a line for each function: it is right, or what differs
    python check.py --grade     prints points as JSON, one for each function that is right

A notebook calls show and a_run.
"""
import contextlib
import json
import sys
from pathlib import Path

import torch


class Wrong(Exception):
    """Raised by a check if a function is wrong.  Its text tells the student what differs."""


def same(found, expected, tolerance):
    """Do numbers, tensors, or tuples of them agree, relative to the largest entry?  -> bool"""
    if isinstance(expected, (tuple, list)):
        return len(found) == len(expected) and all(
            same(f, e, tolerance) for f, e in zip(found, expected))
    found, expected = (torch.as_tensor(x, dtype=torch.double) for x in (found, expected))
    if found.shape != expected.shape or not found.isfinite().all():
        return False
    return bool((found - expected).abs().max() <= tolerance * max(1, expected.abs().max()))


def compare(found, expected, mistakes={}, what="the value", tolerance=1e-5):
    """Raise Wrong if found is not what is expected, and say which mistake it is if one fits.

    mistakes: {what a student may have done, in words: the value that this would give}
    what: what is compared, in words"""
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
            raise Wrong(f"{what} has the shape {list(f.shape)}, but it should have {list(e.shape)}")
        apart = (f - e).abs()
        if not same(f, e, tolerance):
            at = tuple(int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
            where = f" at the entry {list(at)}" if at else ""
            raise Wrong(f"{what}: the largest difference from the definition is "
                        f"{apart.max():.3g}{where}: yours is {f[at]:.5g}, right is {e[at]:.5g}")


def slope(f, x, h=1e-6):
    """The gradient at x of a function f from a tensor to a number, by central differences.

    x: float64, or the differences are too coarse -> a tensor like x"""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x).flatten()
        step[i] = h
        step = step.view_as(x)
        gradient.view(-1)[i] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


def gradients(loss, *inputs):
    """The gradients that autograd finds: zeros for an input that the loss does not depend on."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found))


def run(checks):
    """Make all checks.  -> {function: what differs, or "" if it is right}"""
    found = {}
    for name, check in checks.items():
        torch.manual_seed(0)
        try:
            check()
            found[name] = ""
        except NotImplementedError:
            found[name] = "not written yet: its docstring says what it should return"
        except Wrong as e:
            found[name] = str(e)
        except Exception as e:                             # A student's code may raise anything.
            found[name] = f"your code stops with {type(e).__name__}: {str(e).partition(chr(10))[0]}"
    return found


def show(checks, *names):
    """Check the functions of these names, or all of them, and print a line for each."""
    print_lines(run({name: checks[name] for name in names or checks}))


def print_lines(found):
    width = max(map(len, found))
    for name, why in found.items():
        print(f"{name:{width}}  {why or 'right'}")


@contextlib.contextmanager
def a_run():
    """A run in a notebook stands inside.  Say in one line what stops it, or show its pictures."""
    try:
        yield
    except NotImplementedError as e:
        print(f"The run stops here: {e}.  After you have written it, run its cell and this one.")
        return
    except KeyboardInterrupt:
        print("You have stopped the run.  Its folder has the epochs that were finished.")
        return
    except SystemExit as e:
        if e.code:                                         # compare.py ends with 0, which is right.
            print('The run has ended.  The line with "error:" says why.')
            return
    pictures = sorted(Path("runs").glob("*/*.png"), key=lambda file: file.stat().st_mtime)
    if pictures:
        show_pictures(pictures[-1].parent)


def show_pictures(folder):
    """Show all pictures in a run's folder.  Outside of a notebook print the names of the files."""
    for file in sorted(folder.glob("*.png")):
        print(file)
        with contextlib.suppress(ImportError):
            from IPython.display import Image, display
            display(Image(str(file)))


def main(checks, argv=None):
    found = run(checks)
    right = [name for name, why in found.items() if not why]
    if "--grade" in (sys.argv[1:] if argv is None else argv):
        points = {name: int(not why) for name, why in found.items()}
        print(json.dumps({"points": len(right), "of": len(found), "functions": points}))
    else:
        print_lines(found)
        print(f"{len(right)} of {len(found)} are right")
    raise SystemExit(0 if len(right) == len(found) else 1)

"""Check the functions of this sheet: a line for each says that it is right, or what differs.

    python check.py             takes a few seconds
    python check.py --grade     prints points as JSON
"""
import math
from types import SimpleNamespace

import torch

import checking
import common
import mirror_ablations as M
from checking import compare, gradients, slope

# ------------------------------------------------------------------------ the definitions, in loops


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def distance(p, z):
    """D, minus the mean cosine of the rows.  p, z: lists of rows"""
    return -sum(map(cosine, p, z)) / len(p)


def both(p1, target1, p2, target2):
    """The mean of the distances in the two directions"""
    return (distance(p1, target1) + distance(p2, target2)) / 2


BIAS = [0.3, -0.2, 0.5, 0.1]


def linear(W, z):
    """The predictor h, or h_inv, as one layer: W z + BIAS for each row of z."""
    return [[sum(w * x for w, x in zip(row, r)) + b for row, b in zip(W, BIAS)] for r in z]


def unit(z):
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z]


def columns_unit(z):
    return [list(row) for row in zip(*unit(zip(*z)))]


class Siamese:
    """Random inputs of a loss, and what the loss and its gradients should be.

    z1, z2 and W, U, the matrices of h and h_inv, get a gradient.  t1, t2, V, Q are the same numbers
    behind a stop-gradient."""

    def __init__(self):
        self.z1, self.z2 = torch.randn(2, 3, 4, dtype=torch.double)
        self.W, self.U = torch.randn(2, 4, 4, dtype=torch.double)

    def expected(self, loss):
        """Yield the value of loss(z1, z2, t1, t2, W, V, U, Q), on lists, then its four slopes."""
        live = [self.z1, self.z2, self.W, self.U]
        a, b, w, u = [x.tolist() for x in live]

        def of(i):
            def f(x):
                z1, z2, W, U = [x.tolist() if k == i else v.tolist() for k, v in enumerate(live)]
                return loss(z1, z2, a, b, W, w, U, u)
            return f
        yield loss(a, b, a, b, w, w, u, u)
        for i, x in enumerate(live):
            yield slope(of(i), x)

    def found(self, loss):
        """-> the same five of the student's function; its p1 and p2"""
        live = [x.clone().requires_grad_() for x in (self.z1, self.z2, self.W, self.U)]
        b = torch.tensor(BIAS, dtype=torch.double)
        net = SimpleNamespace(predictor=lambda z: z @ live[2].T + b,
                              inverse=lambda p: p @ live[3].T + b)
        returned = loss(net, live[0], live[1])
        if not isinstance(returned, tuple) or len(returned) != 3:
            raise checking.Wrong("return three things: the loss, p1 and p2 (None, None if there "
                                 "is no predictor)")
        return (returned[0].item(), *gradients(returned[0], *live)), returned[1:]


def check_loss(student, definition, mistakes, predictions=True):
    case = Siamese()
    found, p = case.found(student)

    def is_that(loss):                                     # stops at the first slope that differs
        return all(checking.same(f, e, 1e-5) for f, e in zip(found, case.expected(loss)))
    if is_that(definition):
        for z, p_found in zip((case.z1, case.z2), p):
            z = unit(z.tolist()) if student is M.bias else z.tolist()
            if predictions:
                compare(p_found, torch.tensor(linear(case.W.tolist(), z)), what="p1 or p2")
            elif p_found is not None:
                raise checking.Wrong("there is no predictor: return None, None for p1 and p2")
        return
    try:
        check_D()
    except Exception:
        raise checking.Wrong("the loss is wrong, but so is D, which it needs: correct D first")
    mistakes = mistakes | {"the two directions are added, not averaged":
                           lambda *x: 2 * definition(*x)}
    for words, wrong in mistakes.items():
        if is_that(wrong):
            raise checking.Wrong(words)
    names = ("the value", "the gradient of z1", "the gradient of z2", "the gradient of h",
             "the gradient of h_inv")
    for f, e, what in zip(found, case.expected(definition), names):
        if torch.is_tensor(e) and not e.any() and torch.as_tensor(f).any():
            raise checking.Wrong(f"{what} should be zero: is there a stop-gradient?")
        compare(f, e, what=what)


# ------------------------------------------------------------------------------------- the checks

def check_D():
    p, z = torch.randn(2, 5, 3, dtype=torch.double)
    dots = -sum(sum(a * b for a, b in zip(*rows)) for rows in zip(p.tolist(), z.tolist())) / 5
    compare(M.D(p, z), distance(p.tolist(), z.tolist()), {
        "the sign is wrong: D is minus the cosine": -distance(p.tolist(), z.tolist()),
        "p and z are not normalised. Divide each row by its length": dots,
        "the cosines are taken over the wrong axis. A row is an image":
            distance(p.T.tolist(), z.T.tolist()),
        "this is the sum over the rows. Take the mean": 5 * distance(p.tolist(), z.tolist())})
    p, z = p.requires_grad_(), z.requires_grad_()
    found = gradients(M.D(p, z), p, z)
    for name, gradient in zip("pz", found):
        if not gradient.any():
            raise checking.Wrong(f"{name} gets no gradient: D detaches nothing, because whoever "
                                 "calls it does that")
    of_p, of_z = p.detach(), z.detach()
    compare(found, (slope(lambda x: distance(x.tolist(), of_z.tolist()), of_p),
                    slope(lambda x: distance(of_p.tolist(), x.tolist()), of_z)),
            what="the gradient of p or z")


def of_simsiam(z1, z2, t1, t2, W, V, U, Q):
    return both(linear(W, z1), t2, linear(W, z2), t1)


def of_no_stopgrad(z1, z2, t1, t2, W, V, U, Q):
    return both(linear(W, z1), z2, linear(W, z2), z1)


def of_mirror(z1, z2, t1, t2, W, V, U, Q):
    return both(z1, linear(W, t2), z2, linear(W, t1))


def of_symmetric(z1, z2, t1, t2, W, V, U, Q):
    return both(linear(W, z1), linear(V, t2), linear(W, z2), linear(V, t1))


def of_naive(z1, z2, t1, t2, W, V, U, Q):
    return distance(z1, z2)


def of_normalised(z1, z2, t1, t2, W, V, U, Q):
    return both(linear(W, unit(z1)), t2, linear(W, unit(z2)), t1)


def of_inverse(z1, z2, t1, t2, W, V, U, Q):
    trains_h = both(linear(W, t1), t2, linear(W, t2), t1)
    trains_h_inv = both(linear(U, linear(V, t1)), t1, linear(U, linear(V, t2)), t2)
    target1, target2 = linear(Q, linear(V, t1)), linear(Q, linear(V, t2))
    trains_f = both(linear(W, z1), target2, linear(W, z2), target1)
    return trains_h + trains_h_inv + trains_f


ONE = "only one direction is there: average it with the one where the views are exchanged"


def check_simsiam():
    check_loss(M.simsiam, of_simsiam, {
        "there is no stop-gradient: the targets z1 and z2 have to be detached": of_no_stopgrad,
        "the stop-gradient is on p, but it belongs to the target z":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(linear(V, t1), z2, linear(V, t2), z1),
        "z is detached before h, so that f, which should learn, gets no gradient":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(linear(W, t1), t2, linear(W, t2), t1),
        "p1 is compared with z1, but its target is z2, of the other view":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(linear(W, z1), t1, linear(W, z2), t2),
        ONE: lambda z1, z2, t1, t2, W, V, U, Q: distance(linear(W, z1), t2),
        "the target is p2: that is the loss `symmetric`": of_symmetric})


def check_no_stopgrad():
    check_loss(M.no_stopgrad, of_no_stopgrad, {
        "a target is detached, but here both paths get a gradient": of_simsiam,
        "both sides have the predictor, but the targets are z1 and z2":
            lambda z1, z2, t1, t2, W, V, U, Q: distance(linear(W, z1), linear(W, z2)),
        ONE: lambda z1, z2, t1, t2, W, V, U, Q: distance(linear(W, z1), z2),
        "there is no predictor in it: D(z1, z2) is the loss `naive`": of_naive})


def check_naive():
    check_loss(M.naive, of_naive, {
        "there is a predictor in it, but `naive` has none": of_no_stopgrad,
        "one of the two is detached, so that the gradient is half of what it should be":
            lambda z1, z2, t1, t2, *h: distance(z1, t2),
        "both directions have a stop-gradient, which halves the gradient":
            lambda z1, z2, t1, t2, *h: both(z1, t2, z2, t1)},
        predictions=False)


def check_mirror():
    check_loss(M.mirror, of_mirror, {
        "this is SimSiam's loss: in `mirror` f learns on the path without predictor": of_simsiam,
        "p is detached, so that h learns nothing: detach z before h instead":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(z1, linear(V, t2), z2, linear(V, t1)),
        "there is no stop-gradient: z has to be detached before it enters h":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(z1, linear(W, z2), z2, linear(W, z1)),
        ONE: lambda z1, z2, t1, t2, W, V, U, Q: distance(z1, linear(W, t2)),
        "z1 is detached too, so that f learns nothing":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(t1, linear(W, t2), t2, linear(W, t1))})


def check_symmetric():
    check_loss(M.symmetric, of_symmetric, {
        "the target has no predictor: that is SimSiam's loss": of_simsiam,
        ONE: lambda z1, z2, t1, t2, W, V, U, Q: distance(linear(W, z1), linear(V, t2)),
        f"{ONE} (p2 learns from p1)":
            lambda z1, z2, t1, t2, W, V, U, Q: distance(linear(V, t1), linear(W, z2)),
        "there is no stop-gradient: the target p has to be detached":
            lambda z1, z2, t1, t2, W, V, U, Q: distance(linear(W, z1), linear(W, z2)),
        "z is detached, but not p, so that the path of the target trains h":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(linear(W, z1), linear(W, t2), linear(W, z2), linear(W, t1))})


def check_inverse():
    def parts(z1, z2, t1, t2, W, V, U, Q):
        """-> {a mistake, in words: a function that adds the three terms with this mistake}"""
        p1, p2, q1, q2 = linear(W, z1), linear(W, z2), linear(V, t1), linear(V, t2)
        target1, target2 = linear(Q, q1), linear(Q, q2)
        h = both(linear(W, t1), t2, linear(W, t2), t1)
        h_inv = both(linear(U, q1), t1, linear(U, q2), t2)
        last = both(p1, target2, p2, target1)
        return {
            "the term that trains h alone is missing: D(h(sg z1), sg z2)": lambda: h_inv + last,
            "the term that trains h_inv is missing: D(h_inv(sg p1), sg z1)": lambda: h + last,
            "the last term is missing: D(p1, sg h_inv(p2))": lambda: h + h_inv,
            "the last term has no stop-gradient on its target h_inv(p)":
                lambda: h + h_inv + both(p1, linear(U, p2), p2, linear(U, p1)),
            "the target of the last term is detached before h_inv, not after it":
                lambda: h + h_inv + both(p1, linear(U, q2), p2, linear(U, q1)),
            "the target of the last term is p2, without h_inv":
                lambda: h + h_inv + both(p1, q2, p2, q1),
            "the last term compares p1 with h_inv(p1), but the target is of the other view":
                lambda: h + h_inv + both(p1, target1, p2, target2),
            f"in the last term {ONE}": lambda: h + h_inv + distance(p1, target2),
            "z is detached in the last term too, so that f learns nothing":
                lambda: h + h_inv + both(linear(W, t1), target2, linear(W, t2), target1),
            "the last term has z1 where p1 belongs":
                lambda: h + h_inv + both(z1, target2, z2, target1),
            "p is not detached before h_inv in the term that trains h_inv":
                lambda: h + last + both(linear(U, p1), t1, linear(U, p2), t2),
            "the target z is not detached in the term that trains h":
                lambda: h_inv + last + both(linear(W, t1), z2, linear(W, t2), z1),
            "z is not detached before h in the term that trains h":
                lambda: h_inv + last + both(p1, t2, p2, t1),
            "the term that trains h_inv compares h_inv(p1) with z2, but it should find z1 again":
                lambda: h + last + both(linear(U, q1), t2, linear(U, q2), t1),
            "the three terms are averaged, but they have to be added":
                lambda: (h + h_inv + last) / 3}

    words = parts(*[[[1.0, 2.0, 3.0, 4.0]]] * 4, *[torch.eye(4).tolist()] * 4)
    check_loss(M.inverse, of_inverse, {
        said: lambda *x, said=said: parts(*x)[said]() for said in words})


def check_bias():
    check_loss(M.bias, of_normalised, {
        "the input of h is not normalised: divide each row of z by its length": of_simsiam,
        ONE: lambda z1, z2, t1, t2, W, V, U, Q: distance(linear(W, unit(z1)), t2),
        "the input of h is normalised over the wrong axis: a row is an image":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(linear(W, columns_unit(z1)), t2, linear(W, columns_unit(z2)), t1),
        "the input of h is detached, so that f learns nothing":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(linear(W, unit(t1)), t2, linear(W, unit(t2)), t1),
        "there is no stop-gradient: the targets z1 and z2 have to be detached":
            lambda z1, z2, t1, t2, W, V, U, Q:
                both(linear(W, unit(z1)), z2, linear(W, unit(z2)), z1)})


def metrics(z, root=True, normalise=True, diagonal=False, logarithm=True, less=1, over=True,
            mean_of_roots=True, length=True, shares=True):
    """What collapse_metrics should return, in loops.  Each switch makes one mistake."""
    Z = unit(z.tolist()) if normalise else z.tolist()
    n, d = len(Z), len(Z[0])
    o = [sum(row[k] for row in Z) / n for k in range(d)]
    R = [[x - m for x, m in zip(row, o)] for row in Z]
    cov = [[sum(row[i] * row[j] for row in R) / (n - less) for j in range(d)] for i in range(d)]
    s = torch.linalg.eigvals(torch.tensor(cov, dtype=torch.double)).real.clamp(min=1e-300).tolist()
    share = [x / (sum(s) if shares else 1) for x in s]
    std = sum(math.sqrt(cov[k][k]) for k in range(d)) / d
    std = std if mean_of_roots else math.sqrt(sum(cov[k][k] for k in range(d)) / d)
    m_o = math.sqrt(sum(x * x for x in o))
    return {"std": std * (math.sqrt(d) if root else 1), "m_o": m_o if length else m_o**2,
            "m_r": sum(math.sqrt(sum(x * x for x in row)) for row in R) / n,
            "effective_rank": math.exp(-sum(x * math.log(x) for x in share))
            if logarithm else -sum(x * math.log(x) for x in share),
            "covariance": sum(cov[i][j] ** 2 for i in range(d) for j in range(d)
                              if i != j or diagonal) / (d if over else 1)}


def check_collapse_metrics():
    z = torch.randn(40, 6, dtype=torch.double) @ torch.randn(6, 6, dtype=torch.double) + 0.5
    before = z.clone()
    found = common.collapse_metrics(z)
    if not torch.equal(z, before):
        raise checking.Wrong("z itself has changed: write into a new tensor")
    wrongs = {"the rows are not l2-normalised first": metrics(z, normalise=False),
              "the factor sqrt(D) is missing": metrics(z, root=False),
              "the diagonal is in the sum, but it should not be": metrics(z, diagonal=True),
              "the exp of the entropy is missing": metrics(z, logarithm=False),
              "it is divided by B, but it should be by B - 1": metrics(z, less=0),
              "it is not divided by D": metrics(z, over=False),
              "this is the root of the mean variance. Take the mean of the roots":
                  metrics(z, mean_of_roots=False),
              "the length is squared, but it should not be": metrics(z, length=False),
              "the eigenvalues are not divided by their sum": metrics(z, shares=False),
              "it is taken over the wrong axis. A row is an image": metrics(z.T)}
    few_z = torch.randn(5, 8, dtype=torch.double)
    few = common.collapse_metrics(few_z)
    for name, value in metrics(z).items():
        if name not in found:
            raise checking.Wrong(f"there is no {name!r} in what is returned")
        if not isinstance(found[name], float):
            raise checking.Wrong(f"{name} is no float: .item() turns a tensor into one")
        if not math.isfinite(few[name]):
            raise checking.Wrong(f"{name} is {few[name]} for 5 images in 8 dimensions: an "
                                 f"eigenvalue of 0, or just below 0, adds 0 to the entropy")
        wrong = {words: values[name] for words, values in wrongs.items()}
        compare(found[name], value, wrong, what=name, tolerance=1e-4)
    for name, value in metrics(few_z).items():
        compare(few[name], value, what=f"{name} of 5 images in 8 dimensions", tolerance=1e-4)


CHECKS = {"mirror_ablations.D": check_D, "mirror_ablations.simsiam": check_simsiam,
          "mirror_ablations.no_stopgrad": check_no_stopgrad, "mirror_ablations.naive": check_naive,
          "mirror_ablations.mirror": check_mirror, "mirror_ablations.symmetric": check_symmetric,
          "mirror_ablations.inverse": check_inverse, "mirror_ablations.bias": check_bias,
          "common.collapse_metrics": check_collapse_metrics}

if __name__ == "__main__":
    checking.main(CHECKS)

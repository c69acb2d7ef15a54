"""Check the functions of this sheet: a line for each says that it is right, or what differs.

    python check.py             takes a few seconds
    python check.py --grade     prints points as JSON
"""
import math
from unittest import mock

import torch

import checking
import gradient_components as G
from checking import Wrong, compare, gradients, same, slope

TAU = 0.5
KINDS = ("simsiam", "triplet", "infonce")

# ------------------------------------------------------------------------ the definitions, in loops
# Rows are lists: Z[i] is the row of image i, and Z[i][k] is its coordinate k.


def tensor(x):
    return torch.tensor(x, dtype=torch.double)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def unit(z):
    return [[x / math.sqrt(dot(row, row)) for x in row] for row in z]


def transposed(z):
    return [list(column) for column in zip(*z)]


def times(factor, z):
    return [[factor * x for x in row] for row in z]


def minus(a, b):
    return [[x - y for x, y in zip(*rows)] for rows in zip(a, b)]


def plus(a, b):
    return minus(a, times(-1, b))


def centre(z):
    """The mean of the rows.  z: a list of rows"""
    return [sum(column) / len(z) for column in zip(*z)]


def next_rows(z, by=1):
    """Rows moved on: row i is what was row i - by."""
    return [z[(i - by) % len(z)] for i in range(len(z))]


def weights(Za, Zb, tau, itself=True):
    """The lambda of InfoNCE: row i says how much each Z_b counts for image i, and sums to 1."""
    table = []
    for i, a in enumerate(Za):
        row = [math.exp(dot(a, b) / tau) for b in Zb]
        if not itself:
            row[i] = 0.0
        table.append([x / sum(row) for x in row])
    return table


def mixed(table, Z):
    """Weighted sums of the rows of Z: row i is the sum over j of table[i][j] Z[j]."""
    return [[dot(row, column) for column in zip(*Z)] for row in table]


def definition(kind, v, tau):
    """What components should return, from the Letters v, of lists.

    -> basic, G_e, and o_e in every row"""
    n = len(v.Za)
    if kind == "simsiam":
        return v.Pb, minus(v.Zb, v.Pb), minus([v.o_z] * n, [v.o_p] * n)
    if kind == "triplet":
        return v.Zb, times(-1, next_rows(v.Zb)), times(-1, [v.o_z] * n)
    pushed = mixed(weights(v.Za, v.Zb, tau), v.Zb)
    return times(1 / tau, v.Zb), times(-1 / tau, pushed), times(-1 / tau, [v.o_z] * n)


def some_letters():
    """Random Letters, of lists: 5 images, 3 coordinates, with a centre that is not 0."""
    za, zb, pa, pb = (torch.randn(4, 5, 3, dtype=torch.double) + 0.5).tolist()
    Za, Zb, Pa, Pb = (unit(x) for x in (za, zb, pa, pb))
    return G.Letters(za, Za, Zb, Pa, Pb, centre(Za + Zb), centre(Pa + Pb))


# ------------------------------------------------------------------------------------- the checks

def check_letters():
    """The inputs are bfloat16, as on a GPU, so that float32 in the wrong place shows."""
    inputs = [(x + 0.5).bfloat16().requires_grad_() for x in torch.randn(4, 5, 3)]
    found = G.letters(*inputs)
    if found is None:
        raise Wrong("nothing is returned")
    if len(found) != 2 or not all(isinstance(v, G.Letters) for v in found):
        raise Wrong("two Letters have to be returned: with view 1 as a, then with view 2 as a")
    z1, z2, p1, p2 = (x.detach().double().tolist() for x in inputs)
    for which, v, (a, b, pa, pb) in zip(("first", "second"), found,
                                        ((z1, z2, p1, p2), (z2, z1, p2, p1))):
        small = {"it is divided by its length, but the small z is the output as it is": unit(a),
                 "this is the other view's z": b}
        check_member(v, "za", a, small, which)
        for name, rows, other in (("Za", a, b), ("Zb", b, a), ("Pa", pa, pb), ("Pb", pb, pa)):
            check_member(v, name, unit(rows), {
                "the rows are not divided by their length": rows,
                "it is divided by the length of its columns. A row is an image":
                    transposed(unit(transposed(rows))),
                "a and b are exchanged. This is the other view": unit(other)}, which)
        for name, first, second in (("o_z", a, b), ("o_p", pa, pb)):
            both = unit(first) + unit(second)
            total = [sum(column) for column in zip(*both)]
            check_member(v, name, centre(both), {
                "this is the mean of one view alone. Take that of both": centre(unit(first)),
                "this is the mean of view b alone. Take that of both":
                    centre(unit(second)),
                "this is the mean of rows that are not divided by their length":
                    centre(first + second),
                "the mean goes over the wrong axis. A centre has an entry for each coordinate":
                    centre(transposed(both)),
                "this is the sum. Take the mean": total,
                "the centre itself is divided by its length": unit([total])[0]}, which)
        for name, member in zip(v._fields, v):
            if not member.requires_grad:
                raise Wrong(f"{name} of the {which} Letters is detached: leave that to the losses")


def check_member(v, name, expected, mistakes, which):
    what, member = f"{name} of the {which} Letters", getattr(v, name)
    if member.dtype != torch.float32:
        raise Wrong(f"{what} is {member.dtype}: turn all inputs into float32 first")
    if not same(member, expected, 1e-5) and same(member, expected, 2e-2):
        raise Wrong(f"{what} is right, but rounded: turn the inputs into float32 before you divide")
    compare(member, tensor(expected), {words: tensor(x) for words, x in mistakes.items()}, what)


def check_components():
    v, n = some_letters(), 5
    live = G.Letters(*(tensor(x) for x in v))
    for kind in KINDS:
        basic, extra, o_e = definition(kind, v, TAU)
        r_e = minus(extra, o_e)
        found = G.components(kind, live, TAU)
        if found is None:
            raise Wrong(f"{kind}: nothing is returned")
        if len(found) != 3:
            raise Wrong(f"{kind}: three things have to be returned: basic, o_e and r_e")
        mean = [centre(extra)] * n
        of_mean = ("this is the mean of G_e with its weights: o_e is -o_z / tau, as if all lambda "
                   "were equal" if kind == "infonce" else "this is the mean of G_e over view b "
                   "alone: take the centres of both views")
        wrong = {
            "basic": {},
            "o_e": {"this is r_e. The order is basic, o_e, r_e": r_e,
                    "it is right, but it has to stand in every row, [B, D]": o_e[0],
                    "the sign is wrong": times(-1, o_e),
                    of_mean: mean},
            "r_e": {"this is all of G_e. Take o_e away": extra,
                    "this is o_e. The order is basic, o_e, r_e": o_e,
                    "the sign is wrong": times(-1, r_e),
                    "o_e is added to G_e. Take it away": plus(extra, o_e)}}
        for part, words, value in more_mistakes(kind, v, basic, extra, o_e):
            wrong[part][words] = value
        for part, value, expected in zip(wrong, found, (basic, o_e, r_e)):
            mistakes = {words: tensor(x) for words, x in wrong[part].items()}
            compare(value, tensor(expected), mistakes, f"{kind}: {part}")
    basic, extra, o_e = definition("infonce", v, 0.8)
    for part, value, expected in zip(wrong, G.components("infonce", live, 0.8),
                                     (basic, o_e, minus(extra, o_e))):
        compare(value, tensor(expected), what=f"infonce at tau = 0.8, not {TAU}: {part}")


def more_mistakes(kind, v, basic, extra, o_e):
    """-> a list of (part, mistake in words, the value that it gives)"""
    n = len(basic)
    if kind == "simsiam":
        return [("basic", "this is Z_b, which is basic and extra part together. Take P_b", v.Zb),
                ("basic", "this is P_a, which learns. The target is of the other view", v.Pa),
                ("o_e", "this is the centre of Z. Take that of G_e = Z_b - P_b", [v.o_z] * n),
                ("o_e", "this is minus the centre of P. Take that of G_e = Z_b - P_b",
                 times(-1, [v.o_p] * n)),
                ("r_e", "G_e is all of Z_b here, but it should be Z_b - P_b",
                 minus(v.Zb, o_e))]
    if kind == "triplet":
        numbers = sum(v.Zb, [])
        numbers = numbers[-1:] + numbers[:-1]
        rolled = [numbers[3 * i:3 * i + 3] for i in range(n)]
        G_e = {"the negative is the row after. Take the row before (see SHEET.md)":
               next_rows(v.Zb, -1),
               "the negative is the image itself. Take the row of another image": v.Zb,
               "the coordinates are rolled, which is the wrong axis: roll the rows":
               [row[-1:] + row[:-1] for row in v.Zb],
               "without its axis roll goes over all numbers. Give it the axis of the rows": rolled,
               "the negative is a row of Z_a. Take it from Z_b": next_rows(v.Za)}
        G_e = {words: times(-1, value) for words, value in G_e.items()}
        G_e["the sign of the negative is wrong. It is pushed away"] = times(-1, extra)
        wrong = [("r_e", words, minus(value, o_e)) for words, value in G_e.items()]
        return wrong + [("basic", "the negative is in it. It belongs to G_e", plus(basic, extra)),
                        ("basic", "this is Z_a, but the target is of the other view", v.Za)]
    columns = transposed(weights(v.Zb, v.Za, TAU))
    tables = {"the positive is missing from the sum. The Z_i are all rows of Z_b":
              weights(v.Za, v.Zb, TAU, itself=False),
              "the softmax goes over the wrong axis. The weights for one Z_a sum to 1": columns,
              "the weights are transposed": transposed(columns),
              "the softmax has no temperature. Take that of Z_a . Z_i / tau":
              weights(v.Za, v.Zb, 1.0),
              "the weights are of Z_b with Z_b, but it is Z_a that learns":
              weights(v.Zb, v.Zb, TAU),
              "all weights are equal, but they should be a softmax": [[1 / n] * n] * n}
    G_e = {words: times(-1 / TAU, mixed(table, v.Zb)) for words, table in tables.items()}
    G_e["the negatives are rows of Z_a. Take those of Z_b"] = times(
        -1 / TAU, mixed(weights(v.Za, v.Za, TAU), v.Za))
    G_e["the weights are right, but they weigh rows of Z_a. Take those of Z_b"] = times(
        -1 / TAU, mixed(weights(v.Za, v.Zb, TAU), v.Za))
    G_e["1 / tau is missing before the weighted mean"] = times(TAU, extra)
    wrong = [("r_e", words, minus(value, o_e)) for words, value in G_e.items()]
    return wrong + [("basic", "1 / tau is missing", v.Zb),
                    ("o_e", "1 / tau is missing", times(TAU, o_e)),
                    ("o_e", "this has the mean of Z_b alone: o_z is the centre of both views",
                     times(-1 / TAU, [centre(v.Zb)] * n))]


def check_surrogate():
    for kind in KINDS:
        for without in ("none", "o_e", "r_e", "both"):
            check_one_surrogate(kind, without)


def check_one_surrogate(kind, without):
    """Check surrogate with our components, so that a mistake in yours is not counted twice."""
    what, v, n = f'{kind}, without="{without}"', some_letters(), 5
    basic, extra, o_e = definition(kind, v, TAU)
    r_e = minus(extra, o_e)
    live = G.Letters(*(tensor(x).requires_grad_() for x in v))
    ours = [tensor(x).requires_grad_() for x in (basic, o_e, r_e)]
    given = [x.clone() for x in ours]                      # a student may change them in place

    def components(*asked, **named):
        if [*asked, *named.values()] != [kind, live, TAU]:
            raise Wrong(f"{what}: components(kind, v, tau) is called with other arguments")
        return tuple(given)
    # __globals__ is where surrogate looks names up: in gradient_components.py, or in a notebook.
    with mock.patch.dict(G.surrogate.__globals__, components=components):
        loss = G.surrogate(kind, live, TAU, without)
    if loss is None:
        raise Wrong(f"{what}: nothing is returned")
    if not torch.is_tensor(loss):
        raise Wrong(f"{what}: a plain number has no gradient: return a tensor")
    if loss.dim():
        raise Wrong(f"{what}: it has the shape {list(loss.shape)}, but a loss is one number: take "
                    "the mean over the rows")
    if not all(same(x.detach(), y.detach(), 1e-12) for x, y in zip(given, ours)):
        raise Wrong(f"{what}: += changes basic itself, and so the letters: write t = t + ...")
    name, other = ("Pa", "Za") if kind == "simsiam" else ("Za", "Pa")
    if not loss.requires_grad:
        raise Wrong(f"{what}: nothing gets a gradient: put the stop-gradient on t alone")
    at_X, = torch.autograd.grad(loss, getattr(live, name), retain_graph=True, allow_unused=True)
    slopes = gradients(loss, *live, *ours)
    found, through_t = dict(zip(v._fields, slopes)), any(g.any() for g in slopes[len(v):])
    if at_X is not None and not at_X.any():
        raise Wrong(f"{what}: t is 0: basic is never left out")
    if not found[name].any() and found[other].any():
        raise Wrong(f"{what}: the gradient has to act on {name}, not on {other}")
    if not found[name].any():
        raise Wrong(f"{what}: {name} gets no gradient: the stop-gradient belongs to t")
    if through_t or any(g.any() for key, g in found.items() if key != name):
        raise Wrong(f"{what}: there is no stop-gradient on t: a gradient flows through the target")

    kept = {"none": plus(basic, extra), "r_e": plus(basic, o_e), "o_e": plus(basic, r_e),
            "both": basic}
    X, t = getattr(v, name), kept[without]
    mistakes = {"the sign is wrong. The loss is minus X . t": times(-1, t),
                "this is the sum over the rows. Take the mean": times(n, t),
                "this is the mean over all entries. Sum over the coordinates, then take the "
                "mean over the rows": times(1 / 3, t),
                "basic is missing, but it is never left out": minus(t, basic)}
    cosine = [[(y - dot(x, row) * z) / math.sqrt(dot(row, row)) for y, z in zip(row, x)]
              for x, row in zip(X, t)]
    mistakes["this is a cosine. Take the plain product, without dividing by lengths"] = cosine
    if without in ("o_e", "r_e"):
        mistakes[f"the other part is left out, but {without} has to be"] = kept[
            "r_e" if without == "o_e" else "o_e"]
        mistakes["`without` changes nothing. Both parts are still there"] = kept["none"]
        mistakes[f"both parts are left out, but only {without} has to be"] = basic
    elif without == "both":
        mistakes["both o_e and r_e have to be left out, but both are still there"] = kept["none"]
        mistakes["both o_e and r_e have to be left out, but o_e is still there"] = kept["r_e"]
        mistakes["both o_e and r_e have to be left out, but r_e is still there"] = kept["o_e"]
    else:
        mistakes["both parts are left out, but with `none` nothing is"] = basic
    compare(-n * found[name], tensor(t), {words: tensor(x) for words, x in mistakes.items()},
            f"{what}: t (minus the gradient on {name}, times B)")
    compare(loss.detach(), -sum(map(dot, X, t)) / n, what=f"{what}: the value")


def decorrelation(z, centred=True, less=1, diagonal=False, power=2, over=None, correlation=False):
    """What decorrelation_loss should return, in loops.  Each switch makes one mistake."""
    mean, n, d = centre(z), len(z), len(z[0])
    r = [[x - m for x, m in zip(row, mean)] for row in z] if centred else z
    cov = [[dot(a, b) / (n - less) for b in zip(*r)] for a in zip(*r)]
    if correlation:
        cov = [[cov[i][j] / math.sqrt(cov[i][i] * cov[j][j]) for j in range(d)] for i in range(d)]
    pairs = [(i, j) for i in range(d) for j in range(d) if i != j or diagonal]
    return sum(abs(cov[i][j]) ** power for i, j in pairs) / (over or d)


def check_decorrelation_loss():
    z = torch.randn(7, 4, dtype=torch.double) @ torch.randn(4, 4, dtype=torch.double) + 0.8
    z = z.requires_grad_()
    rows = z.tolist()
    found = G.decorrelation_loss(z)
    compare(found, decorrelation(rows), {
        "the diagonal, the variances, is in the sum, but it should not be":
            decorrelation(rows, diagonal=True),
        "the mean is not subtracted": decorrelation(rows, centred=False),
        "the covariance is divided by N, but it should be by N - 1": decorrelation(rows, less=0),
        "the covariance is not divided by N - 1": decorrelation(rows, less=6),
        "the sum is not divided by D": decorrelation(rows, over=1),
        "it is divided by the number of pairs, but it should be by D": decorrelation(rows, over=12),
        "it is divided by D * D, but it should be by D": decorrelation(rows, over=16),
        "it is divided by N, but it should be by D": decorrelation(rows, over=7),
        "the covariances are not squared": decorrelation(rows, power=1),
        "each pair counts once, but both (i, j) and (j, i) have to be in the sum":
            decorrelation(rows) / 2,
        "the rows are divided by their length. Take z as it is": decorrelation(unit(rows)),
        "these are correlations. Do not divide by the standard deviations":
            decorrelation(rows, correlation=True),
        "it goes over the wrong axis. A row is an image, and the covariance is [D, D]":
            decorrelation(transposed(rows))})
    if not torch.is_tensor(found) or not found.requires_grad:
        raise Wrong("the value is right, but no gradient flows: a loss detaches nothing")
    compare(gradients(found, z)[0], slope(lambda x: decorrelation(x.tolist()), z.detach()),
            what="the gradient")


def check_eta():
    """Check eta for an o_e that is 0.7 o plus something orthogonal to o."""
    o, across = tensor([2, -1, 2]), tensor([1, 4, 1])
    found = G.eta(0.7 * o + across, o)
    product, length = 0.7 * 9, 3.0
    length_e = math.sqrt(0.49 * 9 + 18)
    compare(found, 0.7, {
        "this is the cosine, but eta is how much of o itself is in o_e":
            product / (length * length_e),
        "it is divided by the length of o, which has to be squared": product / length,
        "it is not divided by the square of the length of o": product,
        "it is divided by o_e . o_e, but it should be by o . o": product / length_e**2,
        "the sign is wrong": -0.7,
        "this is eta times o, but eta is the number": 0.7 * o,
        "this is what is left of o_e, but eta is the number": across})
    if not torch.is_tensor(found):
        raise Wrong("the number is right, but it should be a tensor: .item() makes a GPU wait")
    o_e, o = torch.randn(2, 5, dtype=torch.double)
    compare(G.eta(o_e, o), dot(o_e.tolist(), o.tolist()) / dot(o.tolist(), o.tolist()))


CHECKS = {"gradient_components.letters": check_letters,
          "gradient_components.components": check_components,
          "gradient_components.surrogate": check_surrogate,
          "gradient_components.decorrelation_loss": check_decorrelation_loss,
          "gradient_components.eta": check_eta}

if __name__ == "__main__":
    checking.main(CHECKS)

"""Check the functions of this sheet: a line for each says that it is right, or what differs.

    python check.py             takes a few seconds
    python check.py --grade     prints points as JSON
"""
import math
from types import SimpleNamespace

import torch
from torch import nn

import byol
import checking
import directpred as P
from checking import compare

# ------------------------------------------------------------------------------------- the target

WEIGHTS = ("0.weight", "0.bias", "1.weight", "1.bias")
AVERAGES = ("1.running_mean", "1.running_var")             # BatchNorm's, which are no parameters


def small_net(counter, dtype):
    """A layer and a BatchNorm, with random numbers everywhere except in the counter."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype)
    for tensor in net.state_dict().values():
        if tensor.dtype == dtype:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    net[1].num_batches_tracked.fill_(counter)
    return net


def values(net):
    """-> copies of the net's weights and averages, in the order of the names above"""
    state = net.state_dict()
    return [state[name].clone() for name in (*WEIGHTS, *AVERAGES)]


def mix(a, b, old, new):
    """What a old + b new is, number by number.  -> a list of tensors"""
    mixed = []
    for x, y in zip(old, new):
        numbers = [a * u + b * v for u, v in zip(x.flatten().tolist(), y.flatten().tolist())]
        mixed.append(torch.tensor(numbers, dtype=torch.double).view_as(x))
    return mixed


def check_target(net_class):
    """Check with two values of m, in float64 and in float32, in which nets train."""
    for m, dtype in ((0.9, torch.double), (0.6, torch.float)):
        check_one_target(net_class, m, dtype)


def check_one_target(net_class, m, dtype):
    # The target's counter, 7, is the larger one.  An average of 7 and 3 would be cut off to 6.
    fake = SimpleNamespace(encoder=small_net(3, dtype),
                           target=small_net(7, dtype).requires_grad_(False))
    new, old = values(fake.encoder), values(fake.target)
    net_class.update_target(fake, m)
    if not checking.same(values(fake.encoder), new, 1e-12):
        raise checking.Wrong("the net f itself has changed, but only the target f' moves")
    right, n = mix(m, 1 - m, old, new), len(WEIGHTS)
    compare(values(fake.target), right, {
        "nothing has changed. Change the target's tensors in place (copy_, lerp_, ...)":
            old,
        "m and 1 - m are exchanged: f' keeps the share m of itself": mix(1 - m, m, old, new),
        "it is a copy of f: m is not used": new,
        "the old target is not multiplied by m": mix(1, 1 - m, old, new),
        "the factor 1 - m of f is missing": mix(m, 1, old, new),
        "BatchNorm's running averages are not averaged: parameters() does not have them":
            right[:n] + old[n:],
        "BatchNorm's running averages are copied. Average them like the weights":
            right[:n] + new[n:]}, what="the target")
    if fake.target[1].num_batches_tracked != 7:
        raise checking.Wrong("the integer counter of BatchNorm has changed: leave it out")


def check_byol_target():
    check_target(byol.BYOL)


def check_directpred_target():
    check_target(P.DirectPred)


# ------------------------------------------------------------------------------------- F and C

def mean_product(a, b):
    """E[a b^T], the mean over the rows of the lists a and b, entry by entry.  -> [D, D]"""
    d = range(len(a[0]))
    return torch.tensor([[sum(x[i] * y[j] for x, y in zip(a, b)) / len(a) for j in d] for i in d],
                        dtype=torch.double)


def centred(rows):
    means = [sum(column) / len(rows) for column in zip(*rows)]
    return [[x - m for x, m in zip(row, means)] for row in rows]


def unit(rows):
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


STILL_ZERO = ("it is still zero: nothing is written there, or the new batch has the weight 0 (the "
              "first has the weight 1; are rho and 1 - rho exchanged?)")


def check_update_correlations(rho=0.7):
    fake = SimpleNamespace(correlations=torch.zeros(2, 3, 3), started=torch.zeros(()),
                           args=SimpleNamespace(rho=rho, proj_dim=3, center=False))
    # each batch: z1, z2, t1, t2
    first, second, third = torch.rand(3, 4, 5, 3) + torch.tensor([0.2, -0.9, 0.4])
    P.DirectPred.update_correlations(fake, *first.clone())
    z1, z2, t1, t2 = first.tolist()
    z, t, n = z1 + z2, t2 + t1, len(z1 + z2)               # the rows of both views
    scaled = {"this is the sum over the rows. Take the mean": n,
              "it is divided by B, but both views together have 2 B rows": 2,
              "it is mixed with the zeros of the start, but the first batch counts alone": 1 - rho,
              "rho and 1 - rho are exchanged, and the first batch is mixed with zeros": rho}
    F, C = mean_product(z, z), mean_product(t, z)
    compare(fake.correlations[0], F, {words: k * F for words, k in scaled.items()} | {
        "the mean is subtracted, but F is not centred": mean_product(centred(z), centred(z)),
        "this is of one view alone. Take the rows of both": mean_product(z1, z1),
        "this is the product of one view with the other. Take each with itself":
            (mean_product(z1, z2) + mean_product(z2, z1)) / 2,
        "z is divided by its length, but F takes z as it is": mean_product(unit(z), unit(z)),
        "this is of the target's t, but F is E[z z^T]": mean_product(t, t),
        "this is C: F comes first in correlations": C,
        STILL_ZERO: torch.zeros(3, 3)}, what="F after the first batch")
    own = mean_product(t1 + t2, z)
    compare(fake.correlations[1], C, {words: k * C for words, k in scaled.items()} | {
        "t1 is paired with z1, but t has to be of the other view": own,
        "it is transposed: C is E[t z^T], not E[z t^T]": C.T,
        "it is transposed, and t1 is paired with z1": own.T,
        "the mean is subtracted, but C is not centred": mean_product(centred(t), centred(z)),
        "only one direction is there: t2 goes with z1, and t1 with z2": mean_product(t2, z1),
        "this is of z alone. The target's t is missing": mean_product(z2 + z1, z),
        STILL_ZERO: torch.zeros(3, 3)}, what="C after the first batch")
    if not torch.is_tensor(fake.started):
        raise checking.Wrong("started is a buffer and has to stay a tensor: use started.fill_(1)")

    for count, batch in (("second", second), ("third", third)):
        F, C = fake.correlations.clone()
        P.DirectPred.update_correlations(fake, *batch.clone())
        z1, z2, t1, t2 = batch.tolist()
        z, t = z1 + z2, t2 + t1
        for what, old, now, found in (("F", F, mean_product(z, z), fake.correlations[0]),
                                      ("C", C, mean_product(t, z), fake.correlations[1])):
            compare(found, rho * old + (1 - rho) * now, {
                "rho and 1 - rho are exchanged: rho is how much of the old value stays":
                    (1 - rho) * old + rho * now,
                f"this is the {count} batch alone. Set started to 1 after the first": now,
                "nothing has changed. The new batch is not in it": old,
                "the old value is not multiplied by rho": old + (1 - rho) * now,
                "the factor 1 - rho of the new batch is missing": rho * old + now,
                "started is 2 by now, but it should stay 1 from the first batch on":
                    2 * rho * old + (1 - 2 * rho) * now}, what=f"{what} after the {count} batch")
    check_half_precision(fake.args, first.bfloat16())


def check_half_precision(args, batch):
    """Check that F and C of numbers in bfloat16 are those of the same numbers in float32."""
    fake = SimpleNamespace(correlations=torch.zeros(2, 3, 3), started=torch.zeros(()), args=args)
    z1, z2, t1, t2 = batch.tolist()
    try:
        P.DirectPred.update_correlations(fake, *batch.clone())
        right = checking.same(fake.correlations, torch.stack([mean_product(z1 + z2, z1 + z2),
                                                    mean_product(t2 + t1, z1 + z2)]), 1e-5)
    except Exception:
        right = False
    if not right:
        raise checking.Wrong("it is right for float32, but not for z and t in bfloat16, as on a "
                             "GPU: turn them into float32 before the product (.float())")


# --------------------------------------------------------------------------------- the predictors

FULL = (0.9, 2.5, 0.1, 0.4)                                # eigenvalues of F, not sorted
ROUNDING = (0.9, 2.5, -1e-12, 0.4)                         # -1e-12 is a zero after rounding


class Case:
    """F = sum over j of s_j u_j u_j^T, where s and u are known and need not be computed."""

    def __init__(self, s):
        self.s = s
        self.u = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double))[0].T.tolist()
        self.F = self.matrix(s)

    def matrix(self, p):
        """The sum over j of p_j u_j u_j^T, entry by entry."""
        d = range(len(p))
        return torch.tensor([[sum(p[k] * self.u[k][i] * self.u[k][j] for k in d) for j in d]
                             for i in d], dtype=torch.double)

    def weight(self, a, eps, norm=max, of_power=True):
        """F^a / norm + eps I.  norm: a function of the powers s^a, or of s itself"""
        s = [max(x, 0) for x in self.s]
        power = [x**a for x in s]
        size = norm(power) if of_power else norm(s)
        return self.matrix([x / size + eps for x in power])


def no_norm(p):
    return 1


def frobenius(p):
    return math.sqrt(sum(x * x for x in p))


def check_finite(W):
    if W is not None and not W.isfinite().all():
        raise checking.Wrong("it has nan or inf: by rounding an eigenvalue is -1e-12, which "
                             "should be 0; take 0 for it before the power")


def wrong_weights(case, a, eps):
    """Mistakes in F^a / ||F^a|| + eps I.  -> {mistake in words: the value that it gives}"""
    s, top, plain = case.s, max(case.s), case.weight(a, 0)
    ascending, U = torch.linalg.eigh(case.F)
    p = (ascending / top) ** a + eps
    wrong = {
        "F^alpha is not divided by its norm. The largest eigenvalue has to become 1":
            case.weight(a, eps, no_norm),
        "the norm is that of Frobenius. The spectral norm is the largest eigenvalue":
            case.weight(a, eps, frobenius),
        "it is divided by the trace. The spectral norm is the largest eigenvalue":
            case.weight(a, eps, sum),
        "eps I is missing": plain,
        "eps is added to every entry, but it belongs to the diagonal": plain + eps,
        "eps is added before the power. Add it to p, after the power":
            case.matrix([(x / top + eps) ** a for x in s]),
        "eps is multiplied by the largest s. Divide by the norm first, then add eps":
            case.weight(a, eps * top, no_norm),
        "eps is divided by the norm too": case.matrix([(x**a + eps) / top**a for x in s]),
        "eps is added before the norm. Divide by the largest first, then add eps":
            case.matrix([(x**a + eps) / (top**a + eps) for x in s]),
        "there is a second norm after eps is added, but the largest p should be 1 + eps":
            case.matrix([((x / top) ** a + eps) / (1 + eps) for x in s]),
        "it is divided by the smallest eigenvalue: eigh sorts from small to large":
            case.weight(a, eps, min),
        "U is transposed. Its columns are the eigenvectors, so take U diag(p) U^T": U.T * p @ U,
        "eigenvalues and eigenvectors are in different orders": U * p.flip(0) @ U.T}
    if a != 1:
        wrong |= {
            "the exponent is missing": case.weight(1, eps),
            "the norm is that of F, but it has to be that of F^alpha":
                case.weight(a, eps, of_power=False)}
    return wrong


def check_directset_weight(eps=0.3):
    for a in (3, 0.7):
        case = Case(FULL)
        wrong = wrong_weights(case, a, eps) | {
            "the exponent is always 1/2, but it should be alpha": case.weight(0.5, eps),
            "the exponent is 1 / alpha, but it should be alpha":
                case.weight(1 / a, eps)}
        if a == 3:
            entries = case.F**3
            wrong |= {"the power is taken entry by entry, but F^3 is F F F":
                      entries / torch.linalg.norm(entries, 2) + eps * torch.eye(4)}
        compare(P.directset_weight(case.F, a, eps), case.weight(a, eps), wrong,
                what=f"W_p for alpha = {a}")
    case = Case(ROUNDING)
    for a in (0.5, 0.1):
        found = P.directset_weight(case.F, a, eps)
        check_finite(found)
        compare(found, case.weight(a, eps), {
            "a negative eigenvalue comes from rounding. Take 0, not the absolute value":
                case.matrix([(abs(x) / max(case.s)) ** a + eps for x in case.s])},
            what=f"W_p if an eigenvalue of F is 0, for alpha = {a}")


def check_directpred_weight(eps=0.3):
    case = Case(FULL)
    compare(P.directpred_weight(case.F, eps), case.weight(0.5, eps), {
        "the root is missing (if you call directset_weight, correct that first)":
            case.weight(1, eps),
        "there is a square, but it should be the root": case.weight(2, eps),
        "this is sqrt(s_j) + eps max s, as in the paper. Divide s by its largest first":
            case.weight(0.5, eps * max(case.s), no_norm),
        "sqrt(s_j) is divided by max s, but the largest p should be 1 + eps":
            case.weight(0.5, eps, of_power=False)} | wrong_weights(case, 0.5, eps), what="W_p")
    case = Case(ROUNDING)
    found = P.directpred_weight(case.F, eps)
    check_finite(found)
    compare(found, case.weight(0.5, eps), what="W_p if an eigenvalue of F is 0")


def check_directcopy_weight(eps=0.3):
    for scale in (1, 1e-3):
        case = Case([scale * x for x in FULL])
        found = P.directcopy_weight(case.F, eps)
        if found is not None and not found.isfinite().all():
            raise checking.Wrong("it has nan or inf: F^4096 is too large, or all zeros; divide G "
                                 "by its length before each squaring")
        G = case.F / torch.linalg.norm(case.F)
        compare(found, case.weight(1, eps), {
            "it is divided by the largest entry, or G is squared entry by entry and not as G @ G: "
            "the spectral norm is the largest eigenvalue":
                case.F / case.F.max() + eps * torch.eye(4),
            "it is divided by the largest row sum. The spectral norm is the largest eigenvalue":
                case.F / case.F.abs().sum(1).max() + eps * torch.eye(4),
            "F is not divided by its norm, or by about 1 (is that the trace of G alone?): s is "
            "tr(F G) / tr(G)": case.weight(1, eps, no_norm),      # |G| = 1 makes tr(G G) = 1
            "there is a root, but DirectCopy takes F itself": case.weight(0.5, eps),
            "G is squared once. Square it until the largest s alone is left in it":
                case.F / ((case.F * (G @ G)).sum() / (G @ G).trace()) + eps * torch.eye(4)
        } | wrong_weights(case, 1, eps), what="W_p")
        found = P.directcopy_weight(case.F.float(), eps)
        if found is not None and not found.isfinite().all():
            raise checking.Wrong("it has nan or inf in float32, in which nets train: F^4096 is too "
                                 "large, or all zeros; divide G by its length before each squaring")
        compare(found, case.weight(1, eps), what="W_p for an F in float32", tolerance=1e-4)
    case = Case((1, 0.99, 0.5, 0.2))
    compare(P.directcopy_weight(case.F, eps), case.weight(1, eps), tolerance=1e-6,
            what="W_p for eigenvalues 1 and 0.99 (to tell them apart takes 12 squarings, or 4096 "
                 "products with v)")


def least_squares(z, t, ridge):
    """The W with the least mean |W z - t|^2 + ridge |W|^2.  For the second term each row of
    sqrt(ridge) I is one more z, and its t is 0."""
    n, d = z.shape
    rows = torch.cat([z / math.sqrt(n), math.sqrt(ridge) * torch.eye(d, dtype=z.dtype)])
    wanted = torch.cat([t / math.sqrt(n), torch.zeros(d, d, dtype=z.dtype)])
    return torch.linalg.lstsq(rows, wanted).solution.T


def check_optimal_weight():
    for d in (4, 3):
        check_least_squares(d)


def check_least_squares(d):
    z, t = torch.randn(2, 12, d, dtype=torch.double)
    z = z * torch.tensor([2.0, 1.0, 0.5, 0.2])[:d] + 0.3
    F, C = (mean_product(a.tolist(), z.tolist()) for a in (z, t))
    trace = sum(F[k, k].item() for k in range(d))
    ridge = 0.01 * trace / d
    right, R = least_squares(z, t, ridge), F + ridge * torch.eye(d, dtype=torch.double)
    compare(P.optimal_weight(F, C), right, {
        "it is transposed: W_p z should be t, with z as a column": right.T,
        "the inverse is on the wrong side. It should be C F^-1": torch.linalg.solve(R, C),
        "C is transposed, but C = E[t z^T] comes as it should be": torch.linalg.solve(R, C).T,
        "there is no ridge": least_squares(z, t, 0),
        "the ridge is 0.01, but it should be a hundredth of the mean s, of trace(F) / D":
            least_squares(z, t, 0.01),
        "the ridge is a hundredth of the trace, but the mean s is trace(F) / D":
            least_squares(z, t, 0.01 * trace),
        "the ridge is a hundredth of the trace times D, but the mean s is trace(F) / D":
            least_squares(z, t, 0.01 * trace * d),
        "the ridge is the mean s itself. Take a hundredth of it": least_squares(z, t, trace / d),
        "the ridge is added to every entry of F, but it belongs to the diagonal":
            torch.linalg.solve(F + ridge, C.T).T,
        "the ridge is a hundredth of the largest s. Take the mean s":
            least_squares(z, t, 0.01 * torch.linalg.norm(F, 2).item())},
        what="W_p", tolerance=1e-6)


CHECKS = {"byol.BYOL.update_target": check_byol_target,
          "directpred.DirectPred.update_target": check_directpred_target,
          "directpred.DirectPred.update_correlations": check_update_correlations,
          "directpred.directset_weight": check_directset_weight,
          "directpred.directpred_weight": check_directpred_weight,
          "directpred.directcopy_weight": check_directcopy_weight,
          "directpred.optimal_weight": check_optimal_weight}

if __name__ == "__main__":
    checking.main(CHECKS)

"""Check the functions of this sheet: a line for each says that it is right, or what differs.

    python check.py             takes a few seconds
    python check.py --grade     prints points as JSON
"""
from unittest import mock

import torch

import checking
import directclr as C
import toy_infonce as T
from checking import Wrong, compare, gradients, slope

# ------------------------------------------------------------------------ the definitions, in loops


def unit(z):
    return torch.stack([row / sum(x * x for x in row).sqrt() for row in z])


def one_way(Za, Zb, temperature, negatives="other", positive=True, itself=False, own=None):
    """What one_way should return, in loops; the parameters from `positive` on make mistakes.

    check_info_nce puts it in the place of the student's one_way, so the first four parameters have
    the same names."""
    total, tau = 0, temperature
    for i in range(len(Za)):
        against = [Zb[j] for j in range(len(Zb)) if positive or j != i]
        if negatives == "both":
            more = Za if own is None else own
            against += [more[j] for j in range(len(more)) if itself or j != i]
        denominator = sum((Za[i] @ other / tau).exp() for other in against)
        total = total - ((Za[i] @ Zb[i] / tau).exp() / denominator).log()
    return total / len(Za)


def both_ways(z1, z2, tau, negatives="other", unit=unit):
    Z1, Z2 = unit(z1), unit(z2)
    return sum(one_way(*pair, tau, negatives) / 2 for pair in ((Z1, Z2), (Z2, Z1)))


def covariance(x, centred=True, less=1):
    """The covariance of x [N, D], divided by N - less.  -> [D, D]"""
    n, d = x.shape
    mean = [sum(x[:, k]) / n if centred else 0 for k in range(d)]
    cov = [[sum((x[i, a] - mean[a]) * (x[i, b] - mean[b]) for i in range(n)) / (n - less)
            for b in range(d)] for a in range(d)]
    return torch.tensor(cov, dtype=torch.double)


def eigenvalues(matrix):
    """The eigenvalues of a matrix, the largest first; their sizes if it is not symmetric."""
    return torch.linalg.eigvals(matrix).abs().sort(descending=True).values


def product(A, B):
    """The matrix product A B, in loops."""
    rows = [[sum(a * b for a, b in zip(row, column)) for column in B.T] for row in A]
    return torch.tensor(rows, dtype=torch.double)


def theorem_loss(W, x, x2):
    """The loss that loss_of_theorem computes, in loops."""
    total = 0
    for i in range(len(x)):
        positive = (-(W @ (x[i] - x2[i])).square().sum() / 2).exp()
        others = sum((-(W @ (x[i] - x[j])).square().sum() / 2).exp()
                     for j in range(len(x)) if j != i)
        total = total - (positive / (positive + others)).log()
    return total


def sigmas(W, x, x2, weight=lambda alpha: 1 - alpha, itself=False, negatives=None):
    """Sigma_0 and Sigma_1, in loops; the last three parameters make mistakes."""
    n, d = x.shape
    sigma_0, sigma_1 = torch.zeros(2, d, d, dtype=torch.double)
    for i in range(n):
        to = [x2[i] if j == i else x[j] for j in range(n)]
        e = [(-(W @ (x[i] - y)).square().sum() / 2).exp() for y in to]
        for j in range(n):
            step = x[i] - (to[j] if negatives is None else negatives[j])
            if j != i or itself:
                sigma_0 += e[j] / sum(e) * torch.outer(step, step)
        positive = x[i] - x2[i]
        sigma_1 += weight(e[i] / sum(e)) * torch.outer(positive, positive)
    return sigma_0, sigma_1


# ------------------------------------------------------------------------- the checks of directclr

def check_info_nce():
    """Check info_nce with our one_way in the place of the student's, which may be missing."""
    # __globals__ is where info_nce looks names up: in directclr.py, or in a notebook.
    with mock.patch.dict(C.info_nce.__globals__, one_way=one_way):
        for negatives in ("other", "both"):
            check_both_ways(negatives)


def check_both_ways(negatives):
    z1, z2 = torch.randn(2, 5, 3, dtype=torch.double) + 0.5
    tau, what = 0.4, f'the loss with "{negatives}"'
    Z1, Z2 = unit(z1), unit(z2)
    mistakes = {
        "z1 and z2 are not l2-normalised: one_way should get Z1 and Z2":
            both_ways(z1, z2, tau, negatives, unit=lambda z: z),
        "z1 and z2 are normalised over the wrong axis. A row is an image":
            both_ways(z1, z2, tau, negatives, unit=lambda z: unit(z.T).T),
        "only one direction is there. The one from view 2 to view 1 is missing":
            one_way(Z1, Z2, tau, negatives),
        "only one direction is there. The one from view 1 to view 2 is missing":
            one_way(Z2, Z1, tau, negatives),
        "the two directions are added, not averaged": 2 * both_ways(z1, z2, tau, negatives),
        "the temperature is not used": both_ways(z1, z2, 1, negatives)}
    if negatives == "both":
        mistakes["`negatives` is not passed on to one_way"] = both_ways(z1, z2, tau)
    compare(C.info_nce(z1, z2, tau, negatives), both_ways(z1, z2, tau, negatives), mistakes, what)

    live1, live2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    found = gradients(C.info_nce(live1, live2, tau, negatives), live1, live2)
    first = slope(lambda z: both_ways(z, z2, tau, negatives), z1)
    second = slope(lambda z: both_ways(z1, z, tau, negatives), z2)
    zero = torch.zeros_like(z1)
    compare(found, (first, second), {
        "the other view is detached in each direction, but InfoNCE has no stop-gradient":
            (slope(lambda z: one_way(unit(z), Z2, tau, negatives) / 2, z1),
             slope(lambda z: one_way(unit(z), Z1, tau, negatives) / 2, z2)),
        "z2 is detached, but InfoNCE has no stop-gradient": (first, zero),
        "z1 is detached, but InfoNCE has no stop-gradient": (zero, second)},
        what + ", its gradient")

    half = C.info_nce(z1.bfloat16(), z2.bfloat16(), tau, negatives)
    if half.dtype != torch.float:
        raise Wrong(f"with bfloat16 the loss is {half.dtype}: turn z1 and z2 into float32 first")
    exact = both_ways(z1.bfloat16().double(), z2.bfloat16().double(), tau, negatives)
    if not checking.same(half.detach(), exact, 1e-5):
        raise Wrong("with bfloat16 the loss is rounded: turn z1 and z2 into float32 before you "
                    "divide them by their lengths")
    whole = C.info_nce(z1, z2, tau, negatives)
    if whole.dtype != torch.double:
        raise Wrong("with float64 the loss is float32, but it should stay float64: try "
                    "torch.promote_types(z1.dtype, torch.float)")


def check_one_way():
    Za, Zb = unit(torch.randn(5, 3, dtype=torch.double)), unit(torch.randn(5, 3).double())
    tau = 0.4
    definition = one_way(Za, Zb, tau)
    compare(C.one_way(Za, Zb, tau, "other"), definition, {
        "the positive is missing from the denominator: j is every row there, and also i":
            one_way(Za, Zb, tau, positive=False),
        "the sum goes over the wrong axis. Sum over the rows j of Zb, with Za_i fixed":
            one_way(Zb, Za, tau),
        "the temperature is not used": one_way(Za, Zb, 1),
        "the products are multiplied by the temperature. Divide by it": one_way(Za, Zb, 1 / tau),
        "the sign is wrong. The loss is minus the log": -definition,
        "this is the sum over the images. Take the mean": 5 * definition,
        "the denominator is missing, so that nothing pushes the images apart":
            -sum(Za[i] @ Zb[i] for i in range(5)) / 5 / tau,
        "the cases other and both are exchanged": one_way(Za, Zb, tau, "both")},
        'the loss with "other"')

    definition = one_way(Za, Zb, tau, "both")
    compare(C.one_way(Za, Zb, tau, "both"), definition, {
        "the negatives of the own view are missing from the denominator": one_way(Za, Zb, tau),
        "the diagonal of the own view is included, but an image is no negative of itself":
            one_way(Za, Zb, tau, "both", itself=True),
        "the positive is missing from the denominator":
            one_way(Za, Zb, tau, "both", positive=False),
        "the own view's negatives are rows of Zb, but they should be rows of Za":
            one_way(Za, Zb, tau, "both", own=Zb),
        "the own view's negatives are rows of Zb, and i is one of them":
            one_way(Za, Zb, tau, "both", own=Zb, itself=True),
        "the diagonal of the own view is 0, and e^0 is 1. Put minus infinity there":
            with_own(Za, Zb, tau, Za @ Za.T / tau, diagonal=0),
        "the own view's logits are Zb_i.Zb_j, but they should be Za_i.Za_j":
            with_own(Za, Zb, tau, Zb @ Zb.T / tau),
        "the own view's logits are not divided by the temperature":
            with_own(Za, Zb, tau, Za @ Za.T),
        "this is the sum over the images. Take the mean": 5 * definition}, 'the loss with "both"')

    for negatives in ("other", "both"):
        a, b = Za.clone().requires_grad_(), Zb.clone().requires_grad_()
        found = gradients(C.one_way(a, b, tau, negatives), a, b)
        first = slope(lambda Z: one_way(Z, Zb, tau, negatives), Za)
        second = slope(lambda Z: one_way(Za, Z, tau, negatives), Zb)
        compare(found, (first, second), {
            "Zb is detached, but InfoNCE has no stop-gradient": (first, torch.zeros_like(Zb)),
            "Za is detached, but InfoNCE has no stop-gradient": (torch.zeros_like(Za), second),
            "the own view's negatives are detached, but InfoNCE has no stop-gradient":
                (slope(lambda Z: one_way(Z, Zb, tau, negatives, own=Za), Za), second),
            "Z is divided by its length again. Its rows have the length 1 already":
                (slope(lambda Z: one_way(unit(Z), Zb, tau, negatives), Za),
                 slope(lambda Z: one_way(Za, unit(Z), tau, negatives), Zb))},
            f'the gradient with "{negatives}"')
        found = C.one_way(Za.float(), Zb.float(), 0.005, negatives)         # logits up to 200
        compare(found.double(), one_way(Za, Zb, 0.005, negatives), what=f'the loss with '
                f'"{negatives}" at tau = 0.005, where exp overflows in float32 (use logsumexp)')


def with_own(Za, Zb, tau, own, diagonal=-torch.inf):
    """The loss with "both" for other logits of the own view.  own: [B, B]"""
    total, own = 0, own.clone().fill_diagonal_(diagonal)
    for i in range(len(Za)):
        e = [(Za[i] @ z / tau).exp() for z in Zb] + [logit.exp() for logit in own[i]]
        total = total - (e[i] / sum(e)).log()
    return total / len(Za)


def check_direct():
    r = torch.randn(9, 7, dtype=torch.double)              # a mix-up of rows and columns runs
    first = torch.stack([row[:3] for row in r])
    compare(C.Direct(7, 3, "prefix")(r), first, {
        "these are the last d0 dimensions. Take the first": r[:, -3:],
        "these are rows, that is, images. The dimensions are the columns": r[:3],
        "all of r is returned. Take d0 dimensions": r}, "prefix")

    compare(C.Direct(7, 2, "prefix")(r), first[:, :2], what="prefix, d0 = 2")

    projector = C.Direct(7, 3, "random")
    projector.chosen.copy_(torch.tensor([5, 0, 3]))
    found = projector(r)
    if found is not None and not checking.same(projector(r), found, 1e-9):
        raise Wrong("random: every call takes other dimensions, so they differ for the two views: "
                    "take those that draw has put into `chosen`")
    if projector.chosen.tolist() != [5, 0, 3]:
        raise Wrong("random: forward changes `chosen`, but only draw should do that")
    compare(found, torch.tensor([[row[k] for k in (5, 0, 3)] for row in r.tolist()]), {
        "these are the first d0 dimensions: `chosen` is not used": first,
        "these are rows, that is, images. The dimensions are the columns": r[[5, 0, 3]],
        "these are the dimensions that are not chosen": r[:, [1, 2, 4, 6]]}, "random")

    projector = C.Direct(7, 7, "orthogonal").double()      # square, so that Q^T fits as well
    compare(projector(r), product(r, projector.Q), {
        "Q is transposed. A column of Q is a new dimension": product(r, projector.Q.T),
        "r comes out as it was: Q is not used, or r is rotated back with Q^T": r,
        "the result is transposed. A row is an image": product(r, projector.Q).T},
        "orthogonal, d0 as wide as r")
    projector = C.Direct(7, 3, "orthogonal").double()
    compare(projector(r), product(r, projector.Q), {
        "r is cut to d0 first, but Q should get all of r": product(first, projector.Q[:3])},
        "orthogonal")

    for mode in ("prefix", "random", "orthogonal"):
        live = r.clone().requires_grad_()
        if not gradients(C.Direct(7, 3, mode).double()(live).sum(), live)[0].any():
            raise Wrong(f"{mode}: r gets no gradient, but the backbone below has to learn: "
                        "detach nothing")


def check_spectrum():
    scale = torch.tensor([1, 2, 0.5, 1.5], dtype=torch.double)
    x = torch.randn(12, 4, dtype=torch.double) * scale + 0.7
    Z = unit(x)
    cov = covariance(Z)
    expected, std = eigenvalues(cov), cov.diagonal().sqrt()
    compare(C.spectrum(x), expected, {
        "the rows are not l2-normalised. Divide each by its length": eigenvalues(covariance(x)),
        "the rows are normalised over the wrong axis. A row is an image":
            eigenvalues(covariance(unit(x.T).T)),
        "the mean is not taken out, so that this is no covariance":
            eigenvalues(covariance(Z, centred=False)),
        "the mean is not taken out, and it is divided by N":
            eigenvalues(covariance(Z, centred=False, less=0)),
        "it is divided by N, but it should be by N - 1, as torch.cov does":
            eigenvalues(covariance(Z, less=0)),
        "these are correlations. Do not divide by standard deviations":
            eigenvalues(cov / torch.outer(std, std)),
        "the smallest comes first, but the largest should": expected.flip(0),
        "these are roots of the eigenvalues. Square a singular value": expected.sqrt(),
        "they are divided by the largest, but only report does that": expected / expected[0],
        "this is the covariance of the N images, not of the D dimensions: torch.cov takes rows":
            eigenvalues(covariance(Z.T)),
        "the smallest comes first, and the covariance is of the N images: torch.cov takes rows":
            eigenvalues(covariance(Z.T)).flip(0)}, "the spectrum")

    found = C.spectrum(torch.randn(4, 40))
    if found.shape != (40,):
        raise Wrong(f"4 images with 40 dimensions give {len(found)} values, but there should be "
                    "40, most of them 0")
    if (found < 0).any():
        raise Wrong(f"an eigenvalue is negative by rounding ({found.min():.0e}): clamp at 0")
    if found.dtype != torch.double:
        raise Wrong("it is not float64, so the figure, which goes down to 1e-8, shows rounding: "
                    "use double()")
    turn = torch.linalg.qr(torch.randn(5, 5))[0]           # so that no axis is an eigenvector
    x = torch.randn(20, 5) * torch.tensor([1, 1, 1, 1, 1e-4]) @ turn        # float32
    expected = eigenvalues(covariance(unit(x.double())))
    if not checking.same(C.spectrum(x) / expected, torch.ones(5), 1e-2):
        raise Wrong(f"the smallest eigenvalue here is {expected[-1]:.2g}, but yours is "
                    f"{C.spectrum(x)[-1]:.2g}: use double() before the covariance, and clamp at 0")


# ------------------------------------------------------------------------ the checks of toy_infonce

def check_toy_info_nce():
    z1, z2 = torch.randn(2, 2, 5, 3, dtype=torch.double)
    tau = 1.5

    def nets(a, b, **switches):
        return torch.stack([one_way(za, zb, tau, **switches) for za, zb in zip(a, b)])

    def per_net(f):
        return torch.stack([f(a, b) for a, b in zip(z1, z2)])
    expected = nets(z1, z2)
    compare(T.info_nce(z1, z2, tau), expected, {
        "the rows are normalised, but the toy's loss takes the products as they are":
            per_net(lambda a, b: one_way(unit(a), unit(b), tau)),
        "the sum goes over the wrong axis. Sum over the rows j of z2, with row i of z1 fixed":
            nets(z2, z1),
        "both directions are there, but the toy's loss has only that from z1 to z2":
            (nets(z1, z2) + nets(z2, z1)) / 2,
        "the positive is missing from the denominator": nets(z1, z2, positive=False),
        "the mean goes over the nets too, but each net has its own loss": expected.mean(),
        "this is the sum over the images. Take the mean": 5 * expected,
        "the temperature is not used": per_net(lambda a, b: one_way(a, b, 1)),
        "the products are multiplied by the temperature. Divide by it":
            per_net(lambda a, b: one_way(a, b, 1 / tau)),
        "the sign is wrong. The loss is minus the log": -expected}, "the loss")

    a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    found = gradients(T.info_nce(a, b, tau).sum(), a, b)
    first = slope(lambda z: nets(z, z2).sum(), z1)
    second = slope(lambda z: nets(z1, z).sum(), z2)
    compare(found, (first, second), {
        "z2 is detached, but InfoNCE has no stop-gradient": (first, torch.zeros_like(z2))},
        "the gradient")
    found = T.info_nce(10 * z1.float(), 10 * z2.float(), tau)
    z1, z2 = 10 * z1, 10 * z2
    compare(found.double(), nets(z1, z2), what="the loss of large products, where exp "
            "overflows in float32 (use logsumexp)", tolerance=1e-4)


def check_toy_spectrum():
    weights = list(torch.randn(3, 2, 4, 4, dtype=torch.double))

    def per_net(f):
        return torch.stack([f(*layers) for layers in zip(*weights)])

    def of(W):
        return eigenvalues(product(W, W.T))
    expected = per_net(lambda W1, W2, W3: of(product(W3, product(W2, W1))))
    compare(T.spectrum(weights), expected, {
        "the product has the wrong order. The first layer stands at the right, as in W3 W2 W1":
            per_net(lambda W1, W2, W3: of(product(W1, product(W2, W3)))),
        "the smallest comes first, but the largest should": expected.flip(1),
        "flip(0) reverses the order of the nets. The eigenvalues are along the last axis":
            expected.flip(0, 1),
        "these are the singular values of W. Their squares are the eigenvalues of W W^T":
            expected.sqrt(),
        "these are the eigenvalues of W, not of W W^T":
            per_net(lambda W1, W2, W3: eigenvalues(product(W3, product(W2, W1)))),
        "only the last layer is used, but W is the product of all":
            per_net(lambda W1, W2, W3: of(W3)),
        "only the first layer is used, but W is the product of all":
            per_net(lambda W1, W2, W3: of(W1)),
        "the layers' eigenvalues are multiplied, but a product of matrices has others":
            per_net(lambda W1, W2, W3: of(W1) * of(W2) * of(W3))}, "three layers")
    compare(T.spectrum(weights[:1]), per_net(lambda W1, W2, W3: of(W1)), what="one layer")


def check_gradient_of_theorem():
    W, x, x2 = [0.6 * torch.randn(*shape, dtype=torch.double) for shape in ((3, 3), (5, 3), (5, 3))]
    zero, one = sigmas(W, x, x2)
    expected = -slope(lambda W: theorem_loss(W, x, x2), W)

    def of(**switches):
        zero, one = sigmas(W, x, x2, **switches)
        return product(W, zero - one)
    compare(T.gradient_of_theorem(W, x, x2), expected, {
        "the sign is wrong: dW/dt is minus the gradient, so Sigma_0 has a plus": -expected,
        "in Sigma_1 the weight 1 - alpha_ii is missing": of(weight=lambda alpha: 1),
        "in Sigma_1 the weight is alpha_ii, but it should be 1 - alpha_ii": of(weight=lambda a: a),
        "in Sigma_0 j = i is included, with x_i - x'_i, but it should not be": of(itself=True),
        "in Sigma_0 the negatives are x'_j, but they should be x_j": of(negatives=x2),
        "in Sigma_0 the negatives are x'_j, and j = i is one of them":
            of(negatives=x2, itself=True),
        "W is on the wrong side. It should be W (Sigma_0 - Sigma_1)": product(zero - one, W),
        "W is on the wrong side, and the result is transposed": product(zero - one, W.T),
        "W is missing": zero - one,
        "Sigma_1 is missing": product(W, zero),
        "Sigma_0 is missing": product(W, -one),
        "Sigma_0 has each pair once, but the sum is over i and over j": product(W, zero / 2 - one),
        "it is twice what it should be": 2 * expected,
        "this is the mean over the images. Take the sum": expected / 5}, "dW/dt")


CHECKS = {"directclr.info_nce": check_info_nce, "directclr.one_way": check_one_way,
          "directclr.Direct.forward": check_direct, "directclr.spectrum": check_spectrum,
          "toy_infonce.info_nce": check_toy_info_nce, "toy_infonce.spectrum": check_toy_spectrum,
          "toy_infonce.gradient_of_theorem": check_gradient_of_theorem}

if __name__ == "__main__":
    checking.main(CHECKS)

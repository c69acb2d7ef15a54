"""Check the functions of this sheet: a line for each says that it is right, or what differs.

    python check.py             takes a few seconds
    python check.py --grade     prints points as JSON
"""
import math

import torch

import checking
import toy_dynamics as T
import toy_landscape as L
import toy_patch as P
from checking import Wrong, compare, gradients, slope

# ------------------------------------------------------------------------ the definitions, in loops


def tensor(values):
    return torch.tensor(values, dtype=torch.double)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.double)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def times(W, x):
    return [dot(row, x) for row in W]


def plus(x, e):
    return [a + b for a, b in zip(x, e)]


def moment(a, b):
    """E a b^T, a mean over the vectors in the lists a and b, entry by entry."""
    return tensor([[mean(x[i] * y[j] for x, y in zip(a, b)) for j in range(len(b[0]))]
                   for i in range(len(a[0]))])


# All that can happen in this small world: three images, and four noises with the mean 0
IMAGES = [[1.0, 0.4, -0.6], [0.2, -1.1, 0.5], [0.9, 0.3, 1.2]]
NOISE = [[0.5, -0.2, 0.1], [-0.5, 0.2, -0.1], [0.2, 0.4, -0.7], [-0.2, -0.4, 0.7]]
VIEWS = [(plus(x, e), plus(x, e2)) for x in IMAGES for e in NOISE for e2 in NOISE]
SAME_NOISE = [(plus(x, e), plus(x, e)) for x in IMAGES for e in NOISE]
NO_NOISE = [(x, x) for x in IMAGES]
EYE = torch.eye(2, dtype=torch.double)


def J(W_p, W, W_a, views=VIEWS):
    """E||W_p W x1 - W_a x2||^2 / 2, a mean over all pairs of views.  W_p, W, W_a: tensors"""
    W_p, W, W_a = W_p.tolist(), W.tolist(), W_a.tolist()

    def distance(x1, x2):
        return sum((p - t) ** 2 for p, t in zip(times(W_p, times(W, x1)), times(W_a, x2)))
    return mean(distance(x1, x2) / 2 for x1, x2 in views)


def downhill(W_p, W, W_a, views=VIEWS):
    """Minus the slopes of J for W_p and W.  W_a is a constant, because of the stop-gradient."""
    return (-slope(lambda w: J(w, W, W_a, views), W_p), -slope(lambda w: J(W_p, w, W_a, views), W))


def moved(flow, *state):
    """What the student's flow returns at a state."""
    if flow is None:
        raise Wrong("nothing is returned: write a function `flow` inside, and return it")
    if not callable(flow):
        raise Wrong("return a flow, which is a function of the state")
    found = flow(*(x.clone() for x in state))
    if not isinstance(found, (tuple, list)) or len(found) != len(state):
        raise Wrong(f"the flow has to return a tuple of {len(state)}, an entry for each of its "
                    "arguments; a tuple of one is written (x,)")
    return found


# ----------------------------------------------------------------------------------- toy_dynamics

def check_lemma1():
    check_one_lemma1(1.7, 0.3, 0.6)
    check_one_lemma1(0.8, 0.1, 0.25)


def check_one_lemma1(alpha_p, eta, beta):
    W_p, W, W_a = randn(2, 2), randn(2, 3), randn(2, 3)
    X, X_aug = moment(IMAGES, IMAGES), moment(NOISE, NOISE)
    d_p, d, d_a = moved(T.lemma1(X, X_aug, alpha_p, eta, beta), W_p, W, W_a)
    down_p, down = downhill(W_p, W, W_a)
    same_p, same = downhill(W_p, W, W_a, SAME_NOISE)
    none_p, none = downhill(W_p, W, W_a, NO_NOISE)
    through = downhill(EYE, W_p @ W, W_a)[1]            # minus the slope for W_p W
    compare(d_p, alpha_p * down_p - eta * W_p, {
        "the gradient's part has the wrong sign. A flow goes downhill":
            -alpha_p * down_p - eta * W_p,
        "both parts have the wrong sign. A flow goes downhill, and decay makes W_p smaller":
            -alpha_p * down_p + eta * W_p,
        "the weight decay has the wrong sign. It should make W_p smaller":
            alpha_p * down_p + eta * W_p,
        "the weight decay -eta W_p is missing": alpha_p * down_p,
        "alpha_p is missing. It has to multiply the gradient": down_p - eta * W_p,
        "alpha_p multiplies the weight decay too, but only the gradient should have it":
            alpha_p * (down_p - eta * W_p),
        "a factor 2 is too much, because J has 1/2 before E": 2 * alpha_p * down_p - eta * W_p,
        "X' is in both terms, but E x2 x1^T is X. The noises of the views are independent":
            alpha_p * same_p - eta * W_p,
        "the noise X' is missing: E x1 x1^T = X + X'": alpha_p * none_p - eta * W_p,
        "W_a^T is where W^T has to be: W_p sees W x1":
            alpha_p * through @ W_a.T - eta * W_p,
        "it is transposed. It should be the error times W^T":
            alpha_p * down_p.T - eta * W_p}, "dW_p")
    compare(d, down - eta * W, {
        "the gradient's part has the wrong sign. A flow goes downhill": -down - eta * W,
        "both parts have the wrong sign. A flow goes downhill, and decay makes W smaller":
            -down + eta * W,
        "the weight decay has the wrong sign. It should make W smaller": down + eta * W,
        "the weight decay -eta W is missing": down,
        "alpha_p is in it, but only dW_p should have it": alpha_p * down - eta * W,
        "W_p is not transposed, but it has to be": W_p @ through - eta * W,
        "W_p^T is missing. The gradient comes back through the predictor": through - eta * W,
        "X' is in both terms, but E x2 x1^T is X. The noises of the views are independent":
            same - eta * W,
        "the noise X' is missing: E x1 x1^T = X + X'": none - eta * W}, "dW")
    compare(d_a, beta * (W - W_a), {
        "the sign is wrong. The target should move towards W": beta * (W_a - W),
        "beta is missing": W - W_a,
        "1 - beta is where beta has to be: beta is the rate itself": (1 - beta) * (W - W_a),
        "weight decay is in it, but the target has none": beta * (W - W_a) - eta * W_a,
        "this is minus the gradient of J, but W_a has a stop-gradient. It follows W alone":
            -slope(lambda w: J(W_p, W, w), W_a)}, "dW_a")


def check_no_predictor():
    check_decay(0.3)
    check_decay(0.7)


def check_decay(eta):
    W = randn(2, 3)
    found, = moved(T.no_predictor(moment(NOISE, NOISE), eta), W)
    down = downhill(EYE, W, W)[1]
    both = -slope(lambda w: J(EYE, w, w), W)
    compare(found, down - eta * W, {
        "a factor 2 is too much. This is the gradient without the stop-gradient, where both "
        "paths learn": both - eta * W,
        "both parts have the wrong sign. A flow goes downhill, so W gets smaller": -down + eta * W,
        "the gradient's part has the wrong sign. A flow goes downhill": -down - eta * W,
        "the weight decay has the wrong sign. It should make W smaller": down + eta * W,
        "the weight decay -eta W is missing": down,
        "X is in it, as the identity, but with W_a = W the X of the two terms cancels":
            down - W - eta * W,
        "it is transposed: W is [K, D], and so is dW": (down - eta * W).T,
        "eta is added to every entry of X', but only the diagonal should have it, as eta I":
            down - eta * W.sum(1, keepdim=True).expand(2, 3)}, "dW")


def mode(p, s, tau, sigma2, alpha_p=1.0, eta=0.0, beta=math.inf):
    """How p, s and tau move if all matrices are numbers.

    The net is w with w^2 = s, the predictor p, the target tau w; E x1^2 = 1 + sigma2 and
    E x1 x2 = 1."""
    w = math.sqrt(s)

    def loss(pair):
        q, v = pair.tolist()
        return ((q * v) ** 2 * (1 + sigma2) - 2 * q * v * (tau * w) + (tau * w) ** 2) / 2

    down = -slope(loss, tensor([p, w]))
    dp, dw = alpha_p * down[0].item() - eta * p, down[1].item() - eta * w
    ds = 2 * w * dw
    dtau = 0.0
    if beta < math.inf:
        dtau = (beta * (w - tau * w) - tau * dw) / w    # tau = w_a / w, quotient rule
    return dp, ds, dtau


def check_decoupled():
    p, s, tau = tensor([0.3, 0.9, 0.5]), tensor([0.5, 0.1, 0.8]), tensor([0.7, 0.9, 0.4])
    sigma2, alpha_p, eta, beta = 0.2, 1.6, 0.05, 0.4

    def expected(tau=tau, beta=(beta,) * 3, **change):
        numbers = {"sigma2": sigma2, "alpha_p": alpha_p, "eta": eta} | change
        return tensor([mode(*state, beta=b, **numbers) for *state, b in
                       zip(p.tolist(), s.tolist(), tau.tolist(), beta)]).T

    def found(beta):
        entries = moved(T.decoupled(sigma2, alpha_p, eta, beta), p, s, tau)
        return [torch.as_tensor(entry).expand(3) for entry in entries]

    dp, ds, dtau = found(beta)
    e_p, e_s, e_tau = expected()
    halved = expected(sigma2=(1 + sigma2) / 2 - 1)        # half of 1 + sigma2
    compare(dp, e_p, {
        "alpha_p is missing. It has to multiply the gradient": expected(alpha_p=1)[0],
        "alpha_p multiplies the weight decay too, but only the gradient should have it":
            alpha_p * expected(alpha_p=1)[0],
        "the weight decay -eta p is missing": expected(eta=0)[0],
        "the term with 1 + sigma2 is half of what it should be: {A, B} = AB + BA is 2 ps here":
            halved[0],
        "the noise is missing: 1 + sigma2 has to multiply p": expected(sigma2=0)[0],
        "tau is missing. The target is tau W": expected(tau=torch.ones(3))[0],
        "s is missing: E x1 x1^T is seen through W": (e_p + eta * p) / s - eta * p,
        "the root of s is where s has to be": (e_p + eta * p) / s.sqrt() - eta * p,
        "the gradient is half of what it should be: {A, B} = AB + BA is 2 ps here":
            (e_p + eta * p) / 2 - eta * p,
        "the sign is wrong": -e_p}, "dp")
    gradient = e_s + 2 * eta * s
    compare(ds, e_s, {
        "it is half of what it should be: s = w^2, so ds = 2 w dw": e_s / 2,
        "the weight decay is -eta s, but for s = w^2 it has to be -2 eta s": e_s + eta * s,
        "the weight decay -2 eta s is missing": gradient,
        "the gradient lacks a factor 2: {A, B} = AB + BA is 2 ab in numbers":
            gradient / 2 - 2 * eta * s,
        "the term with 1 + sigma2 is half of what it should be: {A, B} = AB + BA is 2 ab in "
        "numbers": halved[1],
        "alpha_p is in it, but only dp should have it": alpha_p * gradient - 2 * eta * s,
        "p is missing. The gradient comes back through the predictor": gradient / p - 2 * eta * s,
        "the noise is missing: 1 + sigma2 has to multiply p": expected(sigma2=0)[1],
        "tau is missing. The target is tau W": expected(tau=torch.ones(3))[1],
        "the sign is wrong": -e_s}, "ds")
    follows, change = beta * (1 - tau), tau * e_s / (2 * s)
    compare(dtau, e_tau, {
        "the second term of the quotient rule is missing: tau = w_a / w, and w moves too": follows,
        "ds / s is where dw / w has to be: s is w^2, so dw / w is ds / (2s)": follows - 2 * change,
        "the second term has the wrong sign. If w grows, tau falls": follows + change,
        "the first term has the wrong sign. The target moves towards w, so tau towards 1":
            -follows - change,
        "beta is missing": follows / beta - change}, "dtau")
    stays = found(math.inf)[2]
    if not stays.isfinite().all():
        raise Wrong("dtau is no number at beta = inf, but it has to be 0: the target is the net, "
                    "so tau stays")
    compare(stays, torch.zeros(3), {
        "the second term of the quotient rule is left, but tau stays if the target is the net":
            -change}, "dtau at beta = inf")
    betas = (math.inf, 0.4, 2.0)
    try:
        entries = found(tensor(betas))
    except (RuntimeError, TypeError, ValueError):
        raise Wrong("beta may be a tensor with inf in some of its entries: `if` cannot choose "
                    "for each entry, but torch.where can")
    if not entries[2].isfinite().all():
        raise Wrong("dtau is no number where an entry of beta is inf, but it has to be 0 there")
    compare(tuple(entries), tuple(expected(beta=betas)), what="dp, ds, dtau for a tensor beta")
    by_hand = moved(T.decoupled(0.2, 2.0, 0.05, 0.5), tensor(0.5), tensor(0.4), tensor(0.8))
    compare(by_hand, (0.135, 0.04, 0.06), what="at p = 0.5, s = 0.4, tau = 0.8")


def rest(low, high, *numbers):
    """The p between low and high where dp changes its sign if s = p^2, found by bisection."""
    def dp(p):
        sigma2, eta, tau = numbers
        return mode(p, p * p, tau, sigma2, eta=eta)[0]

    rises = dp(high) > 0
    for _ in range(40):
        middle = (low + high) / 2
        if (dp(middle) > 0) == rises:
            high = middle
        else:
            low = middle
    return high


def roots(a, b, c):
    """The zeros of a p^2 - b p + c."""
    root = math.sqrt(b * b - 4 * a * c)
    return (b - root) / (2 * a), (b + root) / (2 * a)


def two_numbers(*numbers):
    """What the student's fixed_points returns, if it is two numbers."""
    found = T.fixed_points(*numbers)
    if found is None:
        raise Wrong("nothing is returned")
    if not (isinstance(found, (tuple, list)) or torch.is_tensor(found) and found.dim()) or (
            len(found) != 2):
        raise Wrong("return two numbers, or nan, nan if there are none")
    return found


def check_fixed_points():
    # At `between`, which lies between p- and p+, dp is positive.  The paper has eta = 0.02.
    for sigma2, eta, tau, between in ((0.2, 0.02, 1.0, 0.4), (0.5, 0.05, 0.8, 0.25)):
        numbers = (sigma2, eta, tau)
        low, high = rest(1e-3, between, *numbers), rest(between, 2.0, *numbers)
        a = 1 + sigma2
        compare(two_numbers(*numbers), (low, high), {
            "the order is wrong: p-, the smaller one, has to come first": (high, low),
            "1 + sigma2 is missing. It has to multiply p": roots(1, tau, eta),
            "tau is missing": roots(a, 1, eta),
            "the 2 of the denominator 2 (1 + sigma2) is missing": (2 * low, 2 * high),
            "the denominator is 2, but it has to be 2 (1 + sigma2)": (a * low, a * high),
            "/ 2 * (1 + sigma2) multiplies by 1 + sigma2: write / (2 * (1 + sigma2))":
                (a * a * low, a * a * high),
            "the sign of eta is wrong. Weight decay pulls p to 0": roots(a, tau, -eta),
            "the sign of tau is wrong. These are minus the fixed points": (-low, -high),
            "0 is one of them, but the two other zeros are asked for": (0, high)},
            f"p-, p+ at sigma2 = {sigma2}, eta = {eta}, tau = {tau}")
    compare(two_numbers(0.2, 0.02), (0.020505, 0.812829), what="p-, p+ at tau = 1")
    for numbers in ((0.2, 0.3), (0.2, 0.02, 0.2)):
        try:
            found = two_numbers(*numbers)
        except ValueError:
            raise Wrong("the root of a negative number is taken: return nan, nan if there is no "
                        "fixed point other than 0")
        if any(isinstance(p, complex) or not math.isnan(p) for p in found):
            raise Wrong("numbers are returned for tau^2 < 4 eta (1 + sigma2), where there is no "
                        "fixed point other than 0: return nan, nan")


# -------------------------------------------------------------------------------------- toy_patch

def under_root(variance):
    return math.sqrt(variance + 1e-8)


def normal(values, divisor=under_root, less=0, centred=True):
    m = mean(values)
    variance = sum((x - m) ** 2 for x in values) / (len(values) - less)
    return [(x - m * centred) / divisor(variance) for x in values]


def over_images(x, **change):
    """What batch_norm should return, in loops over the neurons.  x: [N, m]"""
    return tensor([normal(neuron, **change) for neuron in x.T.tolist()]).T


def check_batch_norm():
    x = randn(5, 3) * tensor([3, 1e-3, 1]) + tensor([1, 0, -2])             # [N, m]
    compare(P.batch_norm(x), over_images(x), {
        "the mean is not subtracted": over_images(x, centred=False),
        "the variance is divided by N - 1, but it has to be by N: unbiased=False":
            over_images(x, less=1),
        "it is divided by the variance, but it should be by the root of it":
            over_images(x, divisor=lambda variance: variance + 1e-8),
        "1e-8 is missing. Add it to the variance": over_images(x, divisor=math.sqrt),
        "yours adds 1e-8 to the root. Add it to the variance, under the root":
            over_images(x, divisor=lambda variance: math.sqrt(variance) + 1e-8),
        "1e-5 is too much, because variances are small here. Take 1e-8":
            over_images(x, divisor=lambda variance: math.sqrt(variance + 1e-5)),
        "mean and variance are over the neurons, but they should be over the N images":
            over_images(x.T).T,
        "mean and variance are over all entries, but each neuron has its own":
            over_images(x.reshape(15, 1)).view(5, 3)})
    x, weights = randn(5, 3).requires_grad_(), randn(5, 3)
    found, = gradients((P.batch_norm(x) * weights).sum(), x)
    x = x.detach()
    std = x.std(0, unbiased=False)
    expected = slope(lambda x: (over_images(x) * weights).sum().item(), x)
    compare(found, expected, {
        "there is none. Detach nothing": torch.zeros_like(x),
        "mean and variance are detached. The gradient has to go through both": weights / std,
        "the mean is detached. The gradient has to go through it":
            expected + weights.mean(0) / std,
        "the variance is detached. The gradient has to go through it":
            (weights - weights.mean(0)) / std}, "the gradient", tolerance=1e-4)


def cubes(W, X, power=3, at_last=False, part=lambda x: x):
    """What phi should return, in loops; `power`, `at_last` and `part` make mistakes."""
    out = []
    for image in X.tolist():
        for w in W.tolist():
            if at_last:
                out.append(sum(dot(w, patch) for patch in image) ** power)
            else:
                out.append(sum(part(dot(w, patch)) ** power for patch in image))
    return tensor(out).view(len(X), len(W))


def check_phi():
    W, X = randn(3, 7), randn(4, 5, 7)                      # [m, d], [N, patches, d]
    expected = cubes(W, X)
    compare(P.phi(W, X), expected, {
        "the cube is missing": cubes(W, X, power=1),
        "these are squares, but they should be cubes": cubes(W, X, power=2),
        "the size is cubed, with abs, but the sign has to stay": cubes(W, X, part=abs),
        "this is the cube of the sum. Take the sum of the patches' cubes":
            cubes(W, X, at_last=True),
        "the entries of the patch are cubed. Cube the product <w, patch>":
            cubes(W, X**3, power=1),
        "this is the mean over the patches. Take the sum": expected / 5,
        "this is of the first patch alone. Sum over all": cubes(W, X[:, :1]),
        "this is of the largest patch alone. Sum over all":
            torch.stack([cubes(W, X[:, p:p + 1]) for p in range(5)]).max(0).values,
        "each patch has its own output, [N, patches, m]. Sum over the patches":
            torch.stack([cubes(W, X[:, p:p + 1]) for p in range(5)], 1),
        "it is transposed. The shape has to be [N, m]": expected.T})
    compare(P.phi(W[:2], X), expected[:, :2], what="two neurons")
    W.requires_grad_()
    if not gradients(P.phi(W, X).sum(), W)[0].any():
        raise Wrong("W gets no gradient: detach nothing")


# ---------------------------------------------------------------------------------- toy_landscape

def attraction(f, f2):
    """E f.f2, over the two views of each image.  f, f2: lists of vectors"""
    return mean(dot(a, b) for a, b in zip(f, f2))


def repulsion(f, f2):
    """E (f_i.f2_j)^2, over all pairs"""
    return mean(dot(a, b) ** 2 for a in f for b in f2)


def of_spectral(f, f2):
    return -2 * attraction(f, f2) + repulsion(f, f2)


def check_spectral():
    f, f2 = randn(5, 3) + 0.5, randn(5, 3) - 0.3                            # [N, K]
    a, b = f.tolist(), f2.tolist()
    attract, repel = attraction(a, b), repulsion(a, b)
    positives = sum(dot(x, y) ** 2 for x, y in zip(a, b))
    compare(L.spectral(f, f2), of_spectral(a, b), {
        "the 2 before the first term is missing": -attract + repel,
        "the first term has the wrong sign. Views of one image attract each other":
            2 * attract + repel,
        "the sign is wrong": -of_spectral(a, b),
        "the second term is not squared": -2 * attract + mean(dot(x, y) for x in a for y in b),
        "the second term is the square of the mean. Take the mean of the squares":
            -2 * attract + mean(dot(x, y) for x in a for y in b) ** 2,
        "the second term has the pairs i = j alone. Take all pairs i, j":
            -2 * attract + positives / 5,
        "the pairs i = j are left out. Take the mean over all pairs":
            -2 * attract + (25 * repel - positives) / 20,
        "the pairs i = j are set to 0. Take the mean over all pairs":
            -2 * attract + repel - positives / 25,
        "the second term is a sum. Take the mean": -2 * attract + 25 * repel,
        "the second term is divided by N. Divide by N^2, the number of pairs":
            -2 * attract + 5 * repel,
        "the first term is a mean over K too, but f.f2 is the sum over the K entries":
            -2 * attract / 3 + repel,
        "the second term has the first view with itself. Take the first with the second":
            -2 * attract + repulsion(a, a),
        "it is transposed: f^T f2 is [K, K], but the pairs of images are [N, N]":
            -2 * attract + repulsion(f.T.tolist(), f2.T.tolist())})
    live = [x.clone().requires_grad_() for x in (f, f2)]
    found = gradients(L.spectral(*live), *live)
    expected = (slope(lambda x: of_spectral(x.tolist(), b), f),
                slope(lambda x: of_spectral(a, x.tolist()), f2))
    if expected[0].any() and not (found[0].any() and found[1].any()):
        raise Wrong("one view is detached, but this loss has no stop-gradient")
    compare(found, expected, what="the gradient")


def check_B_spectral():
    x = randn(4, 3) + 0.5                                                   # [N, D]
    x2 = x + 0.7 * randn(4, 3)
    a, b, h = x.tolist(), x2.tolist(), 1e-4

    def loss(w):
        """The loss of a W with one row w, whose output is one number."""
        return of_spectral([[dot(w, r)] for r in a], [[dot(w, r)] for r in b])

    def second(i, j):
        """The second derivative of the loss by w_i and w_j at w = 0."""
        total = 0.0
        for one in (1, -1):
            for two in (1, -1):
                w = [0.0] * 3
                w[i] += one * h
                w[j] += two * h
                total += one * two * loss(w)
        return total / (4 * h * h)

    B = -tensor([[second(i, j) for j in range(3)] for i in range(3)]) / 2
    M = moment(a, b)
    middle, middle2 = ([mean(column) for column in zip(*view)] for view in (a, b))
    of_means, images = moment([middle], [middle2]), moment(list(zip(*a)), list(zip(*b)))
    compare(L.B_spectral(x, x2), B, {
        "it is not symmetric, but has to be: w^T M w has the Hessian M + M^T": 2 * M,
        "it is not symmetric, but has to be, and it is half of what it should be": M,
        "it is half of what it should be. The loss has -2 E f.f2": B / 2,
        "it is twice what it should be. The symmetric part of 2 M is M + M^T": 2 * B,
        "the sign is wrong. The loss is const - Tr[W B W^T]": -B,
        "this is the Hessian: B is minus half of it": -2 * B,
        "this is a sum over the batch. Take the mean": 4 * B,
        "the means are subtracted, but they must stay: E (f_i.f2_j)^2 is of fourth order in W "
        "and no part of B": B - of_means - of_means.T,
        "this is one view with itself. Take x with x2": 2 * moment(a, a),
        "x x2^T has the shape [N, N]: B is [D, D]": (images + images.T) * 3 / 4,
        "x x2^T has the shape [N, N], and it is summed: B is [D, D]": (images + images.T) * 3}, "B")


def check_rank_of_theory():
    A, C = (3.0, 1.5, 1.0, 0.5, 0.2), (0.3, 0.3, 2.0, 0.2, 0.6)
    weights = (0.5, 1, 1.4, 1.5, 2, 4, 8, 12)
    by_hand = tensor([5, 5, 4, 3, 3, 2, 1, 0])
    found = [L.rank_of_theory(a) for a in weights]
    if any(isinstance(rank, (list, tuple)) for rank in found):
        raise Wrong("a list is returned: return how many of its entries are positive")
    found = None if any(rank is None for rank in found) else tensor([float(r) for r in found])

    def count(lives):
        return tensor([float(sum(lives(a, A_k, c) for A_k, c in zip(A, C))) for a in weights])

    def total(counts):
        B = [[A_k + (1 - a) * c for A_k, c in zip(A, C)] for a in weights]
        return tensor([sum(b for b in row if counts(b)) for row in B])

    compare(found, by_hand, {
        "a dimension with the eigenvalue 0 (a = 1.5) is counted, but it does not live. The term "
        "of fourth order holds it at 0":
            count(lambda a, A_k, c: A_k + (1 - a) * c >= 0),
        "the dead ones are counted. Count those that live":
            count(lambda a, A_k, c: A_k + (1 - a) * c < 0),
        "this is of A0 - a C, but B is A0 + (1 - a) C":
            count(lambda a, A_k, c: A_k - a * c > 0),
        "it is always 5, but if a is large, eigenvalues of B are negative": torch.full((8,), 5.0),
        "eigenvalues that are not 0 are counted, but negative ones collapse":
            count(lambda a, A_k, c: A_k + (1 - a) * c != 0),
        "this is the sum of the eigenvalues. Return how many are positive":
            total(lambda b: True),
        "this is the sum of the positive eigenvalues. Return how many there are":
            total(lambda b: b > 0)},
        "the ranks at a = " + ", ".join(map(str, weights)))
    for a in (12 * torch.rand(5)).tolist():
        expected = sum(A_k + (1 - a) * c > 0 for A_k, c in zip(A, C))
        compare(float(L.rank_of_theory(a)), float(expected), what=f"the rank at a = {a:.3f}")


CHECKS = {"toy_dynamics.lemma1": check_lemma1, "toy_dynamics.no_predictor": check_no_predictor,
          "toy_dynamics.decoupled": check_decoupled,
          "toy_dynamics.fixed_points": check_fixed_points,
          "toy_patch.batch_norm": check_batch_norm, "toy_patch.phi": check_phi,
          "toy_landscape.spectral": check_spectral, "toy_landscape.B_spectral": check_B_spectral,
          "toy_landscape.rank_of_theory": check_rank_of_theory}

if __name__ == "__main__":
    checking.main(CHECKS)

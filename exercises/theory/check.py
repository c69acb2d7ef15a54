"""Says of each function if it is right, in seconds: python check.py.  --grade: points, as JSON."""
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
    """E a b^T.  a, b: lists of vectors"""
    return tensor([[mean(x[i] * y[j] for x, y in zip(a, b)) for j in range(len(b[0]))]
                   for i in range(len(a[0]))])


# All that can happen: three images, and four augmentations, whose mean is 0
IMAGES = [[1.0, 0.4, -0.6], [0.2, -1.1, 0.5], [0.9, 0.3, 1.2]]
NOISE = [[0.5, -0.2, 0.1], [-0.5, 0.2, -0.1], [0.2, 0.4, -0.7], [-0.2, -0.4, 0.7]]
VIEWS = [(plus(x, e), plus(x, e2)) for x in IMAGES for e in NOISE for e2 in NOISE]
SAME_NOISE = [(plus(x, e), plus(x, e)) for x in IMAGES for e in NOISE]
NO_NOISE = [(x, x) for x in IMAGES]
EYE = torch.eye(2, dtype=torch.double)


def J(W_p, W, W_a, views=VIEWS):
    """E||W_p W x1 - W_a x2||^2 / 2, over all pairs of views.  W_p, W, W_a: tensors"""
    W_p, W, W_a = W_p.tolist(), W.tolist(), W_a.tolist()

    def distance(x1, x2):
        return sum((p - t) ** 2 for p, t in zip(times(W_p, times(W, x1)), times(W_a, x2)))
    return mean(distance(x1, x2) / 2 for x1, x2 in views)


def downhill(W_p, W, W_a, views=VIEWS):
    """Minus the slope of J, of W_p and of W; W_a is a constant: the stop-gradient."""
    return (-slope(lambda w: J(w, W, W_a, views), W_p), -slope(lambda w: J(W_p, w, W_a, views), W))


def moved(flow, *state):
    """What the flow gives at a state."""
    if flow is None:
        raise Wrong("nothing is returned: write a function `flow` inside, and return it")
    if not callable(flow):
        raise Wrong("a flow has to be returned, which is a function of the state")
    found = flow(*(x.clone() for x in state))
    if not isinstance(found, (tuple, list)) or len(found) != len(state):
        raise Wrong(f"the flow has to return a tuple of {len(state)}, one entry for each of its "
                    "arguments; a tuple of one is (x,)")
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
    through = downhill(EYE, W_p @ W, W_a)[1]            # minus the slope of the product W_p W
    compare(d_p, alpha_p * down_p - eta * W_p, {
        "the gradient's part has the wrong sign: a flow goes downhill":
            -alpha_p * down_p - eta * W_p,
        "both parts have the wrong sign: a flow goes downhill, and decay makes W_p smaller":
            -alpha_p * down_p + eta * W_p,
        "the weight decay has the wrong sign: it makes W_p smaller": alpha_p * down_p + eta * W_p,
        "the weight decay -eta W_p is missing": alpha_p * down_p,
        "alpha_p is missing: it multiplies the gradient": down_p - eta * W_p,
        "alpha_p multiplies the weight decay too: it has to multiply the gradient alone":
            alpha_p * (down_p - eta * W_p),
        "a factor 2 is too much: J has 1/2 before E": 2 * alpha_p * down_p - eta * W_p,
        "X' is in both terms: E x2 x1^T has to be X, the views' noises are independent":
            alpha_p * same_p - eta * W_p,
        "the noise X' is missing: E x1 x1^T = X + X'": alpha_p * none_p - eta * W_p,
        "W_a^T stands where W^T has to: what W_p sees is W x1":
            alpha_p * through @ W_a.T - eta * W_p,
        "it is transposed: dW_p has to be the error times W^T":
            alpha_p * down_p.T - eta * W_p}, "dW_p")
    compare(d, down - eta * W, {
        "the gradient's part has the wrong sign: a flow goes downhill": -down - eta * W,
        "both parts have the wrong sign: a flow goes downhill, and decay makes W smaller":
            -down + eta * W,
        "the weight decay has the wrong sign: it makes W smaller": down + eta * W,
        "the weight decay -eta W is missing": down,
        "alpha_p is in it: it has to be in dW_p alone": alpha_p * down - eta * W,
        "W_p stands where W_p^T has to, it is not transposed": W_p @ through - eta * W,
        "W_p is missing: the gradient comes back through the predictor": through - eta * W,
        "X' is in both terms: E x2 x1^T has to be X, the views' noises are independent":
            same - eta * W,
        "the noise X' is missing: E x1 x1^T = X + X'": none - eta * W}, "dW")
    compare(d_a, beta * (W - W_a), {
        "the sign is wrong: the target has to move towards W": beta * (W_a - W),
        "beta is missing": W - W_a,
        "1 - beta stands where beta has to: beta is the rate itself": (1 - beta) * (W - W_a),
        "weight decay is in it: the target has none": beta * (W - W_a) - eta * W_a,
        "no stop-gradient: this is minus J's gradient of W_a, which has to follow W alone":
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
        "a factor 2 is too much: this is the gradient without the stop-gradient, where both paths "
        "learn": both - eta * W,
        "both parts have the wrong sign: a flow goes downhill, so that W decays": -down + eta * W,
        "the gradient's part has the wrong sign: a flow goes downhill": -down - eta * W,
        "the weight decay has the wrong sign: it makes W smaller": down + eta * W,
        "the weight decay -eta W is missing": down,
        "X is in it, as the identity: with W_a = W the X of the two terms has to cancel":
            down - W - eta * W,
        "it is transposed: W is [K, D], and so is dW": (down - eta * W).T,
        "eta is added to every entry of X': it has to be on the diagonal alone, as eta I":
            down - eta * W.sum(1, keepdim=True).expand(2, 3)}, "dW")


def mode(p, s, tau, sigma2, alpha_p=1.0, eta=0.0, beta=math.inf):
    """One eigenvalue, in numbers: the net is w with w^2 = s, the predictor p, the target tau w,
    E x1^2 = 1 + sigma2 and E x1 x2 = 1.  -> how p, s, tau move"""
    w = math.sqrt(s)

    def loss(pair):
        q, v = pair.tolist()
        return ((q * v) ** 2 * (1 + sigma2) - 2 * q * v * (tau * w) + (tau * w) ** 2) / 2

    down = -slope(loss, tensor([p, w]))
    dp, dw = alpha_p * down[0].item() - eta * p, down[1].item() - eta * w
    ds = 2 * w * dw
    dtau = 0.0
    if beta < math.inf:
        dtau = (beta * (w - tau * w) - tau * dw) / w    # of tau = W_a / w, by the quotient rule
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
        "alpha_p is missing: it multiplies the gradient": expected(alpha_p=1)[0],
        "alpha_p multiplies the weight decay too: it has to multiply the gradient alone":
            alpha_p * expected(alpha_p=1)[0],
        "the weight decay -eta p is missing": expected(eta=0)[0],
        "the term with 1 + sigma2 is half of what it has to be: {A, B} = AB + BA is 2 ps here":
            halved[0],
        "the noise is missing: 1 + sigma2 multiplies p": expected(sigma2=0)[0],
        "tau is missing: the target is tau W": expected(tau=torch.ones(3))[0],
        "s is missing: E x1 x1^T is seen through W": (e_p + eta * p) / s - eta * p,
        "the root of s stands where s has to": (e_p + eta * p) / s.sqrt() - eta * p,
        "the gradient is half of what it has to be: {A, B} = AB + BA is 2 ps here":
            (e_p + eta * p) / 2 - eta * p,
        "the sign is wrong": -e_p}, "dp")
    gradient = e_s + 2 * eta * s
    compare(ds, e_s, {
        "half of what it has to be: s = w^2, so ds = 2 w dw": e_s / 2,
        "the weight decay is -eta s: of s = w^2 it has to be -2 eta s": e_s + eta * s,
        "the weight decay -2 eta s is missing": gradient,
        "the gradient's part lacks a 2: {A, B} = AB + BA is 2 ab in numbers":
            gradient / 2 - 2 * eta * s,
        "the term with 1 + sigma2 is half of what it has to be: {A, B} = AB + BA is 2 ab in "
        "numbers": halved[1],
        "alpha_p is in it: it has to be in dp alone": alpha_p * gradient - 2 * eta * s,
        "p is missing: the gradient comes back through the predictor": gradient / p - 2 * eta * s,
        "the noise is missing: 1 + sigma2 multiplies p": expected(sigma2=0)[1],
        "tau is missing: the target is tau W": expected(tau=torch.ones(3))[1],
        "the sign is wrong": -e_s}, "ds")
    follows, change = beta * (1 - tau), tau * e_s / (2 * s)
    compare(dtau, e_tau, {
        "the second term of the quotient rule is missing: tau = W_a / W, and W moves too": follows,
        "ds / s stands where dw / w has to: s is w^2, so dw / w is ds / 2s": follows - 2 * change,
        "the second term has the wrong sign: where W grows, tau falls": follows + change,
        "the first term has the wrong sign: the target moves towards W, so tau towards 1":
            -follows - change,
        "beta is missing": follows / beta - change}, "dtau")
    stays = found(math.inf)[2]
    if not stays.isfinite().all():
        raise Wrong("dtau at beta = inf is no number: it has to be 0, without an EMA tau stays")
    compare(stays, torch.zeros(3), {
        "the quotient rule's second term is left: it has to be 0, without an EMA tau stays":
            -change}, "dtau at beta = inf")
    betas = (math.inf, 0.4, 2.0)
    try:
        entries = found(tensor(betas))
    except (RuntimeError, TypeError, ValueError):
        raise Wrong("beta may be a tensor, inf in some of its entries: `if` can't choose there, "
                    "torch.where can")
    if not entries[2].isfinite().all():
        raise Wrong("dtau is no number where an entry of beta is inf: it has to be 0 there")
    compare(tuple(entries), tuple(expected(beta=betas)), what="with a tensor beta, dp, ds, dtau")
    by_hand = moved(T.decoupled(0.2, 2.0, 0.05, 0.5), tensor(0.5), tensor(0.4), tensor(0.8))
    compare(by_hand, (0.135, 0.04, 0.06), what="at p = 0.5, s = 0.4, tau = 0.8")


def rest(low, high, *numbers):
    """Where between low and high dp changes its sign, on the parabola s = p^2: by bisection."""
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
    """Of a p^2 - b p + c"""
    root = math.sqrt(b * b - 4 * a * c)
    return (b - root) / (2 * a), (b + root) / (2 * a)


def two_numbers(*numbers):
    """What their fixed_points returns, once it is two of something"""
    found = T.fixed_points(*numbers)
    if found is None:
        raise Wrong("nothing is returned")
    if not (isinstance(found, (tuple, list)) or torch.is_tensor(found) and found.dim()) or (
            len(found) != 2):
        raise Wrong("two numbers are returned; nan, nan where there are none")
    return found


def check_fixed_points():
    # at eta = 0.02 p- and p+ as published; dp is largest between them
    for sigma2, eta, tau, between in ((0.2, 0.02, 1.0, 0.4), (0.5, 0.05, 0.8, 0.25)):
        numbers = (sigma2, eta, tau)
        low, high = rest(1e-3, between, *numbers), rest(between, 2.0, *numbers)
        a = 1 + sigma2
        compare(two_numbers(*numbers), (low, high), {
            "the order is wrong: p-, the smaller one, has to be the first": (high, low),
            "1 + sigma2 is missing: it multiplies p": roots(1, tau, eta),
            "tau is missing": roots(a, 1, eta),
            "the 2 of the denominator 2 (1 + sigma2) is missing": (2 * low, 2 * high),
            "the denominator is 2: it has to be 2 (1 + sigma2)": (a * low, a * high),
            "/ 2 * (1 + sigma2) multiplies by 1 + sigma2: it has to be / (2 * (1 + sigma2))":
                (a * a * low, a * a * high),
            "the sign of eta is wrong: weight decay pulls p to 0": roots(a, tau, -eta),
            "the sign of tau is wrong: these are minus the fixed points": (-low, -high),
            "0 is one of them: they have to be the zeros other than 0": (0, high)},
            f"p-, p+ at sigma2 = {sigma2}, eta = {eta}, tau = {tau}")
    compare(two_numbers(0.2, 0.02), (0.020505, 0.812829), what="p-, p+ at tau = 1")
    for numbers in ((0.2, 0.3), (0.2, 0.02, 0.2)):
        try:
            found = two_numbers(*numbers)
        except ValueError:
            raise Wrong("the root of a negative number is taken: where there is none but 0, return "
                        "nan, nan")
        if any(isinstance(p, complex) or not math.isnan(p) for p in found):
            raise Wrong("where tau^2 < 4 eta (1 + sigma2) numbers are returned, but there is no "
                        "fixed point but 0: return nan, nan")


# -------------------------------------------------------------------------------------- toy_patch

def under_root(variance):
    return math.sqrt(variance + 1e-8)


def normal(values, divisor=under_root, less=0, centred=True):
    m = mean(values)
    variance = sum((x - m) ** 2 for x in values) / (len(values) - less)
    return [(x - m * centred) / divisor(variance) for x in values]


def over_images(x, **change):
    """batch_norm in loops: each neuron's values over the images.  x: [N, m]"""
    return tensor([normal(neuron, **change) for neuron in x.T.tolist()]).T


def check_batch_norm():
    x = randn(5, 3) * tensor([3, 1e-3, 1]) + tensor([1, 0, -2])             # [N, m]
    compare(P.batch_norm(x), over_images(x), {
        "the mean is not subtracted": over_images(x, centred=False),
        "the variance has N - 1 in the denominator: it has to be N, unbiased=False":
            over_images(x, less=1),
        "divided by the variance: it has to be divided by the root of it":
            over_images(x, divisor=lambda variance: variance + 1e-8),
        "1e-8 is missing: it has to be added to the variance": over_images(x, divisor=math.sqrt),
        "yours adds 1e-8 to the root: it has to be added to the variance, under the root":
            over_images(x, divisor=lambda variance: math.sqrt(variance) + 1e-8),
        "1e-5 is too much, variances are small here: it has to be 1e-8":
            over_images(x, divisor=lambda variance: math.sqrt(variance + 1e-5)),
        "mean and variance are over the neurons: they have to be over the N images":
            over_images(x.T).T,
        "mean and variance are over all entries: each neuron has to have its own":
            over_images(x.reshape(15, 1)).view(5, 3)})
    x, weights = randn(5, 3).requires_grad_(), randn(5, 3)
    found, = gradients((P.batch_norm(x) * weights).sum(), x)
    x = x.detach()
    std = x.std(0, unbiased=False)
    expected = slope(lambda x: (over_images(x) * weights).sum().item(), x)
    compare(found, expected, {
        "there is none: nothing has to be detached": torch.zeros_like(x),
        "mean and variance are detached: the gradient has to go through both": weights / std,
        "the mean is detached: the gradient has to go through it":
            expected + weights.mean(0) / std,
        "the variance is detached: the gradient has to go through it":
            (weights - weights.mean(0)) / std}, "the gradient", tolerance=1e-4)


def cubes(W, X, power=3, at_last=False, part=lambda x: x):
    """phi in loops, patch by patch.  at_last: the power of the sum; part: of <w, patch>"""
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
        "squares stand where cubes have to": cubes(W, X, power=2),
        "the size is cubed, with abs: the sign has to stay": cubes(W, X, part=abs),
        "this is the cube of the sum: it has to be the sum of the patches' cubes":
            cubes(W, X, at_last=True),
        "the entries of the patch are cubed: it has to be the product <w, patch>":
            cubes(W, X**3, power=1),
        "the mean over the patches in place of the sum": expected / 5,
        "the first patch alone: it has to be the sum over all": cubes(W, X[:, :1]),
        "the largest patch alone: it has to be the sum over all":
            torch.stack([cubes(W, X[:, p:p + 1]) for p in range(5)]).max(0).values,
        "each patch has its own output, [N, patches, m]: they have to be summed":
            torch.stack([cubes(W, X[:, p:p + 1]) for p in range(5)], 1),
        "it is transposed: the shape has to be [N, m]": expected.T})
    compare(P.phi(W[:2], X), expected[:, :2], what="of two neurons")
    W.requires_grad_()
    if not gradients(P.phi(W, X).sum(), W)[0].any():
        raise Wrong("W gets no gradient")


# ---------------------------------------------------------------------------------- toy_landscape

def attraction(f, f2):
    """E f.f2, of the two views of an image.  f, f2: lists of vectors"""
    return mean(dot(a, b) for a, b in zip(f, f2))


def repulsion(f, f2):
    """E (f_i.f2_j)^2, of all pairs"""
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
        "the first term has the wrong sign: views of one image attract each other":
            2 * attract + repel,
        "the sign is wrong": -of_spectral(a, b),
        "the second term is not squared": -2 * attract + mean(dot(x, y) for x in a for y in b),
        "the second term is the square of the mean: it has to be the mean of the squares":
            -2 * attract + mean(dot(x, y) for x in a for y in b) ** 2,
        "the second term has the positives alone: it has to have all pairs i, j":
            -2 * attract + positives / 5,
        "the pairs i = j are left out: the mean has to be over all pairs":
            -2 * attract + (25 * repel - positives) / 20,
        "the pairs i = j are set to 0: the mean has to be over all pairs":
            -2 * attract + repel - positives / 25,
        "the second term is a sum: it has to be a mean": -2 * attract + 25 * repel,
        "the second term is divided by N: it has to be N^2, the number of pairs":
            -2 * attract + 5 * repel,
        "the first term is a mean over K too: f.f2 has to be the sum over the K entries":
            -2 * attract / 3 + repel,
        "the second term has the first view with itself: it has to be the first with the second":
            -2 * attract + repulsion(a, a),
        "transposed: f^T f2 is [K, K], the pairs of images have to be [N, N]":
            -2 * attract + repulsion(f.T.tolist(), f2.T.tolist())})
    live = [x.clone().requires_grad_() for x in (f, f2)]
    found = gradients(L.spectral(*live), *live)
    expected = (slope(lambda x: of_spectral(x.tolist(), b), f),
                slope(lambda x: of_spectral(a, x.tolist()), f2))
    if expected[0].any() and not (found[0].any() and found[1].any()):
        raise Wrong("one view is detached: there is no stop-gradient in this loss")
    compare(found, expected, what="the gradient")


def check_B_spectral():
    x = randn(4, 3) + 0.5                                                   # [N, D]
    x2 = x + 0.7 * randn(4, 3)
    a, b, h = x.tolist(), x2.tolist(), 1e-4

    def loss(w):
        """Of one row of W: an embedding of one number"""
        return of_spectral([[dot(w, r)] for r in a], [[dot(w, r)] for r in b])

    def second(i, j):
        """The second derivative at W = 0"""
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
        "it is not symmetric, but has to be, and half as large as it has to be": M,
        "half of what it has to be: the loss has -2 E f.f2": B / 2,
        "twice what it has to be: the symmetric part of 2 M is M + M^T": 2 * B,
        "the sign is wrong: L = const - Tr[W B W^T]": -B,
        "this is the Hessian: B has to be -1/2 of it": -2 * B,
        "a sum over the batch stands where the mean has to": 4 * B,
        "the means are subtracted, but must stay: E (f_i.f2_j)^2 is of fourth order in W, and B "
        "of second": B - of_means - of_means.T,
        "one view with itself: it has to be x with x2": 2 * moment(a, a),
        "x x2^T has the shape [N, N]: B is [D, D]": (images + images.T) * 3 / 4,
        "x x2^T has the shape [N, N], and is summed: B is [D, D]": (images + images.T) * 3}, "B")


def check_rank_of_theory():
    A, C = (3.0, 1.5, 1.0, 0.5, 0.2), (0.3, 0.3, 2.0, 0.2, 0.6)
    weights = (0.5, 1, 1.4, 1.5, 2, 4, 8, 12)
    by_hand = tensor([5, 5, 4, 3, 3, 2, 1, 0])
    found = [L.rank_of_theory(a) for a in weights]
    if any(isinstance(rank, (list, tuple)) for rank in found):
        raise Wrong("a list is returned: how many entries are positive?")
    found = None if any(rank is None for rank in found) else tensor([float(r) for r in found])

    def count(lives):
        return tensor([float(sum(lives(a, A_k, c) for A_k, c in zip(A, C))) for a in weights])

    def total(counts):
        B = [[A_k + (1 - a) * c for A_k, c in zip(A, C)] for a in weights]
        return tensor([sum(b for b in row if counts(b)) for row in B])

    compare(found, by_hand, {
        "a dimension whose eigenvalue is 0 (a = 1.5) is counted, but it does not live: the quartic "
        "ends it":
            count(lambda a, A_k, c: A_k + (1 - a) * c >= 0),
        "the dead ones are counted: it has to be those that live":
            count(lambda a, A_k, c: A_k + (1 - a) * c < 0),
        "this is of A0 - a C: B has to be A0 + (1 - a) C":
            count(lambda a, A_k, c: A_k - a * c > 0),
        "always 5: where a is large, eigenvalues of B are negative": torch.full((8,), 5.0),
        "eigenvalues that are not 0 are counted: negative ones collapse":
            count(lambda a, A_k, c: A_k + (1 - a) * c != 0),
        "this is the sum of the eigenvalues: it has to be how many are positive":
            total(lambda b: True),
        "this is the sum of the positive eigenvalues: it has to be how many there are":
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

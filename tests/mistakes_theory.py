"""Wrong versions that students write: {function: {body: words that the hint has}}."""
LEMMA1 = """
def flow(W_p, W, W_a):
    error = {error}
    dW_p = {dW_p}
    dW = {dW}
    return dW_p, dW, {dW_a}
{end}
"""
DECOUPLED = """
beta = torch.as_tensor(beta, dtype=torch.double)
def flow(p, s, tau):
    slope = {slope}
    dp = {dp}
    ds = {ds}
    return dp, ds, {dtau}
return flow
"""
EMA = "torch.where(torch.isinf(beta), 0.0, beta * (1 - tau) - {0})"
PHI = """
on_both = (W[:, :, :2] * {length}).mT
which = {which}[..., None].expand(-1, -1, W.shape[1])
on_feature = on_both.gather(1, which) * {sign}
on_noise = torch.einsum("snpd,smd->snpm", noise, {weights})
return {out}
"""


def versions(body, right, *changes):
    """The body with one thing changed at a time.  changes: ({part: wrong text}, words)"""
    return {body.format(**(right | changed)): words for changed, words in changes}


MISTAKES = {
    # ------------------------------------------------------------------------------ toy_dynamics
    "toy_dynamics.lemma1": versions(
        LEMMA1,
        {"error": "W_a @ X - W_p @ W @ (X + X_aug)", "dW_p": "alpha_p * error @ W.T - eta * W_p",
         "dW": "W_p.T @ error - eta * W", "dW_a": "beta * (W - W_a)", "end": "return flow"},
        ({"error": "(W_a - W_p @ W) @ (X + X_aug)"}, "independent"),
        ({"error": "(W_a - W_p @ W) @ X"}, "the noise X' is missing"),
        ({"error": "W_p @ W @ (X + X_aug) - W_a @ X"}, "downhill"),
        ({"dW_p": "error @ W.T - eta * W_p"}, "dW_p: alpha_p is missing"),
        ({"dW_p": "alpha_p * (error @ W.T - eta * W_p)"}, "the weight decay too"),
        ({"dW_p": "alpha_p * error @ W.T"}, "dW_p: the weight decay -eta W_p is missing"),
        ({"dW_p": "alpha_p * error @ W_a.T - eta * W_p"}, "where W^T has to"),
        ({"dW_p": "alpha_p * W @ error.T - eta * W_p"}, "transposed"),
        ({"dW": "W_p @ error - eta * W"}, "not transposed"),
        ({"dW": "W_p.T @ error"}, "dW: the weight decay -eta W is missing"),
        ({"dW": "error - eta * W"}, "back through the predictor"),
        ({"dW": "alpha_p * W_p.T @ error - eta * W"}, "dW_p alone"),
        ({"dW_a": "beta * (W_a - W)"}, "towards W"),
        ({"dW_a": "W - W_a"}, "beta is missing"),
        ({"dW_a": "(1 - beta) * (W - W_a)"}, "1 - beta stands"),
        ({"dW_a": "beta * (W - W_a) - eta * W_a"}, "dW_a: weight decay is in it"),
        ({"dW_a": "W_p @ W @ X - W_a @ (X + X_aug)"}, "no stop-gradient"),
        ({"dW_a": "beta * W"}, "largest difference from the definition"),
        ({"end": ""}, "nothing is returned"),
    ),
    "toy_dynamics.no_predictor": {
        "return lambda W: (-2 * W @ X_aug - eta * W,)": "without the stop-gradient",
        "return lambda W: (W @ X_aug + eta * W,)": "downhill",
        "return lambda W: (-X_aug @ W.T - eta * W.T,)": "transposed",
        "return lambda W: (-W @ (X_aug + eta),)": "every entry of X'",
        "return lambda W: (-W @ X_aug,)": "the weight decay -eta W is missing",
        "return lambda W: (-W @ (torch.eye(3) + X_aug) - eta * W,)": "X is in it",
        "return lambda W: -W @ X_aug - eta * W": "a tuple of 1",
        "return lambda W: (-eta * W,)": "largest difference from the definition",
        "return lambda W: (-W @ X_aug - 0.3 * W,)": "largest difference from the definition",
    },
    "toy_dynamics.decoupled": versions(
        DECOUPLED,
        {"slope": "tau - (1 + sigma2) * p", "dp": "alpha_p * s * slope - eta * p",
         "ds": "2 * p * s * slope - 2 * eta * s", "dtau": EMA.format("tau * ds / (2 * s)")},
        ({"slope": "tau - p"}, "the noise is missing"),
        ({"slope": "1 - (1 + sigma2) * p"}, "tau is missing"),
        ({"dp": "s * slope - eta * p"}, "dp: alpha_p is missing"),
        ({"dp": "alpha_p * slope - eta * p"}, "s is missing"),
        ({"ds": "p * s * slope - eta * s"}, "ds = 2 w dw"),
        ({"ds": "2 * p * s * slope - eta * s"}, "2 eta"),
        ({"ds": "2 * alpha_p * p * s * slope - 2 * eta * s"}, "in dp alone"),
        ({"dp": "alpha_p * s * (tau - (1 + sigma2) * p / 2) - eta * p"},
         "dp: the term with 1 + sigma2 is half"),
        ({"ds": "2 * p * s * (tau - (1 + sigma2) * p / 2) - 2 * eta * s"},
         "ds: the term with 1 + sigma2 is half"),
        ({"ds": "2 * p * s * slope"}, "ds: the weight decay -2 eta s is missing"),
        ({"dtau": EMA.format("0 * s")}, "quotient rule"),
        ({"dtau": EMA.format("tau * ds / s")}, "dw / w"),
        ({"dtau": "beta * (1 - tau) - tau * ds / (2 * s)"}, "without an EMA tau stays"),
        ({"dtau": "torch.where(torch.isinf(beta), 0.0, beta * (1 - tau)) - tau * ds / (2 * s)"},
         "dtau at beta = inf: the quotient rule's second term is left"),
        ({"dtau": "0 * s if torch.isinf(beta) else beta * (1 - tau) - tau * ds / (2 * s)"},
         "torch.where can"),
        ({"dp": "alpha_p * s * slope"}, "dp: the weight decay -eta p is missing"),
        ({"dp": "alpha_p * s * slope + eta"}, "largest difference from the definition"),
    ),
    "toy_dynamics.fixed_points": {
        "root = math.sqrt(tau**2 - 4 * eta * (1 + sigma2))\n"
        "return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))":
            "the root of a negative number",
        "root = max(tau**2 - 4 * eta * (1 + sigma2), 0) ** 0.5\n"
        "return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))":
            "no fixed point but 0",
        "root = (tau**2 - 4 * eta * (1 + sigma2)) ** 0.5\n"
        "return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))":
            "no fixed point but 0",
        "root = math.sqrt(tau**2 - 4 * eta * (1 + sigma2))\n"
        "return (tau + root) / (2 * (1 + sigma2)), (tau - root) / (2 * (1 + sigma2))":
            "the smaller one",
        "root = math.sqrt(tau**2 - 4 * eta)\n"
        "return (tau - root) / 2, (tau + root) / 2": "1 + sigma2 is missing",
        "root = math.sqrt(tau**2 - 4 * eta * (1 + sigma2))\n"
        "return (tau - root) / 2, (tau + root) / 2": "is 2: it has to be",
        "root = math.sqrt(tau**2 - 4 * eta * (1 + sigma2))\n"
        "return (tau - root) / 2 * (1 + sigma2), (tau + root) / 2 * (1 + sigma2)":
            "multiplies by 1 + sigma2",
        "root = math.sqrt(tau**2 - 4 * eta * (1 + sigma2))\n"
        "return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2)), 0.0":
            "two numbers",
        "if tau**2 < 4 * eta * (1 + sigma2):\n"
        "    return math.nan\n"
        "root = math.sqrt(tau**2 - 4 * eta * (1 + sigma2))\n"
        "return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))":
            "two numbers are returned; nan, nan",
        "root = math.sqrt(1 - 4 * eta * (1 + sigma2))\n"
        "return (1 - root) / (2 * (1 + sigma2)), (1 + root) / (2 * (1 + sigma2))":
            "tau is missing",
        "root = math.sqrt(tau**2 + 4 * eta * (1 + sigma2))\n"
        "return (tau - root) / (2 * (1 + sigma2)), (tau + root) / (2 * (1 + sigma2))":
            "the sign of eta",
        "return eta / tau, tau / (1 + sigma2)": "largest difference from the definition",
    },
    # --------------------------------------------------------------------------------- toy_patch
    "toy_patch.batch_norm": {
        "return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-8).sqrt()":
            "unbiased=False",
        "return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-8).sqrt()": "over the runs",
        "mean, var = x.mean(2, keepdim=True), x.var(2, unbiased=False, keepdim=True)\n"
        "return (x - mean) / (var + 1e-8).sqrt()": "over the neurons",
        "mean, var = x.mean((0, 1)), x.var((0, 1), unbiased=False)\n"
        "return (x - mean) / (var + 1e-8).sqrt()": "over all runs together",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return (x - mean) / (var + 1e-8)": "by the root of it",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return x / (var + 1e-8).sqrt()": "not subtracted",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return (x - mean) / (var + 1e-5).sqrt()": "too much",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return (x - mean) / var.sqrt()": "1e-8 is missing",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return (x - mean) / (var.sqrt() + 1e-8)": "yours adds 1e-8 to the root",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return (x - mean.detach()) / (var.detach() + 1e-8).sqrt()":
            "mean and variance are detached",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return (x - mean) / (var.detach() + 1e-8).sqrt()": "the variance is detached",
        "mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)\n"
        "return (x - mean.detach()) / (var + 1e-8).sqrt()": "the mean is detached",
        "return x.clamp(-1, 1)": "largest difference from the definition",
    },
    "toy_patch.phi": versions(
        PHI,
        {"length": "length", "which": "feature", "sign": "sign[..., None]",
         "weights": "W[:, :, 2:]", "out": "FEATURE_PATCHES * on_feature**3 + (on_noise**3).sum(2)"},
        ({"length": "1"}, "the feature's length is missing"),
        ({"which": "(1 - feature)"}, "0 has to be v1"),
        ({"which": "(0 * feature)"}, "every image has v1"),
        ({"sign": "1"}, "the sign is missing"),
        ({"weights": "W[:, :, :-2]"}, "the last d - 2"),
        ({"out": "FEATURE_PATCHES * on_feature + on_noise.sum(2)"}, "the cube is missing"),
        ({"out": "(FEATURE_PATCHES * on_feature + on_noise.sum(2)) ** 3"}, "the cube of the sum"),
        ({"out": "FEATURE_PATCHES * on_feature**3 + on_noise.sum(2) ** 3"},
         "the noise patches are summed before the cube"),
        ({"out": "FEATURE_PATCHES * on_feature.abs()**3 + (on_noise.abs()**3).sum(2)"},
         "with abs"),
        ({"out": "(FEATURE_PATCHES * on_feature) ** 3 + (on_noise**3).sum(2)"}, "inside the cube"),
        ({"out": "on_feature**3 + (on_noise**3).sum(2)"}, "one patch has the feature"),
        ({"out": "FEATURE_PATCHES * on_feature**3"}, "the noise patches are missing"),
        ({"out": "FEATURE_PATCHES * on_feature**3 + (on_noise**3).mean(2)"},
         "the mean of the noise patches"),
        ({"out": "(FEATURE_PATCHES * on_feature**3 + (on_noise**3).sum(2)).detach()"},
         "W gets no gradient"),
        ({"out": "FEATURE_PATCHES * on_feature**3 + on_noise.abs().sum(2)"},
         "largest difference from the definition"),
    ),
    # ----------------------------------------------------------------------------- toy_landscape
    "toy_landscape.spectral": {
        "return -(f * f2).sum(1).mean() + (f @ f2.T).square().mean()": "the 2 before",
        "return -2 * (f * f2).mean() + (f @ f2.T).square().mean()": "a mean over K",
        "return -2 * (f * f2).sum(1).mean() + (f @ f2.T).square().sum()": "a sum: it has to be",
        "return -2 * (f * f2).sum(1).mean() + (f @ f2.T).square().sum() / len(f)":
            "divided by N",
        "return -2 * (f * f2).sum(1).mean() + (f @ f2.T).mean() ** 2": "the square of the mean",
        "return -2 * (f * f2).sum(1).mean() + (f @ f2.T).mean()": "not squared",
        "return -2 * (f * f2).sum(1).mean() + (f * f2).sum(1).square().mean()":
            "the positives alone",
        "n, dot = len(f), f @ f2.T\n"
        "dot = dot[~torch.eye(n, dtype=torch.bool)]\n"
        "return -2 * (f * f2).sum(1).mean() + dot.square().mean()": "are left out",
        "dot = f @ f2.T\n"
        "dot = dot - torch.diag(dot.diagonal())\n"
        "return -2 * (f * f2).sum(1).mean() + dot.square().mean()": "are set to 0",
        "return -2 * (f * f2).sum(1).mean() + (f @ f.T).square().mean()": "with itself",
        "return -2 * (f * f2).sum(1).mean() + (f.T @ f2).square().mean()": "transposed",
        "f2 = f2.detach()\n"
        "return -2 * (f * f2).sum(1).mean() + (f @ f2.T).square().mean()": "detached",
        "return (f - f2).square().sum(1).mean()": "largest difference from the definition",
    },
    "toy_landscape.B_spectral": {
        "return 2 * x.T @ x2 / len(x)": "not symmetric",
        "return x.T @ x2 / len(x)": "not symmetric, but has to be, and half",
        "M = x.T @ x2 / len(x)\n"
        "return (M + M.T) / 2": "half of what",
        "M = x.T @ x2 / len(x)\n"
        "return 2 * (M + M.T)": "twice what",
        "M = x.T @ x2 / len(x)\n"
        "return -(M + M.T)": "the sign",
        "M = x.T @ x2 / len(x)\n"
        "return -2 * (M + M.T)": "this is the Hessian",
        "M = x.T @ x2\n"
        "return M + M.T": "a sum over the batch",
        "M = x.T @ x2 / len(x) - torch.outer(x.mean(0), x2.mean(0))\n"
        "return M + M.T": "the means are subtracted",
        "return 2 * x.T @ x / len(x)": "one view with itself",
        "return x.T @ x2 @ x.T @ x2 / len(x)": "largest difference from the definition",
        "M = x @ x2.T / len(x)\n"
        "return M + M.T": "has the shape [N, N]: B",
    },
    "toy_landscape.rank_of_theory": {
        "return len([b for b in eigenvalues_of_B(a) if b >= 0])": "does not live",
        "return len([b for b in eigenvalues_of_B(a) if b < 0])": "the dead ones",
        "return sum(A_k - a * c > 0 for A_k, c in zip(EIG_A0, EIG_C))": "this is of A0 - a C",
        "return len(eigenvalues_of_B(a))": "always 5",
        "return sum(b != 0 for b in eigenvalues_of_B(a))": "not 0",
        "return eigenvalues_of_B(a)": "a list",
        "return sum(eigenvalues_of_B(a))": "the sum of the eigenvalues",
        "return sum(b for b in eigenvalues_of_B(a) if b > 0)": "the sum of the positive",
        "return max(0, 6 - round(a))": "largest difference from the definition",
    },
}

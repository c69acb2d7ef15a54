"""Lines of the scripts that give the answer to a task away, and what a sheet's folder has instead.

{sheet: {file: [(old text, new text), ...]}}.  make.py replaces one after the other.  The new lines
compute the same as the old ones, as a test shows.  Another test looks for lines of a solution, with
other names or numbers, in all that is handed out.
"""
HIDDEN = {
    "collapse": {
        "mirror_ablations.py": [
            # The loss of `identity` is that of `simsiam` with another distance.
            ("    return F.mse_loss(p1, z2.detach()) / 4 + F.mse_loss(p2, z1.detach()) / 4, p1, p2\n",
             '    raise NotImplementedError("identity is not a part of this sheet")\n'),
            ("alone, D(z1, z2.detach()) / 2 + D(z2, z1.detach()) / 2, does not help",
             "alone, on the second z of each direction, does not help"),
        ],
        "common.py": [
            # The sheet asks `collapse_metrics` for five numbers, and this is a sixth.
            ("""
    dead            share of z's rows that are 0 and have no direction, or 1 if all are equal""",
             ""),
            ("""\
    found = collapse_metrics(z)
    r = extract_features(encoder.backbone, data.test_x[:args.batch_size], data.mean, data.std)
    found["dead"] = max(found["dead"], collapse_metrics(r)["dead"])
    return {**found, **evaluate(encoder, data, args, epoch)}
""", """\
    return {**collapse_metrics(z), **evaluate(encoder, data, args, epoch)}
"""),
        ]},
    "contrast": {"toy_infonce.py": [
        # The toy's `info_nce` is this line in other letters.
        ("    return (logits.logsumexp(1) - logits.diagonal()).sum(), logits.softmax(1)\n",
         "    alpha = logits.softmax(1)\n"
         "    return -alpha.diagonal().log().sum(), alpha\n"),
    ]},
    "gradients": {
        "common.py": [
            # `decorrelation_loss` is the column covariance.  steps.csv has this column too.
            ("\n    covariance      off-diagonal entries of Cov(Z), squared and summed, / dim "
             "(their Algorithm 5)", ""),
            ("    off = cov.square().sum() - cov.diagonal().square().sum()\n", ""),
            (', "covariance": off / d', ""),
        ],
        "gradient_components.py": [
            # These losses end with the line of `surrogate`, and the sheet runs only `centre`.
            ("""\
    "naive": lambda v: -(v.Za * v.Zb.detach()).sum(1).mean(),              # It collapses.
    "mirror": lambda v: -(v.Za * v.Pb).sum(1).mean(),      # p_b = h(sg(z_b)), and h learns too.
    "bias": lambda v: -(v.Pa * v.Zb.detach()).sum(1).mean(),               # p_a = Z_a + b
    "centre": lambda v: -(v.Za * v.o_z.detach()).sum(1).mean(),
    "residual": lambda v: -(v.Za * (v.Za - v.o_z).detach()).sum(1).mean(),           # t is r_a
    "residual_b": lambda v: -(v.Za * (v.Zb - v.o_z).detach()).sum(1).mean(),         # t is r_b
    "random": lambda v: -(v.Za * F.normalize(torch.randn_like(v.Za), dim=1)).sum(1).mean(),
    # The first two have weights, because they are large after a collapse, unless z is small.
""", """\
    # The triplet loss without o_e and r_e has t = Z_b.  With o_z in the place of Z_b, t is o_z.
    "centre": lambda v: surrogate("triplet", v._replace(Zb=v.o_z.expand_as(v.Zb)), 1, "both"),
    # The next two have weights, because they are large after a collapse, unless z is small.
"""),
            ("naive", "centre"),                           # an example of what --loss may be
            # This is half of `decorrelation_loss`: its gradient, in a formula.
            ("""\
        R = v.Za - v.Za.mean(0)
        C = R.T @ R
        downhill = -R @ (C - C.diag().diag())              # Algorithm 5's direction
""", """\
        Za = v.Za.detach().requires_grad_()
        with torch.enable_grad():                          # Algorithm 5's direction
            downhill, = torch.autograd.grad(-decorrelation_loss(Za), Za)
"""),
        ]},
    "theory": {
        "toy_dynamics.py": [
            # `decoupled` has this line, with s in the place of p p.
            ("    return lambda p: (p * p * (tau - (1 + sigma2) * p) - eta * p,)\n",
             "    return lambda p: decoupled(sigma2, eta=eta)(p, p * p, torch.full_like(p, tau))"
             "[:1]\n"),
            # `fixed_points` for tau = 1, and the answer to a part of question 2
            ("""  It is 0 if eta is over 1 / (4 (1 + sigma2)).\"""
    root = 1 - 4 * eta * (1 + sigma2)
    if root < 0:
        return 0.0
    return ((1 + math.sqrt(root)) / (2 * (1 + sigma2))) ** (1 / (2 * alpha))
""", """  It is 0 if no p > 0 is a fixed point.\"""
    high = fixed_points(sigma2, eta)[1]
    return 0.0 if math.isnan(high) else high ** (1 / (2 * alpha))
"""),
        ],
        "toy_landscape.py": [
            # `B_spectral` is twice this matrix.
            ("    cross = (f.T @ f2 + f2.T @ f) / (2 * len(f))\n",
             "    cross = B_spectral(f, f2) / 2\n"),
        ]},
}

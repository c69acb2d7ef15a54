"""Wrong versions that students write: {function: {body: words that the hint has}}."""
MISTAKES = {
    # ---------------------------------------------------------------------------------- collapse
    "mirror_ablations.D": {
        "return F.cosine_similarity(p, z, dim=1).mean()": "the sign",
        "return -(p * z).sum(1).mean()": "not normalised",
        "return -F.cosine_similarity(p, z, dim=0).mean()": "wrong axis",
        "return -F.cosine_similarity(p, z.detach(), dim=1).mean()": "the caller's",
        "return -F.cosine_similarity(p.detach(), z, dim=1).mean()": "p gets no gradient",
        "P, Z = p / p.norm(dim=1, keepdim=True).detach(), F.normalize(z, dim=1)\n"
        "return -(P * Z).sum(1).mean()": "the gradient of p or z",
    },
    "mirror_ablations.simsiam": {
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, z2) / 2 + D(p2, z1) / 2, p1, p2": "no stop-gradient",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1.detach(), z2) / 2 + D(p2.detach(), z1) / 2, p1, p2": "belongs to the target",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, z1.detach()) / 2 + D(p2, z2.detach()) / 2, p1, p2": "the other view",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, z2.detach()), p1, p2": "exchanged",
    },
    "mirror_ablations.no_stopgrad": {
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2": "a target is detached",
        "return D(z1, z2), None, None": "no predictor",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\nreturn D(p1, p2), p1, p2":
            "the targets are z1 and z2",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\nreturn D(p1, z2), p1, p2": "exchanged",
    },
    "mirror_ablations.naive": {
        "return D(net.predictor(z1), z2) / 2 + D(net.predictor(z2), z1) / 2, None, None":
            "a predictor in it",
        "return D(z1, z2.detach()), None, None": "half",
    },
    "mirror_ablations.mirror": {
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2": "this is SimSiam's",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(z1, p2.detach()) / 2 + D(z2, p1.detach()) / 2, p1, p2": "h learns nothing",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(z1, p2) / 2 + D(z2, p1) / 2, p1, p2": "no stop-gradient",
        "p1, p2 = net.predictor(z1.detach()), net.predictor(z2.detach())\n"
        "return D(z1, p2), p1, p2": "exchanged",
    },
    "mirror_ablations.symmetric": {
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2": "that is SimSiam",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, p2), p1, p2": "no stop-gradient",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, p2.detach()), p1, p2": "exchanged",
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1.detach(), p2), p1, p2": "p2 learns from p1",
    },
    "mirror_ablations.inverse": {
        "h, h_inv = net.predictor, net.inverse\n"
        "p1, p2, t1, t2 = h(z1), h(z2), z1.detach(), z2.detach()\n"
        "loss_inv = D(h_inv(p1.detach()), t1) / 2 + D(h_inv(p2.detach()), t2) / 2\n"
        "loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2\n"
        "return loss_inv + loss_enc, p1, p2": "trains h alone is missing",
        "h, h_inv = net.predictor, net.inverse\n"
        "p1, p2, t1, t2 = h(z1), h(z2), z1.detach(), z2.detach()\n"
        "loss_pred = D(h(t1), t2) / 2 + D(h(t2), t1) / 2\n"
        "loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2\n"
        "return loss_pred + loss_enc, p1, p2": "trains h_inv is missing",
        "h, h_inv = net.predictor, net.inverse\n"
        "p1, p2, t1, t2 = h(z1), h(z2), z1.detach(), z2.detach()\n"
        "loss_pred = D(h(t1), t2) / 2 + D(h(t2), t1) / 2\n"
        "loss_inv = D(h_inv(p1.detach()), t1) / 2 + D(h_inv(p2.detach()), t2) / 2\n"
        "loss_enc = D(p1, h_inv(p2)) / 2 + D(p2, h_inv(p1)) / 2\n"
        "return loss_pred + loss_inv + loss_enc, p1, p2": "no stop-gradient on its target",
        "h, h_inv = net.predictor, net.inverse\n"
        "p1, p2, t1, t2 = h(z1), h(z2), z1.detach(), z2.detach()\n"
        "loss_pred = D(h(t1), t2) / 2 + D(h(t2), t1) / 2\n"
        "loss_inv = D(h_inv(p1.detach()), t1) / 2 + D(h_inv(p2.detach()), t2) / 2\n"
        "return loss_pred + loss_inv + D(p1, h_inv(p2).detach()), p1, p2": "in the last term one",
        "h, h_inv = net.predictor, net.inverse\n"
        "p1, p2, t1, t2 = h(z1), h(z2), z1.detach(), z2.detach()\n"
        "loss_pred = D(h(t1), z2) / 2 + D(h(t2), z1) / 2\n"
        "loss_inv = D(h_inv(p1.detach()), t1) / 2 + D(h_inv(p2.detach()), t2) / 2\n"
        "loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2\n"
        "return loss_pred + loss_inv + loss_enc, p1, p2": "target z is not stopped",
        "h, h_inv = net.predictor, net.inverse\n"
        "p1, p2, t1, t2 = h(z1.detach()), h(z2.detach()), z1.detach(), z2.detach()\n"
        "loss_pred = D(p1, t2) / 2 + D(p2, t1) / 2\n"
        "loss_inv = D(h_inv(p1.detach()), t1) / 2 + D(h_inv(p2.detach()), t2) / 2\n"
        "loss_enc = D(p1, h_inv(p2).detach()) / 2 + D(p2, h_inv(p1).detach()) / 2\n"
        "return loss_pred + loss_inv + loss_enc, p1, p2": "f learns nothing",
    },
    "mirror_ablations.simsiam_l2": {
        "p1, p2 = net.predictor(z1), net.predictor(z2)\n"
        "return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2": "not normalised",
        "p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))\n"
        "return D(p1, z2) / 2 + D(p2, z1) / 2, p1, p2": "no stop-gradient",
        "p1, p2 = net.predictor(F.normalize(z1, dim=0)), net.predictor(F.normalize(z2, dim=0))\n"
        "return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2": "wrong axis",
        "Z1, Z2 = F.normalize(z1.detach(), dim=1), F.normalize(z2.detach(), dim=1)\n"
        "p1, p2 = net.predictor(Z1), net.predictor(Z2)\n"
        "return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2": "f learns nothing",
        "p1, p2 = net.predictor(F.normalize(z1, dim=1)), net.predictor(F.normalize(z2, dim=1))\n"
        "return D(p1, z2.detach()), p1, p2": "exchanged",
    },
    "common.collapse_metrics": {},
}
METRICS = """
Z = {start}
n, d = Z.shape
o = Z.mean({axis})
R = Z - o
cov = R.T @ R / (n - 1)
eig = torch.linalg.eigvalsh(cov).clamp(min=1e-12)
eig = eig / eig.sum()
off = cov.square().sum() {minus}
values = {{"std": {root} * Z.std(0).mean(), "m_o": o.norm(), "m_r": R.norm(dim=1).mean(),
          "effective_rank": {exp}, "covariance": off / d}}
return {{name: value.item() for name, value in values.items()}}
"""
RIGHT = dict(start="F.normalize(z, dim=1)", axis="0", minus="- cov.diagonal().square().sum()",
             root="d**0.5", exp="(-(eig * eig.log()).sum()).exp()")
for changed, words in ((dict(start="z"), "l2-normalised"), (dict(root="1"), "sqrt(D)"),
                       (dict(minus=""), "diagonal"),
                       (dict(exp="-(eig * eig.log()).sum()"), "exp of the entropy"),
                       (dict(start="F.normalize(z.mul_(2), dim=1)"), "z itself has changed")):
    body = METRICS.format(**{**RIGHT, **changed})
    MISTAKES["common.collapse_metrics"][body] = words
for right, wrong, words in (("o.norm()", "o.norm() ** 2", "length is squared"),
                            ("Z.std(0).mean()", "Z.var(0).mean().sqrt()", "mean of the roots"),
                            ("eig = eig / eig.sum()", "", "divided by their sum")):
    MISTAKES["common.collapse_metrics"][METRICS.format(**RIGHT).replace(right, wrong)] = words
body = METRICS.format(**RIGHT).replace("1e-12", "1e-3")
MISTAKES["common.collapse_metrics"][body] = "of 5 images in 8 dimensions"

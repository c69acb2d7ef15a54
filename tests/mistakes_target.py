"""Wrong versions that students write, as in mistakes_collapse.py."""
WEIGHTS_ALONE = """
for old, new in zip(self.target.parameters(), self.encoder.parameters()):
    old.mul_(m).add_((1 - m) * new)
"""
TARGET = [
    ("running averages are not averaged", WEIGHTS_ALONE),
    ("running averages are copied", WEIGHTS_ALONE + "for old, new in "
     "zip(self.target.buffers(), self.encoder.buffers()):\n    old.copy_(new)"),
    ("m and 1 - m are exchanged", "1 - m", "m"),
    ("in place", "target[name].lerp_(new", "target[name] = target[name].lerp(new"),
    ("only the target f' moves", "target[name].lerp_(new, 1 - m)", "new.lerp_(target[name], m)"),
    ("the old target is not multiplied", "lerp_(new, 1 - m)", "add_((1 - m) * new)"),
    ("largest difference from the definition", "1 - m", "0.1"),
    ("nothing has changed", "new.is_floating_point()", "new.dtype == torch.double"),
    ("integer counter of BatchNorm has changed", "if new.is_floating_point():", "if True:",
     "lerp_(new, 1 - m)", "copy_(m * target[name] + (1 - m) * new)"),
    ("integer counter of BatchNorm has changed", "if new", "if not new.is_floating_point():\n"
     "        target[name].copy_(new)\n    if new"),
    ("m is not used", "self.target.load_state_dict(self.encoder.state_dict())"),
]

ROOT = """
s, U = torch.linalg.eigh(F)
return U * ((s.clamp(min=0) / s[-1]).sqrt() + eps) @ U.T
"""
LERP = "self.correlations.lerp_(now, 1 - self.args.rho * self.started)"

MISTAKES = {
    "byol.BYOL.update_target": TARGET,
    "directpred.DirectPred.update_target": TARGET,
    "directpred.DirectPred.update_correlations": [
        ("t1 is paired with z1", "[t2, t1]", "[t1, t2]"),
        ("transposed: C is E[t z^T]", "t.T @ z", "z.T @ t"),
        ("transposed, and t1 is paired", "[t2, t1]", "[t1, t2]", "t.T @ z", "z.T @ t"),
        ("this is the sum over the rows", "/ len(z)", ""),
        ("2 B rows", "len(z)", "len(z1)"),
        ("the zeros of the start", "1 - self.args.rho * self.started", "1 - self.args.rho"),
        ("not centred", "now =", "z, t = z - z.mean(0), t - t.mean(0)\nnow ="),
        ("as it is", "now =", "z = torch.nn.functional.normalize(z, dim=1)\nnow ="),
        ("one view alone", "z.T @ z", "2 * z1.T @ z1"),
        ("only one direction", "t.T @ z", "2 * t2.T @ z1"),
        ("each with itself", "z.T @ z", "(z1.T @ z2 + z2.T @ z1)"),
        ("how much of the old value stays", "- self.args.rho", "- (1 - self.args.rho)"),
        ("Set started to 1", "self.started.fill_(1)", ""),
        ("has to stay a tensor", "self.started.fill_(1)", "self.started = 1"),
        ("started is 2 by now", "self.started.fill_(1)", "self.started += 1"),
        ("stops with", "z.T @ z, t.T @ z", "z @ z.T, t @ z.T"),
        ("are rho and 1 - rho exchanged", "1 - self.args.rho", "self.args.rho"),
        ("F after the first batch: it is still zero", "started.fill_(1)", "correlations.zero_()"),
        ("C after the first batch: it is still zero", "started.fill_(1)", "correlations[1] = 0"),
        ("(.float())", ".float()", ""),
        ("(.float())", ".float()", "", "(now,", "(now.float(),"),
        ("(.float())", ".float()", "", "z.T @ z, t.T @ z", "(z.T @ z).float(), (t.T @ z).float()"),
        ("(.float())", ".float()", "", LERP, "rho = self.args.rho * self.started\n"
         "self.correlations.copy_(rho * self.correlations + (1 - rho) * now)"),
    ],
    "directpred.directset_weight": [
        ("not the absolute value", "s.clamp(min=0)", "s.abs()"),
        ("not divided by its norm", " / s[-1]", ""),
        ("Frobenius", "(s.clamp(min=0) / s[-1]) ** alpha",
         "s.clamp(min=0)**alpha / (s.clamp(min=0)**alpha).norm()"),
        ("that of F^alpha", "(s.clamp(min=0) / s[-1]) ** alpha", "s.clamp(min=0)**alpha / s[-1]"),
        ("nan or inf", "s.clamp(min=0)", "s"),
        ("from small to large", "s[-1]", "s[0]"),
        ("U is transposed", "U * p @ U.T", "U.T * p @ U"),
        ("different orders", "p =", "s = s.flip(0)\np =", "s[-1]", "s[0]"),
        ("before the power", "/ s[-1]) ** alpha + eps", "/ s[-1] + eps) ** alpha"),
        ("eps I is missing", " + eps", ""),
        ("to every entry", " + eps", "", "U.T", "U.T + eps"),
        ("always 1/2", "** alpha", "** 0.5"),
        ("1 / alpha", "** alpha", "** (1 / alpha)"),
        ("entry by entry",
         "G = F**alpha\nreturn G / torch.linalg.norm(G, 2) + eps * torch.eye(len(F))"),
        ("eps is added before the norm", " / s[-1]", "", "U * p", "U * (p / p.max())"),
        ("a second norm", "U * p", "U * (p / p.max())"),
        ("has the shape", "U * p @ U.T", "p"),
    ],
    "directpred.directpred_weight": [
        ("not divided by its norm", ROOT.replace(" / s[-1]", "")),
        ("as in the paper", ROOT.replace(" / s[-1]", "").replace("eps", "eps * s[-1]")),
        ("the root is missing", ROOT.replace(".sqrt()", "")),
        ("correct that first", "0.5", "1"),
        ("there is a square", "0.5", "2"),
        ("divided by max s", ROOT.replace(" / s[-1]).sqrt()", ").sqrt() / s[-1]")),
        ("before the power", ROOT.replace(").sqrt() + eps", " + eps).sqrt()")),
        ("nan or inf", ROOT.replace(".clamp(min=0)", "")),
    ],
    "directpred.directcopy_weight": [
        ("12 squarings", "range(12)", "range(4)"),
        ("Frobenius", "((F * G).sum() / G.trace())", "F.norm()"),
        ("divided by the trace", "((F * G).sum() / G.trace())", "F.trace()"),
        ("the largest entry", "((F * G).sum() / G.trace())", "F.max()"),
        ("row sum", "((F * G).sum() / G.trace())", "torch.linalg.norm(F, 1)"),
        ("not divided by its norm", " / ((F * G).sum() / G.trace())", ""),
        ("eps I is missing", " + eps * identity", ""),
        ("to every entry", "eps * identity", "eps"),
        ("divided by the norm too", " + eps * identity", "", "F / (", "(F + eps * identity) / ("),
        ("there is a root", "return directset_weight(F, 0.5, eps)"),
        ("before each squaring", "    G = G / G.norm()\n", ""),
        ("inf in float32", "    G = G / G.norm()\n", "", "G = F", "G = F / F.norm()"),
        ("is that the trace of G alone", "(F * G).sum() / G.trace()", "G.trace()"),
        ("is that the trace of G alone", "    G = G / G.norm()\n    G = G @ G",
         "    G = G @ G\n    G = G / G.norm()", "(F * G).sum() / G.trace()", "G.trace()"),
        ("W_p for an F in float32", "    G = G / G.norm()\n", "", "G = F", "G = F / F.norm()",
         "G.trace())", "G.trace()).nan_to_num(1.0)"),
        ("squared once", "    G = G / G.norm()\n", "", "range(12)", "range(1)"),
    ],
    "directpred.optimal_weight": [
        ("there is no ridge", " + 0.01 * F.trace() / len(F) * identity", ""),
        ("the wrong side", ", C.T)[0].T", ", C)[0]"),
        ("transposed: W_p z", "[0].T", "[0]"),
        ("C is transposed", "C.T", "C"),
        ("the ridge is 0.01", " * F.trace() / len(F)", ""),
        ("a hundredth of the trace", " / len(F)", ""),
        ("the mean s itself", "0.01 * ", ""),
        ("the trace times D", " / len(F)", " * len(F)"),
        ("to every entry of F", " * identity", ""),
    ],
}

"""Wrong versions that students write: {function: {body: words that the hint has}}."""
TARGET = {
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.parameters(), self.encoder.parameters()):\n"
    "    t.mul_(m).add_((1 - m) * p)": "running averages are not averaged",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.parameters(), self.encoder.parameters()):\n"
    "    t.mul_(m).add_((1 - m) * p)\n"
    "for t, p in zip(self.target.buffers(), self.encoder.buffers()):\n"
    "    t.copy_(p)": "running averages are copied",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    if t.is_floating_point():\n"
    "        t.copy_((1 - m) * t + m * p)": "m and 1 - m are exchanged",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    t = m * t + (1 - m) * p": "in place",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    if t.is_floating_point():\n"
    "        p.copy_(m * t + (1 - m) * p)": "only the target f' moves",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    if t.is_floating_point():\n"
    "        t.add_((1 - m) * p)": "the old target is not multiplied",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    if t.is_floating_point():\n"
    "        t.copy_(0.9 * t + 0.1 * p)": "largest difference from the definition",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    if t.dtype == torch.double:\n"
    "        t.copy_(m * t + (1 - m) * p)": "nothing has changed",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    t.copy_(m * t + (1 - m) * p)": "integer counter has changed",
    "if self.target is None:\n    return\n"
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    t.copy_(m * t + (1 - m) * p if t.is_floating_point() else p)":
        "integer counter has changed",
    "self.target.load_state_dict(self.encoder.state_dict())": "m is not used",
    "for t, p in zip(self.target.state_dict().values(), self.encoder.state_dict().values()):\n"
    "    if t.is_floating_point():\n"
    "        t.copy_(m * t + (1 - m) * p)": "return at once",
}

CORRELATIONS = """
z, t = torch.cat([z1, z2]){float}, torch.cat({t}){float}
{more}
now = torch.stack([{F}, {C}]) / {n}
if self.started == 0 and {first}:
    self.correlations.copy_(now)
else:
    self.correlations.copy_({old} * self.correlations + {new} * now)
{last}
"""
RIGHT = dict(t="[t2, t1]", float=".float()", more="", F="z.T @ z", C="t.T @ z", n="len(z)",
             first="True", old="self.args.rho", new="(1 - self.args.rho)",
             last="self.started.fill_(1)")


def correlations(**changed):
    return CORRELATIONS.format(**{**RIGHT, **changed})


MISTAKES = {
    "byol.BYOL.update_target": TARGET,
    "directpred.DirectPred.update_target": TARGET,
    "directpred.DirectPred.update_correlations": {
        correlations(t="[t1, t2]"): "t1 is paired with z1",
        correlations(C="z.T @ t"): "transposed: C is E[t z^T]",
        correlations(t="[t1, t2]", C="z.T @ t"): "transposed, and t1 is paired",
        correlations(n="1"): "the sum over the rows",
        correlations(n="len(z1)"): "2 B rows",
        correlations(first="False"): "the zeros of the start",
        correlations(more="z, t = z - z.mean(0), t - t.mean(0)"): "not centred",
        correlations(more="z = torch.nn.functional.normalize(z, dim=1)"): "as it is",
        correlations(F="2 * z1.T @ z1"): "one view alone",
        correlations(C="2 * t2.T @ z1"): "one direction alone",
        correlations(F="(z1.T @ z2 + z2.T @ z1)"): "each with itself",
        correlations(old="(1 - self.args.rho)", new="self.args.rho"): "rho is the memory",
        correlations(last=""): "set started to 1",
        correlations(last="self.started = 1"): "has to stay a tensor",
        "z, t = torch.cat([z1, z2]).float(), torch.cat([t2, t1]).float()\n"
        "now = torch.stack([z.T @ z, t.T @ z]) / len(z)\n"
        "self.correlations.lerp_(now, 1 - self.args.rho * self.started)\n"
        "self.started += 1": "started is 2 by now",
        correlations(F="z @ z.T", C="t @ z.T"): "stops with",
        correlations(more="rho = self.args.rho * self.started", first="False",
                     old="(1 - rho)", new="rho"): "are rho and 1 - rho exchanged",
        correlations(last="self.correlations.zero_()"): "F after the first batch: still zero",
        correlations(last="self.correlations[1] = 0"): "C after the first batch: still zero",
        correlations(float=""): "(.float())",
        correlations(float="", F="(z.T @ z).float()", C="(t.T @ z).float()"): "(.float())",
        correlations(float="", first="False", old="self.args.rho * self.started",
                     new="(1 - self.args.rho * self.started)"): "(.float())",
        "z, t = torch.cat([z1, z2]), torch.cat([t2, t1])\n"
        "now = torch.stack([z.T @ z, t.T @ z]) / len(z)\n"
        "self.correlations.lerp_(now, 1 - self.args.rho * self.started)\n"
        "self.started.fill_(1)": "(.float())",
    },
    "directpred.directset_weight": {
        "s, U = torch.linalg.eigh(F)\n"
        "return (U * ((s.abs() / s[-1]) ** alpha + eps)) @ U.T": "its absolute value does not",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0) ** alpha + eps) @ U.T": "there is no norm",
        "s, U = torch.linalg.eigh(F)\n"
        "p = s.clamp(min=0) ** alpha\n"
        "return U * (p / p.norm() + eps) @ U.T": "Frobenius",
        "s, U = torch.linalg.eigh(F)\n"
        "p = s.clamp(min=0) ** alpha\n"
        "return U * (p / s[-1] + eps) @ U.T": "that of F^alpha",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * ((s / s[-1]) ** alpha + eps) @ U.T": "nan or inf",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * ((s.clamp(min=0) / s[0]) ** alpha + eps) @ U.T": "from small to large",
        "s, U = torch.linalg.eigh(F)\n"
        "p = (s.clamp(min=0) / s[-1]) ** alpha + eps\n"
        "return U.T @ torch.diag(p) @ U": "U is transposed",
        "s, U = torch.linalg.eigh(F)\n"
        "s = s.flip(0).clamp(min=0)\n"
        "return U * ((s / s[0]) ** alpha + eps) @ U.T": "different orders",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0) / s[-1] + eps) ** alpha @ U.T": "under the power",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0) / s[-1]) ** alpha @ U.T": "eps I is missing",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0) / s[-1]) ** alpha @ U.T + eps": "to every entry",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * ((s.clamp(min=0) / s[-1]) ** 0.5 + eps) @ U.T": "always 1/2",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * ((s.clamp(min=0) / s[-1]) ** (1 / alpha) + eps) @ U.T": "1 / alpha",
        "G = F**alpha\n"
        "return G / torch.linalg.norm(G, 2) + eps * torch.eye(len(F))": "entry by entry",
        "s, U = torch.linalg.eigh(F)\n"
        "p = s.clamp(min=0) ** alpha + eps\n"
        "return U * (p / p.max()) @ U.T": "eps is added before the norm: divide",
        "s, U = torch.linalg.eigh(F)\n"
        "p = (s.clamp(min=0) / s[-1]) ** alpha + eps\n"
        "return U * (p / p.max()) @ U.T": "here a second one",
        "s, U = torch.linalg.eigh(F)\n"
        "return (s.clamp(min=0) / s[-1]) ** alpha + eps": "has the shape",
    },
    "directpred.directpred_weight": {
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0).sqrt() + eps) @ U.T": "there is no norm",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0).sqrt() + eps * s[-1]) @ U.T": "as the paper prints it",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0) / s[-1] + eps) @ U.T": "the root is missing",
        "return directset_weight(F, 1, eps)": "correct that first",
        "return directset_weight(F, 2, eps)": "squared",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0).sqrt() / s[-1] + eps) @ U.T": "divided by max s",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * (s.clamp(min=0) / s[-1] + eps).sqrt() @ U.T": "under the power",
        "s, U = torch.linalg.eigh(F)\n"
        "return U * ((s / s[-1]).sqrt() + eps) @ U.T": "nan or inf",
    },
    "directpred.directcopy_weight": {
        "G = F\nfor _ in range(4):\n    G = G / G.norm()\n    G = G @ G\n"
        "identity = torch.eye(len(F), dtype=F.dtype)\n"
        "return F / ((F * G).sum() / G.trace()) + eps * identity": "12 squarings",
        "return F / F.norm() + eps * torch.eye(len(F))": "Frobenius",
        "return F / F.trace() + eps * torch.eye(len(F))": "divided by the trace",
        "return F / F.max() + eps * torch.eye(len(F))": "the largest entry",
        "return F / torch.linalg.norm(F, 1) + eps * torch.eye(len(F))": "row sum",
        "return F + eps * torch.eye(len(F))": "there is no norm",
        "return F / torch.linalg.norm(F, 2)": "eps I is missing",
        "return F / torch.linalg.norm(F, 2) + eps": "to every entry",
        "return (F + eps * torch.eye(len(F))) / torch.linalg.norm(F, 2)": "divided by the norm too",
        "return directset_weight(F, 0.5, eps)": "the root is too much",
        "G = F\n"
        "for _ in range(12):\n"
        "    G = G @ G\n"
        "return F / ((F * G).sum() / G.trace()) + eps * torch.eye(len(F))": "before each squaring",
        "G = F / F.norm()\n"
        "for _ in range(12):\n"
        "    G = G @ G\n"
        "return F / ((F * G).sum() / G.trace()) + eps * torch.eye(len(F))": "inf in float32",
        "G = F\n"
        "for _ in range(12):\n"
        "    G = G / G.norm()\n"
        "    G = G @ G\n"
        "return F / G.trace() + eps * torch.eye(len(F))": "is it the trace of G alone",
        "G = F\n"
        "for _ in range(12):\n"
        "    G = G @ G\n"
        "    G = G / G.norm()\n"
        "return F / G.trace() + eps * torch.eye(len(F))": "is it the trace of G alone",
        "G = F / F.norm()\n"
        "for _ in range(12):\n"
        "    G = G @ G\n"
        "s = ((F * G).sum() / G.trace()).nan_to_num(1.0)\n"
        "return F / s + eps * torch.eye(len(F))": "W_p of an F in float32",
        "G = F @ F\n"
        "return F / ((F * G).sum() / G.trace()) + eps * torch.eye(len(F))": "squared once",
    },
    "directpred.optimal_weight": {
        "return C @ torch.linalg.inv(F)": "there is no ridge",
        "I = torch.eye(len(F))\n"
        "return torch.linalg.inv(F + 0.01 * F.trace() / len(F) * I) @ C": "the wrong side",
        "I = torch.eye(len(F))\n"
        "return torch.linalg.solve(F + 0.01 * F.trace() / len(F) * I, C.T)": "transposed: W_p z",
        "I = torch.eye(len(F))\n"
        "return torch.linalg.solve(F + 0.01 * F.trace() / len(F) * I, C).T": "C is transposed",
        "return C @ torch.linalg.inv(F + 0.01 * torch.eye(len(F)))": "the ridge is 0.01",
        "return C @ torch.linalg.inv(F + 0.01 * F.trace() * torch.eye(len(F)))":
            "a hundredth of the trace",
        "return C @ torch.linalg.inv(F + F.diagonal().mean() * torch.eye(len(F)))":
            "the mean s itself",
        "return C @ torch.linalg.inv(F + F.trace() / 100 * len(F) * torch.eye(len(F)))":
            "the trace times D",
        "return C @ torch.linalg.inv(F + 0.01 * F.trace() / len(F))": "to every entry of F",
    },
}

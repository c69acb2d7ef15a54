"""Wrong versions that students write: {function: {body: words that the hint has}}."""
NORMALISE = """
kind = torch.promote_types(z1.dtype, torch.float)
Z1, Z2 = F.normalize(z1.to(kind), dim=1), F.normalize(z2.to(kind), dim=1)
"""
LOGITS = """
logits = Za @ Zb.T / temperature
own = Za @ Za.T / temperature
i = torch.arange(len(Za))
"""
BOTH = LOGITS + """
if negatives == "both":
    logits = torch.cat([logits, own.fill_diagonal_(-torch.inf)], 1)
"""
FORWARD = """
if self.mode == "random":
    return {random}
if self.mode == "orthogonal":
    return {orthogonal}
return {prefix}
"""
THEOREM = """
_, alpha = loss_of_theorem(W, x, x2)
apart, positive = x[:, None] - x[None], x - x2
sigma_0 = torch.einsum("ij,ija,ijb->ab", alpha, apart, apart)
sigma_1 = torch.einsum("i,ia,ib->ab", 1 - alpha.diagonal(), positive, positive)
"""
PRODUCT = """
W = weights[0]
for layer in weights[1:]:
    W = layer @ W
"""


def forward(random="r[:, self.chosen]", orthogonal="r @ self.Q", prefix="r[:, :self.d0]"):
    return FORWARD.format(random=random, orthogonal=orthogonal, prefix=prefix)


MISTAKES = {
    # --------------------------------------------------------------------------------- directclr
    "directclr.info_nce": {
        "return (one_way(z1, z2, temperature, negatives) + "
        "one_way(z2, z1, temperature, negatives)) / 2": "not l2-normalised",
        "Z1, Z2 = F.normalize(z1, dim=0), F.normalize(z2, dim=0)\n"
        "return (one_way(Z1, Z2, temperature, negatives) + "
        "one_way(Z2, Z1, temperature, negatives)) / 2": "wrong axis",
        NORMALISE + "return one_way(Z1, Z2, temperature=temperature, negatives=negatives)":
            "one direction alone",
        NORMALISE + "return one_way(Z2, Z1, temperature)": "the first view to the second",
        NORMALISE + "return (one_way(Z1, Z2, temperature, negatives) + "
        "one_way(Z2, Z1, temperature, negatives))": "not averaged",
        NORMALISE + "return (one_way(Z1, Z2, temperature, 'other') + "
        "one_way(Z2, Z1, temperature, 'other')) / 2": "not passed on",
        NORMALISE + "return (one_way(Z1, Z2.detach(), temperature, negatives) + "
        "one_way(Z2, Z1.detach(), temperature, negatives)) / 2": "in each direction",
        NORMALISE + "Z2 = Z2.detach()\nreturn (one_way(Z1, Z2, temperature, negatives) + "
        "one_way(Z2, Z1, temperature, negatives)) / 2": "z2 is detached",
        "Z1, Z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)\n"
        "return (one_way(Z1, Z2, temperature, negatives) + "
        "one_way(Z2, Z1, temperature, negatives)) / 2": "into float32 first",
        "Z1, Z2 = F.normalize(z1.float(), dim=1), F.normalize(z2.float(), dim=1)\n"
        "return (one_way(Z1, Z2, temperature, negatives) + "
        "one_way(Z2, Z1, temperature, negatives)) / 2": "or better",
        "Z1, Z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)\n"
        "kind = torch.promote_types(z1.dtype, torch.float)\n"
        "return (one_way(Z1.to(kind), Z2.to(kind), temperature, negatives) + "
        "one_way(Z2.to(kind), Z1.to(kind), temperature, negatives)) / 2": "rounded",
    },
    "directclr.one_way": {
        BOTH + "others = logits.clone()\nothers[i, i] = -torch.inf\n"
        "return (others.logsumexp(1) - logits[i, i]).mean()": "positive is missing",
        LOGITS + "logits = logits.T\nreturn F.cross_entropy(logits, i)": "wrong axis",
        BOTH + "return F.cross_entropy(logits * temperature, i)": "temperature is not used",
        BOTH + "return -F.cross_entropy(logits, i)": "the sign",
        BOTH + "return F.cross_entropy(logits, i, reduction='sum')": "in place of the mean",
        LOGITS + "return -logits.diagonal().mean()": "denominator is missing",
        BOTH + "e = logits.exp()\nreturn -(e[i, i] / e.sum(1)).log().mean()": "overflows",
        LOGITS + "return F.cross_entropy(logits, i)": "own view is missing",
        LOGITS + "if negatives == 'both':\n    logits = torch.cat([logits, own], 1)\n"
        "return F.cross_entropy(logits, i)": "diagonal of the own view is included",
        LOGITS + "if negatives == 'both':\n"
        "    logits = torch.cat([logits, own.fill_diagonal_(0)], 1)\n"
        "return F.cross_entropy(logits, i)": "minus infinity",
        LOGITS + "if negatives == 'both':\n"
        "    own = Za @ Zb.T / temperature\n"
        "    logits = torch.cat([logits, own.fill_diagonal_(-torch.inf)], 1)\n"
        "return F.cross_entropy(logits, i)": "rows of Za",
        BOTH.replace("Za @ Za.T", "Zb @ Zb.T") + "return F.cross_entropy(logits, i)":
            "are Zb_i.Zb_j",
        BOTH.replace("Za @ Za.T / temperature", "Za @ Za.T") +
        "return F.cross_entropy(logits, i)": "not divided by the temperature",
        "Za, Zb = F.normalize(Za, dim=1), F.normalize(Zb, dim=1)\n" + BOTH +
        "return F.cross_entropy(logits, i)": "by the length again",
        "Zb = Zb.detach()\n" + BOTH + "return F.cross_entropy(logits, i)": "Zb is detached",
    },
    "directclr.Direct.forward": {
        forward(prefix="r[:self.d0]"): "the dimensions are the columns",
        forward(prefix="r[:, -self.d0:]"): "last d0",
        forward(prefix="r[:, :3]"): "d0 = 2",
        forward(random="r[:, :self.d0]"): "`chosen` is not used",
        forward(random="r[:, torch.randperm(self.width)[:self.d0]]"): "at every call",
        forward(random="[self.draw(1), r[:, self.chosen]][1]"): "which is for draw",
        forward(random="r[self.chosen]"): "random: these are rows, that is images",
        forward(orthogonal="r @ self.Q.T"): "Q is transposed",
        forward(orthogonal="r[:, :self.d0]"): "Q is not used",
        forward(orthogonal="r @ self.Q @ self.Q.T"): "rotated back",
        forward(orthogonal="r[:, :self.d0] @ self.Q[:self.d0]"): "cut to d0 first",
        "r = r.detach()\n" + forward(): "gets no gradient",
    },
    "directclr.spectrum": {
        "return torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0).clamp(min=0)":
            "not l2-normalised",
        "x = F.normalize(x.double(), dim=0)\n"
        "return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp(min=0)": "wrong axis",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.eigvalsh(torch.cov(x.T)).clamp(min=0)": "smallest comes first",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.eigvalsh(x.T @ x / (len(x) - 1)).flip(0)": "mean is not taken out",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)": "and divided by N",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.svdvals((x - x.mean(0)) / (len(x) - 1)**0.5)": "roots",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.eigvalsh(torch.cov(x)).flip(0)": "of the N images",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.eigvalsh(torch.corrcoef(x.T)).flip(0).clamp(min=0)": "correlations",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)": "N - 1",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.svdvals(x - x.mean(0))**2 / (len(x) - 1)": "there should be 40",
        "x = F.normalize(x.double(), dim=1)\n"
        "return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0)": "negative eigenvalue",
        "x = F.normalize(x, dim=1)\n"
        "return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp(min=0)": "double()",
        "x = F.normalize(x, dim=1)\n"
        "return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp(min=0).double()":
            "before the covariance",
        "x = F.normalize(x, dim=1).double()\n"
        "return torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp(min=1e-6)":
            "the smallest eigenvalue here is",
    },
    # ------------------------------------------------------------------------------- toy_infonce
    "toy_infonce.info_nce": {
        "z1, z2 = (z / z.norm(dim=2, keepdim=True) for z in (z1, z2))\n"
        "logits = z1 @ z2.mT / temperature\n"
        "return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean(1)": "normalised",
        "logits = z1 @ z2.mT / temperature\n"
        "return (logits.logsumexp(1) - logits.diagonal(dim1=1, dim2=2)).mean(1)": "wrong axis",
        "logits = z1 @ z2.mT / temperature\n"
        "return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean()": "over the nets",
        "logits = z1 @ z2.mT / temperature\n"
        "return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).sum(1)":
            "in place of the mean",
        "e = (z1 @ z2.mT / temperature).exp()\n"
        "return -(e.diagonal(dim1=1, dim2=2) / e.sum(2)).log().mean(1)": "overflows",
        "logits = z1 @ z2.mT / temperature\n"
        "others = logits.masked_fill(torch.eye(z1.shape[1], dtype=bool), -torch.inf)\n"
        "return (others.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean(1)":
            "positive is missing",
        "logits = z1 @ z2.mT / temperature\n"
        "two = logits.logsumexp(1) + logits.logsumexp(2)\n"
        "return (two / 2 - logits.diagonal(dim1=1, dim2=2)).mean(1)": "both directions",
        "logits = z1 @ z2.mT\n"
        "return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean(1)":
            "temperature is not used",
        "logits = z1 @ z2.detach().mT / temperature\n"
        "return (logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean(1)":
            "no stop-gradient",
    },
    "toy_infonce.spectrum": {
        "W = weights[0]\nfor layer in weights[1:]:\n    W = W @ layer\n"
        "return torch.linalg.svdvals(W) ** 2": "wrong order",
        PRODUCT + "return torch.linalg.svdvals(W)": "singular values of W",
        PRODUCT + "return torch.linalg.eigvalsh(W @ W.mT)": "smallest comes first",
        PRODUCT + "return torch.linalg.eigvalsh(W @ W.mT).flip(0)": "order of the nets",
        PRODUCT + "return torch.linalg.eigvals(W).abs().sort(dim=1, descending=True)[0]":
            "not of W W^T",
        "return torch.linalg.svdvals(weights[-1]) ** 2": "last layer alone",
        "s = 1\nfor W in weights:\n    s = s * torch.linalg.svdvals(W) ** 2\nreturn s":
            "are multiplied",
    },
    "toy_infonce.gradient_of_theorem": {
        THEOREM + "return W @ (sigma_1 - sigma_0)": "the sign",
        THEOREM + "sigma_1 = torch.einsum('ia,ib->ab', positive, positive)\n"
        "return W @ (sigma_0 - sigma_1)": "1 - alpha_ii is forgotten",
        THEOREM + "sigma_1 = torch.einsum('i,ia,ib->ab', alpha.diagonal(), positive, positive)\n"
        "return W @ (sigma_0 - sigma_1)": "weight is alpha_ii",
        THEOREM + "i = torch.arange(len(x))\napart[i, i] = positive\n"
        "sigma_0 = torch.einsum('ij,ija,ijb->ab', alpha, apart, apart)\n"
        "return W @ (sigma_0 - sigma_1)": "j = i is included",
        THEOREM + "apart = x[:, None] - x2[None]\n"
        "sigma_0 = torch.einsum('ij,ija,ijb->ab', alpha, apart, apart)\n"
        "return W @ (sigma_0 - sigma_1)": "and j = i is one of them",
        THEOREM + "return (sigma_0 - sigma_1) @ W": "W is on the wrong side",
        THEOREM + "return (sigma_0 - sigma_1) @ W.T": "the result is transposed",
        THEOREM + "return sigma_0 - sigma_1": "W is missing",
        THEOREM + "return W @ (sigma_0 / 2 - sigma_1)": "each pair once",
        THEOREM + "return W @ (sigma_0 - sigma_1) / len(x)": "mean over the images",
    },
}

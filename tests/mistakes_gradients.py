"""Wrong versions that students write: {function: {body: words that the hint has}}."""
MISTAKES = {
    "gradient_components.letters": {},
    "gradient_components.components": {},
    "gradient_components.surrogate": {},
    "gradient_components.decorrelation_loss": {
        "r = z - z.mean(0)\n"
        "cov = r.T @ r / (len(z) - 1)\n"
        "return cov.square().sum() / z.shape[1]": "diagonal",
        "cov = z.T @ z / (len(z) - 1)\n"
        "return (cov.square().sum() - cov.diagonal().square().sum()) / z.shape[1]": "the mean",
        "r = z - z.mean(0)\n"
        "cov = r.T @ r / len(z)\n"
        "return (cov.square().sum() - cov.diagonal().square().sum()) / z.shape[1]": "by N - 1",
        "off = torch.cov(z.T).fill_diagonal_(0)\n"
        "return off.square().mean()": "D * D",
        "off = torch.cov(z).fill_diagonal_(0)\n"
        "return off.square().sum() / z.shape[0]": "wrong axis",
        "off = torch.corrcoef(z.T).fill_diagonal_(0)\n"
        "return off.square().sum() / z.shape[1]": "correlations",
        "off = torch.cov(F.normalize(z, dim=1).T).fill_diagonal_(0)\n"
        "return off.square().sum() / z.shape[1]": "take z as it is",
        "off = torch.cov(z.T).triu(1)\n"
        "return off.square().sum() / z.shape[1]": "counts once",
        "off = torch.cov(z.T).fill_diagonal_(0)\n"
        "return off.square().sum().item() / z.shape[1]": "no gradient flows",
        "return torch.cov(z.T).sum()": "largest difference",
    },
    "gradient_components.eta": {
        "return F.cosine_similarity(o_e, o, dim=0)": "the cosine",
        "return o_e @ o / o.norm()": "squared",
        "return o_e @ o / (o_e @ o_e)": "o's square",
        "return -(o_e @ o) / (o @ o)": "the sign",
        "return o_e @ o / (o @ o) * o": "the number",
        "return (o_e @ o / (o @ o)).item()": "return a tensor",
    },
}

LETTERS = """
{cast}
Z1, Z2, P1, P2 = ({unit} for x in (z1, z2, p1, p2))
o_z, o_p = {o_z}, torch.cat([P1, P2]).mean(0)
return Letters({za}, Z1, Z2, P1, P2, o_z, o_p), {second}
"""
RIGHT = dict(cast="z1, z2, p1, p2 = (x.float() for x in (z1, z2, p1, p2))", za="z1",
             unit="F.normalize(x, dim=1)", o_z="torch.cat([Z1, Z2]).mean(0)",
             second="Letters(z2, Z2, Z1, P2, P1, o_z, o_p)")
for changed, words in ((dict(unit="x"), "Za of the first Letters: the rows are not divided"),
                       (dict(unit="F.normalize(x, dim=0)"), "length of the columns"),
                       (dict(za="Z1"), "the output as it is"),
                       (dict(cast=""), "float32"),
                       (dict(cast="", unit="F.normalize(x, dim=1).float()", za="z1.float()",
                             second="Letters(z2.float(), Z2, Z1, P2, P1, o_z, o_p)"), "rounded"),
                       (dict(o_z="Z1.mean(0)"), "one view alone"),
                       (dict(o_z="torch.cat([z1, z2]).mean(0)"), "the mean of rows that are not"),
                       (dict(o_z="torch.cat([Z1, Z2]).mean(1)"), "wrong axis"),
                       (dict(o_z="F.normalize(torch.cat([Z1, Z2]).mean(0), dim=0)"),
                        "the centre itself"),
                       (dict(second="Letters(z2, Z2, Z1, P1, P2, o_z, o_p)"),
                        "Pa of the second Letters: a and b are exchanged"),
                       (dict(unit="F.normalize(x, dim=1).detach()"), "the losses decide"),
                       (dict(o_z="torch.cat([Z1, Z2]).mean(0).detach()"), "o_z of the first "
                        "Letters is detached"),
                       (dict(unit="x / x.norm()"), "largest difference")):
    MISTAKES["gradient_components.letters"][LETTERS.format(**{**RIGHT, **changed})] = words

COMPONENTS = """
if kind == "simsiam":
    basic, G_e, o_e = {basic}, {left}, {o_simsiam}
elif kind == "triplet":
    basic, G_e, o_e = v.Zb, {negative}, -v.o_z
else:
    lam = ({scores}).softmax({axis})
    basic, G_e, o_e = v.Zb / tau, -lam @ {mixed} / tau, {o_infonce}
o_e = o_e{expand}
return {order}
"""
RIGHT = dict(basic="v.Pb", o_simsiam="v.o_z - v.o_p", negative="-v.Zb.roll(1, 0)",
             left="v.Zb - v.Pb", mixed="v.Zb", scores="v.Za @ v.Zb.T / tau", axis="1",
             o_infonce="-v.o_z / tau", expand=".repeat(len(basic), 1)",
             order="basic, o_e, G_e - o_e")
for changed, words in ((dict(basic="v.Zb"), "simsiam: basic: Z_b is the whole"),
                       (dict(o_simsiam="v.o_z"), "the centre of Z, G_e is"),
                       (dict(o_simsiam="v.o_p - v.o_z"), "simsiam: o_e: the sign"),
                       (dict(o_simsiam="(v.Zb - v.Pb).mean(0)"), "view b alone"),
                       (dict(left="v.Zb"), "simsiam: r_e: G_e is Z_b here"),
                       (dict(mixed="v.Za"), "they weigh rows of Z_a"),
                       (dict(expand=""), "in every row"),
                       (dict(order="basic, o_e, G_e"), "all of G_e"),
                       (dict(order="basic, G_e - o_e, o_e"), "the order is"),
                       (dict(negative="v.Zb.roll(1, 0)"), "it is pushed away"),
                       (dict(negative="-v.Zb.roll(-1, 0)"), "the row after"),
                       (dict(negative="-v.Zb.roll(1)"), "without its axis"),
                       (dict(negative="-v.Zb.roll(1, 1)"), "the wrong axis"),
                       (dict(negative="-v.Za.roll(1, 0)"), "a row of Z_a"),
                       (dict(axis="0"), "infonce: r_e: the softmax goes over the wrong axis"),
                       (dict(scores="v.Zb @ v.Za.T / tau"), "infonce: r_e: the weights are trans"),
                       (dict(scores="v.Za @ v.Zb.T"), "no temperature"),
                       (dict(scores="v.Zb @ v.Zb.T / tau"), "it is Z_a that learns"),
                       (dict(scores="(v.Za @ v.Zb.T / tau).fill_diagonal_(-torch.inf)"),
                        "the positive is missing"),
                       (dict(o_infonce="-v.o_z"), "infonce: o_e: 1 / tau"),
                       (dict(o_infonce="(-lam @ v.Zb / tau).mean(0)"), "the mean of G_e, weighted"),
                       (dict(o_infonce="-v.Zb.mean(0) / tau"), "infonce: o_e: the mean of Z_b"),
                       (dict(scores="v.Za @ v.Zb.T / tau**2"), "largest difference")):
    MISTAKES["gradient_components.components"][COMPONENTS.format(**{**RIGHT, **changed})] = words

body = COMPONENTS.format(**RIGHT).replace("/ tau", "* 2")
MISTAKES["gradient_components.components"][body] = "at tau = 0.8"

SURROGATE = """
basic, o_e, r_e = components(kind, v, tau)
t = {start}
if {keeps_o}:
    {add_o}
if {keeps_r}:
    t = t + r_e
X = {X}
return {loss}
"""
RIGHT = dict(start="basic", keeps_o='without not in ("o_e", "both")',
             keeps_r='without not in ("r_e", "both")', add_o="t = t + o_e",
             X='{"simsiam": v.Pa}.get(kind, v.Za)',
             loss="-(X * t.detach()).sum(1).mean()")
for changed, words in ((dict(loss="-(X * t).sum(1).mean()"), "no stop-gradient on t"),
                       (dict(loss="-(X.detach() * t).sum(1).mean()"), "the stop-gradient belongs"),
                       (dict(start='basic if without != "both" else 0 * basic'),
                        "without both: t is 0: basic is never"),
                       (dict(loss="-(X * t).detach().sum(1).mean()"), "nothing gets a gradient"),
                       (dict(loss="(X * t.detach()).sum(1).mean()"), "the sign"),
                       (dict(loss="-(X * t.detach()).sum()"), "not the mean"),
                       (dict(loss="-(X * t.detach()).mean()"), "mean over all entries"),
                       (dict(loss="-(X * t.detach()).sum(1)"), "one number"),
                       (dict(loss="-(X * t).sum(1).mean().item()"), "a plain number"),
                       (dict(loss="-F.cosine_similarity(X, t.detach()).mean()"), "a cosine"),
                       (dict(X="v.Za"), "not on Za"),
                       (dict(X="v.Pa"), "not on Pa"),
                       (dict(keeps_o='without in ("none", "o_e")',
                             keeps_r='without in ("none", "r_e")'), "the other part is left out"),
                       (dict(keeps_o='without != "o_e"', keeps_r='without != "r_e"'),
                        "both o_e and r_e have to go, all of it"),
                       (dict(keeps_o="True", keeps_r="True"), "changes nothing"),
                       (dict(add_o="t += o_e"), "+= changes basic"),
                       (dict(loss="-(X * t.detach() ** 2).sum(1).mean()"), "largest difference")):
    MISTAKES["gradient_components.surrogate"][SURROGATE.format(**{**RIGHT, **changed})] = words
body = SURROGATE.format(**RIGHT).replace("(kind, v, tau)", '("infonce", v, 0.5)')
MISTAKES["gradient_components.surrogate"][body] = "with other arguments"

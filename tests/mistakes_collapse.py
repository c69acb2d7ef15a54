"""Wrong versions that students write.  {function: [(words of the hint, old, new, old, new, ...)]}:
the script's own body with each old text replaced by the new one; or (words, a whole body)."""
SIMSIAM = """
p1, p2 = net.predictor(z1), net.predictor(z2)
return D(p1, z2.detach()) / 2 + D(p2, z1.detach()) / 2, p1, p2
"""

MISTAKES = {
    "mirror_ablations.D": [
        ("the sign", "-", ""),
        ("not normalised", "-F.cosine_similarity(p, z, dim=1)", "-(p * z).sum(1)"),
        ("wrong axis", "dim=1", "dim=0"),
        ("whoever calls it", "z,", "z.detach(),"),
        ("p gets no gradient", "p,", "p.detach(),"),
        ("the gradient of p or z", "P, Z = p / p.norm(dim=1, keepdim=True).detach(), "
         "F.normalize(z, dim=1)\nreturn -(P * Z).sum(1).mean()"),
    ],
    "mirror_ablations.simsiam": [
        ("no stop-gradient", ".detach()", ""),
        ("belongs to the target", "p1, z2.detach()", "p1.detach(), z2", "p2, z1.detach()",
         "p2.detach(), z1"),
        ("the other view", "p1, z2.", "p1, z1.", "p2, z1.", "p2, z2."),
        ("z is detached before h", "(z1)", "(z1.detach())", "(z2)", "(z2.detach())"),
        ("the target is p2", "z2.detach()", "p2.detach()", "z1.detach()", "p1.detach()"),
        ("added, not averaged", " / 2", ""),
        ("exchanged", " / 2 + D(p2, z1.detach()) / 2", ""),
    ],
    "mirror_ablations.no_stopgrad": [
        ("a target is detached", SIMSIAM),
        ("no predictor", "return D(z1, z2), None, None"),
        ("the targets are z1 and z2", "D(p1, z2) / 2 + D(p2, z1) / 2", "D(p1, p2)"),
        ("exchanged", " / 2 + D(p2, z1) / 2", ""),
    ],
    "mirror_ablations.naive": [
        ("a predictor in it", "D(z1, z2)",
         "D(net.predictor(z1), z2) / 2 + D(net.predictor(z2), z1) / 2"),
        ("half", "z2)", "z2.detach())"),
        ("both directions", "D(z1, z2)", "D(z1, z2.detach()) / 2 + D(z2, z1.detach()) / 2"),
    ],
    "mirror_ablations.mirror": [
        ("this is SimSiam's", SIMSIAM),
        ("h learns nothing", ".detach()", "", "(z1, p2)", "(z1, p2.detach())", "(z2, p1)",
         "(z2, p1.detach())"),
        ("no stop-gradient", ".detach()", ""),
        ("exchanged", " / 2 + D(z2, p1) / 2", ""),
        ("z1 is detached too", "D(z1,", "D(z1.detach(),", "D(z2,", "D(z2.detach(),"),
    ],
    "mirror_ablations.symmetric": [
        ("that is SimSiam", SIMSIAM),
        ("no stop-gradient", ".detach()", ""),
        ("exchanged", " / 2 + D(p2, p1.detach()) / 2", ""),
        ("z is detached, but not p", "p2.detach()", "net.predictor(z2.detach())", "p1.detach()",
         "net.predictor(z1.detach())"),
        ("p2 learns from p1", "D(p1, p2.detach()) / 2 + D(p2, p1.detach()) / 2",
         "D(p1.detach(), p2)"),
    ],
    "mirror_ablations.inverse": [
        ("trains h alone is missing", "loss_pred +", ""),
        ("trains h_inv is missing", "loss_inv +", ""),
        ("no stop-gradient on its target", "h_inv(p2).detach()", "h_inv(p2)",
         "h_inv(p1).detach()", "h_inv(p1)"),
        ("in the last term only one", " / 2 + D(p2, h_inv(p1).detach()) / 2", ""),
        ("target z is not detached", "D(h(sg_z1), sg_z2)", "D(h(sg_z1), z2)",
         "D(h(sg_z2), sg_z1)", "D(h(sg_z2), z1)"),
        ("f learns nothing", "= h(z1), h(z2)", "= h(z1.detach()), h(z2.detach())"),
        ("the last term is missing", "+ loss_enc", ""),
        ("detached before h_inv, not after it", "h_inv(p2).detach()", "h_inv(p2.detach())",
         "h_inv(p1).detach()", "h_inv(p1.detach())"),
        ("is p2, without h_inv", "h_inv(p2).detach()", "p2.detach()", "h_inv(p1).detach()",
         "p1.detach()"),
        ("compares p1 with h_inv(p1)", "D(p1, h", "D(p2, h", " + D(p2, h", " + D(p1, h"),
        ("z1 where p1 belongs", "D(p1, h", "D(z1, h", "D(p2, h", "D(z2, h"),
        ("p is not detached before h_inv", "(p1.detach())", "(p1)", "(p2.detach())", "(p2)"),
        ("z is not detached before h", "D(h(sg_z1)", "D(h(z1)", "D(h(sg_z2)", "D(h(z2)"),
        ("it should find z1 again", "), sg_z1) / 2 + D(h_inv", "), sg_z2) / 2 + D(h_inv",
         "(p2.detach()), sg_z2)", "(p2.detach()), sg_z1)"),
        ("the three terms are averaged", "loss_pred + loss_inv + loss_enc",
         "(loss_pred + loss_inv + loss_enc) / 3"),
    ],
    "mirror_ablations.bias": [
        ("not normalised", SIMSIAM),
        ("no stop-gradient", ".detach()", ""),
        ("wrong axis", "dim=1", "dim=0"),
        ("f learns nothing", "(z1, dim", "(z1.detach(), dim", "(z2, dim", "(z2.detach(), dim"),
        ("exchanged", " / 2 + D(p2, z1.detach()) / 2", ""),
    ],
    "common.collapse_metrics": [
        ("l2-normalised", "F.normalize(z, dim=1)", "z"),
        ("sqrt(D)", "d**0.5 *", ""),
        ("diagonal", " - cov.diagonal().square().sum()", ""),
        ("exp of the entropy", ".exp()", ""),
        ("z itself has changed", "z.float()", "z.mul_(2).float()"),
        ("length is squared", "o.norm()", "o.norm() ** 2"),
        ("mean of the roots", "Z.std(0).mean()", "Z.var(0).mean().sqrt()"),
        ("divided by their sum", " / eig.clamp(min=1e-12).sum()", ""),
        ("of 5 images in 8 dimensions", "1e-12", "1e-3"),
    ],
}

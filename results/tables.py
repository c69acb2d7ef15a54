"""This file lists what the papers claim: the tables that results/reproduce.py trains.

A table has a row for each net that is trained: its label, and the flags that a user would type.  A
row that is a claim also has its place in the paper, the paper's words or number, and a rule that
follows from them.  Most numbers are the percentage right of a linear probe, a linear layer on the
features, on the paper's data, so that here only their order counts.  A row that says "ours" is no
claim.  It is there for comparison, or is a scan of our own.

A rule says whether a run shows what the paper says.  It sees the run, and {label: run} of all rows
with the same seed.  A run is the dict in its result.json.  A rule has to hold for every seed,
except for AsGood, which compares means over seeds.

The places: Chen & He is arXiv 2011.10566, and Zhang is 2203.16262.  Wen & Li is the poster of
2205.06226.  Tian is 2102.06810 and the slides "Open the black-box of self-supervised learning",
which also show what Wang (2110.04947) and Jing (2110.09348) found.  Ziyin is the abstract of
2210.00638.
"""
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    label: str
    flags: str                 # for the table's script, or for another that they begin with
    place: str = ""            # where the paper says it, such as "Zhang, Table 2"
    says: str = "ours"         # the paper's words or number, shown beside what we measured
    rule: Callable | None = None


class Table(NamedTuple):
    page: str                  # the page of results/ that shows it
    title: str
    minutes: int               # about so many for one seed, on two CPU cores
    script: str                # It trains all rows whose flags begin with no other script.
    rows: list                 # of Row
    columns: str = "verdict knn linear m_o effective_rank"         # shown; the csv file has all
    curves: str = "std effective_rank knn m_o"                     # drawn
    csv: str = "metrics.csv"   # the file in a run's folder that has the drawn columns
    ours: str = ""             # flags for all data sets except CIFAR
    points: str = ""           # "x y; x2 y2" makes two pictures, with a point for each row at
                               # its two columns.  A third word names a row to leave out.


class Claim(NamedTuple):
    """A claim is a line of README's list."""
    sentence: str
    place: str
    table: str                 # a table, or the script of a theory, such as "toy_patch"
    holds: list | Callable     # the rows that must be as in the paper; or a rule that sees
                               # {label: run} of a seed, or {what: measured} of a theory
    why: str = ""              # why it was not shown, or what was tried


# ------------------------------------------------------------------------------------------- rules

def verdict_is(*words, of="verdict"):
    return lambda run, rows: run[of] in words


# Zhang et al. say collapse if all images become one point, which is our complete collapse.  Wen &
# Li say it if some features are lost, which is our dimensional collapse.
complete, not_complete = verdict_is("complete"), verdict_is("none", "dimensional")
collapses, learns = verdict_is("complete", "dimensional"), verdict_is("none")
p_complete = verdict_is("complete", of="verdict_P")        # It is about the predictions P.
p_not_complete = verdict_is("none", "dimensional", of="verdict_P")


def moves(key, low, high):
    """Between its start and its end the column changes by more than low and less than high."""
    return lambda run, rows: low < run[key] - run[key + "_before"] < high


def falls_less(loss, start):
    """m_o falls, but not as far as with another loss."""
    return lambda run, rows: rows[f"{loss} from {start}"]["m_o"] < run["m_o"] < run["m_o_before"]


def moves_little(start):
    """m_o changes by less than half of what the gradients along the centre and the residual do."""
    def rule(run, rows):
        others = [rows[f"{loss} from {start}"] for loss in ("centre", "residual")]
        least = min(abs(other["m_o"] - other["m_o_before"]) for other in others)
        return abs(run["m_o"] - run["m_o_before"]) < least / 2
    return rule


def below(*others, points=0.0, key="linear"):
    """More than so many points below each of the other rows"""
    return lambda run, rows: all(run[key] < rows[other][key] - points for other in others)


def above(*others, points=0.0, key="linear"):
    """More than so many points above each of the other rows"""
    return lambda run, rows: all(run[key] > rows[other][key] + points for other in others)


class AsGood(NamedTuple):
    """On the mean over seeds at most so many points below another row"""
    other: str
    key: str = "linear"
    points: float = 3.0

    def gap(self, run, rows):
        return run[self.key] - rows[self.other][self.key] + self.points


def both_learnt(run, rows):
    """A linear probe of z finds both labels, the strong and the weak one."""
    return all(run[key] > rows["frozen head"][key] for key in ("linear_z", "linear_z_weak"))


def decorrelates(run, rows):
    """r_e points along the gradient of the de-correlation loss, for a wide range of tau."""
    return min(run[f"cos_r_{tau}"] for tau in ("0.05", "0.1", "0.2", "0.3", "0.5", "1.0")) > 0.5


def rises_and_falls(run, rows):
    return run["E_mean"] < run["E_mean_1"]


# ------------------------------------------------------------------------------------------ tables

MIRROR, MORE, PARTS = "mirror_ablations.py", "more_ablations.py", "gradient_components.py"
PRED, CLR, WEAK, WEAK_Z = "directpred.py", "directclr.py", "linear_weak", "linear_z_weak"
STEPS = dict(curves="m_o m_r", csv="steps.csv")
SET = "verdict linear effective_rank align commutator"
# KNOBS change one setting of knobs.py.  CURES add a second change to one that leads to a collapse.
KNOBS = {
    "as it is": "", "rate x 4": "--lr 1.6", "rate x 16": "--lr 6.4", "rate / 4": "--lr 0.1",
    "predictor's rate decays too": "--pred-schedule cosine", "predictor frozen": "--pred-lr 1e-9",
    "no BN in the predictor": "--no-pred-bn",
    "no BN in the projector": "--no-proj-bn --final-bn none", "no final BN": "--final-bn none",
    "affine final BN": "--final-bn affine",
    "batch 16": "--batch-size 16", "batch 256": "--batch-size 256 --warmup-epochs 2",
    "batch 512": "--batch-size 512 --warmup-epochs 2",
    "batch 512 (rate not scaled)": "--batch-size 512 --warmup-epochs 2 --lr 0.05",
    "no weight decay": "--weight-decay 0", "crops from 8 %": "--min-scale 0.08",
    "crops from 60 %": "--min-scale 0.6", "no colour jitter": "--jitter-p 0",
    "Adam (rate 1e-3)": "--optimizer adam --lr 4e-3", "no stop-gradient": "--no-stopgrad",
    "no predictor": "--predictor none", "target of its own view": "--pair own"}
KNOBS_SIMSIAM = {
    "target copied every 10 steps": "--target-every 10",
    "target copied every 60 steps": "--target-every 60",
    "predictor's rate / 10": "--pred-lr 0.1", "predictor's rate x 10": "--pred-lr 10",
    "much weight decay": "--weight-decay 0.01", "predictor as wide as z": "--pred-hidden 256",
    "batch 256 (no warm-up)": "--batch-size 256 --warmup-epochs 0"}
KNOBS_BYOL = {
    "predictor's rate / 10": "--pred-lr 1", "predictor's rate x 10": "--pred-lr 100",
    "much weight decay": "--weight-decay 2.5e-3", "narrow predictor": "--pred-hidden 64"}
CURES = {
    "rate x 16 + long warm-up": "--lr 6.4 --warmup-epochs 5",
    "rate x 16 + no weight decay": "--lr 6.4 --weight-decay 0",
    "rate x 16 + predictor's rate / 10": "--lr 6.4 --pred-lr 0.1",
    "rate x 4 + long warm-up": "--lr 1.6 --warmup-epochs 5",
    "rate x 4 + no weight decay": "--lr 1.6 --weight-decay 0",
    "rate x 4 + predictor's rate / 10": "--lr 1.6 --pred-lr 0.1",
    "much weight decay + rate / 4": "--weight-decay 0.01 --lr 0.1",
    "much weight decay + predictor's rate x 10": "--weight-decay 0.01 --pred-lr 10",
    "no BN in the projector + final BN": "--no-proj-bn --final-bn noaffine",
    "no BN in the projector + rate / 4": "--no-proj-bn --final-bn none --lr 0.1",
    "no BN in the projector + predictor's rate x 10": "--no-proj-bn --final-bn none --pred-lr 10",
    "no predictor + EMA": "--predictor none --ema 0.95",
    "no stop-gradient + rate / 4": "--no-stopgrad --lr 0.1",
    "no stop-gradient + predictor's rate x 10": "--no-stopgrad --pred-lr 10",
    "predictor frozen + EMA": "--pred-lr 1e-9 --ema 0.95",
    "predictor's rate / 10 + EMA": "--pred-lr 0.1 --ema 0.95",
    "Adam + rate / 4": "--optimizer adam --lr 1e-3",
    "Adam + no weight decay": "--optimizer adam --lr 4e-3 --weight-decay 0",
    "Adam + predictor's rate x 10": "--optimizer adam --lr 4e-3 --pred-lr 10"}
# This is Tian et al.'s regime, as far as it fits: there is no BatchNorm behind z and no bias in the
# predictor W_p, and W_p learns as fast as the encoder.
NO_BN = ("--data data/cifar10_jpeg --limit 5000 --epochs 20 --eval-every 10 --schedule constant "
         "--final-bn none --no-predictor-bias --lr 0.2 --pred-lr 1")
# These rows were trained with fast heads.  On `patches` slower heads did as well.
BIAS, HEAD = "--pred-lr 50", "--pred-lr 100 --pred-weight-decay 0"
TIAN, WANG, JING = "Tian, DirectPred", "Wang", "Jing"
CIFAR = (
    ("SimSiam", "simsiam.py", "Chen & He, 4", "no collapse", learns),
    ("BYOL", "byol.py", "Zhang, 1", "no collapse", learns),
    ("DirectPred", PRED, TIAN, "85.21", AsGood("trained W_p")),
    ("DirectCopy", f"{PRED} --predictor directcopy", TIAN, "84.02", AsGood("trained W_p")),
    ("trained W_p", f"{PRED} --predictor sgd", TIAN, "84.49"),
    ("SimCLR mlp", f"{CLR} --projector mlp", JING, "66.5", above("DirectCLR")),
    ("SimCLR linear", f"{CLR} --projector linear", JING, "61.1", above("SimCLR none")),
    ("DirectCLR", CLR, JING, "62.7", above("SimCLR linear")),
    ("DirectCLR decay 1e-6", f"{CLR} --weight-decay 1e-6"),
    ("SimCLR none", f"{CLR} --projector none", JING, "51.5, lowest",
     below("SimCLR mlp", "SimCLR linear", "DirectCLR")),
    ("naive", f"{MIRROR} --variant naive --final-bn none", "Zhang, Table 2", "collapse, 1",
     complete),
    ("mirror", f"{MIRROR} --variant mirror --final-bn none", "Zhang, Table 2", "collapse, 1",
     complete),
    ("symmetric", f"{MIRROR} --variant symmetric --final-bn none", "Zhang, Table 2", "collapse, 1",
     complete),
    ("inverse", f"{MIRROR} --variant inverse", "Zhang, Fig. 3", "no collapse", not_complete),
    ("bias", f"{MIRROR} --variant bias --final-bn none {BIAS}", "Zhang, Table 5", "49.82",
     not_complete),
    ("identity head", f"{MIRROR} --variant identity {HEAD}", "Wen & Li", "no collapse", learns),
    ("supervised", "supervised.py"))
TABLES = {
    "simsiam": Table("chen_he", "Does SimSiam collapse?", 2, "simsiam.py", [
        Row("simsiam", "", "Chen & He, 4", "no collapse", learns)
    ], "verdict knn linear std effective_rank"),
    "byol": Table("tian", "Which parts does BYOL need?", 15, "byol.py", [
        Row("byol", "", "Zhang, 1", "no collapse", learns),
        Row("no predictor", "--predictor none", "Tian, Part I", "collapse", collapses),
        Row("neither", "--predictor none --ema 0", "Zhang, 2.1", "collapse", collapses),
        Row("no stop-gradient", "--no-stopgrad", "Tian, Part I", "collapse", collapses),
        Row("ema 0", "--ema 0", "Zhang, 1", "no collapse", learns),
        *(Row(f"ema {m}", f"--ema {m}") for m in (0.5, 0.9, 0.98)),
        Row("ema 1 (frozen)", "--ema 1")]),
    "slow-target": Table("tian", "Can a fast predictor replace a slow target?", 15, "byol.py", [
        Row(f"ema {ema} (predictor's rate x {rate})", f"--ema {ema} --pred-lr {rate}")
        for ema in (0, 0.95) for rate in (0.1, 1, 10)]),
    "mirror": Table("zhang", "Which Siamese nets collapse?", 25, MIRROR, [
        Row("simsiam", "--variant simsiam --final-bn none", "Zhang, Table 2", "66.62",
            not_complete),
        Row("simsiam_bn", "--variant simsiam --final-bn noaffine", "Zhang, Table 2", "66.62",
            not_complete),
        Row("no_stopgrad", "--variant no_stopgrad --final-bn none", "Chen & He, 4", "collapse",
            complete),
        Row("naive", "--variant naive --final-bn none", "Zhang, Table 2", "collapse, 1", complete),
        Row("mirror", "--variant mirror --final-bn none", "Zhang, Table 2", "collapse, 1",
            complete),
        Row("symmetric", "--variant symmetric --final-bn none", "Zhang, Table 2", "collapse, 1",
            complete),
        Row("inverse", "--variant inverse", "Zhang, Fig. 3", "no collapse", not_complete),
        # The paper's std is 0.0108.  Our column multiplies it by sqrt(2048), which makes 0.49.
        Row("moving_average", f"{MORE} --variant moving_average", "Zhang, Table 1",
            "46.57, std 0.49", lambda run, rows: run["std"] > 0.2),
        Row("same_batch10", f"{MORE} --variant same_batch --n-aug 10 --epochs 6 --final-bn none",
            "Zhang, Table 1", "collapse, 1", complete),
        Row("same_batch25", f"{MORE} --variant same_batch --n-aug 25 --epochs 2 --final-bn none",
            "Zhang, Table 1", "collapse, 1", complete),
        Row("two_fc", f"{MORE} --variant two_fc", "Zhang, Table 5", "66.7, comparable",
            AsGood("simsiam_bn")),
        Row("tanh_fc", f"{MORE} --variant tanh_fc", "Zhang, Table 5", "64.82, comparable",
            AsGood("simsiam_bn")),
        Row("bias", "--variant bias --final-bn none", "Zhang, Table 5", "49.82", not_complete),
        Row("bn_after_l2", f"{MORE} --variant bn_after_l2", "Zhang, 4", "no collapse",
            not_complete),
        Row("whitening", f"{MORE} --variant whitening", "Zhang, 3.3", "no collapse", not_complete),
        Row("bn_before_l2", "--variant naive --final-bn noaffine", "Zhang, 4", "collapse",
            collapses),
        Row("linear", f"{MORE} --variant linear", "Wen & Li", "no collapse", learns),
        Row("identity_full", f"{MORE} --variant identity_full", "Wen & Li", "no collapse", learns),
        Row("identity", "--variant identity", "Wen & Li", "no collapse", learns),
        Row("identity_symmetric", f"{MORE} --variant identity_symmetric"),
        Row("identity_frozen", "--variant identity_frozen", "Wen & Li, Theorem 3", "collapse",
            collapses),
    ], "verdict knn m_o effective_rank m_o_P"),
    "controls": Table("zhang", "What does a simple predictor need?", 10, MORE, [
        Row("simsiam", f"{MIRROR} --variant simsiam", "Zhang, Table 5", "66.9"),
        Row("MSE without l2", "--variant mse --final-bn none", "Zhang, 4", "works poorly",
            below("simsiam", points=5)),
        Row("MSE without l2 after a BN", "--variant mse --final-bn noaffine", "Zhang, 4",
            "works poorly", below("simsiam", points=5)),
        Row("tanh(FC)", "--variant tanh_fc", "Zhang, Table 5", "64.82, comparable",
            AsGood("simsiam")),
        Row("FC", "--variant fc", "Zhang, 4", "difficult to train", below("simsiam", points=5)),
        Row("FC of z", "--variant fc_of_z", "Zhang, 4", "fails", below("simsiam", points=5)),
        Row("bias", f"{MIRROR} --variant bias {BIAS}", "Zhang, Table 5", "49.82", not_complete),
        Row("bias of z", "--variant bias_of_z", "Zhang, 4", "fails", collapses),
        Row("stop-gradient alone", "--variant moving_average --bank-momentum 0", "Zhang, 2.1",
            "fails", collapses)]),
    "conjecture": Table("zhang", "Which gradient causes collapse?", 4, PARTS, [
        Row(f"{loss} from {start}", f"--loss {before}{loss}:1 --schedule constant --final-bn none",
            place, says, rule)
        for start, before in (("init", ""), ("SimSiam", "simsiam:3+"))
        for loss, place, says, rule in (
            ("centre", "Zhang, Fig. 4", "m_o rises", moves("m_o", 0.1, 1)),
            ("residual", "Zhang, Fig. 4", "m_o falls", moves("m_o", -1, -0.1)),
            ("residual_b", "Zhang, 3.1", "m_o falls less", falls_less("residual", start)),
            ("random", "Zhang, Fig. 4", "small influence", moves_little(start)))
    ], "m_o_before m_o m_r_before m_r_highest m_r", ours="--lr 0.4", **STEPS),
    "triplet": Table("zhang", "Which half of a negative's gradient prevents collapse?", 3, PARTS, [
        Row("Z_b + o_e + r_e", "--loss triplet", "Zhang, Table 3", "36.21", not_complete),
        Row("Z_b + o_e", "--loss triplet --without r_e", "Zhang, Table 3", "47.41, higher",
            above("Z_b + o_e + r_e")),
        Row("Z_b + r_e", "--loss triplet --without o_e", "Zhang, Table 3", "collapse, 1", complete),
    ], "verdict linear m_o m_r effective_rank", **STEPS),
    "simsiam-components": Table(
        "zhang", "Which half of SimSiam's extra gradient prevents collapse?", 7, PARTS, [
            Row("P_b + o_e + r_e", "--loss simsiam", "Zhang, Table 4", "66.62", p_not_complete),
            Row("P_b + o_e", "--without r_e", "Zhang, Table 4", "48.08, lower",
                below("P_b + o_e + r_e")),
            Row("P_b + r_e", "--without o_e", "Zhang, Table 4", "66.15, comparable",
                AsGood("P_b + o_e + r_e")),
            Row("P_b", "--without both", "Zhang, Table 4", "collapse, 1", p_complete),
            *(Row(f"{arm} (h: SimSiam)", f"--without {part} --predictor-loss simsiam")
              for arm, part in (("P_b + o_e", "r_e"), ("P_b + r_e", "o_e"), ("P_b", "both")))
        ], "verdict_P m_o_P m_o knn linear", "m_o m_o_P", "steps.csv"),
    "center": Table("zhang", "How much of the centre is in the extra gradient?", 2, PARTS, [
        Row("SimSiam", "--loss simsiam:5 --schedule constant", "Zhang, Fig. 5a",
            "eta_p negative, -0.5", lambda run, rows: run["eta_p"] < -0.1),
        Row("Mirror SimSiam", "--loss mirror:3 --schedule constant", "Zhang, Fig. 5a",
            "eta_z positive, 0.2", lambda run, rows: run["eta_z"] > 0),
    ], "m_o m_r eta_p eta_z", "eta_p eta_z", "steps.csv"),
    "recover": Table("zhang", "Does de-correlation undo a collapse?", 3, PARTS, [
        Row(f"of z{kind.replace('_', ' ')}",
            f"--loss simsiam:5+naive:1+decorrelate{kind}:2 --schedule constant", *claim)
        for kind, *claim in (
            ("", "Zhang, Fig. 5b", "m_r rises",
             lambda run, rows: run["m_r_highest"] > run["m_r_before"] + 0.1),
            ("_standardised", "Zhang, Fig. 5b", "m_r rises",
             lambda run, rows: run["m_r_highest"] > run["m_r_before"] + 0.1),
            ("_normalised",))
    ], "m_r_before m_r_highest effective_rank_before effective_rank", "m_r covariance",
        "steps.csv", "--lr 0.4"),
    "infonce": Table("zhang", "Does InfoNCE's residual gradient de-correlate?", 5, PARTS, [
        Row("SimSiam", "--loss simsiam", "Zhang, Fig. 6", "covariance low",
            below("without r_e", key="covariance")),
        Row("InfoNCE", "--loss infonce", "Zhang, Fig. 5c", "cosine high for a wide range of tau",
            decorrelates),
        Row("without r_e", "--loss infonce --without r_e", "Zhang, Fig. 6",
            "covariance high, accuracy drops", lambda run, rows:
            run["linear"] < rows["InfoNCE"]["linear"]
            and run["covariance"] > rows["InfoNCE"]["covariance"]),
        Row("InfoNCE batch 8", "--loss infonce --batch-size 8 --epochs 3"),
    ], "linear covariance cos_r_0.1 cos_r_0.5 cos_r_5.0", "covariance m_o", "steps.csv"),
    "bias": Table("zhang", "How long does a bias predictor become?", 1, PARTS, [
        Row("bias", "--loss bias:5 --schedule constant --final-bn none", "Zhang, A.8, Table 6",
            "b = (1 - m) / m o, cosine 0.99", lambda run, rows:
            run["b_cos"] > 0.97 and abs(run["b_theory"] / run["b"] - 1) < 0.05),
    ], "m_o m_r b b_theory b_cos", "b b_theory", "steps.csv", "--lr 0.4"),
    "temperature": Table("zhang", "Does a higher temperature leave more correlation?", 10, CLR, [
        Row(f"tau {tau}", f"--data patches --projector mlp --temperature {tau}",
            *(("Zhang, Fig. 8", "covariance rises", above(f"tau {before}", key="covariance"))
              if before else ()))
        for before, tau in ((0, 0.05), (0, 0.1), (0, 0.2), (0.2, 0.5), (0.5, 1), (1, 5))
    ], "verdict knn linear m_o covariance"),
    "scan": Table("wen_li", "Do a head's off-diagonal weights rise and fall?", 15, MIRROR, [
        Row(f"rate {rate:g} decay {decay:g}",
            f"--variant identity --pred-lr {rate:g} --pred-weight-decay {decay:g}",
            *(("Wen & Li", "E rises and falls", rises_and_falls) if claim else ()))
        for rate, decay, claim in (
            *((rate, 0, False) for rate in (1, 10, 100, 1000)), (1, 5e-4, False),
            (10, 5e-4, True), (100, 5e-4, True), (1000, 5e-4, False))] + [
        Row(f"{dim} dimensions rate {rate}",               # Few neurons share many features.
            f"--variant identity --data strong_weak --proj-dim {dim} --pred-lr {rate} "
            "--pred-weight-decay 0")
        for dim, rate in ((4, 100), (10, 1), (10, 10), (10, 100), (32, 10))
    ], "E_mean_1 E_mean verdict effective_rank knn", "E_max E_mean E_asym effective_rank knn m_o"),
    "phases": Table("wen_li", "Does a trained head learn the weak feature too?", 7, MIRROR, [
        Row("identity head", "--variant identity --data strong_weak --epochs 24",
            "Wen & Li, Theorem 1", "both learnt", both_learnt),
        Row("without decay", "--variant identity --pred-weight-decay 0 --data strong_weak "
            "--epochs 24"),
        Row("frozen head", "--variant identity_frozen --data strong_weak --epochs 24",
            "Wen & Li, Theorem 3", "only the strong one", below("identity head", key=WEAK_Z))
    ], "E_mean_1 E_mean linear_z linear_z_weak effective_rank",
        "knn knn_weak E_mean effective_rank"),
    "predictor": Table("tian", "Is a predictor that is set as good as a trained one?", 15, PRED, [
        Row("trained", "--predictor sgd", TIAN, "84.49"),
        Row("trained 2 layers", "--predictor sgd --predictor-layers 2", "Tian, slides",
            "rank bounces back",
            lambda run, rows: run["effective_rank"] > 1.3 * run["effective_rank_lowest"]),
        Row("DirectPred", "--predictor directpred", TIAN, "85.21", AsGood("trained")),
        Row("DirectPred freq 5", "--predictor directpred --freq 5", TIAN, "84.93",
            AsGood("trained")),
        Row("DirectCopy", "--predictor directcopy", WANG, "84.02", AsGood("trained")),
        Row("least squares", "--predictor optimal", "Tian, Table 1", "40.67 (STL-10)",
            below("trained", points=5)),
        Row("DirectPred no EMA", "--predictor directpred --ema 0"),
    ], "linear effective_rank effective_rank_lowest align commutator",
        "effective_rank align commutator asymmetry"),
    "alpha": Table("tian", "How much do DirectSet's exponent and floor matter?", 20, PRED, [
        Row(label, f"--predictor directset {flags}", *claim) for label, flags, *claim in (
            ("alpha 2", "--alpha 2", WANG, "82.96"),
            ("alpha 1", "--alpha 1", WANG, "84.02", AsGood("alpha 0.5")),
            ("alpha 0.5", "--alpha 0.5", WANG, "84.88"),
            ("alpha 0.25", "--alpha 0.25", WANG, "84.78", AsGood("alpha 0.5")),
            ("eps 0", "--eps 0", "Tian, Table 8", "76.77 (STL-10)", AsGood("alpha 0.5")),
            ("eps 0.01", "--eps 0.01", "Tian, Table 8", "77.11 (STL-10)", AsGood("alpha 0.5")),
            ("eps 0.5", "--eps 0.5", "Tian, Table 8", "75.06 (STL-10)"),
            ("rho 0", "--rho 0"))                          # F is only that of the last batch.
    ], SET),
    "weight-decay": Table("tian", "Does DirectCopy need a little weight decay?", 10, PRED, [
        Row(f"decay {d}", f"--predictor directcopy --weight-decay {d}", WANG, says, *rule)
        for d, says, *rule in (
            ("0", "79.15, lower", below("decay 4e-4")), ("4e-4", "84.02"),
            ("1e-3", "83.91", AsGood("decay 4e-4")),
            ("1e-2", "65.31", below("decay 4e-4", points=5)))
    ], SET),
    "symmetric": Table("tian", "Does a symmetric predictor need a slow target?", 15, PRED, [
        Row(label, f"--predictor {flags} --pred-weight-decay 5e-3 {NO_BN}", place, says, *rule)
        for label, flags, place, says, *rule in (
            ("symmetric EMA", "symmetric --weight-decay 5e-3", "Tian, Part II", "75.09",
             AsGood("regular EMA")),
            ("regular EMA", "sgd --weight-decay 5e-3", "Tian, Part II", "74.51"),
            ("symmetric no EMA", "symmetric --weight-decay 5e-3 --ema 0", "Tian, Part II", "36.62",
             below("regular no EMA", points=10)),
            ("regular no EMA", "sgd --weight-decay 5e-3 --ema 0", "Tian, Part II", "72.85",
             above("symmetric no EMA", points=10)),
            ("symmetric no EMA decay of W_p alone", "symmetric --weight-decay 0 --ema 0",
             "Tian, Table 5", "71.1", above("symmetric no EMA", points=5)))
    ], SET),
    "directset": Table("tian", "A predictor that is set, in Tian et al.'s own regime", 35, PRED, [
        Row(label, f"--predictor {flags} --weight-decay {decay} --pred-weight-decay 5e-3 {NO_BN}",
            place, says, *rule) for label, flags, decay, place, says, *rule in (
                ("trained", "sgd", 5e-3, TIAN, "84.49"),
                ("DirectPred", "directpred", 5e-3, TIAN, "85.21", AsGood("trained")),
                ("DirectPred F centred", "directpred --center", 5e-3, "Tian, 4", "lower",
                 below("DirectPred")),
                ("alpha 2", "directset --alpha 2", 5e-3, WANG, "82.96, lowest",
                 below("DirectCopy", "DirectPred", "alpha 0.25")),
                ("alpha 0.25", "directset --alpha 0.25", 5e-3, WANG, "84.78",
                 AsGood("DirectPred")),
                ("eps 0", "directpred --eps 0", 5e-3, "Tian, Table 8", "76.77 (STL-10)",
                 AsGood("DirectPred")),
                ("eps 0.5", "directpred --eps 0.5", 5e-3, "Tian, Table 8",
                 "75.06 (STL-10), lowest", below("DirectPred", "eps 0")),
                ("least squares", "optimal", 5e-3, "Tian, Table 1", "40.67 (STL-10)",
                 below("trained", points=5)),
                ("DirectCopy", "directcopy", 5e-3, WANG, "84.02", AsGood("trained")),
                ("DirectCopy no decay", "directcopy", 0, WANG, "79.15, lower",
                 below("DirectCopy")),
                ("DirectCopy decay x 2.5", "directcopy", 0.0125, WANG, "83.91",
                 AsGood("DirectCopy")),
                ("DirectCopy decay x 25", "directcopy", 0.125, WANG, "65.31",
                 below("DirectCopy", points=5)))
        ], SET),
    "directclr": Table("jing", "Without a projector more of the weak feature is lost", 16, CLR, [
        Row("mlp", "--projector mlp", JING, "66.5", above("DirectCLR", key=WEAK)),
        Row("linear", "--projector linear", JING, "61.1", above("none", key=WEAK)),
        Row("linear 17", "--projector linear --proj-dim 17", JING, "61.1",
            above("none", key=WEAK)),
        Row("DirectCLR", "--projector direct", JING, "62.7", AsGood("linear 17", key=WEAK)),
        Row("none", "--projector none", JING, "51.5, lowest",
            below("mlp", "linear", "linear 17", "DirectCLR", key=WEAK)),
    ], "linear linear_weak linear_first_weak linear_rest_weak test_rank_r", "r z", "spectrum.csv",
        points="linear linear_weak"),
    "bottleneck": Table("jing", "The same on fresh seeds", 9, CLR, [
        Row("linear 17", "--projector linear --proj-dim 17", JING, "61.1",
            above("none", key=WEAK)),
        Row("DirectCLR", "--projector direct", JING, "62.7", AsGood("linear 17", key=WEAK)),
        Row("none", "--projector none", JING, "51.5, lowest",
            below("linear 17", "DirectCLR", key=WEAK)),
    ], "linear linear_weak linear_first_weak linear_rest_weak test_rank_r", "r z", "spectrum.csv"),
    "d0": Table("jing", "How many dimensions of r should the loss see?", 10, CLR, [
        Row(f"d0 {d0}", f"--d0 {d0}", *claim) for d0, *claim in (
            (6,), (12,),
            (17, "Jing, ablation", "62.7, of r[:d0] 47.9",
             lambda run, rows: run["linear_first_weak"] < run[WEAK] - 5),
            (24,), (48,), (96, JING, "51.5, lower", below("d0 17", key=WEAK)))
    ], "linear linear_weak linear_first_weak linear_rest_weak"),
    "mode": Table("jing", "Must the loss always see the same dimensions?", 5, CLR, [
        Row("prefix", "--data patches --direct-mode prefix", "Jing, ablation", "62.7"),
        Row("random", "--data patches --direct-mode random", "Jing, ablation", "43.0",
            below("prefix", points=5)),
        Row("orthogonal", "--data patches --direct-mode orthogonal", "Jing, ablation", "62.3",
            AsGood("prefix")),
    ], "linear linear_first linear_rest test_rank_r test_rank_z"),
    "weak": Table("jing", "Who learns the weaker of two features?", 40, "", [
        Row(label, f"{row} --data strong_weak", *claim) for label, row, *claim in (
            ("supervised", "supervised.py"), ("untrained", "supervised.py --epochs 0"),
            ("SimCLR mlp", f"{CLR} --projector mlp"),
            ("SimCLR linear", f"{CLR} --projector linear"), ("DirectCLR", CLR),
            ("SimCLR none", f"{CLR} --projector none"),
            ("SimCLR linear 32 epochs", f"{CLR} --projector linear --epochs 32"),
            ("DirectCLR 32 epochs", f"{CLR} --epochs 32"),
            ("SimCLR none 32 epochs", f"{CLR} --projector none --epochs 32"),
            ("SimSiam", "simsiam.py"), ("BYOL", "byol.py"), ("DirectPred", PRED),
            ("DirectCopy", f"{PRED} --predictor directcopy"),
            ("trained W_p", f"{PRED} --predictor sgd"),
            ("naive", f"{MIRROR} --variant naive", "Zhang, Table 2", "1",
             below("SimSiam", points=10, key=WEAK)),
            ("mirror", f"{MIRROR} --variant mirror", "Zhang, Table 2", "1",
             below("SimSiam", points=10, key=WEAK)),
            ("bias", f"{MIRROR} --variant bias {BIAS}"),
            ("identity head", f"{MIRROR} --variant identity", "Wen & Li, Theorem 1", "both learnt",
             both_learnt),
            ("symmetric head", f"{MORE} --variant identity_symmetric"),
            ("frozen head", f"{MIRROR} --variant identity_frozen", "Wen & Li, Theorem 3",
             "only the strong one", below("identity head", key=WEAK_Z)),
            # The paper's probe has "2048 features" (A.1).  In its nets only z has so many.
            ("P_b + o_e + r_e", PARTS, "Zhang, Table 4", "66.62", above("P_b + o_e", key=WEAK_Z)),
            ("P_b + o_e", f"{PARTS} --without r_e", "Zhang, Table 4", "48.08",
             below("P_b + r_e", key=WEAK_Z)),
            ("P_b + r_e", f"{PARTS} --without o_e", "Zhang, Table 4", "66.15",
             AsGood("P_b + o_e + r_e", key=WEAK_Z)),
            ("InfoNCE", f"{PARTS} --loss infonce"),
            ("InfoNCE less r_e", f"{PARTS} --loss infonce --without r_e", "Zhang, Fig. 6",
             "accuracy drops", below("InfoNCE", key=WEAK)))
    ], "verdict linear linear_weak linear_z linear_z_weak", "knn knn_weak effective_rank",
        points="linear linear_weak supervised"),
    "collapse-guide": Table(
        "collapse_guide", "Which single change makes SimSiam or BYOL collapse?", 90, "knobs.py", [
            Row(f"{name}: {label}", f"--variant {variant} {flags}")
            for name, variant, rows in (("SimSiam", "simsiam", KNOBS | KNOBS_SIMSIAM),
                                        ("BYOL", "byol", KNOBS | KNOBS_BYOL))
            for label, flags in rows.items()
        ], "verdict knn std m_o effective_rank loss test_rank_r", "effective_rank knn loss",
        points="effective_rank knn; test_auc_r knn; test_rank_r knn"),
    "collapse-cures": Table(
        "collapse_guide", "SimSiam has collapsed: which second change cures it?", 35, "knobs.py", [
            Row(label, flags) for label, flags in CURES.items()
        ], "verdict knn linear std m_o effective_rank loss", points="effective_rank knn"),
    **{name: Table("cifar10", f"Fifteen methods on CIFAR-10, {epochs} epochs", minutes, "", [
        Row(label, f"{run} --data data/cifar10_jpeg --epochs {epochs} --eval-every {every}", *claim)
        for label, run, *claim in CIFAR
    ], curves=drawn)
       for name, epochs, minutes, every, drawn in (
           ("cifar10", 5, 100, 5, "std effective_rank m_o"),
           ("cifar10-long", 30, 520, 10, "std effective_rank knn m_o"))}
}


# ------------------------------------------------------------------------------------------ claims

THEORY = {"toy_sphere": "chen_he", "toy_patch": "wen_li", "toy_dynamics": "tian",
          "toy_infonce": "jing", "toy_landscape": "ziyin"}            # the page of each in results/
CLAIMS = [
    Claim("SimSiam does not collapse", "Chen & He", "simsiam", ["simsiam"]),
    Claim("BYOL collapses without its predictor or its stop-gradient; without a slow target it "
          "does not, if its predictor learns fast", "Tian, Zhang", "byol",
          ["no predictor", "neither", "no stop-gradient", "ema 0"]),
    Claim("Without a predictor, or with the gradient on the other path, all z become one point; "
          "with the predictor on both paths all p", "Zhang, Table 2", "mirror",
          ["naive", "mirror", "symmetric"]),
    Claim("Complete collapse is prevented by a second head that maps the target back to z, or by a "
          "predictor that only adds a vector", "Zhang, Fig. 3, Table 5", "mirror",
          ["inverse", "bias"]),
    Claim("A moving average as the target keeps a std over 0.2, an average over many views none",
          "Zhang, Table 1", "mirror", ["same_batch10", "same_batch25", "moving_average"]),
    Claim("With a squared error a BatchNorm of Z prevents complete collapse; a BatchNorm of z "
          "leaves one or two dimensions", "Zhang, 4", "mirror",
          ["bn_after_l2", "bn_before_l2"]),
    Claim("A gradient along the centre of all images collapses a net, one along the residual "
          "spreads it, a random one does little", "Zhang, Fig. 4", "conjecture",
          [f"{loss} from {start}" for loss in ("centre", "residual", "residual_b", "random")
           for start in ("init", "SimSiam")]),
    Claim("The centre of one negative prevents complete collapse; its residual costs accuracy",
          "Zhang, Table 3", "triplet", ["Z_b + o_e + r_e", "Z_b + o_e", "Z_b + r_e"]),
    Claim("The centre or the residual of SimSiam's extra gradient is enough to prevent a complete "
          "collapse of p", "Zhang, Table 4", "simsiam-components",
          ["P_b + o_e + r_e", "P_b + o_e", "P_b + r_e", "P_b"]),
    Claim("SimSiam's extra gradient points away from the centre of P, Mirror SimSiam's towards "
          "that of Z", "Zhang, Fig. 5a", "center", ["SimSiam", "Mirror SimSiam"]),
    Claim("De-correlating z raises m_r again after a collapse", "Zhang, Fig. 5b", "recover",
          ["of z", "of z standardised"]),
    Claim("InfoNCE's residual gradient de-correlates, and without it accuracy drops",
          "Zhang, Fig. 5c, 6", "infonce", ["SimSiam", "InfoNCE", "without r_e"]),
    Claim("On random Z of 2048 dimensions it does so best at a temperature of 0.1 or 0.2",
          "Zhang, Fig. 5c", "toy_infonce",
          lambda found: found["2048 dimensions: tau of the best cosine"] in (0.1, 0.2)),
    Claim("A higher temperature leaves more correlation", "Zhang, Fig. 8", "temperature",
          ["tau 0.5", "tau 1", "tau 5"]),
    Claim("A linear head that starts as the identity and learns fast prevents dimensional "
          "collapse, a frozen one does not", "Wen & Li", "mirror", ["identity", "identity_frozen"]),
    Claim("Off-diagonal weights of a fast head with weight decay rise and fall", "Wen & Li", "scan",
          ["rate 10 decay 0.0005", "rate 100 decay 0.0005"]),
    Claim("z learns the weak feature better before a trained head than before a frozen one",
          "Wen & Li, Theorems", "phases", ["identity head", "frozen head"]),
    Claim("In the theorems' own net only a trained head learns the weak feature, and its weights "
          "rise and fall", "Wen & Li, Theorems", "toy_patch", lambda found:
          min(found["trained: cos(w1, v1)"], found["trained: cos(w2, v2)"],
              found["frozen: cos(w1, v1)"], found["frozen: cos(w2, v1)"]) > 0.8
          and found["trained: largest E_21"] > 0.2 and found["trained: |E_21| at the end"] < 0.05),
    Claim("A linear net goes to 0 without predictor or stop-gradient; with both it need not, and "
          "W_p comes to share eigenvectors with F", "Tian, Part I, Theorem 3", "toy_dynamics",
          lambda found: found["no predictor: ||W|| at the end over the bound"] < 1
          and found["no stop-gradient: ||W|| at the end over the bound"] < 1
          and found["both: ||W|| at the end over the bound"] > 100
          and all(found[what] < 1e-3 for what in found if "largest of" in what)),
    Claim("DirectPred and DirectCopy are as good as a trained predictor, least squares is not",
          "Tian, Wang", "predictor",
          ["DirectPred", "DirectPred freq 5", "DirectCopy", "least squares"]),
    Claim("On photographs DirectSet's exponent 2 is the worst; 1, 1/2, 1/4 are as good as training",
          "Wang", "directset", ["alpha 2", "alpha 0.25", "DirectPred", "DirectCopy"]),
    Claim("A predictor that is kept symmetric fails without a slow target; decay of W_p alone "
          "helps",
          "Tian, Part II", "symmetric", ["symmetric EMA", "symmetric no EMA", "regular no EMA",
                                         "symmetric no EMA decay of W_p alone"]),
    Claim("Without a projector contrastive learning loses more of a weak feature than with one, or "
          "than DirectCLR does", "Jing", "directclr", ["linear", "linear 17", "none"]),
    Claim("DirectCLR's r holds more than the d0 dimensions that its loss sees", "Jing, ablation",
          "d0", ["d0 17", "d0 96"]),
    Claim("DirectCLR's loss must see the same dimensions at every step, rotated or not",
          "Jing, ablation", "mode", ["random", "orthogonal"]),
    Claim("Strong augmentation and depth make dimensions of linear contrastive nets small", "Jing",
          "toy_infonce", lambda found:
          found["noise 1.5: eigenvalue 9 over eigenvalue 8"] < 0.15
          and found["noise 2 in one view: eigenvalue 9 of the embedding"] < 1e-9
          and found["1 layer: dimensions with an eigenvalue over 1e-3"]
          > found["2 layers: dimensions with an eigenvalue over 1e-3"]
          > found["3 layers: dimensions with an eigenvalue over 1e-3"]),
    Claim("The loss's curvature at 0 says how many dimensions a linear net keeps", "Ziyin",
          "toy_landscape", lambda found: all(
              found[f"a = {a}: rank after SGD"] == rank
              for rank, a in enumerate((12, 8, 4, 2, 1.4, 1)))),
    # These claims could not be shown.
    Claim("Two linear layers, or tanh(FC), are comparable with an MLP as predictors",
          "Zhang, Table 5", "mirror", ["two_fc", "tanh_fc"],
          "two layers are 4 points worse, tanh(FC) over 30"),
    Claim("A trained net's InfoNCE de-correlates best at a temperature of 0.1 or 0.2",
          "Zhang, Fig. 5c", "infonce", lambda rows: max(
              ("0.05", "0.1", "0.2", "0.3", "0.5", "1.0", "5.0"),
              key=lambda tau: rows["InfoNCE"][f"cos_r_{tau}"]) in ("0.1", "0.2"),
          "0.5 to 1: its Z uses few dimensions"),
    Claim("De-correlating Z raises m_r, as Algorithm 5 is written", "Zhang, Fig. 5b",
          "recover", lambda rows: rows["of z normalised"]["m_r_highest"]
          > rows["of z normalised"]["m_r_before"] + 0.1,
          "m_r rises by 0.04 to 0.11, the rank stays"),
    Claim("Accuracy falls as the temperature rises", "Zhang, Fig. 8", "temperature", lambda rows:
          rows["tau 0.2"]["linear"] > rows["tau 1"]["linear"] > rows["tau 5"]["linear"],
          "highest at 1; 0.05 and 0.1 hardly train"),
    Claim("The head's off-diagonal weights fall by themselves", "Wen & Li", "scan", lambda rows:
          any(rows[f"rate {rate} decay 0"]["E_mean"] < rows[f"rate {rate} decay 0"]["E_mean_1"]
              for rate in (10, 100)), "four rates, few neurons: they only rise"),
    Claim("With a two-layer predictor the rank falls and bounces back", "Wang", "predictor",
          ["trained 2 layers"], "it only falls, in so short a run"),
    Claim("On photographs DirectCopy needs weight decay, 2.5 times as much costs nothing, and a "
          "floor eps of 0.5 is the worst", "Wang; Tian, Table 8", "directset",
          ["DirectCopy no decay", "DirectCopy decay x 2.5", "eps 0.5"],
          "no decay is best, 2.5 times costs 5 points, floors hardly differ"),
    Claim("DirectSet's exponent 2 is the worst on made images too", "Wang", "alpha", lambda rows:
          rows["alpha 2"]["linear"] < min(rows[f"alpha {a}"]["linear"] for a in (1, 0.5, 0.25)),
          "it differs less than seeds do"),
    Claim("An MLP is better than DirectCLR, and that better than a linear projector", "Jing",
          "directclr", lambda rows: rows["mlp"][WEAK] > rows["DirectCLR"][WEAK]
          > max(rows["linear"][WEAK], rows["linear 17"][WEAK]),
          "linear is best; one to 17 dimensions beats DirectCLR by 1 to 5"),
]

"""What the papers claim: the tables of results/reproduce.py, as data.

A table has a row for each net that is trained: its label, the flags that a user would type, what
the paper says, and a claim.  A claim is a function that says whether a run shows what the paper
says.  It sees the run, and {label: run} of all rows with the same seed.  A run is a dict of what
its result.json holds.  A row without a claim is there for comparison.
"""
from typing import NamedTuple


class Table(NamedTuple):
    page: str                  # the page of results/ that shows it
    paper: str                 # what the paper claims
    minutes: int               # that one seed trains on two CPU cores, about
    script: str                # what trains the rows, unless their flags begin with another script
    rows: list                 # (label, flags, what the paper says, claim or None)
    columns: str = "verdict knn linear m_o effective_rank"         # shown; the csv has them all
    curves: str = "std effective_rank knn m_o"                     # columns that are drawn
    csv: str = "metrics.csv"   # the file of a run that has them
    ours: str = ""             # flags for all data sets except CIFAR
    points: str = ""           # "x y; x2 y2": pictures of two columns with a point for each row;
                               # a third word is a row that would be off the scale


# ------------------------------------------------------------------------------------------ claims

def verdict_is(*words, of="verdict"):
    return lambda run, rows: run[of] in words


# Zhang et al. call it collapse if all images become one point: our complete collapse.  Wen & Li
# call it collapse if some features are lost: our dimensional collapse.
complete, not_complete = verdict_is("complete"), verdict_is("none", "dimensional")
collapses, learns = verdict_is("complete", "dimensional"), verdict_is("none")
p_complete = verdict_is("complete", of="verdict_P")        # the predictions P, whatever Z is
p_not_complete = verdict_is("none", "dimensional", of="verdict_P")


def moves(key, low, high):
    """Between its start and its end the column changes by more than low and less than high."""
    return lambda run, rows: low < run[key] - run[key + "_before"] < high


def falls_less(loss, start):
    """m_o falls, but not as far as with another loss."""
    return lambda run, rows: rows[f"{loss} from {start}"]["m_o"] < run["m_o"] < run["m_o_before"]


def below(other, points=0.0, key="linear"):
    """More than so many points below another row"""
    return lambda run, rows: run[key] < rows[other][key] - points


def above(other, points=0.0, key="linear"):
    """Above another row, or at most so many points below it"""
    return lambda run, rows: run[key] > rows[other][key] - points


def both_learnt(run, rows):
    """A linear probe of z finds both labels, the strong and the weak one."""
    return all(run[key] > rows["frozen head"][key] for key in ("linear_z", "linear_z_weak"))


def probe(run, part=""):
    """Linear probe of the weak label if there is one, else of the only one"""
    return run.get(f"linear{part}_weak", run[f"linear{part}"])


# ------------------------------------------------------------------------------------------ tables

MIRROR, MORE, PARTS = "mirror_ablations.py", "more_ablations.py", "gradient_components.py"
PRED, CLR, WEAK, WEAK_Z = "directpred.py", "directclr.py", "linear_weak", "linear_z_weak"
STEPS = dict(curves="m_o m_r", csv="steps.csv")
SET = "verdict linear effective_rank align commutator"
# knobs.py: one change to the default recipe each, then a change that collapses with a second one
KNOBS = {
    "as it is": "", "rate x 4": "--lr 1.6", "rate x 16": "--lr 6.4", "rate / 4": "--lr 0.1",
    "predictor's rate decays too": "--pred-schedule cosine", "predictor frozen": "--pred-lr 1e-9",
    "no BN in the predictor": "--no-pred-bn",
    "no BN in the projector": "--no-proj-bn --final-bn none", "no final BN": "--final-bn none",
    "batch 16": "--batch-size 16", "batch 256": "--batch-size 256 --warmup-epochs 2",
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
# Tian et al.'s own regime, as far as it fits: no BatchNorm behind z, no bias in the predictor W_p,
# and W_p as fast as the encoder
NO_BN = ("--data data/cifar10_jpeg --limit 5000 --epochs 20 --eval-every 10 --schedule constant "
         "--final-bn none --no-predictor-bias --lr 0.2 --pred-lr 1")
# Slower heads did as well on `patches`; these rows were trained with faster ones.
BIAS, HEAD = "--pred-lr 50", "--pred-lr 100"
CIFAR = (
    ("SimSiam", "simsiam.py", "no collapse", learns),
    ("BYOL", "byol.py", "no collapse", learns),
    ("DirectPred", PRED, "85.21", above("trained W_p", 3)),
    ("DirectCopy", f"{PRED} --predictor directcopy", "84.02", above("trained W_p", 3)),
    ("trained W_p", f"{PRED} --predictor sgd", "84.49", None),
    ("SimCLR mlp", f"{CLR} --projector mlp", "66.5", above("DirectCLR")),
    ("SimCLR linear", f"{CLR} --projector linear", "61.1", above("SimCLR none")),
    ("DirectCLR", CLR, "62.7", above("SimCLR linear")),
    ("DirectCLR decay 1e-6", f"{CLR} --weight-decay 1e-6", "62.7", above("SimCLR linear")),
    ("SimCLR none", f"{CLR} --projector none", "51.5, lowest", below("SimCLR linear", 5)),
    ("naive", f"{MIRROR} --variant naive --final-bn none", "collapse, 1", complete),
    ("mirror", f"{MIRROR} --variant mirror --final-bn none", "collapse, 1", complete),
    ("symmetric", f"{MIRROR} --variant symmetric --final-bn none", "collapse, 1", complete),
    ("inverse", f"{MIRROR} --variant inverse", "no collapse", not_complete),
    ("bias", f"{MIRROR} --variant bias --final-bn none {BIAS}", "49.82", not_complete),
    ("identity head", f"{MIRROR} --variant identity {HEAD}", "no collapse", learns),
    ("supervised", "supervised.py", "", None))
TABLES = {
    "simsiam": Table("chen_he", "Chen & He: SimSiam does not collapse", 2, "simsiam.py", [
        ("simsiam", "", "no collapse", learns)], "verdict knn linear std effective_rank"),
    "byol": Table(
        "tian", "Tian et al.: BYOL needs predictor and stop-gradient, hardly its slow target", 15,
        "byol.py", [
            ("byol", "", "no collapse", learns),
            ("no predictor", "--predictor none", "collapse", collapses),
            ("neither", "--predictor none --ema 0", "collapse", collapses),
            ("no stop-gradient", "--no-stopgrad", "collapse", collapses),
            ("ema 0", "--ema 0", "no collapse", learns),
            *((f"ema {m}", f"--ema {m}", "", None) for m in (0.5, 0.9, 0.98)),
            ("ema 1 (frozen)", "--ema 1", "no collapse", not_complete)]),
    "mirror": Table("zhang", "Zhang et al., Wen & Li: which Siamese nets collapse", 25, MIRROR, [
        ("simsiam", "--variant simsiam --final-bn none", "66.62", not_complete),
        ("simsiam_bn", "--variant simsiam --final-bn noaffine", "66.62", not_complete),
        ("no_stopgrad", "--variant no_stopgrad --final-bn none", "collapse", complete),
        ("naive", "--variant naive --final-bn none", "collapse, 1", complete),
        ("mirror", "--variant mirror --final-bn none", "collapse, 1", complete),
        ("symmetric", "--variant symmetric --final-bn none", "collapse, 1", complete),
        ("inverse", "--variant inverse", "no collapse", not_complete),
        ("moving_average", f"{MORE} --variant moving_average", "46.57", not_complete),
        ("same_batch10", f"{MORE} --variant same_batch --n-aug 10 --epochs 6 --final-bn none",
         "collapse, 1", complete),
        ("same_batch25", f"{MORE} --variant same_batch --n-aug 25 --epochs 2 --final-bn none",
         "collapse, 1", complete),
        ("two_fc", f"{MORE} --variant two_fc", "66.7", not_complete),
        ("tanh_fc", f"{MORE} --variant tanh_fc", "64.82", not_complete),
        ("bias", "--variant bias --final-bn none", "49.82", not_complete),
        ("bn_after_l2", f"{MORE} --variant bn_after_l2", "no collapse", not_complete),
        ("whitening", f"{MORE} --variant whitening", "no collapse", learns),
        ("bn_before_l2", "--variant naive --final-bn noaffine", "collapse", complete),
        ("linear", f"{MORE} --variant linear", "no collapse", learns),
        ("identity_full", f"{MORE} --variant identity_full", "no collapse", learns),
        ("identity", "--variant identity", "no collapse", learns),
        ("identity_symmetric", f"{MORE} --variant identity_symmetric", "", None),
        ("identity_frozen", "--variant identity_frozen", "collapse", collapses),
    ], "verdict knn m_o effective_rank m_o_P"),
    "controls": Table("zhang", "Zhang et al., section 4: what a simple predictor needs", 10, MORE, [
        ("simsiam", f"{MIRROR} --variant simsiam", "66.9", None),
        ("MSE without l2", "--variant mse --final-bn none", "works poorly", below("simsiam", 5)),
        ("MSE without l2 after a BN", "--variant mse --final-bn noaffine", "works poorly",
         below("simsiam", 5)),
        ("tanh(FC)", "--variant tanh_fc", "64.82", not_complete),
        ("FC", "--variant fc", "difficult to train", below("tanh(FC)")),
        ("FC of z", "--variant fc_of_z", "fails", below("tanh(FC)")),
        ("bias", f"{MIRROR} --variant bias {BIAS}", "49.82", not_complete),
        ("bias of z", "--variant bias_of_z", "fails", collapses),
        ("stop-gradient alone", "--variant moving_average --bank-momentum 0", "fails", collapses)]),
    "conjecture": Table(
        "zhang", "Zhang et al., Fig. 4: the centre's gradient collapses, the residual's spreads", 4,
        PARTS, [
            (f"{loss} from {start}", f"--loss {before}{loss}:1 --schedule constant --final-bn none",
             says, claim)
            for start, before in (("init", ""), ("SimSiam", "simsiam:3+"))
            for loss, says, claim in (("centre", "m_o rises", moves("m_o", 0.1, 1)),
                                      ("residual", "m_o falls", moves("m_o", -1, -0.1)),
                                      ("residual_b", "m_o falls less",
                                       falls_less("residual", start)),
                                      ("random", "little change", moves("m_o", -0.1, 0.1)))
        ], "m_o_before m_o m_r_before m_r_highest m_r", ours="--lr 0.4", **STEPS),
    "triplet": Table(
        "zhang", "Zhang et al., Table 3: with one negative o_e prevents collapse", 3, PARTS, [
            ("Z_b + o_e + r_e", "--loss triplet", "36.21", not_complete),
            ("Z_b + o_e", "--loss triplet --without r_e", "47.41, higher",
             above("Z_b + o_e + r_e")),
            ("Z_b + r_e", "--loss triplet --without o_e", "collapse, 1", complete),
        ], "verdict linear m_o m_r effective_rank", **STEPS),
    "simsiam-components": Table(
        "zhang", "Zhang et al., Table 4: in SimSiam o_e or r_e prevents collapse", 7, PARTS, [
            ("P_b + o_e + r_e", "--loss simsiam", "66.62", p_not_complete),
            ("P_b + o_e", "--without r_e", "48.08, lower", below("P_b + o_e + r_e")),
            ("P_b + r_e", "--without o_e", "66.15", above("P_b + o_e + r_e", 5)),
            ("P_b", "--without both", "collapse, 1", p_complete),
            *((f"{arm} (h: SimSiam)", f"--without {part} --predictor-loss simsiam", says, claim)
              for arm, part, says, claim in (("P_b + o_e", "r_e", "48.08", p_not_complete),
                                             ("P_b + r_e", "o_e", "66.15", p_not_complete),
                                             ("P_b", "both", "collapse, 1", p_complete)))
        ], "verdict_P m_o_P m_o knn linear", "m_o m_o_P", "steps.csv"),
    "center": Table(
        "zhang", "Zhang et al., Fig. 5a: SimSiam's extra gradient removes part of the centre", 2,
        PARTS, [
            ("SimSiam", "--loss simsiam:5 --schedule constant", "eta_p about -0.5",
             lambda run, rows: -0.7 < run["eta_p"] < -0.3),
            ("Mirror SimSiam", "--loss mirror:3 --schedule constant", "eta_z about 0.2",
             lambda run, rows: 0 < run["eta_z"] < 0.4),
        ], "m_o m_r eta_p eta_z", "eta_p eta_z", "steps.csv"),
    "recover": Table("zhang", "Zhang et al., Fig. 5b: de-correlation undoes a collapse", 3, PARTS, [
        (f"of z{kind.replace('_', ' ')}",
         f"--loss simsiam:5+naive:1+decorrelate{kind}:2 --schedule constant", "undone",
         moves("effective_rank", 1, 999)) for kind in ("", "_standardised", "_normalised")
    ], "m_o_before m_o m_r effective_rank_before effective_rank", "m_r covariance",
        "steps.csv", "--lr 0.4"),
    "infonce": Table(
        "zhang", "Zhang et al., Fig. 5c, 6: InfoNCE's residual part de-correlates", 5, PARTS, [
            ("SimSiam", "--loss simsiam", "covariance low", below("without r_e", 0, "covariance")),
            ("InfoNCE", "--loss infonce", "covariance low", below("without r_e", 0, "covariance")),
            ("without r_e", "--loss infonce --without r_e", "accuracy drops", below("InfoNCE")),
            ("InfoNCE batch 8", "--loss infonce --batch-size 8 --epochs 3",
             "cos_r highest at 0.1, 0.2", lambda run, rows: max(
                 (key for key in run if key.startswith("cos_r_")), key=run.get)
             in ("cos_r_0.1", "cos_r_0.2")),
        ], "linear covariance cos_r_0.1 cos_r_0.5 cos_r_5.0", "covariance m_o", "steps.csv"),
    "bias": Table("zhang", "Zhang et al., A.8: how long a bias predictor becomes", 1, PARTS, [
        ("bias", "--loss bias:5 --schedule constant --final-bn none", "b = (1 - m) / m o",
         lambda run, rows: run["b_cos"] > 0.97 and abs(run["b_theory"] / run["b"] - 1) < 0.05),
    ], "m_o m_r b b_theory b_cos", "b b_theory", "steps.csv", "--lr 0.4"),
    "temperature": Table(
        "zhang", "Zhang et al., Fig. 8: a higher temperature leaves more correlation", 10, CLR, [
            (f"tau {tau}", f"--projector mlp --temperature {tau}", "covariance rises",
             above(f"tau {before}", 0, "covariance") if before else None)
            for before, tau in zip((0, 0.05, 0.1, 0.2, 0.5, 1), (0.05, 0.1, 0.2, 0.5, 1, 5))
        ], "verdict knn linear m_o covariance"),
    "scan": Table("wen_li", "Wen & Li: a head's off-diagonal weights rise, then fall", 15, MIRROR, [
        (f"rate {rate:g} decay {decay:g}",
         f"--variant identity --pred-lr {rate:g} --pred-weight-decay {decay:g}",
         "E rises and falls", lambda run, rows: run["E_mean"] < run["E_mean_1"])
        for decay in (0, 5e-4) for rate in (1, 10, 100, 1000)] + [
        (f"{dim} dimensions rate {rate}",                  # few neurons for each feature
         f"--variant identity --data strong_weak --proj-dim {dim} --pred-lr {rate}",
         "E rises and falls", lambda run, rows: run["E_mean"] < run["E_mean_1"])
        for dim, rate in ((4, 100), (10, 1), (10, 10), (10, 100), (32, 10))
    ], "E_mean_1 E_mean verdict effective_rank knn", "E_max E_mean E_asym effective_rank knn m_o"),
    "phases": Table(
        "wen_li", "Wen & Li: a trained head learns the weak feature too, a frozen one less", 7,
        MIRROR, [
            (label, f"{flags} --data strong_weak --epochs 24", says, claim)
            for label, flags, says, claim in (
                ("identity head", f"--variant identity {HEAD}", "both learnt", both_learnt),
                ("identity head of 10", "--variant identity --proj-dim 10 --pred-lr 10",
                 "both learnt", both_learnt),
                ("frozen head", f"--variant identity_frozen {HEAD}", "less of the weak one",
                 below("identity head", 0, WEAK_Z)))
        ], "verdict E_mean linear_z linear_z_weak effective_rank",
        "knn knn_weak E_mean effective_rank"),
    "predictor": Table(
        "tian", "Tian et al., Wang et al.: a predictor that is set, not trained, is as good", 15,
        PRED, [
            ("trained", "--predictor sgd", "84.49", None),
            ("trained 2 layers", "--predictor sgd --predictor-layers 2", "rank bounces back",
             lambda run, rows: run["effective_rank"] > 1.3 * run["effective_rank_lowest"]),
            ("DirectPred", "--predictor directpred", "85.21", above("trained", 3)),
            ("DirectPred freq 5", "--predictor directpred --freq 5", "84.93", above("trained", 3)),
            ("DirectCopy", "--predictor directcopy", "84.02", above("trained", 3)),
            ("least squares", "--predictor optimal", "40.67 (STL-10)", below("trained", 5)),
            ("DirectPred no EMA", "--predictor directpred --ema 0", "", None),
        ], "linear effective_rank effective_rank_lowest align commutator",
        "effective_rank align commutator asymmetry"),
    "alpha": Table("tian", "Tian et al., Wang et al.: DirectSet's exponent and floor", 20, PRED, [
        (label, f"--predictor directset {flags}", number, claim)
        for label, flags, number, claim in (
            ("alpha 2", "--alpha 2", "82.96, lowest", below("alpha 0.5")),
            ("alpha 1", "--alpha 1", "84.02", above("alpha 2")),
            ("alpha 0.5", "--alpha 0.5", "84.88", above("alpha 2")),
            ("alpha 0.25", "--alpha 0.25", "84.78", above("alpha 2")),
            ("eps 0", "--eps 0", "76.77 (STL-10)", above("alpha 0.5", 3)),
            ("eps 0.01", "--eps 0.01", "77.11 (STL-10)", above("alpha 0.5", 3)),
            ("eps 0.5", "--eps 0.5", "75.06 (STL-10), lowest", below("alpha 0.5")),
            ("rho 0", "--rho 0", "", None))                # F of the last batch alone
    ], SET),
    "weight-decay": Table("tian", "Wang et al.: DirectCopy needs a little weight decay", 10, PRED, [
        (f"decay {d}", f"--predictor directcopy --weight-decay {d}", number, claim)
        for d, number, claim in (
            ("0", "79.15, lower", below("decay 4e-4", 2)), ("4e-4", "84.02", None),
            ("1e-3", "83.91", above("decay 4e-4", 2)), ("1e-2", "65.31", below("decay 4e-4", 5)))
    ], SET),
    "symmetric": Table("tian", "Tian et al.: a symmetric predictor needs a slow target", 15, PRED, [
        (label, f"--predictor {flags} --pred-weight-decay 5e-3 {NO_BN}", says, claim)
        for label, flags, says, claim in (
            ("symmetric EMA", "symmetric --weight-decay 5e-3", "75.09", above("regular EMA", 5)),
            ("regular EMA", "sgd --weight-decay 5e-3", "74.51", None),
            ("symmetric no EMA", "symmetric --weight-decay 5e-3 --ema 0", "36.62",
             below("regular no EMA", 5)),
            ("regular no EMA", "sgd --weight-decay 5e-3 --ema 0", "72.85",
             above("regular EMA", 5)),
            ("symmetric no EMA decay of W_p alone", "symmetric --weight-decay 0 --ema 0", "71.1",
             above("symmetric no EMA", -5)))               # by more than 5 points
    ], SET),
    "directset": Table(
        "tian", "Tian et al., Wang et al.: setting the predictor, in Tian et al.'s own regime", 35,
        PRED, [
            (label, f"--predictor {flags} --weight-decay {decay} --pred-weight-decay 5e-3 {NO_BN}",
             says, claim) for label, flags, decay, says, claim in (
                ("trained", "sgd", 5e-3, "84.49", None),
                ("DirectPred", "directpred", 5e-3, "85.21", above("trained", 3)),
                ("DirectPred F centred", "directpred --center", 5e-3, "lower",
                 below("DirectPred", 5)),
                ("alpha 2", "directset --alpha 2", 5e-3, "82.96, lowest", below("DirectPred")),
                ("alpha 0.25", "directset --alpha 0.25", 5e-3, "84.78", above("DirectPred", 3)),
                ("eps 0", "directpred --eps 0", 5e-3, "76.77 (STL-10)", above("DirectPred", 3)),
                ("eps 0.5", "directpred --eps 0.5", 5e-3, "75.06 (STL-10), lowest",
                 below("DirectPred")),
                ("least squares", "optimal", 5e-3, "40.67 (STL-10)", below("trained", 5)),
                ("DirectCopy", "directcopy", 5e-3, "84.02", above("trained", 3)),
                ("DirectCopy no decay", "directcopy", 0, "79.15, lower", below("DirectCopy", 2)),
                ("DirectCopy decay x 2.5", "directcopy", 0.0125, "83.91", above("DirectCopy", 2)),
                ("DirectCopy decay x 25", "directcopy", 0.125, "65.31", below("DirectCopy", 5)))
        ], SET),
    "directclr": Table("jing", "Jing et al.: which projector gives the best features r", 6, CLR, [
        ("mlp", "--projector mlp", "66.5", above("direct")),
        ("linear", "--projector linear", "61.1", above("none")),
        ("direct", "--projector direct", "62.7", above("linear")),
        ("none", "--projector none", "51.5, lowest", below("linear", 5)),
    ], "linear linear_first linear_rest test_rank_r test_rank_z", "r z", "spectrum.csv"),
    "d0": Table("jing", "Jing et al.: how many dimensions of r the loss should see", 10, CLR, [
        (f"d0 {d0}", f"--d0 {d0}", says, claim) for d0, says, claim in (
            (6, "", None), (12, "", None), (17, "62.7, of r[:d0] 47.9", lambda run, rows:
                                            probe(run, "_first") < probe(run) - 5),
            (24, "", None), (48, "", None),
            (96, "51.5, lower", lambda run, rows: probe(run) < probe(rows["d0 17"])))
    ], "linear linear_first linear_rest test_rank_r test_rank_z"),
    "mode": Table("jing", "Jing et al.: the loss must always see the same dimensions", 5, CLR, [
        ("prefix", "--direct-mode prefix", "62.7", None),
        ("random", "--direct-mode random", "43.0", below("prefix", 5)),
        ("orthogonal", "--direct-mode orthogonal", "62.3", above("prefix", 5)),
    ], "linear linear_first linear_rest test_rank_r test_rank_z"),
    "weak": Table("jing", "Jing et al., Wen & Li: who learns the weaker of two features", 40, "", [
        (label, f"{row} --data strong_weak", says, claim) for label, row, says, claim in (
            ("supervised", "supervised.py", "", None),
            ("untrained", "supervised.py --epochs 0", "", None),
            ("SimCLR mlp", f"{CLR} --projector mlp", "66.5", above("DirectCLR", 0, WEAK)),
            ("SimCLR linear", f"{CLR} --projector linear", "61.1", above("SimCLR none", 0, WEAK)),
            ("DirectCLR", CLR, "62.7", above("SimCLR linear", 0, WEAK)),
            ("SimCLR none", f"{CLR} --projector none", "51.5, lowest",
             below("SimCLR linear", 5, WEAK)),
            ("SimCLR linear 32 epochs", f"{CLR} --projector linear --epochs 32", "61.1",
             above("SimCLR none 32 epochs", 0, WEAK)),
            ("DirectCLR 32 epochs", f"{CLR} --epochs 32", "62.7",
             above("SimCLR linear 32 epochs", 0, WEAK)),
            ("SimCLR none 32 epochs", f"{CLR} --projector none --epochs 32", "51.5, lowest",
             below("DirectCLR 32 epochs", 8, WEAK)),
            ("SimSiam", "simsiam.py", "", None), ("BYOL", "byol.py", "", None),
            ("DirectPred", PRED, "", None),
            ("DirectCopy", f"{PRED} --predictor directcopy", "", None),
            ("trained W_p", f"{PRED} --predictor sgd", "", None),
            ("naive", f"{MIRROR} --variant naive", "not learnt", below("SimSiam", 10, WEAK)),
            ("mirror", f"{MIRROR} --variant mirror", "not learnt", below("SimSiam", 10, WEAK)),
            ("bias", f"{MIRROR} --variant bias {BIAS}", "", None),
            ("identity head", f"{MIRROR} --variant identity {HEAD}", "both learnt", both_learnt),
            ("symmetric head", f"{MORE} --variant identity_symmetric", "", None),
            ("frozen head", f"{MIRROR} --variant identity_frozen {HEAD}", "less of the weak one",
             below("identity head", 0, WEAK_Z)),
            ("P_b + o_e + r_e", PARTS, "66.62", above("P_b + o_e", 0, WEAK)),
            ("P_b + o_e", f"{PARTS} --without r_e", "48.08", below("P_b + r_e", 0, WEAK)),
            ("P_b + r_e", f"{PARTS} --without o_e", "66.15", above("P_b + o_e", 0, WEAK)),
            ("InfoNCE", f"{PARTS} --loss infonce", "", None),
            ("InfoNCE less r_e", f"{PARTS} --loss infonce --without r_e", "accuracy drops",
             below("InfoNCE", 0, WEAK)))
    ], "verdict linear linear_weak linear_z linear_z_weak", "knn knn_weak effective_rank",
        points="linear linear_weak supervised"),
    "collapse-guide": Table(
        "collapse_guide", "Which single change makes SimSiam or BYOL collapse?", 90, "knobs.py", [
            (f"{name}: {label}", f"--variant {variant} {flags}", "", None)
            for name, variant, rows in (("SimSiam", "simsiam", KNOBS | KNOBS_SIMSIAM),
                                        ("BYOL", "byol", KNOBS | KNOBS_BYOL))
            for label, flags in rows.items()
        ], "verdict knn std m_o effective_rank loss test_rank_r", "effective_rank knn loss",
        points="effective_rank knn; test_auc_r knn; test_rank_r knn"),
    "collapse-cures": Table(
        "collapse_guide", "SimSiam has collapsed: which second change cures it?", 35, "knobs.py", [
            (label, flags, "", None) for label, flags in CURES.items()
        ], "verdict knn linear std m_o effective_rank loss", points="effective_rank knn"),
    **{name: Table("cifar10", f"All papers: fifteen methods on CIFAR-10, {epochs} epochs", minutes,
                   "", [
        (label, f"{run} --data data/cifar10_jpeg --epochs {epochs} --eval-every {every}", *paper)
        for label, run, *paper in CIFAR
    ], curves=drawn)
       for name, epochs, minutes, every, drawn in (
           ("cifar10", 5, 100, 5, "std effective_rank m_o"),
           ("cifar10-long", 30, 520, 10, "std effective_rank knn m_o"))}
}

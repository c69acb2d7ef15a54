"""Many runs side by side: the papers' tables by name, or any flag of any script over its values.

    python compare.py                                  the tables it knows
    python compare.py mirror --seed 0,1,2 --jobs 2     a table: trains what is missing, prints it
    python compare.py mirror --only naive,mirror --data data/cifar10_jpeg --limit 5000 --epochs 20
    python compare.py simsiam.py --lr 0.1,0.4,1.6 --final-bn none,noaffine --seed 0,1,2
    python compare.py runs/a runs/b                    finished runs

A run is a script started with the flags that stand in the table and those given here, which win.
The same command goes on where it stopped.  Beside the runs it leaves table.md, table.csv and
curves.png: mean and standard deviation over seeds; dashed where it collapsed completely,
dash-dotted where dimensions were lost.

    --seed 0,1,2     seeds                          --only A,B       these rows of the table alone
    --jobs N         N runs at once                 --out FOLDER     default: runs
    --csv FILE       draw from this file of a run   --curves A,B     draw these columns of it
    --points A,B     curves-points.png: a row's B against its A, both from result.json
    --save FOLDER    also write the csv and the picture there, and fill the tables of its README.md
                     and of ours; with --only, those rows alone
"""
import csv
import importlib
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

import common

HERE = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------ the papers' tables
# A claim is what a row's run has to show to be "as the paper": of a run, and of all rows, that is
# {label: run of the same seed}.  A run is a dict of what its result.json says.


def complete(run, rows):                                   # collapse in Zhang et al.: std 0, m_o 1
    return run["verdict"] == "complete"


def not_complete(run, rows):
    return run["verdict"] != "complete"


def collapses(run, rows):                                  # complete or dimensional
    return run["verdict"] != "none"


def learns(run, rows):
    return run["verdict"] == "none"


def moves(key, low, high):
    return lambda run, rows: low < run[key] - run[key + "_before"] < high


def below(other, points=0.0, key="linear"):
    return lambda run, rows: run[key] < rows[other][key] - points


def above(other, points=0.0, key="linear"):
    return lambda run, rows: run[key] > rows[other][key] - points


def probe(run, part=""):                                   # of the weak label, where there is one
    return run.get(f"linear{part}_weak", run[f"linear{part}"])


# script; the paper; rows: label, flags, what the paper says, claim; columns of the table; columns
# that are drawn, and the file of a run that has them; flags for data sets that are not CIFAR; pairs
# of columns that are drawn against each other, and a row that would be off the scale
Table = namedtuple("Table", "script paper rows columns curves csv ours points",
                   defaults=["knn linear std m_o effective_rank verdict",
                             "std effective_rank knn m_o", "metrics.csv", "", ""])
MIRROR, PARTS = "mirror_ablations.py", "gradient_components.py"
PRED, CLR, WEAK, WEAK_Z = "directpred.py", "directclr.py", "linear_weak", "linear_z_weak"
STEPS = dict(curves="m_o m_r", csv="steps.csv")
GRADIENT = "m_o m_r std effective_rank m_o_P verdict knn linear"
DIRECT = "knn linear std m_o effective_rank align commutator asymmetry"
KNOBS = {                                                  # one change to the default recipe each
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
    "predictor's rate / 10": "--pred-lr 0.1", "predictor's rate x 10": "--pred-lr 10",
    "much weight decay": "--weight-decay 0.01", "predictor as wide as z": "--pred-hidden 256",
    "batch 256 (no warm-up)": "--batch-size 256 --warmup-epochs 0"}
KNOBS_BYOL = {
    "predictor's rate / 10": "--pred-lr 1", "predictor's rate x 10": "--pred-lr 100",
    "much weight decay": "--weight-decay 2.5e-3", "narrow predictor": "--pred-hidden 64"}
CURES = {                                                  # a change that collapses + another one
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
OF_R = "knn linear linear_first linear_rest test_rank_r alive_r test_rank_z alive_z dims_z m_o"
TABLES = {
    "simsiam": Table("simsiam.py", "Chen & He: SimSiam does not collapse", [
        ("simsiam", "", "no collapse", learns)]),
    "mirror": Table(MIRROR, "Zhang et al., Tables 1, 2, 5, Fig. 3; Wen & Li: what collapses", [
        ("simsiam", "--variant simsiam --final-bn none", "66.62", not_complete),
        ("simsiam_bn", "--variant simsiam --final-bn noaffine", "66.62", not_complete),
        ("no_stopgrad", "--variant no_stopgrad --final-bn none", "collapse", complete),
        ("naive", "--variant naive --final-bn none", "collapse, 1", complete),
        ("mirror", "--variant mirror --final-bn none", "collapse, 1", complete),
        ("symmetric", "--variant symmetric --final-bn none", "collapse, 1", complete),
        ("inverse", "--variant inverse", "no collapse", not_complete),
        ("moving_average", "--variant moving_average", "46.57", not_complete),
        ("same_batch10", "--variant same_batch --n-aug 10 --epochs 6 --final-bn none",
         "collapse, 1", complete),
        ("same_batch25", "--variant same_batch --n-aug 25 --epochs 2 --final-bn none",
         "collapse, 1", complete),
        ("two_fc", "--variant two_fc", "66.7", not_complete),
        ("tanh_fc", "--variant tanh_fc", "64.82", not_complete),
        ("bias", "--variant bias --final-bn none", "49.82", not_complete),
        ("bn_after_l2", "--variant bn_after_l2", "no collapse", not_complete),
        ("whitening", "--variant whitening", "no collapse", learns),
        ("bn_before_l2", "--variant naive --final-bn noaffine", "collapse", complete),
        ("linear", "--variant linear", "no collapse", learns),
        ("identity_full", "--variant identity_full", "no collapse", learns),
        ("identity", "--variant identity", "no collapse", learns),
        ("identity_symmetric", "--variant identity_symmetric", "", None),
        ("identity_frozen", "--variant identity_frozen", "collapse", collapses),
    ], "verdict knn linear std m_o m_r effective_rank m_o_P effective_rank_P cos_bias"),
    "controls": Table(MIRROR, "Zhang et al., section 4: what a simple predictor needs", [
        ("simsiam", "--variant simsiam", "66.9", None),
        ("MSE without l2", "--variant mse --final-bn none", "works poorly", below("simsiam", 5)),
        ("MSE without l2 after a BN", "--variant mse --final-bn noaffine", "works poorly",
         below("simsiam", 5)),
        ("tanh(FC)", "--variant tanh_fc", "64.82", not_complete),
        ("FC", "--variant fc", "difficult to train", below("tanh(FC)")),
        ("FC of z", "--variant fc_of_z", "fails", below("tanh(FC)")),
        ("bias", "--variant bias", "49.82", not_complete),
        ("bias of z", "--variant bias_of_z", "fails", collapses),
        ("stop-gradient alone", "--variant moving_average --momentum 0", "fails", collapses),
    ], "verdict knn linear std m_o effective_rank m_o_P cos_bias"),
    "scan": Table(MIRROR, "Wen & Li: the head's off-diagonals rise and fall", [
        (f"rate {rate:g} decay {decay:g}",
         f"--variant identity --pred-lr {rate:g} --pred-weight-decay {decay:g}",
         "E rises and falls", lambda run, rows: run["E_mean"] < run["E_mean_1"])
        for decay in (0, 5e-4) for rate in (1, 10, 100, 1000)] + [
        (f"{dim} dimensions rate {rate}",                  # few neurons for each feature
         f"--variant identity --data strong_weak --proj-dim {dim} --pred-lr {rate}",
         "E rises and falls", lambda run, rows: run["E_mean"] < run["E_mean_1"])
        for dim, rate in ((4, 100), (10, 1), (10, 10), (10, 100), (32, 10))
    ], "E_mean_1 E_mean E_asym verdict m_o effective_rank knn linear",
        "E_max E_mean E_asym effective_rank knn m_o"),
    "conjecture": Table(PARTS, "Zhang et al., Fig. 4: o raises m_o, r lowers it", [
        (f"{loss} from {start}", f"--loss {before}{loss}:1 --schedule constant --final-bn none",
         says, claim)
        for start, before in (("init", ""), ("SimSiam", "simsiam:3+"))
        for loss, says, claim in (("centre", "m_o rises", moves("m_o", 0.1, 1)),
                                  ("residual", "m_o falls", moves("m_o", -1, -0.1)),
                                  ("random", "little change", moves("m_o", -0.1, 0.1)))
    ], "m_o_before m_o m_r_before m_r_highest m_r", ours="--lr 0.4", **STEPS),
    "triplet": Table(PARTS, "Zhang et al., Table 3: with one negative o_e prevents it", [
        ("Z_b + o_e + r_e", "--loss triplet", "36.21", not_complete),
        ("Z_b + o_e", "--loss triplet --without r_e", "47.41, higher", above("Z_b + o_e + r_e")),
        ("Z_b + r_e", "--loss triplet --without o_e", "collapse, 1", complete),
    ], GRADIENT, **STEPS),
    "simsiam-components": Table(PARTS, "Zhang et al., Table 4: in SimSiam o_e or r_e does", [
        ("P_b + o_e + r_e", "--loss simsiam", "66.62", lambda r, _: r["verdict_P"] != "complete"),
        ("P_b + o_e", "--without r_e", "48.08, lower", below("P_b + o_e + r_e")),
        ("P_b + r_e", "--without o_e", "66.15", above("P_b + o_e + r_e", 5)),
        ("P_b", "--without both", "collapse, 1", lambda r, _: r["verdict_P"] == "complete"),
        *((f"{arm} (h: SimSiam)", f"--without {part} --predictor-loss simsiam", says,
           lambda r, _, collapse=says[0] == "c": collapse == (r["verdict_P"] == "complete"))
          for arm, part, says in (("P_b + o_e", "r_e", "48.08"), ("P_b + r_e", "o_e", "66.15"),
                                  ("P_b", "both", "collapse, 1"))),
    ], GRADIENT + " verdict_P", "m_o m_o_P", "steps.csv"),
    "center": Table(PARTS, "Zhang et al., Fig. 5a: -o_p is in o_e", [
        ("SimSiam", "--loss simsiam:5 --schedule constant", "eta_p about -0.5",
         lambda run, rows: -0.7 < run["eta_p"] < -0.3),
        ("Mirror SimSiam", "--loss mirror:3 --schedule constant", "eta_z about 0.2",
         lambda run, rows: 0 < run["eta_z"] < 0.4),
    ], "m_o m_r eta_p eta_z", "eta_p eta_z", "steps.csv"),
    "recover": Table(PARTS, "Zhang et al., Fig. 5b: de-correlation undoes a collapse", [
        (f"of z{kind.replace('_', ' ')}",
         f"--loss simsiam:5+naive:1+decorrelate{kind}:2 --schedule constant", "undone",
         moves("effective_rank", 1, 999)) for kind in ("", "_standardised", "_normalised")
    ], "m_o_before m_o m_r_before m_r effective_rank_before effective_rank", "m_r covariance",
        "steps.csv", "--lr 0.4"),
    "infonce": Table(PARTS, "Zhang et al., Fig. 5c, 6: InfoNCE's r_e de-correlates", [
        ("SimSiam", "--loss simsiam", "covariance low", below("without r_e", 0, "covariance")),
        ("InfoNCE", "--loss infonce", "covariance low", below("without r_e", 0, "covariance")),
        ("without r_e", "--loss infonce --without r_e", "accuracy drops", below("InfoNCE")),
        ("InfoNCE batch 8", "--loss infonce --batch-size 8 --epochs 3", "cos_r falls with tau",
         lambda run, rows: run["cos_r_0.5"] > run["cos_r_1.0"] > run["cos_r_5.0"]),
    ], GRADIENT + " covariance cos_r_0.1 cos_r_0.5 cos_r_1.0 cos_r_5.0 cos_o_0.1", "covariance m_o",
        "steps.csv"),
    "bias": Table(PARTS, "Zhang et al., A.8: where a bias comes to rest", [
        ("bias", "--loss bias:5 --schedule constant --final-bn none", "b = (1 - m) / m o",
         lambda run, rows: run["b_cos"] > 0.97 and abs(run["b_theory"] / run["b"] - 1) < 0.05),
    ], "m_o m_r b b_theory b_cos", "b b_theory", "steps.csv", "--lr 0.4"),
    "predictor": Table(PRED, "Tian et al., Wang et al.: a set W_p is as good", [
        ("trained", "--predictor sgd", "84.49", None),
        ("trained 2 layers", "--predictor sgd --predictor-layers 2", "rank bounces back",
         lambda run, rows: run["effective_rank"] > 1.3 * run["effective_rank_lowest"]),
        ("DirectPred", "--predictor directpred", "85.21", above("trained", 3)),
        ("DirectPred freq 5", "--predictor directpred --freq 5", "84.93", above("trained", 3)),
        ("DirectCopy", "--predictor directcopy", "84.02", above("trained", 3)),
        ("least squares", "--predictor optimal", "40.67 (STL-10)", below("trained", 5)),
        ("DirectPred no EMA", "--predictor directpred --ema 0", "", None),
    ], DIRECT.replace("align", "effective_rank_lowest align"),
        "effective_rank align commutator knn"),
    "alpha": Table(PRED, "Wang et al.: the exponent of DirectSet", [
        (f"alpha {a}", f"--predictor directset --alpha {a}", number, claim)
        for a, number, claim in (
            (2, "82.96, lowest", below("alpha 0.5")), (1, "84.02", above("alpha 2")),
            (0.5, "84.88", above("alpha 2")), (0.25, "84.78", above("alpha 2")))
    ], DIRECT),
    "weight-decay": Table(PRED, "Wang et al.: DirectCopy needs weight decay, not too much", [
        (f"decay {d}", f"--predictor directcopy --weight-decay {d}", number, claim)
        for d, number, claim in (
            ("0", "79.15, lower", below("decay 4e-4")), ("4e-4", "84.02", None),
            ("1e-3", "83.91", above("decay 4e-4", 2)), ("1e-2", "65.31", below("decay 4e-4", 5)))
    ], DIRECT),
    "symmetric": Table(PRED, "Tian et al.: a symmetric W_p needs the EMA", [
        (f"{kind} {ema} {bias}",
         f"--predictor {name} {'' if ema == 'EMA' else '--ema 0'} --{bias.replace(' ', '-')}",
         number, below(f"regular no EMA {bias}", 10) if number[0] == "3" else None)
        for bias, numbers in (("predictor bias", ("74.52", "74.16", "36.04", "72.13")),
                              ("no predictor bias", ("75.09", "74.51", "36.62", "72.85")))
        for (ema, kind, name), number in zip(
            (("EMA", "symmetric", "symmetric"), ("EMA", "regular", "sgd"),
             ("no EMA", "symmetric", "symmetric"), ("no EMA", "regular", "sgd")), numbers)
    ], DIRECT),
    "directclr": Table(CLR, "Jing et al.: DirectCLR beats no projector", [
        ("mlp", "--projector mlp", "66.5", above("direct")),
        ("linear", "--projector linear", "61.1", above("none")),
        ("direct", "--projector direct", "62.7", above("linear")),
        ("none", "--projector none", "51.5, lowest", below("linear", 5)),
    ], OF_R, "r z", "spectrum.csv"),
    "d0": Table(CLR, "Jing et al.: dimensions that the loss sees", [
        (f"d0 {d0}", f"--d0 {d0}", says, claim) for d0, says, claim in (
            (6, "", None), (12, "", None), (17, "62.7, of r[:d0] 47.9", lambda run, rows:
                                            probe(run, "_first") < probe(run) - 5),
            (24, "", None), (48, "", None),
            (96, "51.5, lower", lambda run, rows: probe(run) < probe(rows["d0 17"])))
    ], OF_R),
    "temperature": Table(CLR, "Zhang et al., Fig. 8: covariance rises with tau", [
        (f"tau {tau}", f"--projector mlp --temperature {tau}", "covariance rises",
         above(f"tau {before}", 0, "covariance") if before else None)
        for before, tau in zip((0, 0.05, 0.1, 0.2, 0.5, 1), (0.05, 0.1, 0.2, 0.5, 1, 5))
    ], "knn linear m_o test_rank_r test_rank_z covariance verdict"),
    "mode": Table(CLR, "Jing et al.: the dimensions must stay the same", [
        ("prefix", "--direct-mode prefix", "62.7", None),
        ("random", "--direct-mode random", "43.0", below("prefix", 5)),
        ("orthogonal", "--direct-mode orthogonal", "62.3", above("prefix", 5)),
    ], OF_R),
    "weak": Table("", "Jing et al., Wen & Li: who learns the weak feature?", [
        (label, f"{row} --data strong_weak", says, claim) for label, row, says, claim in (
            ("supervised", "supervised.py", "", None),
            ("untrained", "supervised.py --epochs 0", "", None),
            ("SimCLR mlp", f"{CLR} --projector mlp", "66.5", above("DirectCLR", 0, WEAK)),
            ("SimCLR linear", f"{CLR} --projector linear", "61.1", above("SimCLR none", 0, WEAK)),
            ("DirectCLR", CLR, "62.7", above("SimCLR linear", 0, WEAK)),
            ("SimCLR none", f"{CLR} --projector none", "51.5, lowest",
             below("SimCLR linear", 5, WEAK)),
            ("SimSiam", "simsiam.py", "", None), ("BYOL", "byol.py", "", None),
            ("DirectPred", PRED, "", None),
            ("DirectCopy", f"{PRED} --predictor directcopy", "", None),
            ("trained W_p", f"{PRED} --predictor sgd", "", None),
            ("naive", f"{MIRROR} --variant naive", "not learnt", below("SimSiam", 10, WEAK)),
            ("mirror", f"{MIRROR} --variant mirror", "not learnt", below("SimSiam", 10, WEAK)),
            ("bias", f"{MIRROR} --variant bias", "", None),
            ("identity head", f"{MIRROR} --variant identity", "both learnt", lambda run, rows:
             all(above("frozen head", 0, key)(run, rows) for key in ("linear_z", WEAK_Z))),
            ("symmetric head", f"{MIRROR} --variant identity_symmetric", "", None),
            ("frozen head", f"{MIRROR} --variant identity_frozen", "strong alone",
             below("identity head", 0, WEAK_Z)),
            ("P_b + o_e + r_e", PARTS, "66.62", above("P_b + o_e", 0, WEAK)),
            ("P_b + o_e", f"{PARTS} --without r_e", "48.08", below("P_b + r_e", 0, WEAK)),
            ("P_b + r_e", f"{PARTS} --without o_e", "66.15", above("P_b + o_e", 0, WEAK)),
            ("InfoNCE", f"{PARTS} --loss infonce", "", None),
            ("InfoNCE less r_e", f"{PARTS} --loss infonce --without r_e", "accuracy drops",
             below("InfoNCE", 0, WEAK)))
    ], "verdict linear linear_weak linear_z linear_z_weak linear_first_weak linear_rest_weak "
       "knn knn_weak effective_rank", "knn knn_weak effective_rank",
        points="linear linear_weak supervised"),
    "phases": Table(MIRROR, "Wen & Li: the strong feature first, then the weak one", [
        (label, f"{flags} --data strong_weak --epochs 24", says, claim)
        for label, flags, says, claim in (
            ("identity head", "--variant identity", "both learnt",
             above("frozen head", 0, WEAK_Z)),
            ("identity head of 10", "--variant identity --proj-dim 10 --pred-lr 10", "both learnt",
             above("frozen head", 0, WEAK_Z)),
            ("frozen head", "--variant identity_frozen", "strong alone",
             below("identity head", 0, WEAK_Z)))
    ], "E_mean_1 E_mean linear_z linear_z_weak verdict effective_rank knn knn_weak",
        "knn knn_weak E_mean effective_rank"),
    "collapse-guide": Table("knobs.py", "Which single change makes SimSiam, BYOL collapse?", [
        (f"{name}: {label}", f"--variant {variant} {flags}", "", None)
        for name, variant, rows in (("SimSiam", "simsiam", KNOBS | KNOBS_SIMSIAM),
                                    ("BYOL", "byol", KNOBS | KNOBS_BYOL))
        for label, flags in rows.items()
    ], "verdict knn linear std m_o effective_rank loss test_rank_r test_auc_r",
        "effective_rank knn loss",
        points="effective_rank knn; test_auc_r knn; test_rank_r knn"),
    "collapse-cures": Table("knobs.py", "SimSiam collapsed: which second change cures it?", [
        (label, flags, "", None) for label, flags in CURES.items()
    ], "verdict knn linear std m_o effective_rank loss", points="effective_rank knn"),
    "byol": Table("byol.py", "Tian et al.: BYOL needs predictor and stop-gradient", [
        ("byol", "", "no collapse", learns),
        ("no predictor", "--predictor none", "collapse", collapses),
        ("neither", "--predictor none --ema 0", "collapse", collapses),
        ("no stop-gradient", "--no-stopgrad", "collapse", collapses),
        ("ema 0", "--ema 0", "no collapse", learns),
        *((f"ema {m}", f"--ema {m}", "", None) for m in (0.5, 0.9, 0.98)),
        ("ema 1 (frozen)", "--ema 1", "no collapse", not_complete),
    ]),
    "cifar10": Table("", "All of CIFAR-10, every method", [
        (label, f"{file} --data data/cifar10_jpeg --epochs 10 --eval-every 10 {flags}", says, claim)
        for label, file, flags, says, claim in (
            ("SimSiam", "simsiam.py", "", "no collapse", learns),
            ("BYOL", "byol.py", "", "no collapse", learns),
            ("DirectPred", PRED, "", "85.21", above("trained W_p", 3)),
            ("DirectCopy", PRED, "--predictor directcopy", "84.02", above("trained W_p", 3)),
            ("trained W_p", PRED, "--predictor sgd", "84.49", None),
            ("SimCLR mlp", CLR, "--projector mlp", "66.5", above("DirectCLR")),
            ("SimCLR linear", CLR, "--projector linear", "61.1", above("SimCLR none")),
            ("DirectCLR", CLR, "", "62.7", above("SimCLR linear")),
            ("SimCLR none", CLR, "--projector none", "51.5, lowest", below("SimCLR linear", 5)),
            ("naive", MIRROR, "--variant naive --final-bn none", "collapse, 1", complete),
            ("mirror", MIRROR, "--variant mirror --final-bn none", "collapse, 1", complete),
            ("symmetric", MIRROR, "--variant symmetric --final-bn none", "collapse, 1", complete),
            ("inverse", MIRROR, "--variant inverse", "no collapse", not_complete),
            ("bias", MIRROR, "--variant bias --final-bn none", "49.82", not_complete),
            ("identity head", MIRROR, "--variant identity", "no collapse", learns),
            ("supervised", "supervised.py", "", "", None),
            ("untrained", "supervised.py", "--epochs 0", "", None))
    ], curves="std effective_rank m_o"),
}
DIGITS = {0: "seconds alive_r alive_z dims_z",                                      # else 2
          1: "knn knn_weak linear linear_weak linear_z linear_z_weak linear_first linear_rest "
             "linear_first_weak linear_rest_weak effective_rank effective_rank_before "
             "effective_rank_lowest effective_rank_P test_rank_r test_rank_z",
          3: "test_auc_r align commutator asymmetry cos_bias b b_theory b_cos",
          4: "covariance E_mean E_mean_1"}

MEANS = {"std": "std (0: complete collapse)", "m_o": "m_o (1: complete collapse)",
         "m_o_P": "m_o of P", "test_rank_r": "effective rank of r, test images",
         "test_auc_r": "area under r's cumulative singular values, test images",
         "b": "length of b", "b_theory": "length predicted",
         "effective_rank": "effective rank", "knn": "kNN accuracy (%)",
         "knn_weak": "kNN, weak label (%)", "linear": "linear probe (%)",
         "linear_weak": "linear probe, weak label (%)",
         "r": "eigenvalues of r, largest = 1", "z": "eigenvalues of z, largest = 1"}


# ------------------------------------------------------------------------------------ what to train

Job = namedtuple("Job", "label seed script argv folder")


def read_command(argv):
    """"mirror --seed 0,1" -> ["mirror"], {"--seed": "0,1"}; a flag without a value has ""."""
    what, flags = [], {}
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            flags[name] = value
        elif flags:
            flags[name] = word
        else:
            what.append(word)
    return what, flags


def rows_of(table, flags):
    """-> [(label, flags as a list)] of a table, with the user's flags behind"""
    ours = "" if flags.get("--data") in ("cifar10", "cifar100") else table.ours
    mine = [word for pair in flags.items() for word in pair if word]
    return [(label, f"{row} {ours}".split() + mine) for label, row, *_ in table.rows]


def product_of(flags):
    """-> [(label, flags as a list)], a row for each combination of values"""
    choices = [[(name, value) for value in values.split(",")] for name, values in flags.items()]
    rows = []
    for pairs in product(*choices):
        several = [f"{name[2:]} {value}" for name, value in pairs if "," in flags[name]]
        words = [word for pair in pairs for word in pair if word]
        rows.append((", ".join(several) or "as given", words))
    return rows


def plan(script, rows, seeds, folder):
    """-> jobs, all of them checked: bad flags and runs with other settings end it here"""
    jobs = []
    for label, flags in rows:
        if flags and flags[0].endswith(".py"):             # a table of several scripts
            script, *flags = flags
        module = importlib.import_module(script.removesuffix(".py"))
        if not hasattr(module, "parse"):
            common.fail(f"{script} trains no net: run it by itself")
        out = folder / re.sub(r"[^\w.+-]+", "_", label)
        for seed in seeds:
            argv = [*flags, "--seed", seed, "--out", str(out)]
            args = module.parse(argv)
            job = Job(label, seed, script, argv, out / common.run_name(args))
            if (job.folder / "args.json").exists():
                saved = common.read_run(job.folder)["args"]
                free = ("out", "resume", "device", "eval_every")         # the last epoch counts
                for name, value in vars(args).items():
                    if name not in free and saved.get(name) != value:
                        common.fail(f"{job.folder} was made with --{name.replace('_', '-')} "
                                    f"{saved.get(name)}, not {value}: name another --out")
            jobs.append(job)
    return jobs


# -------------------------------------------------------------------------------------------- train

def train(job, slots, threads, running):
    """One run, in a process of its own.  -> what went wrong, or ""

    Its output comes through a pipe: if we are killed, its next print fails and it stops, before it
    writes into a folder that somebody else may go on with by then."""
    command = [sys.executable, str(HERE / job.script), *job.argv]
    if (job.folder / "args.json").exists():
        command = [*command[:2], "--resume", str(job.folder)]
    elif job.folder.exists():                              # killed before its first word
        shutil.rmtree(job.folder)
    slot, environment, gpus = slots.get(), dict(os.environ), torch.cuda.device_count()
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    if gpus > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=environment, start_new_session=True)
    running.add(process)
    lines = [line.strip() for line in process.stdout if line.strip()]
    running.discard(process)
    slots.put(slot)
    return "" if process.wait() == 0 else (lines or ["no output"])[-1]


def train_all(jobs, n):
    """The jobs that are not done, n at once.  -> [(job, what went wrong)]"""
    todo = [job for job in jobs if not (job.folder / "result.json").exists()]
    failed, running, slots = [], set(), queue.Queue()
    for slot in range(n):
        slots.put(slot)
    threads = max(1, os.cpu_count() // n) if n > 1 else None
    pool = ThreadPoolExecutor(n)
    futures = {pool.submit(train, job, slots, threads, running): job for job in todo}
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="runs", disable=None)
    try:
        for future in as_completed(futures):
            bar.update()
            if future.result():
                failed.append((futures[future], future.result()))
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.send_signal(signal.SIGINT)
        pool.shutdown()
        bar.close()
        print("stopped; the same command goes on from here")
        raise SystemExit(130)
    bar.close()
    return failed


# ------------------------------------------------------------------------------------------- report

def read_results(jobs):
    """-> a dict for each finished run: label, seed, and what result.json says"""
    records = []
    for job in jobs:
        file = job.folder / "result.json"
        if file.exists():
            info = common.read_run(job.folder)
            record = {"label": job.label, "seed": job.seed, "commit": info["git"][:7],
                      **json.loads(file.read_text())}
            if info.get("threads", 9999) < torch.get_num_threads():      # one of several at once
                del record["seconds"], record["images_per_second"]
            records.append(record)
    return records


def save_records(records, file):
    columns = list(dict.fromkeys(key for record in records for key in record))
    with open(file, "w", newline="") as f:
        table = csv.DictWriter(f, columns, restval="")
        table.writeheader()
        for record in records:
            table.writerow({key: f"{value:.6g}" if isinstance(value, float) else value
                            for key, value in record.items()})


def read_records(file):
    """What save_records wrote; numbers are floats, empty cells are left out."""
    records = []
    with open(file, newline="") as f:
        for row in csv.DictReader(f):
            record = {key: value for key, value in row.items() if value}
            for key in record:
                if key not in ("label", "seed", "commit", "verdict", "verdict_P"):
                    record[key] = float(record[key])
            records.append(record)
    return records


def cell(values, digits):
    """Mean and standard deviation of numbers; words with how often they come."""
    if not values:
        return ""
    if isinstance(values[0], str):
        if len(set(values)) == 1:
            return values[0]
        count, n = values.count, len(values)
        return ", ".join(f"{word} ({count(word)} of {n})" for word in dict.fromkeys(values))
    x = torch.tensor(values, dtype=torch.double)
    spread = f" ± {x.std():.{digits}f}" if len(x) > 1 else ""
    return f"{x.mean():.{digits}f}{spread}"


def as_the_paper(claim, records, everything):
    """-> yes, no or 1 of 3: for how many seeds the claim holds; "" where nothing is claimed"""
    held = []
    for record in records:
        rows = {other["label"]: other for other in everything if other["seed"] == record["seed"]}
        try:
            held.append(claim(record, rows))
        except (TypeError, KeyError):                      # no claim, or a row is missing
            return ""
    if not held:
        return ""
    if sum(held) in (0, len(held)):
        return "yes" if held[0] else "no"
    return f"{sum(held)} of {len(held)}"


def markdown(records, columns, table, only=()):
    """The table as Markdown: a line for each label that has a run."""
    seeds = list(dict.fromkeys(record["seed"] for record in records))
    says = {label: (number, claim) for label, _, number, claim in table.rows if number or claim}
    head = ["", *(["the paper", "as the paper?"] if says else []), *columns]
    lines = [head, ["---"] * len(head)]
    for label in dict.fromkeys(record["label"] for record in records):
        if only and label not in only:
            continue
        mine = [record for record in records if record["label"] == label]
        line, found = [label], [record["seed"] for record in mine]
        if len(found) < len(seeds):
            line = [f"{label} (seed {', '.join(found)} alone)"]
        if says:
            number, claim = says.get(label, ("", None))
            line += [number, as_the_paper(claim, mine, records)]
        for column in columns:
            digits = next((n for n, names in DIGITS.items() if column in names.split()), 2)
            line.append(cell([record[column] for record in mine if column in record], digits))
        lines.append(line)
    if "knn" in columns and "knn_untrained" in records[0]:
        first = [record for record in records if record["label"] == records[0]["label"]]
        line = ["untrained net"] + [""] * (len(head) - 1)
        line[head.index("knn")] = cell([record["knn_untrained"] for record in first], 1)
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def overview(results):
    """-> for each table: name, the paper's claim, runs, minutes of a seed, how many rows are as
    the paper"""
    lines = []
    for name, table in TABLES.items():
        line = [name, table.paper, str(len(table.rows)), "", ""]
        if (results / f"{name}.csv").exists():
            records = read_records(results / f"{name}.csv")
            minutes, more = 0.0, ""
            for label in {record["label"] for record in records}:
                mine = [r.get("seconds", math.nan) for r in records if r["label"] == label]
                timed = [seconds / 60 for seconds in mine if not math.isnan(seconds)]
                minutes += sum(timed) / max(len(timed), 1)
                more = more if timed else "+"              # rows that trained beside each other
            line[3] = f"{minutes:.0f}{more}" if minutes else ""
            found = [as_the_paper(claim, [r for r in records if r["label"] == label], records)
                     for label, _, _, claim in table.rows]
            held = [word == "yes" for word in found if word]
            word = "reproduced" if all(held) else "in part" if any(held) else "not"
            line[4] = f"{word}, {sum(held)} of {len(held)}" if held else "nothing claimed"
        lines.append(line)
    return lines


def fill(text, results):
    """README's tables, made again from results/*.csv.  Each stands between two comments:

    <!-- table mirror; rows: naive | mirror; columns: knn std --> and <!-- end -->, where rows and
    columns may be left away; <!-- overview --> stands before a line for each table"""
    def make(match):
        stem, *rest = [part.strip() for part in match[1].split(";")]
        if not (results / f"{stem}.csv").exists():
            return match[0]
        choice = {name: words.strip() for name, words in (part.split(":", 1) for part in rest)}
        only = [label.strip() for label in choice.get("rows", "").split("|") if label.strip()]
        table, records = TABLES[stem.split(".")[0]], read_records(results / f"{stem}.csv")
        columns = choice.get("columns", table.columns).split()
        return f"<!-- table {match[1]} -->\n{markdown(records, columns, table, only)}<!-- end -->"

    def make_overview(match):
        lines = ["| claim | command | runs | minutes | reproduced here? |", "|---" * 5 + "|"]
        for name, paper, runs, minutes, held in overview(results):
            link = f"[{held}](results/README.md#{name})"
            lines.append(f"| {paper} | `python compare.py {name}` | {runs} | {minutes} | {link} |")
        return "<!-- overview -->\n" + "\n".join(lines) + "\n<!-- end -->"
    text = re.sub(r"<!-- table (.*?) -->\n.*?<!-- end -->", make, text, flags=re.S)
    return re.sub(r"<!-- overview -->\n.*?<!-- end -->", make_overview, text, flags=re.S)


def draw(jobs, columns, name):
    """Mean over seeds and a band of one standard deviation; up to six rows a row of panels.

    name: the csv of a run that has the columns; against epoch, step or index, whichever it has"""
    from matplotlib.figure import Figure
    labels = list(dict.fromkeys(job.label for job in jobs))
    n = math.ceil(len(labels) / math.ceil(len(labels) / 6))
    groups = [labels[i:i + n] for i in range(0, len(labels), n)]
    known = common.read_csv(jobs[0].folder / name)[0]
    columns = [column for column in columns if column in known]      # no knn without labels
    size = 3.4 * len(columns) + 2.5, 0.5 + 2.9 * len(groups)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(groups), len(columns), squeeze=False, sharey="col")
    cool = ("#08519c", "#1a9850", "#41b6c4", "#6a51a3", "#525252", "#08306b")
    warm = ("#b10026", "#fd8d3c", "#e7298a", "#8c510a", "#fec44f", "#67001f")
    for group, panels in zip(groups, axes):
        for i, label in enumerate(group):
            mine = [job for job in jobs if job.label == label]
            results = [json.loads((job.folder / "result.json").read_text()) for job in mine]
            key = "verdict_P" if "m_o_P" in columns else "verdict"
            verdicts = sorted(result[key] for result in results)
            verdict = verdicts[len(verdicts) // 2]         # of most; complete < dimensional < none
            style = {"none": dict(color=cool[i]), "dimensional": dict(color=warm[i], ls="-."),
                     "complete": dict(color=warm[i], ls="--")}[verdict]
            runs = [common.read_csv(job.folder / name) for job in mine]
            x = next(key for key in ("step", "index", "epoch") if key in runs[0][0])
            for axis, column in zip(panels, columns):
                values = [[row.get(column, math.nan) for row in run] for run in runs]
                values = torch.tensor(values)              # nan: a column that this row has not
                if column == "effective_rank" and name == "metrics.csv":   # else the rank of noise
                    m_o = torch.tensor([[row["m_o"] for row in run] for run in runs])
                    values[m_o >= 0.95] = math.nan
                mean, shown = values.mean(0), ~values.mean(0).isnan()
                at = torch.tensor([row[x] for row in runs[0]])[shown].tolist()
                axis.plot(at, mean[shown].tolist(), label=label, **style)
                if len(runs) > 1:
                    low, high = (mean + sign * values.std(0) for sign in (-1, 1))
                    axis.fill_between(at, low[shown].tolist(), high[shown].tolist(), alpha=0.15,
                                      color=style["color"], lw=0)
                axis.set(xlabel=x, title=MEANS.get(column, column))
                if name == "spectrum.csv" or column in ("E_max", "E_mean", "covariance"):
                    axis.set_yscale("log")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def rank_correlation(points):
    """Spearman's.  points: [(y, x, ...)] without ties"""
    ranks = torch.tensor([point[:2] for point in points]).argsort(0).argsort(0).double()
    return torch.corrcoef(ranks.T)[0, 1].item() if len(points) > 1 else math.nan


def draw_points(records, x, y, off_scale=""):
    """A point a row: the means of columns x and y over seeds, with their standard deviations.

    The names stand at the right, in the order of y; above Spearman's rank correlation, where x is
    to forecast y.  off_scale: a row that is left out"""
    from matplotlib.figure import Figure
    labels, points = dict.fromkeys(record["label"] for record in records), []
    labels = [label for label in labels if label != off_scale]
    figure = Figure(figsize=(8, max(5.2, 0.2 * len(labels))), layout="constrained")
    axis = figure.subplots()
    colors = {"none": "#08519c", "dimensional": "#fd8d3c", "complete": "#b10026"}
    for label in labels:
        mine = [record for record in records if record["label"] == label]
        values = torch.tensor([[record[x], record[y]] for record in mine], dtype=torch.double)
        mean = values.mean(0).tolist()
        spread = values.std(0, correction=min(1, len(mine) - 1)).tolist()
        verdicts = sorted(record["verdict"] for record in mine)
        color = colors[verdicts[len(verdicts) // 2]]       # of most; complete < dimensional < none
        axis.errorbar(*mean, spread[1], spread[0], "o", color=color, ms=5, lw=1)
        points.append((mean[1], mean[0], label, color))
    points.sort()
    low, high = axis.get_ylim()
    gap, free = (high - low) / max(25, len(points)), low   # names must not overlap
    for i, (at_y, at_x, label, color) in enumerate(points):
        free = max(free, min(at_y, high - gap * (len(points) - i)))
        line = {"arrowstyle": "-", "lw": 0.5, "color": "0.7", "relpos": (0, 0.5)}
        axis.annotate(label, (at_x, at_y), (1.04, free), textcoords=("axes fraction", "data"),
                      va="center", fontsize=9, color=color, arrowprops=line)
        free += gap
    for verdict, color in colors.items():
        axis.plot([], [], "o", color=color, label=f"collapse: {verdict}")
    axis.legend(loc="best", fontsize=9)
    axis.set(xlabel=MEANS.get(x, x), ylabel=MEANS.get(y, y))
    if "effective_rank" in x:
        axis.set_xscale("log")
    if x.startswith("test_"):
        healthy = [point for point in points if point[3] == colors["none"]]
        axis.set_title(f"rank correlation {rank_correlation(points):.2f}, without what collapsed "
                       f"{rank_correlation(healthy):.2f}")
    axis.grid(alpha=0.3)
    return figure


def all_points(records, pairs):
    """pairs: "x y; x2 y2" -> {"-points": figure, "-points1": figure}"""
    return {f"-points{i or ''}": draw_points(records, *pair.split())
            for i, pair in enumerate(pairs.split(";")) if pair}


# --------------------------------------------------------------------------------------------- main

def choose(what, flags, own):
    """-> jobs, table or None, folder of the comparison"""
    seeds, out = own["--seed"].split(","), Path(own["--out"])
    runs = [Path(folder) for folder in what if (Path(folder) / "args.json").exists()]
    if runs and all(Path(folder).is_dir() for folder in what):       # runs/* has comparisons too
        jobs = [Job(run.name, str(common.read_run(run)["args"]["seed"]), "", [], run)
                for run in runs]
        return jobs, None, out / "compared"
    if len(what) == 1 and what[0] in TABLES:
        table, data = TABLES[what[0]], Path(flags.get("--data", "patches")).name
        stem = what[0] if data == "patches" else f"{what[0]}.{data}"
        rows = rows_of(table, flags)
        only = [label.strip() for label in own["--only"].split(",") if own["--only"]]
        if unknown := set(only) - {label for label, _ in rows}:
            labels = ", ".join(label for label, _ in rows)
            common.fail(f"--only: {what[0]} has no row {unknown.pop()!r}; its rows are {labels}")
        rows = [row for row in rows if not only or row[0] in only]
        return plan(table.script, rows, seeds, out / stem), table, out / stem
    if len(what) == 1 and what[0].endswith(".py") and (HERE / what[0]).exists():
        stem = "-".join([Path(what[0]).stem, *(name[2:] for name in flags)])
        return plan(what[0], product_of(flags), seeds, out / stem), None, out / stem
    common.fail(f"{' '.join(what)}: no table, no script and no finished runs; "
                f"python compare.py lists the tables")


def main(argv=None):
    what, flags = read_command(sys.argv[1:] if argv is None else argv)
    if "--help" in flags:
        print(__doc__)
        return
    if not what:
        for name, paper, runs, minutes, held in overview(HERE / "results"):
            print(f"{name:20}{runs:>3} runs{minutes:>5} min   {held:22} {paper}".rstrip())
        return
    own = {"--seed": "0", "--jobs": "1", "--only": "", "--out": "runs", "--csv": "", "--curves": "",
           "--points": "", "--save": ""}
    own |= {name: flags.pop(name) for name in list(flags) if name in own}
    if not own["--jobs"].isdecimal() or own["--jobs"] == "0":
        common.fail(f"--jobs must be a number of runs, one or more, not {own['--jobs']}")
    jobs, table, folder = choose(what, flags, own)
    failed = train_all(jobs, int(own["--jobs"]))
    missing = "".join(f"failed: {job.label}, seed {job.seed}: {why}\n" for job, why in failed)
    jobs = [job for job in jobs if (job.folder / "result.json").exists()]
    if jobs:
        report(jobs, table or Table("", "", []), folder, own, missing)
    else:
        print(missing)
    raise SystemExit(1 if failed else 0)


def report(jobs, table, folder, own, missing):
    """table.csv, table.md, curves.png; of a selection of rows under another name"""
    records, name = read_results(jobs), own["--csv"] or table.csv
    columns = [*table.columns.split(), "seconds"]
    text = f"{markdown(records, columns, table)}\n{missing}"
    figures = {"": draw(jobs, (own["--curves"] or table.curves).replace(",", " ").split(), name)}
    figures |= all_points(records, own["--points"].replace(",", " ") or table.points)
    only = "-only" if own["--only"] else ""
    folder.mkdir(parents=True, exist_ok=True)
    save_records(records, folder / f"table{only}.csv")
    (folder / f"table{only}.md").write_text(text, encoding="utf-8")
    for kind, figure in figures.items():
        common.save_figure(figure, folder / f"curves{kind}{only}.png")
    print(f"{text}{folder}: table{only}.md, table{only}.csv, curves{only}.png")
    if own["--save"]:
        save(records, figures, Path(own["--save"]), table, folder.name, own["--only"])


def save(records, figures, results, table, stem, only):
    """results/mirror.csv and .png, and the tables in results/README.md and in ours.

    only: these rows alone are put in the place of the old ones, and the curves stay."""
    file, labels = results / f"{stem}.csv", {record["label"] for record in records}
    old = read_records(file) if file.exists() else []
    others = [record for record in old if record["label"] not in labels]
    if others and not only:
        lost = ", ".join(sorted({record["label"] for record in others}))
        common.fail(f"{file} has rows that this would lose ({lost})")
    order = [row[0] for row in table.rows] + [record["label"] for record in others + records]
    everything = sorted(others + records, key=lambda record: order.index(record["label"]))
    save_records(everything, file)
    if others:                                             # the curves of their runs are not here
        figures = all_points(everything, table.points)
    for kind, figure in figures.items():
        common.save_figure(figure, results / f"{stem}{kind}.png")
    for readme in (results / "README.md", results.parent / "README.md"):
        if readme.exists():
            readme.write_text(fill(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()

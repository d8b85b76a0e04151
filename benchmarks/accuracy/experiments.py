"""List the experiments in order. An experiment is one run: a row of a table, a number of labels and a seed."""

from dataclasses import dataclass

ALL = "all"  # in place of a number of labels

# Flags that all runs on a data set share; the command line adds its folder.
# CamVid is made feasible on a CPU: small images and a light decoder; class weights, because rare classes are not
# learned otherwise in so few steps; frozen batch norm, because eight crops are few for its statistics; and a
# low momentum of the teacher, because runs are short.
DATASETS: dict[str, tuple[str, ...]] = {
    "camvid": (
        *("--dataset", "camvid", "--resize", "144", "192", "--crop-size", "96", "128", "--scale-range", "0.75", "1.5"),
        *("--arch", "segformer", "--decoder-width", "128", "--class-weights", "balanced"),
        *("--freeze-batchnorm", "--ema-momentum", "0.97", "--encoder-lr", "3e-4"),
        *("--jitter-prob", "0", "--grayscale-prob", "0", "--blur-prob", "0", "--steps", "1200", "--eval-every", "300"),
    ),
    # Photographs, for minutes on one core: small crops and three frozen encoder stages. LOG.md has the runs (one
    # seed) behind each setting.
    "msrc": (
        *("--dataset", "folder", "--crop-size", "128", "128", "--scale-range", "0.5", "1.25", "--encoder-lr", "3e-5"),
        *("--arch", "segformer", "--decoder-width", "128", "--freeze-batchnorm", "--freeze-stages", "3"),
        *("--jitter-prob", "0", "--grayscale-prob", "0", "--blur-prob", "0"),
        *("--ema-momentum", "0.98", "--steps", "1000", "--eval-every", "250"),
    ),
}
MSRC_LABELS, MSRC_OTHER_LABELS, MSRC_SEEDS = 40, (20, 80), (0, 1, 2, 3, 4)
MSRC_MAIN_ROWS = ("supervised", "self-training-8", "u2pl-self-training-8")  # also with other numbers of labels
MSRC_CLASSES = (
    *("building", "grass", "tree", "cow", "sheep", "sky", "aeroplane", "water", "face", "car", "bicycle"),
    *("flower", "sign", "bird", "book", "chair", "road", "cat", "dog", "body", "boat"),
)

# Flags that all rows with pseudo-labels add. No blur: it erases poles and signs at this size. No CutMix on photographs:
# an object fills a small crop, and the pasted box hides what distinguishes it. Jittered colors cost labels alone
# 1.3 mIoU and gain 0.9 on unlabeled images.
COLORS = ("--jitter-prob", "0.8", "--grayscale-prob", "0.2")
SEMI_SUPERVISED: dict[str, tuple[str, ...]] = {
    "camvid": ("--weigh-pseudo-labels", *COLORS),
    "msrc": ("--mix", "none", *COLORS),
}

IN_WORK_FOLDER = ("--labeled-list", "--teacher-from")  # flags whose file the suite or an earlier run writes

ROWS: dict[str, tuple[str, ...]] = {
    "supervised": ("--method", "supervised"),
    "mean-teacher": ("--method", "mean-teacher"),
    "u2pl-lean": ("--method", "u2pl", "--recipe", "lean"),
    "u2pl-paper": ("--method", "u2pl", "--recipe", "paper"),
}

# Photographs. Rivals follow their papers except for the settings above. Labels alone get a weight average because all
# other rows have one. Teachers start after a quarter of the run: one epoch, the default, is too early.
TEACHER_LATER = ("--sup-only-epochs", "4")
LEAN = ("--method", "u2pl", "--recipe", "lean")
# ST++: labels of whole images at three scales, by the run on labels alone of the same seed; all pixels are used.
SELF_TRAINING = (
    *("--sup-only-epochs", "0", "--gate", "confidence", "--confidence-threshold", "0"),
    *("--teacher-input", "whole", "--teacher-scales", "0.75", "1", "1.25", "--teacher-from", "{supervised}/last.pt"),
)
# Eight unlabeled images per step instead of four.
MORE_UNLABELED = ("--unlabeled-batch-size", "8")
# One unlabeled pixel in a thousand is unreliable, so nearly all negatives are labeled pixels, as in pixel contrast.
NONE_UNRELIABLE = ("--alpha", "0.001")
MSRC_ROWS: dict[str, tuple[str, ...]] = {
    "supervised": ("--method", "supervised", "--average-weights", "--sup-only-epochs", "0"),
    "self-training": ("--method", "mean-teacher", *SELF_TRAINING),
    "self-training-8": ("--method", "mean-teacher", *SELF_TRAINING, *MORE_UNLABELED),
    "u2pl-self-training": (*LEAN, *SELF_TRAINING),
    # At the published weight, 0.1, the contrastive loss has 4 % of the decoder's gradient, too little for an effect.
    "u2pl-self-training-strong": (*LEAN, *SELF_TRAINING, "--contrastive-weight", "5"),
    # The middle of 5, 10 and 20, which gained 0.5, 0.7 and 0.8 at seed 0.
    "u2pl-self-training-8": (*LEAN, *SELF_TRAINING, *MORE_UNLABELED, "--contrastive-weight", "10"),
    "mean-teacher": ("--method", "mean-teacher", *TEACHER_LATER),
    "u2pl-lean": (*LEAN, *TEACHER_LATER),
    "fixmatch": ("--method", "mean-teacher", "--gate", "confidence", *TEACHER_LATER),
    "unimatch": (
        *("--method", "mean-teacher", "--gate", "confidence", "--strong-views", "2", "--feature-dropout", "0.5"),
        *TEACHER_LATER,
    ),
    "augseg": ("--method", "mean-teacher", "--strong-colors", "intensity", *TEACHER_LATER),
    "u2pl-paper": ("--method", "u2pl", "--recipe", "paper", *TEACHER_LATER),
}

# Rows that isolate the parts of U²PL. A later flag overrides an earlier one. With a threshold of 1, no unlabeled pixel
# is used in L_u or as an anchor.
STRONG, EIGHT = MSRC_ROWS["u2pl-self-training-strong"], MSRC_ROWS["u2pl-self-training-8"]
MSRC_PARTS: dict[str, tuple[str, ...]] = {
    "contrast-labels": (*STRONG, "--confidence-threshold", "1", *NONE_UNRELIABLE),
    "contrast-negatives": (*STRONG, "--confidence-threshold", "1"),
    "contrast-anchors-8": (*EIGHT, "--unsupervised-weight", "0"),
    "contrast-self-training-8": (*EIGHT, *NONE_UNRELIABLE),
}

# 1.7 times the steps. Labels alone then take four fifths of the time of u2pl-lean with 1,200 steps.
LONGER = {f"{row}-longer": ("--steps", "2000") for row in ("supervised", "mean-teacher", "u2pl-lean")}

# u2pl-lean with these flags changed.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "key-encoder-student": ("--key-encoder", "student"),
    "key-encoder-teacher": ("--key-encoder", "teacher"),
    "pseudo-labels-unweighted": ("--no-weigh-pseudo-labels",),
    "batchnorm-free": ("--no-freeze-batchnorm",),
    "ema-0.99": ("--ema-momentum", "0.99"),
    "labeled-probs-teacher": ("--labeled-probs", "teacher"),
    "projection-conv": ("--projection", "conv", "--key-encoder", "teacher"),
    "contrastive-weight-0": ("--contrastive-weight", "0"),
    "contrastive-weight-1": ("--contrastive-weight", "1"),
    "negatives-shared": ("--negatives", "shared"),
    "negatives-full": ("--negatives", "full"),
    "no-rank-bounds": ("--low-rank", "0", "--high-rank", "11"),
    "keys-all": ("--max-keys-per-step", "0"),
    "no-colors": ("--jitter-prob", "0", "--grayscale-prob", "0"),
    "blur": ("--blur-prob", "0.5"),
    "keys-64th": ("--max-keys-per-step", "312"),
    "temperature-0.2": ("--temperature", "0.2"),
    "temperature-1": ("--temperature", "1"),
    "alpha-0.1": ("--alpha", "0.1"),
    "alpha-0.4": ("--alpha", "0.4"),
    "bank-bf16": ("--bank-dtype", "bfloat16"),
    "no-mix": ("--mix", "none"),
    "classmix": ("--mix", "classmix"),
    "second-teacher-pass": ("--second-teacher-pass",),
}

# What pages and pictures call a row.
TITLES = {
    "supervised": "labels alone",
    "mean-teacher": "mean-teacher",
    "u2pl-lean": "U²PL, `lean`",
    "u2pl-paper": "U²PL, `paper`",
    "self-training": "self-training",
    "self-training-8": "self-training-8",
    "u2pl-self-training": "self-training + U²PL, λ_c = 0.1",
    "u2pl-self-training-strong": "self-training + U²PL, λ_c = 5",
    "u2pl-self-training-8": "self-training-8 + U²PL, λ_c = 10",
    "fixmatch": "FixMatch",
    "unimatch": "UniMatch",
    "augseg": "AugSeg",
    "contrast-labels": "labels alone + L_c",
    "contrast-negatives": "labels alone + L_c + unreliable negatives",
    "contrast-anchors-8": "L_c alone, on pseudo-labels",
    "contrast-self-training-8": "self-training-8 + L_c",
}


def title(row: str) -> str:
    """Return what pages and pictures call a row."""
    return TITLES.get(row.removesuffix("-longer"), row)


@dataclass(frozen=True)
class Experiment:
    """One training run."""

    dataset: str
    row: str
    labels: int | str
    seed: int
    flags: tuple[str, ...]
    """All flags except those of paths and of the machine."""

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.labels}-{self.row}-seed{self.seed}"

    @property
    def needs(self) -> str | None:
        """Return the experiment whose last checkpoint this one reads."""
        if "--teacher-from" not in self.flags:
            return None
        return self.flags[self.flags.index("--teacher-from") + 1].removesuffix("/last.pt")

    @property
    def cost_of(self) -> str:
        """Return the kind of row; rows of a kind take about the same time per step."""
        return _changed(self.row)


def _changed(row: str) -> str:
    """Return the row of ``ROWS`` that a row is or differs from."""
    row = row.removesuffix("-longer")
    if row in ROWS:
        return row
    return "mean-teacher" if row in MSRC_ROWS else "u2pl-lean"


def _shared(dataset: str, row: str) -> tuple[str, ...]:
    """Return the flags that a row shares with others of its data set."""
    return DATASETS[dataset] if _changed(row) == "supervised" else DATASETS[dataset] + SEMI_SUPERVISED[dataset]


def _camvid_experiment(row: str, labels: int | str, seed: int) -> Experiment:
    flags = ROWS[_changed(row)] + (LONGER | ABLATIONS).get(row, ())
    chosen = ("--labeled-fraction", "1") if labels == ALL else ("--num-labeled", str(labels))
    return Experiment("camvid", row, labels, seed, (*_shared("camvid", row), *chosen, *flags, "--seed", str(seed)))


def msrc_experiment(row: str, labels: int | str, seed: int) -> Experiment:
    """Return an experiment. Rows of a seed share labeled images, initial weights and batches, so they can be paired."""
    chosen = ("--labeled-fraction", "1") if labels == ALL else ("--labeled-list", f"lists/msrc-{labels}-seed{seed}.txt")
    flags = [f.format(supervised=f"msrc-{labels}-supervised-seed{seed}") for f in (MSRC_ROWS | MSRC_PARTS)[row]]
    return Experiment("msrc", row, labels, seed, (*_shared("msrc", row), *chosen, *flags, "--seed", str(seed)))


def experiments() -> list[Experiment]:
    """Return all experiments, most important first."""
    main = [(row, 23) for row in ROWS]
    headroom = [("supervised", ALL)]
    found = [_camvid_experiment(row, labels, seed) for seed in (0, 1, 2) for row, labels in headroom + main]
    longer = [("supervised-longer", ALL), *((row, 23) for row in LONGER)]
    found += [_camvid_experiment(row, labels, seed) for seed in (0, 1, 2) for row, labels in longer]
    found += [_camvid_experiment(row, 23, 0) for row in ABLATIONS]
    found += [msrc_experiment(row, MSRC_LABELS, seed) for row in MSRC_ROWS for seed in MSRC_SEEDS]
    found += [msrc_experiment("supervised", ALL, seed) for seed in MSRC_SEEDS]
    found += [msrc_experiment(row, MSRC_LABELS, seed) for row in MSRC_PARTS for seed in MSRC_SEEDS]
    others = [(row, labels, seed) for labels in MSRC_OTHER_LABELS for seed in MSRC_SEEDS for row in MSRC_MAIN_ROWS]
    return found + [msrc_experiment(*other) for other in others]

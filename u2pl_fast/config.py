"""Every setting of a training, in one dataclass: flags, YAML file and Python callers share it."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from .criterion import U2PLCriterion
from .data import LabelChoice, LoaderOptions, SegmentationDataset, ViewOptions, build_dataset, label_map_entries
from .data.image_format import ImageFormat, mean_color, normalization, pretrained_normalization

Value = TypeVar("Value")

RECIPE_FILES = Path(__file__).parent / "recipes"  # whole configurations by name, for --config
RECIPES = {
    "lean": {"projection": "pointwise", "key_encoder": "teacher-head", "labeled_probs": "student"},
    "paper": {"projection": "conv", "key_encoder": "teacher", "labeled_probs": "teacher"},
}

# What a dataset wants where the user says nothing.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "shapes": {
        "encoder": "resnet10t",
        "encoder_weights": "none",
        "crop_size": (96, 96),
        "scale_range": (0.75, 1.33),
        "num_labeled": 80,
        "steps": 1200,
        "lr": 2e-3,
        "encoder_lr": 2e-3,
        "representation_dim": 64,
        "projection_width": 64,
        "num_anchors": 64,
        "bank_capacity": 2000,
        "background_class": 0,
        "background_capacity": 2000,
    },
    "camvid": {
        "crop_size": (256, 320),
        "representation_dim": 128,
        "projection_width": 128,
        "num_anchors": 128,
        "bank_capacity": 20_000,
    },
    "voc": {"crop_size": (513, 513), "background_class": 0},
    "cityscapes": {"crop_size": (769, 769)},
    "ade20k": {"crop_size": (513, 513), "bank_capacity": 10_000},
}


@dataclass(frozen=True)
class Bound:
    """What a number must be: in words, for the message, and as a test."""

    words: str
    holds: Callable[[float], bool]


AT_LEAST_1 = Bound("at least 1", lambda number: number >= 1)
AT_LEAST_0 = Bound("0 or more", lambda number: number >= 0)
NOT_NEGATIVE = Bound("a number of at least 0", lambda number: number >= 0)
POSITIVE = Bound("a positive number", lambda number: number > 0)
SHARE = Bound("a number in [0, 1]", lambda number: 0 <= number <= 1)


def setting(
    default: Any,
    bound: Bound | None = None,
    *,
    fallback: Any = None,
    data: bool = False,
    free_on_resume: bool = False,
) -> Any:
    """Return a field of :class:`TrainConfig` with its bound, fallback and flags in ``metadata``.

    Args:
        default: where the user says nothing.
        bound: what the number must be, where it is not None.
        fallback: what None becomes where neither the data set nor the recipe has a value of its own.
        data: it selects or decodes the data; the doctor has the same flag.
        free_on_resume: it may differ between a run and its continuation without changing what is computed.
    """
    noted = {"bound": bound, "fallback": fallback, "data": data or None, "free_on_resume": free_on_resume or None}
    return dataclasses.field(default=default, metadata=noted)


# Defaults of U2PLCriterion. TrainConfig reuses them, and those of ViewOptions, so that each is written once.
CRITERION = {name: parameter.default for name, parameter in inspect.signature(U2PLCriterion).parameters.items()}


@dataclass
class TrainConfig:
    """Settings of ``python -m u2pl_fast.train``. A value of None is filled in from the dataset and the recipe."""

    # Data
    dataset: str = setting("shapes", data=True)
    """shapes (built in), voc, cityscapes, ade20k, camvid, or folder (images/<split>/*, labels/<split>/*.png)."""
    data_root: Path | None = setting(None, data=True, free_on_resume=True)
    """Folder of the dataset; shapes needs none."""
    labeled_fraction: str | None = setting(None, data=True)
    """Share of the training images whose labels are used, such as 1/8 or 0.125."""
    num_labeled: int | None = setting(None, data=True)
    """Number of training images whose labels are used."""
    labeled_list: Path | None = setting(None, data=True)
    """File that lists the labeled images: an id, or "image mask", a line."""
    unlabeled_list: Path | None = setting(None, data=True)
    """File that lists unlabeled images; they need no masks."""
    label_map: tuple[str, ...] | None = setting(None, data=True)
    """Class of each mask value, where masks don't hold class ids: 0:0 255:1, or ranges 1-150:0-149, 7:ignore, *:ignore,
    or a file of such entries."""
    resize: tuple[int, int] | None = None
    """Height and width that images are resized to before all else; labels at evaluation keep their size."""
    crop_size: tuple[int, int] | None = setting(None, fallback=(512, 512))
    """Height and width of training crops."""
    scale_range: tuple[float, float] | None = setting(None, fallback=ViewOptions.scale_range)
    """Range of the random scale of the weak view; unset: 0.5 to 2, narrower for shapes."""
    jitter_prob: float = setting(ViewOptions.jitter_prob, SHARE)
    """Probability that brightness, contrast, saturation and hue of a strong view are jittered."""
    grayscale_prob: float = setting(ViewOptions.grayscale_prob, SHARE)
    """Probability that a strong view is turned gray."""
    blur_prob: float = setting(ViewOptions.blur_prob, SHARE)
    """Probability that a strong view is blurred."""
    strong_colors: Literal["jitter", "intensity"] = ViewOptions.strong_colors
    """Colors of the strong view: jitter, grayscale and blur, or one to three random changes of intensity (AugSeg)."""
    strong_views: int = setting(1, AT_LEAST_1)
    """Strong views of each unlabeled image a step; UniMatch has 2."""
    jitter_labeled: bool = ViewOptions.jitter_labeled
    """Give the labeled images the strong view's colors too."""
    cache: bool = setting(True, free_on_resume=True)
    """Keep decoded images in memory where they fit."""
    in_channels: int = setting(3, AT_LEAST_1, data=True)
    """Channels of an image: 1 = gray, 3 = RGB, 4 = RGBA or RGB + NIR, N = bands of a .npy or TIFF file."""
    value_range: tuple[float, float] | None = setting(None, data=True)
    """Stored values that become 0 and 255; unset: 16-bit values are divided by 256, float ones refused. 8-bit ones
    stay as they are."""

    # Network
    arch: str = "deeplabv3plus"
    """segmentation-models-pytorch architecture with a decoder."""
    encoder: str | None = setting(None, fallback="tf_efficientnet_lite0")
    """timm model name, or one of segmentation-models-pytorch's own, such as mit_b0."""
    encoder_weights: str | None = setting(None, fallback="imagenet", free_on_resume=True)
    """imagenet, none, or a .safetensors file; unset: none for shapes, imagenet otherwise."""
    output_stride: int | None = None
    """Encoder stride 8, 16 or 32; unset: the architecture's own."""
    decoder_width: int | None = None
    """Channels of the decoder; unset: the architecture's own."""
    auxiliary: bool = False
    """Add an auxiliary classifier on the last but one encoder stage."""
    image_mean: tuple[float, ...] | None = None
    """Mean of each channel where white is 1, subtracted; unset: what the encoder's weights were trained with, or
    ImageNet's; averaged unless there are 3 channels."""
    image_std: tuple[float, ...] | None = None
    """Standard deviation of each channel, divided by; unset: as for image_mean."""
    checkpoint_encoder: bool = setting(False, free_on_resume=True)
    """Compute the encoder's activations a second time in the backward pass instead of keeping them."""
    freeze_batchnorm: bool = False
    """The encoder's batch norm keeps the statistics of its pretrained weights; for small batches."""
    freeze_stages: int = setting(0, AT_LEAST_0)
    """Keep the first stages of the encoder as they were pretrained, batch norm included; for few labels, and faster."""
    align_corners: bool = CRITERION["align_corners"]
    """How logits map to pixels."""
    sync_batchnorm: bool = True
    """Synchronize batch norm over the GPUs of a distributed run."""
    init_from: Path | None = setting(None, free_on_resume=True)
    """Checkpoint whose weights training starts from."""

    # Method
    method: Literal["supervised", "mean-teacher", "u2pl"] = "u2pl"
    recipe: Literal["lean", "paper"] = "lean"
    """Sets the three below. lean: pointwise, teacher-head, student. paper: conv, teacher, teacher."""
    projection: Literal["pointwise", "conv"] | None = None
    """Representation head; unset: the recipe's."""
    key_encoder: Literal["teacher-head", "student", "teacher"] | None = None
    """Whose representations are positives and negatives. teacher-head: the teacher's head on the student's features;
    unset: the recipe's."""
    labeled_probs: Literal["student", "teacher"] | None = None
    """Whose probabilities choose among labeled pixels; unset: the recipe's."""
    negatives: Literal["per_anchor", "shared", "full"] = CRITERION["negatives"]
    """Negatives drawn for each anchor, for each class, or the whole bank."""
    representation_dim: int | None = setting(None, AT_LEAST_1, fallback=CRITERION["representation_dim"])
    projection_width: int | None = setting(None, fallback=256)
    """Hidden channels of the representation head."""
    num_anchors: int | None = setting(None, AT_LEAST_1, fallback=CRITERION["num_anchors"])
    """Anchors a class."""
    num_negatives: int = setting(CRITERION["num_negatives"], AT_LEAST_1)
    temperature: float = setting(CRITERION["temperature"], POSITIVE)
    positive_threshold: float = setting(CRITERION["positive_threshold"], SHARE)
    """Least probability of an anchor."""
    low_rank: int | None = setting(CRITERION["low_rank"], data=True)
    """An unreliable pixel is a negative of the classes from this rank on; unset: 3, or the classes less one."""
    high_rank: int | None = CRITERION["high_rank"]
    """And before this rank; unset: 20, or the classes."""
    gate: Literal["entropy", "class-entropy", "confidence"] = CRITERION["gate"]
    """Pixels that teach. entropy: the surest 1 − α_t of the batch; class-entropy: of each class; confidence: those of
    at least confidence_threshold, averaged over all pixels, as in FixMatch."""
    confidence_threshold: float = setting(CRITERION["confidence_threshold"], SHARE)
    alpha_0: float = setting(CRITERION["alpha_0"], SHARE)
    """Share of unlabeled pixels that counts as unreliable at the start."""
    unsupervised_weight: float = CRITERION["unsupervised_weight"]
    unsupervised_weight_cap: float | None = CRITERION["unsupervised_weight_cap"]
    contrastive_weight: float = CRITERION["contrastive_weight"]
    bank_capacity: int | None = setting(None, AT_LEAST_1, fallback=CRITERION["bank_capacity"])
    """Keys a class that the bank holds."""
    background_class: int | None = None
    """Class with a capacity of its own."""
    background_capacity: int | None = setting(None, fallback=50_000)
    max_keys_per_step: int | None = CRITERION["max_keys_per_step"]
    """Keys a class that enter the bank from one step; 0 = all; unset: a sixteenth of its capacity."""
    bank_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bank_scope: Literal["local", "gather"] = CRITERION["bank_scope"]
    """Each process its own bank, or one bank that all share."""
    second_teacher_pass: bool = False
    """Published order: the teacher sees the mixed images too; entropies, probabilities and its keys are from there."""
    sup_only_epochs: float | None = setting(None, NOT_NEGATIVE)
    """Epochs on labels alone before the teacher starts; unset: 1, or 0 in a run of fewer than 4 epochs."""
    teacher_input: Literal["crop", "whole"] = "crop"
    """What the teacher labels: each weak crop, or whole images, mirrored too, every teacher_every steps."""
    teacher_every: int = setting(150, AT_LEAST_1)
    """Steps between the teacher's looks at whole images."""
    teacher_scales: tuple[float, ...] = (1.0,)
    """Scales at which it looks at whole images; the mean counts."""
    teacher_from: Path | None = setting(None, free_on_resume=True)
    """Checkpoint of an earlier run that labels the whole images once, in place of the teacher: self-training."""
    labels_first: bool = False
    """Self-training in one command: train on labels alone first, in OUT/labels-alone, and take that run for
    teacher_from."""
    feature_dropout: float = setting(0.0, SHARE)
    """Share of the encoder's channels dropped in a further view, which is the weak one; UniMatch has 0.5. 0: no such
    view."""
    ema_momentum: float = setting(0.99, SHARE)
    average_weights: bool = False
    """Evaluate the moving average of the weights where the method has no teacher: supervised."""
    mix: Literal["cutmix", "classmix", "cutout", "none"] = "cutmix"
    mix_prob: float = setting(1.0, SHARE)
    mix_labeled_prob: float = setting(0.0, SHARE)
    """Probability that a labeled image takes a CutMix box of its partner in the batch, label included."""
    ohem: bool = False
    """Train the supervised loss on hard pixels alone."""
    ohem_threshold: float = 0.7
    ohem_min_kept: int = 100_000
    class_weights: str | None = None
    """Of the supervised loss, and with weigh_pseudo_labels of the unsupervised one: a file with a number a line for
    each class, or "balanced": rarer among the labeled pixels, heavier."""
    weigh_pseudo_labels: bool = CRITERION["weigh_pseudo_labels"]
    """Weigh pixels of the unsupervised loss, too, by the class weights of their pseudo-labels."""
    label_smoothing: float = setting(CRITERION["label_smoothing"], SHARE)

    # Optimization
    steps: int | None = setting(None, fallback=40_000)
    """Training steps; each takes one batch."""
    epochs: float | None = None
    """Passes over the unlabeled images, instead of steps."""
    batch_size: int = setting(4, AT_LEAST_1)
    """Labeled images per process and step."""
    unlabeled_batch_size: int | None = setting(None, AT_LEAST_1)
    """Unlabeled images per process and step; unset: as many as labeled ones. An epoch is a pass over them."""
    accumulate: int = setting(1, AT_LEAST_1)
    """Steps whose gradients are averaged into one update."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float | None = setting(None, POSITIVE, fallback=1e-3)
    """Learning rate of the decoder and heads, and of the encoder unless it has its own."""
    encoder_lr: float | None = setting(None, NOT_NEGATIVE)
    """Learning rate of the encoder; unset: a tenth of lr where it is pretrained, else lr."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    poly_power: float = 0.9
    clip_norm: float | None = setting(None, POSITIVE)
    """Largest norm of the gradient."""
    seed: int = setting(0, data=True)
    """Of all random draws, and of the images that num_labeled and labeled_fraction pick."""

    # Machine
    device: str = setting("auto", free_on_resume=True)
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    amp: bool = False
    """Automatic mixed precision; left off on CPUs that only emulate it."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    channels_last: bool = False
    compile: bool = False
    """Run student and teacher through torch.compile; the first steps take minutes."""
    cuda_graph: bool = False
    """Replay the contrastive loss as a CUDA graph (one GPU)."""
    workers: int | None = setting(None, free_on_resume=True)
    """Loader processes; unset: one a core but one, at most 8."""
    threads: int | None = setting(None, AT_LEAST_1, free_on_resume=True)
    """CPU threads of the main process; unset: torch's own choice."""

    # Run
    out: Path = setting(Path("runs/latest"), free_on_resume=True)
    resume: bool = setting(False, free_on_resume=True)
    """Go on from OUT/last.pt."""
    dry_run: bool = False
    """Say what would be trained, what the bank takes and what processes send each other, and end."""
    stop_after: int | None = setting(None, AT_LEAST_1, free_on_resume=True)
    """End after this many steps of the run, saved, to be resumed."""
    eval_every: int | None = setting(None, AT_LEAST_1, free_on_resume=True)
    """Steps between evaluations; unset: a fifth of the run."""
    save_every: int = setting(200, AT_LEAST_1, free_on_resume=True)
    log_every: int = setting(20, AT_LEAST_1, free_on_resume=True)
    eval_protocol: Literal["whole", "slide"] = "whole"
    max_skipped: int = setting(20, free_on_resume=True)
    """Steps in a row with a loss or gradient that is not finite, after which training stops."""

    @property
    def unlabeled_images(self) -> int:
        """Unlabeled images per process and step."""
        return self.batch_size if self.unlabeled_batch_size is None else self.unlabeled_batch_size

    @property
    def image_format(self) -> ImageFormat:
        """How images are read from files."""
        return ImageFormat(self.in_channels, self.value_range)

    @property
    def label_choice(self) -> LabelChoice:
        """Which training images are labeled and which are unlabeled."""
        return LabelChoice(self.seed, self.labeled_fraction, self.num_labeled, self.labeled_list, self.unlabeled_list)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, where white is 1."""
        return normalization(self.in_channels, self.image_mean, self.image_std)

    def build_dataset(
        self,
        split: str,
        *,
        classes_from: SegmentationDataset | Sequence[str] | None = None,
        check: bool = True,
    ) -> SegmentationDataset:
        """:func:`u2pl_fast.data.build_dataset` of one split ("train", "val", ...) of the config's data set."""
        return build_dataset(
            self.dataset,
            self.data_root,
            split,
            classes_from=classes_from,
            label_map=self.label_map,
            image_format=self.image_format,
            check=check,
        )

    def loader_options(self, pad_multiple: int = 1) -> LoaderOptions:
        """What the training loader needs to know. Crops are padded to multiples of ``pad_multiple``."""
        return LoaderOptions(
            views=ViewOptions(
                _resolved("crop_size", self.crop_size),
                pad_multiple,
                self.resize,
                _resolved("scale_range", self.scale_range),
                jitter_prob=self.jitter_prob,
                grayscale_prob=self.grayscale_prob,
                blur_prob=self.blur_prob,
                strong_colors=self.strong_colors,
                jitter_labeled=self.jitter_labeled,
                color=mean_color(self.normalization[0]),
            ),
            seed=self.seed,
            batch_size=self.batch_size,
            unlabeled_batch_size=self.unlabeled_images,
            semi=self.method != "supervised",
            strong_views=self.strong_views,
            cache=self.cache,
            workers=self.workers,
            pin_memory=self.device != "cpu",
        )

    def to_dict(self) -> dict[str, Any]:
        """Primitives only, as YAML and checkpoints hold them."""
        return {name: _primitive(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> "TrainConfig":
        """The config that ``to_dict`` described; unknown names and values of another type are refused."""
        hints = get_type_hints(cls)
        unknown = [str(name) for name in values if name not in hints]
        if unknown:
            raise ValueError(f"{source}: unknown setting {', '.join(unknown)}; settings are those of --help")
        typed = {}
        for name, value in values.items():
            try:
                typed[name] = _typed(hints[name], value)
            except (TypeError, ValueError):
                hint = hints[name]
                expected = hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.", "", str(hint))
                if name == "label_map":
                    expected = "a mapping such as {0: 0, 255: 1}, or quoted entries such as '255:1'"
                raise ValueError(f"{source}: {name}: expected {expected}, got {value!r}") from None
        return cls(**typed)

    @classmethod
    def from_yaml(cls, path: Path) -> "TrainConfig":
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ValueError(f"config: cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"config: {path} is not text in UTF-8: {error}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"config: {path} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"config: {path} must hold 'name: value' lines")
        return cls.from_dict(values, str(path))


def _noted(what: str) -> dict[str, Any]:
    """Return {field: value} of one key of the metadata, for the fields that set it."""
    return {f.name: f.metadata[what] for f in dataclasses.fields(TrainConfig) if f.metadata.get(what) is not None}


BOUNDS: dict[str, Bound] = _noted("bound")
FALLBACKS: dict[str, Any] = _noted("fallback")
DATA_SETTINGS = tuple(_noted("data"))
FREE_ON_RESUME = frozenset(_noted("free_on_resume"))


def find_config(name: str) -> Path:
    """The file of ``--config``: a path, or the name of one of the configurations in :data:`RECIPE_FILES`."""
    path = Path(name)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    names = sorted(file.stem for file in RECIPE_FILES.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"config: no file {name}, and no configuration of that name; there are {', '.join(names)}")
    return RECIPE_FILES / f"{name}.yaml"


def _typed(hint: Any, value: Any) -> Any:
    """``value``, as YAML gives it, in the type of its field; TypeError or ValueError where it can't be."""
    if type(None) in get_args(hint):
        return None if value is None else _typed(get_args(hint)[0], value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError
        return value
    if get_args(hint) == (str, ...):  # label_map: a list of words, one word, or a mapping
        words = [f"{key}:{item}" for key, item in value.items()] if isinstance(value, dict) else value
        words = [words] if isinstance(words, str) else words
        if not all(isinstance(word, str) for word in words):
            raise TypeError  # 255:1 without quotes is a number to YAML, in base 60
        return tuple(words)
    if get_origin(hint) is tuple and get_args(hint)[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_typed(get_args(hint)[0], item) for item in value)
    if get_origin(hint) is tuple:
        return tuple(_typed(kind, item) for kind, item in zip(get_args(hint), value, strict=True))
    if hint is float and type(value) in (int, float, str):
        return float(value)  # YAML takes 1e-3 for text, it wants 1.0e-3
    if hint is str and type(value) in (int, float):
        return str(value)  # a labeled_fraction of 0.125
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if type(value) is not hint:
        raise TypeError
    return value


def _primitive(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _resolved(name: str, value: Value | None) -> Value:
    """The value of a setting that ``resolve`` fills in."""
    if value is None:
        raise ValueError(f"{name}: it is None; call u2pl_fast.config.resolve first")
    return value


def resolve(config: TrainConfig) -> TrainConfig:
    """A copy with every None that the dataset or the recipe decides filled in, checked as far as it can be alone."""
    config = dataclasses.replace(config, arch=config.arch.lower())
    recipe = RECIPES.get(config.recipe)
    if recipe is None:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {config.recipe!r}")
    defaults = FALLBACKS | DATASET_DEFAULTS.get(config.dataset, {}) | recipe
    labels_chosen = any(x is not None for x in (config.labeled_fraction, config.num_labeled, config.labeled_list))
    for name, value in defaults.items():
        if getattr(config, name) is None:
            if name == "num_labeled" and labels_chosen or name == "steps" and config.epochs is not None:
                continue
            setattr(config, name, value)
    if config.label_map is not None:
        config.label_map = label_map_entries(config.label_map)  # a checkpoint knows them without the file
    if config.encoder_lr is None:
        lr = _resolved("lr", config.lr)
        config.encoder_lr = lr if config.encoder_weights == "none" else 0.1 * lr
    encoder = _resolved("encoder", config.encoder)
    own = None if config.encoder_weights == "none" else pretrained_normalization(encoder)
    if own not in (None, normalization(3)):
        n = config.in_channels
        mean, std = (x if n == 3 else (sum(x) / 3,) * n for x in own)
        config.image_mean = mean if config.image_mean is None else config.image_mean
        config.image_std = std if config.image_std is None else config.image_std
    _check(config)
    return config


def training_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the length of the run, where the data set gives so many steps an epoch."""
    return config.steps or max(1, round(_resolved("epochs", config.epochs) * steps_per_epoch))


def resolve_for_data(config: TrainConfig, steps_per_epoch: int) -> TrainConfig:
    """Return a copy of a resolved config with every None filled in that depends on the size of the data set.

    ``steps`` stays None where ``epochs`` is given: :func:`training_steps` has the number.
    """
    steps = training_steps(config, steps_per_epoch)
    if config.sup_only_epochs is None:
        config = dataclasses.replace(config, sup_only_epochs=0.0 if steps < 4 * steps_per_epoch else 1.0)
    if config.eval_every is None:
        config = dataclasses.replace(config, eval_every=max(1, steps // 5))
    return config


def read_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that its method reads: a recipe means nothing to methods other than u2pl."""
    unread = set() if settings["method"] == "u2pl" else {"recipe", *RECIPES["lean"]}
    return {name: value for name, value in settings.items() if name not in unread}


def _check(config: TrainConfig) -> None:
    for name, bound in BOUNDS.items():
        value = getattr(config, name)
        if value is not None and not bound.holds(value):
            raise ValueError(f"{name}: expected {bound.words}, got {value}")
    for name in ("image_mean", "image_std"):
        values = getattr(config, name)
        if values is not None and len(values) != config.in_channels:
            raise ValueError(
                f"{name}: expected a number for each of in_channels={config.in_channels} channels, got {len(values)}"
            )
    if config.image_std is not None and not min(config.image_std) > 0:
        raise ValueError(f"image_std: expected positive numbers, got {config.image_std}")
    if config.value_range is not None and not config.value_range[0] < config.value_range[1]:
        raise ValueError(f"value_range: expected two numbers, the lower first, got {config.value_range}")
    if config.stop_after is not None and config.stop_after % config.accumulate:
        raise ValueError(
            f"stop_after: {config.stop_after} falls between two updates, each of accumulate={config.accumulate} steps; "
            "use a multiple"
        )
    if config.steps is not None and config.epochs is not None:
        raise ValueError("steps: give steps or epochs, not both")
    if config.steps is not None and config.steps < 1 or config.epochs is not None and not 0 < config.epochs < math.inf:
        raise ValueError("steps: a training has at least one step, and an end")
    if config.dataset == "shapes" and config.data_root is not None:
        raise ValueError("data_root: shapes, the built-in data set, has no files; say which --dataset is there")
    chosen = [n for n in ("labeled_fraction", "num_labeled", "labeled_list") if getattr(config, n) is not None]
    if len(chosen) > 1:
        raise ValueError(f"{chosen[0]}: give one of {', '.join(chosen)}, not several")
    if config.method == "u2pl" and config.projection == "conv" and config.key_encoder == "teacher-head":
        raise ValueError(
            "key_encoder: teacher-head applies a head to single pixels; use projection pointwise or key_encoder teacher"
        )
    if config.teacher_input == "whole":
        if config.method == "u2pl" and "teacher" in (config.key_encoder, config.labeled_probs):
            raise ValueError("teacher_input: whole images give no representations; use crop, or recipe lean")
        if config.second_teacher_pass:
            raise ValueError("teacher_input: a second teacher pass looks at mixed crops; use crop")
        if not (config.teacher_scales and min(config.teacher_scales) > 0):
            raise ValueError(f"teacher_scales: expected positive numbers, got {config.teacher_scales}")
    else:
        for name in ("teacher_from", "labels_first"):
            if getattr(config, name):
                raise ValueError(f"{name}: an earlier network labels whole images; add --teacher-input whole")
    if config.freeze_stages and config.encoder_weights == "none" and not (config.init_from or config.resume):
        raise ValueError(
            "freeze_stages: the stages have no pretrained weights to keep; give encoder_weights or init_from"
        )
    if config.freeze_batchnorm and config.encoder_weights == "none" and not (config.init_from or config.resume):
        raise ValueError(
            "freeze_batchnorm: there are no pretrained statistics to keep; give encoder_weights or init_from, or add "
            "--no-freeze-batchnorm"
        )
    if config.weigh_pseudo_labels and config.class_weights is None:
        raise ValueError("weigh_pseudo_labels: there are no weights; add class_weights, balanced or a file")
    if config.bank_scope == "gather" and config.max_keys_per_step == 0:
        raise ValueError("max_keys_per_step: 0 (all keys) has no fixed size to gather; give a cap or bank_scope local")

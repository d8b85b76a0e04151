"""Settings of a training, in one dataclass that flags, YAML files and Python callers share."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..criterion import U2PLCriterion
from ..data import LabelChoice, LoaderOptions, SegmentationDataset, ViewOptions, build_dataset
from ..data.image_format import ImageFormat, mean_color, normalization
from ..utils.fields import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Bound,
    Precision,
    noted,
    ordered_fields,
    primitive,
    setting,
    typed_values,
)
from ..utils.renamed import refuse_renamed, upgraded

# Defaults of U2PLCriterion. TrainConfig reuses them, and those of ViewOptions, so that each is written once.
CRITERION = {name: parameter.default for name, parameter in inspect.signature(U2PLCriterion).parameters.items()}
SIZE = "HEIGHT WIDTH"  # placeholder in --help
Value = TypeVar("Value")


@dataclass(kw_only=True)
class DataSettings:
    """Images, labels and augmentation."""

    dataset: str = setting("shapes", data=True, metavar="NAME")
    """shapes (built in), folder (images/<split>/*, labels/<split>/*.png), voc, cityscapes, ade20k or camvid."""
    data_root: Path | None = setting(None, data=True, free_on_resume=True, metavar="DIR")
    """Folder of the data set; shapes needs none."""
    num_labeled: int | None = setting(None, data=True)
    """Number of training images whose labels are used; the other masks are hidden. Unset: every image with a mask."""
    labeled_fraction: str | None = setting(None, data=True, metavar="SHARE")
    """Share of the training images whose labels are used, such as 1/8 or 0.125."""
    labeled_list: Path | None = setting(None, data=True, metavar="FILE")
    """File that lists the labeled images, one per line: an id, or "image mask"."""
    unlabeled_list: Path | None = setting(None, data=True, metavar="FILE")
    """File that lists the unlabeled images, one per line; they need no masks."""
    label_map: tuple[str, ...] | None = setting(None, data=True, metavar="VALUE:CLASS [...]")
    """Class of each mask value, for masks that do not hold class ids: 0:0 255:1; ranges 1-150:0-149; 7:ignore;
    *:ignore; or a file of such entries."""
    in_channels: int = setting(3, AT_LEAST_1, data=True)
    """Channels of an image: 1 = gray, 3 = RGB, 4 = RGBA or RGB + NIR, N = bands of a .npy or TIFF file."""
    value_range: tuple[float, float] | None = setting(None, data=True, metavar="LOW HIGH")
    """Stored values that become 0 and 255. Unset: 16-bit values are divided by 256, floats are refused. 8-bit values
    never change."""
    resize: tuple[int, int] | None = setting(None, metavar=SIZE)
    """Resize every image to exactly this size first; the aspect ratio may change. Labels keep their size in scores."""
    crop_size: tuple[int, int] | None = setting(None, fallback=(512, 512), metavar=SIZE)
    """Size of training crops. Unset: 512 512, or that of the data set; --dry-run prints it."""
    scale_range: tuple[float, float] | None = setting(None, fallback=ViewOptions.scale_range, metavar="LOW HIGH")
    """Range of the random scale of the weak view. Unset: 0.5 to 2, narrower for shapes."""
    strong_colors: Literal["jitter", "intensity"] = ViewOptions.strong_colors
    """Colors of the strong view: jitter, grayscale and blur, or one to three random changes of intensity (AugSeg)."""
    jitter_prob: float = setting(ViewOptions.jitter_prob, SHARE)
    """Probability of changing brightness, contrast, saturation and hue of a strong view."""
    grayscale_prob: float = setting(ViewOptions.grayscale_prob, SHARE)
    """Probability of turning a strong view gray."""
    blur_prob: float = setting(ViewOptions.blur_prob, SHARE)
    """Probability of blurring a strong view."""
    jitter_labeled: bool = ViewOptions.jitter_labeled
    """Change the colors of labeled images like those of a strong view."""
    strong_views: int = setting(1, AT_LEAST_1)
    """Strong views of each unlabeled image per step; UniMatch uses 2."""


@dataclass(kw_only=True)
class NetworkSettings:
    """Encoder, decoder and the weights they start from."""

    arch: str = setting("deeplabv3plus", metavar="NAME")
    """Decoder of segmentation-models-pytorch: deeplabv3plus, segformer, unet, fpn, upernet, dpt, ..."""
    encoder: str | None = setting(None, fallback="tf_efficientnet_lite0", metavar="NAME")
    """timm model name, or an encoder of segmentation-models-pytorch such as mit_b0. Unset: tf_efficientnet_lite0, or
    resnet10t for shapes."""
    encoder_weights: str | None = setting(
        None, fallback="imagenet", free_on_resume=True, metavar="{imagenet,none,FILE}"
    )
    """imagenet (downloaded), none, or a .safetensors file. Unset: none for shapes, imagenet otherwise."""
    init_from: Path | None = setting(None, free_on_resume=True, metavar="FILE")
    """Checkpoint whose weights training starts from."""
    output_stride: int | None = setting(None, metavar="{8,16,32}")
    """Stride of the encoder. Unset: the architecture's own."""
    decoder_width: int | None = setting(None)
    """Channels of the decoder. Unset: the architecture's own."""
    auxiliary: bool = False
    """Add an auxiliary classifier on the second-last encoder stage."""
    freeze_stages: int = setting(0, NOT_NEGATIVE)
    """Number of encoder stages to freeze, batch norm included. Helps with few labels, and is faster."""
    freeze_batchnorm: bool = False
    """Keep the encoder's pretrained batch norm statistics. Helps with small batches."""


@dataclass(kw_only=True)
class MethodSettings:
    """Losses, teacher and pseudo-labels."""

    method: Literal["supervised", "mean-teacher", "u2pl"] = "u2pl"
    """Train on labels alone, with pseudo-labels, or with pseudo-labels and the contrastive loss."""
    recipe: Literal["lean", "paper"] = "lean"
    """Variant of u2pl: lean (fast), or paper (as published). Sets --projection, --key-encoder and --labeled-probs."""
    gate: Literal["entropy", "class-entropy", "confidence"] = CRITERION["gate"]
    """Select the pixels whose pseudo-labels are trained on. entropy: the 1 - alpha with the lowest entropy;
    class-entropy: the same within each class; confidence: those of at least --confidence-threshold, as in FixMatch."""
    alpha: float = setting(CRITERION["alpha_0"], SHARE)
    """Share of unlabeled pixels that is unreliable at the start; it falls to 0 over the run."""
    confidence_threshold: float = setting(CRITERION["confidence_threshold"], SHARE)
    """Lowest confidence of a pixel that is trained on, with --gate confidence."""
    unsupervised_weight: float = CRITERION["unsupervised_weight"]
    """Weight of the loss on pseudo-labels."""
    contrastive_weight: float = CRITERION["contrastive_weight"]
    """Weight of the contrastive loss."""
    mix: Literal["cutmix", "classmix", "cutout", "none"] = "cutmix"
    """Mixing of strong views."""
    mix_prob: float = setting(1.0, SHARE)
    """Probability of mixing an unlabeled image."""
    mix_labeled_prob: float = setting(0.0, SHARE)
    """Probability that a labeled image takes a CutMix box, with its label, from another image of the batch."""
    ema_momentum: float = setting(0.99, SHARE)
    """Momentum of the teacher's moving average."""
    average_weights: bool = False
    """Evaluate a moving average of the weights in supervised training, which has no teacher."""
    sup_only_epochs: float | None = setting(None, NOT_NEGATIVE)
    """Epochs on labels alone before the teacher starts. Unset: 1, or 0 in a run of fewer than 4 epochs."""
    teacher_input: Literal["crop", "whole"] = "crop"
    """Label each weak crop, or label whole images and their mirror images every --teacher-every steps."""
    teacher_every: int = setting(150, AT_LEAST_1)
    """Steps between two labelings of whole images."""
    teacher_scales: tuple[float, ...] = setting((1.0,), metavar="SCALE [...]")
    """Scales that are averaged when whole images are labeled."""
    teacher_from: Path | None = setting(None, free_on_resume=True, metavar="FILE")
    """Checkpoint of an earlier run that labels the whole images once: self-training."""
    labels_first: bool = False
    """Run self-training in one command: train on labels alone in OUT/labels-alone, then use it as --teacher-from."""
    feature_dropout: float = setting(0.0, SHARE)
    """Share of encoder channels dropped in an additional weak view; UniMatch uses 0.5. 0: no such view."""
    ohem: tuple[float, int] | None = setting(None, metavar="THRESHOLD PIXELS")
    """Online hard example mining of the supervised loss: train on pixels whose true class has at most this probability,
    and on at least this many pixels. The published values are 0.7 100000."""
    class_weights: str | None = setting(None, metavar="{balanced,FILE}")
    """Class weights of the supervised loss. balanced: weight rises as class frequency falls; or a file with one number
    per line."""
    weigh_pseudo_labels: bool = CRITERION["weigh_pseudo_labels"]
    """Apply the class weights to the loss on pseudo-labels too."""
    label_smoothing: float = setting(CRITERION["label_smoothing"], SHARE)
    """Label smoothing of the supervised loss."""


@dataclass(kw_only=True)
class BankSettings:
    """Contrastive loss and memory bank of u2pl."""

    bank_capacity: tuple[str, ...] | None = setting(
        None, fallback=(str(CRITERION["bank_capacity"]),), metavar="KEYS [CLASS:KEYS ...]"
    )
    """Keys that the bank holds for each class, then exceptions: 30000 0:50000 gives class 0 a ring of 50,000. Unset:
    30000, or that of the data set."""
    bank_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the stored keys."""
    bank_scope: Literal["local", "gather"] = CRITERION["bank_scope"]
    """Keep one bank per process, or one bank that all processes share."""
    max_keys_per_step: int | None = CRITERION["max_keys_per_step"]
    """Keys per class that enter the bank in one step; 0 = all. Unset: 1/16 of the capacity."""
    num_anchors: int | None = setting(None, AT_LEAST_1, fallback=CRITERION["num_anchors"])
    """Anchors per class and step. Unset: 256, 128 for camvid, 64 for shapes."""
    num_negatives: int = setting(CRITERION["num_negatives"], AT_LEAST_1)
    """Negatives per anchor."""
    negatives: Literal["per_anchor", "shared", "full"] = CRITERION["negatives"]
    """Draw negatives for each anchor, once for each class, or use the whole bank."""
    temperature: float = setting(CRITERION["temperature"], POSITIVE)
    """Temperature of the contrastive loss."""
    positive_threshold: float = setting(CRITERION["positive_threshold"], SHARE)
    """Lowest probability of an anchor's class."""
    low_rank: int | None = setting(CRITERION["low_rank"], data=True)
    """First rank at which an unreliable pixel is a negative of a class. Unset: 3, or the number of classes minus 1."""
    high_rank: int | None = CRITERION["high_rank"]
    """First rank at which it is no longer one. Unset: 20, or the number of classes."""
    representation_dim: int | None = setting(None, AT_LEAST_1, fallback=CRITERION["representation_dim"])
    """Length of a key. Unset: 256, 128 for camvid, 64 for shapes."""


@dataclass(kw_only=True)
class OptimizationSettings:
    """Length of the run, batches and optimizer."""

    steps: int | None = setting(None, fallback=40_000)
    """Training steps; each takes one batch. Unset: 40000, or 1200 for shapes."""
    epochs: float | None = None
    """Length of the run in passes over the unlabeled images, instead of steps."""
    batch_size: int = setting(4, AT_LEAST_1)
    """Labeled images per process and step."""
    unlabeled_batch_size: int | None = setting(None, AT_LEAST_1)
    """Unlabeled images per process and step. Unset: the same number as labeled ones."""
    accumulate: int = setting(1, AT_LEAST_1)
    """Steps whose gradients are averaged into one update."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimizer."""
    lr: float | None = setting(None, POSITIVE, fallback=1e-3)
    """Learning rate of decoder and heads. Unset: 0.001, or 0.002 for shapes."""
    encoder_lr: float | None = setting(None, NOT_NEGATIVE)
    """Learning rate of the encoder. Unset: 1/10 of lr for a pretrained encoder, else lr."""
    weight_decay: float = 1e-4
    """Weight decay; biases and normalization layers have none."""
    momentum: float = 0.9
    """Momentum of SGD."""
    clip_norm: float | None = setting(None, POSITIVE)
    """Largest norm of the gradient. Unset: no clipping."""


@dataclass(kw_only=True)
class DeviceSettings:
    """Device and precision."""

    device: str = setting("auto", free_on_resume=True)
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    amp: Precision = "off"
    """Automatic mixed precision; --amp alone means bfloat16. CPUs without native support keep float32."""
    channels_last: bool = False
    """Use the channels_last memory format."""


@dataclass(kw_only=True)
class MachineSettings(DeviceSettings):
    """Device, precision and processes."""

    compile: bool = False
    """Compile student and teacher with torch.compile; the first steps take minutes."""
    workers: int | None = setting(None, free_on_resume=True)
    """Loader processes. Unset: the number of cores minus 1, at most 8."""
    threads: int | None = setting(None, AT_LEAST_1, free_on_resume=True)
    """CPU threads of the main process. Unset: the default of torch."""


@dataclass(kw_only=True)
class RunSettings:
    """Output folder, seed, logging and evaluation."""

    out: Path = setting(Path("runs/latest"), free_on_resume=True, metavar="DIR")
    """Folder for checkpoints, log and metrics."""
    resume: bool = setting(False, free_on_resume=True)
    """Continue the run in OUT."""
    seed: int = setting(0, data=True)
    """Seed of all random draws, including the choice by --num-labeled and --labeled-fraction."""
    dry_run: bool = False
    """Print what would be trained, and the memory and traffic it needs; then exit."""
    stop_after: int | None = setting(None, AT_LEAST_1, free_on_resume=True)
    """Save and exit after this many steps of the run; --resume continues."""
    eval_every: int | None = setting(None, AT_LEAST_1, free_on_resume=True)
    """Steps between evaluations. Unset: 1/5 of the run."""
    save_every: int = setting(200, AT_LEAST_1, free_on_resume=True)
    """Steps between checkpoints."""
    log_every: int = setting(20, AT_LEAST_1, free_on_resume=True)
    """Steps between log lines."""
    protocol: Literal["whole", "slide"] = "whole"
    """Evaluate whole images, or average sliding windows of the crop size."""


@dataclass(kw_only=True)
class ExpertSettings:
    """Settings that few runs change."""

    projection: Literal["pointwise", "conv"] | None = None
    """Representation head: 1x1 layers or 3x3 convolutions. Unset: the recipe's."""
    projection_width: int | None = setting(None, fallback=256)
    """Hidden channels of the representation head. Unset: 256, 128 for camvid, 64 for shapes."""
    key_encoder: Literal["teacher-head", "student", "teacher"] | None = None
    """Network that computes positives and negatives; teacher-head is the teacher's head on the student's features.
    Unset: the recipe's."""
    labeled_probs: Literal["student", "teacher"] | None = None
    """Network whose probabilities select anchors and negatives among labeled pixels. Unset: the recipe's."""
    second_teacher_pass: bool = False
    """Run the teacher on the mixed images again, as the public release does, for entropies, probabilities and keys."""
    unsupervised_weight_cap: float | None = CRITERION["unsupervised_weight_cap"]
    """Upper bound of the factor (valid pixels / reliable pixels) in the loss on pseudo-labels."""
    align_corners: bool = CRITERION["align_corners"]
    """Interpolate logits with align_corners."""
    image_mean: tuple[float, ...] | None = setting(None, metavar="MEAN [...]")
    """Mean of each channel, where white is 1. Unset: that of the encoder's weights, or of ImageNet."""
    image_std: tuple[float, ...] | None = setting(None, metavar="STD [...]")
    """Standard deviation of each channel. Unset: as for --image-mean."""
    poly_power: float = 0.9
    """Power of the polynomial decay of the learning rate."""
    checkpoint_encoder: bool = setting(False, free_on_resume=True)
    """Compute the encoder's activations again in the backward pass to save memory."""
    sync_batchnorm: bool = True
    """Synchronize batch norm over the GPUs of a distributed run."""
    cuda_graph: bool = False
    """Replay the contrastive loss as a CUDA graph (one GPU)."""
    cache: bool = setting(True, free_on_resume=True)
    """Keep decoded images in memory if they fit."""
    max_skipped: int = setting(20, free_on_resume=True)
    """Stop after this many steps in a row with a loss or gradient that is not finite."""


@dataclass(kw_only=True)
class TrainConfig(
    DataSettings,
    NetworkSettings,
    MethodSettings,
    BankSettings,
    OptimizationSettings,
    MachineSettings,
    RunSettings,
    ExpertSettings,
):
    """Settings of :func:`u2pl_fast.train` and ``u2pl train``.

    None stands for a value that the data set, the recipe or the library chooses; :func:`u2pl_fast.config.resolve`
    fills it in.

    Examples:
        >>> from u2pl_fast import TrainConfig
        >>> TrainConfig(dataset="folder", data_root=Path("mydata"), method="mean-teacher").steps is None
        True
    """

    @property
    def unlabeled_images(self) -> int:
        """Unlabeled images per process and step."""
        return self.batch_size if self.unlabeled_batch_size is None else self.unlabeled_batch_size

    @property
    def image_format(self) -> ImageFormat:
        """Channels and value range of the image files."""
        return ImageFormat(self.in_channels, self.value_range)

    @property
    def label_choice(self) -> LabelChoice:
        """Choice of labeled and unlabeled training images."""
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
        """Return one split ("train", "val", ...) of the data set; see :func:`u2pl_fast.data.build_dataset`."""
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
        """Return the options of the training loader, which pads crops to multiples of ``pad_multiple``."""
        return LoaderOptions(
            views=ViewOptions(
                resolved("crop_size", self.crop_size),
                pad_multiple,
                self.resize,
                resolved("scale_range", self.scale_range),
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
        """Return the settings as primitives, as YAML files and checkpoints hold them, in the order of ``--help``."""
        return {field.name: primitive(getattr(self, field.name)) for field in ordered_fields(type(self))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> "TrainConfig":
        """Return the config with these values, as YAML or a Python caller gives them.

        Raises:
            ValueError: an unknown or renamed name, or a value of another type; the message begins with ``source``.
        """
        refuse_renamed(values, source)
        return cls(**typed_values(cls, values, source))

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the config of a checkpoint, which an earlier version may have written."""
        return cls.from_dict(upgraded(values))

    @classmethod
    def from_yaml(cls, path: Path) -> "TrainConfig":
        """Return the config in a YAML file of ``name: value`` lines.

        Raises:
            ValueError: the file cannot be read, or a line is not a setting.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ValueError(f"config: cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"config: {path} is not UTF-8 text: {error}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"config: {path} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"config: {path} must hold 'name: value' lines")
        return cls.from_dict(values, str(path))


BOUNDS: dict[str, Bound] = noted(TrainConfig, "bound")
FALLBACKS: dict[str, Any] = noted(TrainConfig, "fallback")
DATA_SETTINGS = tuple(noted(TrainConfig, "data"))
FREE_ON_RESUME = frozenset(noted(TrainConfig, "free_on_resume"))


def resolved(name: str, value: Value | None) -> Value:
    """Return the value of a setting that :func:`u2pl_fast.config.resolve` fills in.

    Raises:
        ValueError: it is None.
    """
    if value is None:
        raise ValueError(f"{name} is None; call u2pl_fast.config.resolve first")
    return value

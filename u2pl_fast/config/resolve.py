"""Fill in what the user left unset, and check settings against each other."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..data import label_map_entries
from ..data.image_format import normalization, pretrained_normalization
from .capacity import capacity_entries
from .settings import BOUNDS, FALLBACKS, TrainConfig, resolved

RECIPE_FILES = Path(__file__).parents[1] / "recipes"  # whole configurations by name, for --config
RECIPES = {
    "lean": {"projection": "pointwise", "key_encoder": "teacher-head", "labeled_probs": "student"},
    "paper": {"projection": "conv", "key_encoder": "teacher", "labeled_probs": "teacher"},
}

# Defaults of each data set.
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
        "bank_capacity": ("2000",),
    },
    "camvid": {
        "crop_size": (256, 320),
        "representation_dim": 128,
        "projection_width": 128,
        "num_anchors": 128,
        "bank_capacity": ("20000",),
    },
    "voc": {"crop_size": (513, 513), "bank_capacity": ("30000", "0:50000")},
    "cityscapes": {"crop_size": (769, 769)},
    "ade20k": {"crop_size": (513, 513), "bank_capacity": ("10000",)},
}


def find_config(name: str) -> Path:
    """Return the file of ``--config``: a path, or the name of a configuration in :data:`RECIPE_FILES`.

    Raises:
        ValueError: there is no such file or configuration.
    """
    path = Path(name)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    names = sorted(file.stem for file in RECIPE_FILES.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"config: no file and no configuration named {name}; choose one of {', '.join(names)}")
    return RECIPE_FILES / f"{name}.yaml"


def resolve(config: TrainConfig) -> TrainConfig:
    """Return a checked copy in which the data set, the recipe and the defaults replace every None that they can.

    Raises:
        ValueError: a setting, or a combination of settings, that cannot be used; the message names it.
    """
    config = dataclasses.replace(config, arch=config.arch.lower())
    _check_choices(config)
    defaults = FALLBACKS | DATASET_DEFAULTS.get(config.dataset, {}) | RECIPES[config.recipe]
    labels_chosen = any(x is not None for x in (config.labeled_fraction, config.num_labeled, config.labeled_list))
    for name, value in defaults.items():
        if getattr(config, name) is None:
            if name == "num_labeled" and labels_chosen or name == "steps" and config.epochs is not None:
                continue
            setattr(config, name, value)
    if config.label_map is not None:
        config.label_map = label_map_entries(config.label_map)  # a checkpoint knows them without the file
    config.bank_capacity = capacity_entries(resolved("bank_capacity", config.bank_capacity))
    if config.encoder_lr is None:
        lr = resolved("lr", config.lr)
        config.encoder_lr = lr if config.encoder_weights == "none" else 0.1 * lr
    encoder = resolved("encoder", config.encoder)
    own = None if config.encoder_weights == "none" else pretrained_normalization(encoder)
    if own not in (None, normalization(3)):
        n = config.in_channels
        mean, std = (x if n == 3 else (sum(x) / 3,) * n for x in own)
        config.image_mean = mean if config.image_mean is None else config.image_mean
        config.image_std = std if config.image_std is None else config.image_std
    _check(config)
    return config


def training_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the length of the run in steps."""
    return config.steps or max(1, round(resolved("epochs", config.epochs) * steps_per_epoch))


def resolve_for_data(config: TrainConfig, steps_per_epoch: int) -> TrainConfig:
    """Return a copy of a resolved config in which the size of the data set replaces the remaining None.

    ``steps`` stays None where ``epochs`` is given: :func:`training_steps` has the number.
    """
    steps = training_steps(config, steps_per_epoch)
    if config.sup_only_epochs is None:
        config = dataclasses.replace(config, sup_only_epochs=0.0 if steps < 4 * steps_per_epoch else 1.0)
    if config.eval_every is None:
        config = dataclasses.replace(config, eval_every=max(1, steps // 5))
    return config


def read_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the method reads; only u2pl reads the recipe."""
    unread = set() if settings["method"] == "u2pl" else {"recipe", *RECIPES["lean"]}
    return {name: value for name, value in settings.items() if name not in unread}


def _check_choices(config: TrainConfig) -> None:
    """Refuse a value that is not one of a setting's choices, which Python callers can pass."""
    for name, hint in get_type_hints(TrainConfig).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
        value = getattr(config, name)
        if kinds and value not in get_args(kinds[0]) and not (value is None and type(None) in get_args(hint)):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(kinds[0]))}, got {value!r}")


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
            f"stop_after: {config.stop_after} is not a multiple of accumulate={config.accumulate}, the steps of one "
            "update; use a multiple"
        )
    if config.steps is not None and config.epochs is not None:
        raise ValueError("steps: set steps or epochs, not both")
    if config.steps is not None and config.steps < 1 or config.epochs is not None and not 0 < config.epochs < math.inf:
        raise ValueError(f"steps: expected at least 1 step, got steps={config.steps}, epochs={config.epochs}")
    if config.dataset == "shapes" and config.data_root is not None:
        raise ValueError("data_root: the built-in data set shapes has no files; add --dataset folder or another")
    chosen = [n for n in ("labeled_fraction", "num_labeled", "labeled_list") if getattr(config, n) is not None]
    if len(chosen) > 1:
        raise ValueError(f"{chosen[0]}: set only one of {', '.join(chosen)}")
    if config.method == "u2pl" and config.projection == "conv" and config.key_encoder == "teacher-head":
        raise ValueError("key_encoder: teacher-head needs projection pointwise; use that, or key_encoder teacher")
    if config.teacher_input == "whole":
        if config.method == "u2pl" and "teacher" in (config.key_encoder, config.labeled_probs):
            raise ValueError("teacher_input: whole does not compute representations; use crop, or recipe lean")
        if config.second_teacher_pass:
            raise ValueError("teacher_input: second_teacher_pass works on crops; use crop")
        if not (config.teacher_scales and min(config.teacher_scales) > 0):
            raise ValueError(f"teacher_scales: expected positive numbers, got {config.teacher_scales}")
    else:
        for name in ("teacher_from", "labels_first"):
            if getattr(config, name):
                raise ValueError(f"{name}: self-training labels whole images; add --teacher-input whole")
    if config.freeze_stages and config.encoder_weights == "none" and not (config.init_from or config.resume):
        raise ValueError("freeze_stages: there are no pretrained weights to keep; set encoder_weights or init_from")
    if config.freeze_batchnorm and config.encoder_weights == "none" and not (config.init_from or config.resume):
        raise ValueError(
            "freeze_batchnorm: there are no pretrained statistics to keep; set encoder_weights or init_from, or add "
            "--no-freeze-batchnorm"
        )
    if config.weigh_pseudo_labels and config.class_weights is None:
        raise ValueError("weigh_pseudo_labels: there are no class weights; set class_weights to balanced or a file")
    if config.bank_scope == "gather" and config.max_keys_per_step == 0:
        raise ValueError(
            "max_keys_per_step: bank_scope gather needs a limit on the keys of a step; set one, or bank_scope local"
        )

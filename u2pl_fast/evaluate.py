"""Compute the mean IoU of a checkpoint on a split of a data set.

All images share one confusion matrix, each image counts once, and labels keep their own size. Under torchrun the
processes share the images.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .config import DeviceSettings, setting, typed_values
from .data import build_dataset, evaluation_samples
from .inference import InferenceSettings, Network, choose_resize, choose_window, evaluate_model, load_model
from .utils.atomic import write_text
from .utils.callable_module import make_callable
from .utils.command_line import parse
from .utils.distributed import rank, session, world_size
from .utils.precision import amp_ignored, autocast_dtype


@dataclass(kw_only=True)
class EvaluateConfig(InferenceSettings, DeviceSettings):
    """Settings of :func:`u2pl_fast.evaluate` and ``u2pl evaluate``."""

    checkpoint: Path = setting(metavar="FILE")
    """Checkpoint that the training wrote, or an exported .safetensors file."""
    dataset: str | None = setting(None, metavar="NAME")
    """Data set. Unset: that of the training."""
    data_root: Path | None = setting(None, metavar="DIR")
    """Folder of the data set. Unset: that of the training."""
    label_map: tuple[str, ...] | None = setting(None, metavar="VALUE:CLASS [...]")
    """Class of each mask value. Unset: that of the training, for the data set of the training."""
    split: str = "val"
    """Split of the data set."""
    network: Network = "auto"
    """Network to evaluate. auto: the one that the training evaluated."""
    batch_size: int = 8
    """Largest number of images of equal size in one forward pass."""
    json: Path | None = setting(None, metavar="FILE")
    """Write miou, iou_per_class, confusion (rows = truth), protocol, network and images to this file."""


def evaluate(checkpoint: str | Path, **settings: Any) -> dict[str, Any]:
    """Compute the mean IoU of a checkpoint on a split of a data set. Same as ``u2pl evaluate``.

    Args:
        checkpoint: file that a training wrote, or an exported ``.safetensors`` file.
        **settings: fields of :class:`EvaluateConfig`, such as ``split="val"``, ``data_root=...`` or ``flip=True``.
            Data set and protocol are those of the training unless given.

    Returns:
        ``miou`` (mean over the classes in truth or prediction, in [0, 1]), ``iou_per_class`` (None for a class in
        neither), ``confusion`` (pixels, rows = truth), ``pixel_accuracy``, ``class_names``, ``network``, ``protocol``
        and ``images``.

    Raises:
        ValueError: a setting, the checkpoint or the data cannot be used; the message names it.

    Examples:
        >>> import u2pl_fast
        >>> scores = u2pl_fast.evaluate("runs/mine/best.pt", split="val")  # doctest: +SKIP
    """
    return run(EvaluateConfig(checkpoint=Path(checkpoint), **typed_values(EvaluateConfig, settings, "evaluate")))


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as ``config`` says; see :func:`evaluate`.

    Raises:
        ValueError: a setting, the checkpoint or the data cannot be used; the message names it.
        OSError: the JSON file cannot be written.
    """
    if config.batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {config.batch_size}")
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
    with session(config.device) as (device, group):
        model, trained, state = load_model(config.checkpoint, device, config.network)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        protocol = config.protocol or trained.protocol
        name = config.dataset or trained.dataset
        root, label_map = config.data_root, config.label_map
        if name == trained.dataset:
            root = trained.data_root if root is None else root
            label_map = trained.label_map if label_map is None else label_map
        dataset = build_dataset(
            name,
            root,
            config.split,
            classes_from=state["class_names"] or None,
            label_map=label_map,
            image_format=trained.image_format,
        )
        if dataset.num_classes != state["num_classes"]:
            raise ValueError(
                f"dataset: {name} has {dataset.num_classes} classes, {config.checkpoint} was trained with "
                f"{state['num_classes']}; evaluate on a data set with the same classes"
            )
        amp_dtype = autocast_dtype(config.amp, device)
        if config.amp != "off" and amp_dtype is None and rank(group) == 0:
            print(amp_ignored(config.amp), file=sys.stderr)
        result = evaluate_model(
            model,
            evaluation_samples(dataset, choose_resize(config.resize, trained), rank(group), world_size(group)),
            num_classes=dataset.num_classes,
            ignore_index=dataset.ignore_index,
            device=device,
            protocol=protocol,
            window=choose_window(protocol, config.window, trained),
            stride=config.stride,
            flip=config.flip,
            scales=config.scales,
            amp_dtype=amp_dtype,
            channels_last=config.channels_last,
            batch_size=config.batch_size,
            group=group,
        )
        result["network"] = state["network"]
        if config.json is not None and rank(group) == 0:
            write_text(config.json, json.dumps(result) + "\n")
    return {**result, "class_names": list(dataset.class_names)}


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['network']}, {result['protocol']}, {result['images']} images"
    table = Table(title=title, show_footer=True)
    table.add_column("class", footer="mean")
    table.add_column("IoU", footer=f"{result['miou']:.4f}", justify="right")
    table.add_column("share of pixels", justify="right")
    total = max(1, sum(map(sum, result["confusion"])))
    for name, iou, row in zip(result["class_names"], result["iou_per_class"], result["confusion"], strict=True):
        table.add_row(name, "-" if iou is None else f"{iou:.4f}", f"{sum(row) / total:.2%}")
    return table


def main(arguments: list[str] | None = None) -> None:
    """Parse flags, evaluate and print a table; print bad input as one line."""
    try:
        result = run(parse(EvaluateConfig, arguments, command="evaluate", description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if int(os.environ.get("RANK", 0)) == 0:
        Console().print(_table(result))


make_callable(__name__)  # u2pl_fast.evaluate(...), as for train

if __name__ == "__main__":
    main()

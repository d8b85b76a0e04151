"""``python -m u2pl_fast.evaluate --checkpoint F --json OUT``: mean IoU of a checkpoint on a split of a data set.

One confusion matrix, each image once, labels at their own size. Under torchrun the images are shared out.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from .data import build_dataset, evaluation_samples
from .inference import Protocol, choose_resize, choose_window, evaluate_model, load_model
from .utils.atomic import write_text
from .utils.distributed import rank, session, world_size
from .utils.precision import autocast_dtype, refusal


@dataclass
class EvaluateConfig:
    """Mean IoU of a checkpoint on a split of a data set: one confusion matrix, each image once, labels at their own
    size."""

    checkpoint: Path
    """File that the training wrote."""
    dataset: str | None = None
    """Unset: the dataset of the training."""
    data_root: Path | None = None
    """Folder of the dataset; unset: that of the training."""
    label_map: tuple[str, ...] | None = None
    """Class of each mask value; unset: that of the training, for the dataset of the training."""
    split: str = "val"
    protocol: Protocol | None = None
    """whole image at once, or averaged sliding windows; unset: as in the training."""
    window: tuple[int, int] | None = None
    """Height and width of the windows of slide; unset: the training's crop."""
    stride: tuple[int, int] | None = None
    """Distance between windows; unset: two thirds of the window."""
    flip: bool = False
    """Average with the prediction for the mirrored image."""
    scales: tuple[float, ...] = (1.0,)
    """Average over the image at these multiples of its size."""
    resize: tuple[int, int] | None = None
    """Height and width that the network sees; unset: as in the training; 0 0: the image's own. Never the labels'."""
    network: Literal["auto", "teacher", "student"] = "auto"
    """Network to evaluate; auto: the one that the training evaluated."""
    batch_size: int = 8
    """Images of equal size that share a forward pass, at most."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    amp: bool = False
    """Run the network in bfloat16; left off on CPUs that only emulate it."""
    channels_last: bool = False
    json: Path | None = None
    """File for miou, iou_per_class, confusion (rows = truth), protocol, network and images."""


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as ``config`` says; returns what the JSON file holds, and ``class_names``.

    Raises:
        ValueError: a setting, the checkpoint or the data can't be used; the message names it.
        OSError: the JSON file can't be written.
    """
    if config.batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {config.batch_size}")
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
    with session(config.device) as (device, group):
        model, trained, state = load_model(config.checkpoint, device, config.network)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        protocol = config.protocol or trained.eval_protocol
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
        amp_dtype = autocast_dtype(config.amp, torch.bfloat16, device)
        if config.amp and amp_dtype is None and rank(group) == 0:
            print(refusal(torch.bfloat16), file=sys.stderr)
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
    """Parse flags, evaluate, print a table; bad input ends in one line."""
    config = tyro.cli(EvaluateConfig, args=arguments, prog="python -m u2pl_fast.evaluate")
    try:
        result = run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if int(os.environ.get("RANK", 0)) == 0:
        Console().print(_table(result))


if __name__ == "__main__":
    main()

"""``python -m u2pl_fast.export --checkpoint F --out model.onnx``: the evaluated network without its training.

``.safetensors`` holds the weights, for evaluate, predict and other tools. ``.onnx`` and ``.pt2`` (torch.export) hold
the computation too, and need nothing of this package to run: they take uint8 (B, N, H, W), RGB where N = 3, and
normalize it themselves.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from torch import nn

from .inference import load_model
from .saving import programs, weights_file

Format = Literal["safetensors", "onnx", "torch-export"]
SUFFIXES: dict[Format, str] = {"safetensors": weights_file.SUFFIX, "onnx": ".onnx", "torch-export": ".pt2"}
_SIZE = (512, 512)  # to trace at, where the training names none


@dataclass
class ExportConfig:
    """Write one network of a checkpoint into a file of its own: .safetensors (weights that evaluate and predict take),
    .onnx or .pt2 (torch.export). The last two are compared with the network after writing."""

    checkpoint: Path
    """File that the training wrote, or an exported .safetensors."""
    out: Path
    """File to write; its name ends in .safetensors, .onnx or .pt2."""
    network: Literal["auto", "teacher", "student"] = "auto"
    """auto: the one that the training evaluated."""
    format: Format | None = None
    """Unset: by the end of the file's name."""
    outputs: programs.Outputs = "logits"
    """Of .onnx and .pt2. logits: on the network's own grid; labels: a label and a confidence for each pixel."""
    size: tuple[int, int] | None = None
    """Height and width that .onnx and .pt2 take, raised to what the network needs; unset: any."""
    tolerance: float = 1e-3
    """Largest difference from the network's outputs, as a share of the largest of them; above it nothing is written."""


def run(config: ExportConfig) -> programs.ExportReport | None:
    """Export as ``config`` says; returns how an .onnx or .pt2 file came out.

    Raises:
        ValueError: a file cannot be read or written, or holds no such network, or what was written computes something
            else; the message names it.
    """
    kind = _format(config)
    if kind == "safetensors" and (config.outputs != "logits" or config.size is not None):
        raise ValueError(
            "outputs, size: a .safetensors file holds weights alone; leave them out, or write .onnx or .pt2"
        )
    if kind == "onnx":
        programs.require_onnx()  # before the checkpoint is read
    if config.size is not None and min(config.size) < 1:
        raise ValueError(f"size: expected a height and width of at least 1, got {config.size}")
    if not config.tolerance > 0:
        raise ValueError(f"tolerance: expected a positive number, got {config.tolerance}")
    model, trained, state = load_model(config.checkpoint, network=config.network)
    if kind == "safetensors":
        weights_file.save_network(config.out, state)
        return None
    print("tracing the network, which takes a minute or more", flush=True)
    return programs.write(
        config.out,
        model,
        kind,
        about(model, state, config.outputs),
        outputs=config.outputs,
        size=config.size or trained.resize or trained.crop_size or _SIZE,
        fixed=config.size is not None,
        tolerance=config.tolerance,
    )


def about(model: nn.Module, state: Mapping[str, Any], outputs: programs.Outputs) -> dict[str, str]:
    """What an exported file says of itself; lists and numbers as JSON."""
    order = ", RGB" if model.in_channels == 3 else ""
    given = {
        "logits": "logits: float32 (batch, classes, height', width'); upsample them bilinearly to height x width, with "
        "this align_corners",
        "labels": "labels: integer class ids (batch, height, width); confidence: float32, the label's probability",
    }
    return {
        "input": f"images: uint8 (batch, {model.in_channels}, height, width){order}, not normalized; pad below and to "
        "the right with pad_color to multiples of pad_multiple",
        "outputs": given[outputs],
        "class_names": json.dumps(state["class_names"]),
        "num_classes": json.dumps(state["num_classes"]),
        "pad_multiple": json.dumps(model.pad_multiple),
        "pad_color": json.dumps(list(model.mean_color)),
        "align_corners": json.dumps(model.align_corners),
        "resize": json.dumps(state["config"]["resize"]),
        "network": state["network"],
        "step": json.dumps(state["step"]),
        "config": json.dumps(state["config"]),
    }


def _format(config: ExportConfig) -> Format:
    by_suffix = {suffix: kind for kind, suffix in SUFFIXES.items()}
    kind = config.format or by_suffix.get(config.out.suffix)
    if kind is None:
        raise ValueError(f"out: expected a name that ends in {', '.join(by_suffix)}, got {config.out}")
    if config.out.suffix != SUFFIXES[kind]:
        raise ValueError(f"out: a {kind} file's name ends in {SUFFIXES[kind]}, got {config.out}")
    return kind


def main(arguments: list[str] | None = None) -> None:
    config = tyro.cli(ExportConfig, args=arguments, prog="python -m u2pl_fast.export", description=__doc__)
    try:
        written = run(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{config.out}: {config.out.stat().st_size / 2**20:.1f} MiB")
    if written is not None:
        print(f"takes: {_takes(written)}")
        print(f"compared with the network: largest difference {written.difference.text()}")


def _takes(written: programs.ExportReport) -> str:
    height, width = written.size
    batch = "any batch" if 0 in written.axes else "one image"
    if 2 in written.axes:
        return f"{batch}, any height and width" + (f", multiples of {written.multiple}" if written.multiple > 1 else "")
    text = f"{batch}, {height}×{width} only"
    return f"{text}; not any size, since {written.reason}" if written.reason else text


if __name__ == "__main__":
    main()

"""Write the network of a checkpoint to a file of its own.

.safetensors holds the weights, for evaluate, predict and other tools. .onnx and .pt2 (torch.export) hold the
computation too, need nothing of this package to run, and are compared with the network after writing. They take uint8
images (B, N, H, W), RGB if N = 3, and normalize them.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .config import setting
from .config.settings import SIZE
from .inference import Network, load_model
from .saving import programs, weights_file
from .utils.command_line import parse

Format = Literal["safetensors", "onnx", "torch-export"]
SUFFIXES: dict[Format, str] = {"safetensors": weights_file.SUFFIX, "onnx": ".onnx", "torch-export": ".pt2"}
_TRACED_SIZE = (512, 512)  # if the training has no size


@dataclass(kw_only=True)
class ExportConfig:
    """Settings of ``u2pl export``."""

    checkpoint: Path = setting(metavar="FILE")
    """Checkpoint that the training wrote, or an exported .safetensors file."""
    out: Path = setting(metavar="FILE")
    """File to write; its name ends in .safetensors, .onnx or .pt2."""
    network: Network = "auto"
    """Network to export. auto: the one that the training evaluated."""
    format: Format | None = None
    """Format of the file. Unset: from the end of its name."""
    outputs: programs.Outputs = "logits"
    """Outputs of .onnx and .pt2. logits: at the decoder's stride; labels: label and confidence of each pixel."""
    size: tuple[int, int] | None = setting(None, metavar=SIZE)
    """Image size that .onnx and .pt2 take, rounded up to what the network needs. Unset: any."""
    tolerance: float = 1e-3
    """Largest accepted difference from the network's outputs, relative to the largest of them; above it no file is
    written."""


def run(config: ExportConfig) -> programs.ExportReport | None:
    """Export as ``config`` says. Return the report of an .onnx or .pt2 file.

    Raises:
        ValueError: a file cannot be read or written, it holds no such network, or the written file computes something
            else; the message names it.
    """
    kind = _format(config)
    if kind == "safetensors" and (config.outputs != "logits" or config.size is not None):
        raise ValueError(
            "outputs, size: a .safetensors file holds only weights; drop these flags, or write .onnx or .pt2"
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
    print("tracing the network; this takes a minute or more", flush=True)
    return programs.write(
        config.out,
        model,
        kind,
        about(model, state, config.outputs),
        outputs=config.outputs,
        size=config.size or trained.resize or trained.crop_size or _TRACED_SIZE,
        fixed=config.size is not None,
        tolerance=config.tolerance,
    )


def about(model: nn.Module, state: Mapping[str, Any], outputs: programs.Outputs) -> dict[str, str]:
    """Return the metadata of an exported file; lists and numbers as JSON."""
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
    """Parse flags and export; print bad input as one line."""
    try:
        config = parse(ExportConfig, arguments, command="export", description=__doc__)
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
    return f"{text}; not any size, because {written.reason}" if written.reason else text


if __name__ == "__main__":
    main()

"""Networks as files that run without this package, ``.onnx`` and torch.export's ``.pt2``: written, read back, compared.

A file appears under its name only after what it computes was compared with the network, at the size that it was traced
at and, where it takes any size, at another one.
"""

import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import timm.layers.padding as timm_padding
import torch
from torch import Tensor, nn

from ..data.shapes import Shapes
from ..data.views import padded_size
from ..reference import label_dtype, upsample
from ..utils.atomic import replacing

Outputs = Literal["logits", "labels"]
OUTPUT_NAMES: dict[str, tuple[str, ...]] = {"logits": ("logits",), "labels": ("labels", "confidence")}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
AXES = {0: "batch", 2: "height", 3: "width"}
_ONNX_BYTES = 2**31
_SHAPES_SIDE = 32

Runner = Callable[[Tensor], Sequence[Tensor]]


class ExportedNetwork(nn.Module):
    """A network as it is exported: uint8 (B, N, H, W) → logits (B, C, h, w), or labels and confidence (B, H, W).

    ``labels`` are argmax of the logits upsampled to H×W (uint8, int16 when C > 255), confidence is their softmax's
    greatest value.
    """

    def __init__(self, network: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.network(images).logits
        if self.outputs == "logits":
            return (logits,)
        full = upsample(logits, images.shape[-2:], self.network.align_corners)
        confidence, labels = full.softmax(1).max(1)
        return labels.to(label_dtype(logits.shape[1])), confidence


class Difference(NamedTuple):
    """The largest difference of outputs, logits or probabilities, and its share of the largest of them."""

    relative: float
    absolute: float

    def text(self) -> str:
        return f"{self.absolute:.1e} ({self.relative:.1e} of the largest)"


@dataclass
class ExportReport:
    """What became of an export."""

    axes: tuple[int, ...]
    """Axes of the images whose length is free: 0 batch, 2 height, 3 width."""
    size: tuple[int, int]
    """Height and width traced at: the only ones that fit where the axes are not free."""
    multiple: int
    """What height and width are multiples of."""
    difference: Difference
    """From the network's own outputs."""
    reason: str = ""
    """Why fewer axes are free than were asked for."""


class Mismatch(ValueError):
    """A file that was written does not compute what the network does."""


def write(
    path: Path,
    network: nn.Module,
    kind: Literal["onnx", "torch-export"],
    about: Mapping[str, str],
    *,
    outputs: Outputs = "logits",
    size: Sequence[int],
    fixed: bool = False,
    tolerance: float = 1e-3,
) -> ExportReport:
    """Export ``network``, with any batch and image size that the format can express, and compare.

    Where an export for any size fails, or computes something else at another size than the one traced, one for ``size``
    alone is written instead; the result says so.

    Args:
        path: the file. What was there before stays unless all went well.
        network: in evaluation mode, on the CPU, of a kind that :func:`.inference.predict_labels` takes, with the
            ``image_mean`` that it subtracts.
        about: text stored inside the file.
        size: height and width to trace at, raised to what the network needs.
        fixed: take images of ``size`` only.
        tolerance: bound of the relative difference.

    Raises:
        Mismatch: the outputs differ by more than ``tolerance``.
        ValueError: packages are missing, the network can't be exported, or the file can't be written.
    """
    if kind == "onnx":
        require_onnx()
        if sum(value.nbytes for value in network.state_dict().values()) >= _ONNX_BYTES:
            raise ValueError(f"out: {path} would pass the 2 GiB of an .onnx file; write a .pt2 file")
    if not path.parent.is_dir():
        raise ValueError(f"out: cannot write {path}: no folder {path.parent}")
    exported = ExportedNetwork(network, outputs).eval()
    traced = padded_size(size, network.pad_multiple)
    reason = ""
    try:
        for axes in ((0,), ()) if fixed else ((0, 2, 3), (0,), ()):
            try:
                with replacing(path) as temporary:
                    _save(kind, temporary, exported, traced, axes, about)
                    worst = _check(kind, temporary, exported, traced, axes, tolerance)
            except _UnsupportedSizes as error:
                reason = reason or str(error)
                continue
            return ExportReport(axes, traced, network.pad_multiple, worst, reason)
    except OSError as error:
        raise ValueError(f"out: cannot write {path}: {error.strerror or error}") from error
    except Mismatch as error:
        raise Mismatch(f"{path} was not written: {error}") from None
    raise ValueError(f"checkpoint: this network cannot be exported as {path.suffix} ({reason})")


def require_onnx() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"format: .onnx files need the packages {', '.join(ONNX_PACKAGES)}; not found: {', '.join(missing)}. "
            "pip install onnx onnxruntime onnxscript"
        )


class _UnsupportedSizes(Exception):
    """The exporter can't, or the file holds for the traced size alone."""


def _save(
    kind: str, path: Path, network: ExportedNetwork, size: Sequence[int], axes: Sequence[int], about: Mapping[str, str]
) -> None:
    image = _scenes(network, size)[: 2 if 0 in axes else 1]
    free = {axis: torch.export.Dim.DYNAMIC for axis in axes}
    try:
        with warnings.catch_warnings(), _plain_same_padding(network.network.pad_multiple):
            warnings.simplefilter("ignore")  # about the exporters' own insides
            program = torch.export.export(network, (image,), dynamic_shapes={"images": free}, strict=False)
            if kind == "torch-export":
                torch.export.save(program, path, extra_files={"about.json": json.dumps(dict(about))})
                return
            graph = torch.onnx.export(
                program,
                (image,),
                dynamo=True,
                input_names=["images"],
                output_names=list(OUTPUT_NAMES[network.outputs]),
                dynamic_shapes={"images": {axis: AXES[axis] for axis in axes}},
                verbose=False,
            )
        graph.model.metadata_props.update(about)
        graph.save(path)
    except OSError:
        raise
    except Exception as error:  # the exporters raise dozens of kinds
        raise _UnsupportedSizes(_first_line(error)) from error


@contextmanager
def _plain_same_padding(pad_multiple: int) -> Iterator[None]:
    """timm's "same" padding in terms that can be traced at an unknown size.

    Its ceil(x / stride) nests one expression deeper a layer, many minutes of algebra for an encoder, and no .pt2 file
    holds it. Where images come in multiples of the encoder's stride, each strided layer divides its input, and the
    padding is a constant.
    """

    def padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
        covered = (kernel_size - 1) * dilation + 1
        return max(covered - stride if pad_multiple > 1 else (-(x // -stride) - 1) * stride + covered - x, 0)

    original = timm_padding.get_same_padding
    timm_padding.get_same_padding = padding
    try:
        yield
    finally:
        timm_padding.get_same_padding = original


def _check(
    kind: str, path: Path, network: ExportedNetwork, size: Sequence[int], axes: Sequence[int], tolerance: float
) -> Difference:
    """The largest difference between the file and the network, on noise and on a scene.

    Raises:
        Mismatch: too large at the traced size. _UnsupportedSizes: too large, or not computed, at another size.
    """
    run = load(kind, path)
    scenes = _scenes(network, size)
    batches = [scenes] if 0 in axes else [scenes[:1], scenes[1:]]
    worst = max(compare(run, network, batch) for batch in batches)
    if worst.relative > tolerance:
        raise Mismatch(
            f"its outputs differ from the network's by {worst.text()}, more than the tolerance {tolerance:g}"
        )
    if 2 not in axes:
        return worst
    multiple = network.network.pad_multiple
    other = (size[0] + multiple, padded_size((size[1], size[1] // 2 + 1), multiple)[1])
    try:
        elsewhere = compare(run, network, _scenes(network, other)[1:])
    except Exception as error:
        raise _UnsupportedSizes(_first_line(error)) from error
    if elsewhere.relative > tolerance:
        raise _UnsupportedSizes(f"at {other[0]}×{other[1]} its outputs differ from the network's by {elsewhere.text()}")
    return max(worst, elsewhere)


def load(kind: str, path: Path) -> Runner:
    """What computes an exported file: uint8 images (B, 3, H, W) → its outputs, as CPU tensors."""
    if kind == "torch-export":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it can't do is raised as well
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]


@torch.no_grad()
def compare(run: Runner, network: ExportedNetwork, images: Tensor) -> Difference:
    """Between what ``run`` returns and what the network computes; infinite where a shape differs or a NaN comes out.

    Of labels it is the probability that the network gives its own label, minus that of the label returned.
    """
    logits = network.network(images).logits
    outputs = run(images)
    if network.outputs == "logits":
        return _difference([(outputs[0], logits)])
    probabilities = upsample(logits, images.shape[-2:], network.network.align_corners).softmax(1)
    confidence = probabilities.amax(1)
    labels = outputs[0].long()
    if labels.shape != confidence.shape or labels.min() < 0 or labels.max() >= logits.shape[1]:
        return Difference(math.inf, math.inf)
    chosen = probabilities.gather(1, labels[:, None])[:, 0]
    return _difference([(chosen, confidence), (outputs[1], confidence)])


def _difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    absolute = largest = 0.0
    for got, expected in pairs:
        if got.shape != expected.shape:
            return Difference(math.inf, math.inf)
        gap = (got - expected).abs().max().item()
        absolute = max(absolute, math.inf if math.isnan(gap) else gap)
        largest = max(largest, expected.abs().max().item())
    return Difference(absolute / largest if largest else absolute, absolute)


def _scenes(network: ExportedNetwork, size: Sequence[int]) -> Tensor:
    """Two images to trace with and to compare on: noise, and a scene of the built-in data."""
    height, width = size
    channels = network.network.image_mean.numel()
    noise = torch.randint(256, (height, width, channels), generator=torch.Generator().manual_seed(0))
    data = Shapes("val", size=(max(height, _SHAPES_SIDE), max(width, _SHAPES_SIDE)), length=1)
    scene = torch.from_numpy(data.image(0)[:height, :width, np.arange(channels) % 3])
    return torch.stack([noise.to(torch.uint8), scene]).permute(0, 3, 1, 2).contiguous()


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text[:200]

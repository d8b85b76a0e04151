"""Export networks to files that run without this package: ``.onnx``, and ``.pt2`` of torch.export.

A file gets its name only after its outputs were compared with the network's, at the traced size and, if it accepts any
size, at another one.
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
    """Compute what an exported file computes from images, uint8 (B, N, H, W).

    With outputs ``"logits"`` it returns logits (B, C, h, w). With ``"labels"`` it returns the most likely class of each
    pixel (uint8, or int16 when C > 255) and its probability, both (B, H, W).
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
    """Hold the largest difference of outputs, logits or probabilities.

    Attributes:
        relative: divided by the largest output.
        absolute: the difference itself.
    """

    relative: float
    absolute: float

    def text(self) -> str:
        return f"{self.absolute:.1e} ({self.relative:.1e} of the largest)"


@dataclass
class ExportReport:
    """Describe an exported file."""

    axes: tuple[int, ...]
    """Image axes of any length: 0 batch, 2 height, 3 width."""
    size: tuple[int, int]
    """Traced height and width: the only ones that fit unless the axes are free."""
    multiple: int
    """Number that height and width must be multiples of."""
    difference: Difference
    """Difference from the network's outputs."""
    reason: str = ""
    """Reason why fewer axes are free than requested."""


class Mismatch(ValueError):
    """Report that an exported file does not compute what the network computes."""


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
    """Export ``network`` for any batch and image size that the format supports, and compare its outputs.

    If an export for any size fails, or computes something else at another size than the traced one, export for ``size``
    alone; the result says so.

    Args:
        path: the file. An existing file is replaced only if all goes well.
        network: in evaluation mode, on the CPU, as :func:`.inference.predict_labels` takes it, with its ``image_mean``.
        kind: format of the file.
        about: text stored in the file.
        outputs: what the file computes.
        size: height and width to trace at, rounded up to what the network needs.
        fixed: accept images of ``size`` only.
        tolerance: limit of the relative difference.

    Raises:
        Mismatch: the outputs differ by more than ``tolerance``.
        ValueError: packages are missing, the network cannot be exported, or the file cannot be written.
    """
    if kind == "onnx":
        require_onnx()
        if sum(value.nbytes for value in network.state_dict().values()) >= _ONNX_BYTES:
            raise ValueError(f"out: {path} would exceed the 2 GiB of an .onnx file; use a name that ends in .pt2")
    if not path.parent.is_dir():
        raise ValueError(f"out: cannot write {path}: no folder {path.parent}; create it first")
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
            f"format: .onnx files need the packages {', '.join(ONNX_PACKAGES)}; missing: {', '.join(missing)}. "
            "pip install onnx onnxruntime onnxscript"
        )


class _UnsupportedSizes(Exception):
    """Report that the exporter fails, or that the file is right at the traced size only."""


def _save(
    kind: str, path: Path, network: ExportedNetwork, size: Sequence[int], axes: Sequence[int], about: Mapping[str, str]
) -> None:
    image = _scenes(network, size)[: 2 if 0 in axes else 1]
    free = {axis: torch.export.Dim.DYNAMIC for axis in axes}
    try:
        with warnings.catch_warnings(), _plain_same_padding(network.network.pad_multiple):
            warnings.simplefilter("ignore")  # about the exporters' internals
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
    except Exception as error:  # the exporters raise many types
        raise _UnsupportedSizes(_first_line(error)) from error


@contextmanager
def _plain_same_padding(pad_multiple: int) -> Iterator[None]:
    """Replace timm's "same" padding by a form that can be traced at an unknown size.

    Its ceil(x / stride) nests one expression deeper per layer, which takes minutes to simplify, and a .pt2 file cannot
    hold it. If image sizes are multiples of the encoder's stride, the padding of each strided layer is a constant.
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
    """Return the largest difference between the file and the network, on noise and on a scene.

    Raises:
        Mismatch: it is too large at the traced size.
        _UnsupportedSizes: it is too large at another size, or the file fails there.
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
    """Return a function that runs an exported file: uint8 images (B, 3, H, W) → its outputs, as CPU tensors."""
    if kind == "torch-export":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]


@torch.no_grad()
def compare(run: Runner, network: ExportedNetwork, images: Tensor) -> Difference:
    """Return the difference between what ``run`` and the network compute; infinite for a wrong shape or a NaN.

    For labels it is the network's probability of its own label minus that of the returned label.
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
    """Return two images to trace with and to compare on: noise, and a scene of the built-in data."""
    height, width = size
    channels = network.network.image_mean.numel()
    noise = torch.randint(256, (height, width, channels), generator=torch.Generator().manual_seed(0))
    data = Shapes("val", size=(max(height, _SHAPES_SIDE), max(width, _SHAPES_SIDE)), length=1)
    scene = torch.from_numpy(data.image(0)[:height, :width, np.arange(channels) % 3])
    return torch.stack([noise.to(torch.uint8), scene]).permute(0, 3, 1, 2).contiguous()


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text[:200]

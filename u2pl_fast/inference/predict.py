"""Compute label maps with a trained network, at any size.

``whole`` passes the image through the network once; label, confidence and entropy are computed directly from the
low-resolution logits, which are never stored at full size. ``slide`` passes overlapping windows through it and averages
their probabilities. Both can average over the mirrored image and over scales. Labels are never resized; images may be.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data.image_format import mean_color, normalization
from ..data.views import padded_size, resize_image
from ..reference import PixelStats, upsample
from .averaging import SlidingView, View, WholeView, mean_stats

Protocol = Literal["whole", "slide"]
Sample = tuple[Tensor, Tensor, str]


@torch.no_grad()
def predict_labels(
    model: nn.Module,
    image: Tensor,
    size: Sequence[int] | None = None,
    *,
    protocol: Protocol = "whole",
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    amp_dtype: torch.dtype | None = None,
) -> PixelStats:
    """Return label ``argmax p``, confidence ``max p`` and entropy ``−Σ p log p`` (nats) of every pixel.

    With f the network, I_s the image resized by s, up() bilinear interpolation to the result and m() the mirror image:

        p = (1/#scales) Σ_s p_s,   p_s = softmax(up(f(I_s))),   and with flip p_s = softmax(up(log q_s)) where
        q_s = ½ softmax(f(I_s)) + ½ m(softmax(f(m(I_s)))) at the network's resolution.

    ``slide`` computes this for each window of I_s at the window's size; p_s is the mean over the windows that cover a
    pixel, interpolated to the result.

    The image is padded with the mean color, below and to the right, to a size that the network accepts; the padding is
    removed from the result. For another ``size`` than the image's, the logits (``whole``) or the averaged probabilities
    (``slide``) are interpolated to that size directly. Probabilities exist for a strip of rows at a time
    (:mod:`.averaging`).

    Args:
        model: returns an object with ``logits`` ``(B, C, h', w')``; has ``pad_multiple`` and ``align_corners``. It runs
            in its current mode: switch to evaluation mode first.
        image: uint8 ``(B, N, h, w)`` on the model's device; N is the model's ``in_channels``, or 3 if it has none.
        size: ``(H, W)`` of the result; None = that of the image.
        protocol: ``"whole"`` or ``"slide"``.
        window: height and width of the windows of ``slide``, in pixels of each scale; a smaller image is one window.
        stride: distance between windows, at most their size; None = two thirds of it.
        flip: average the probabilities with those of the mirrored image.
        scales: factors of the image's size; the probabilities of all are averaged.
        amp_dtype: autocast the network to this dtype.

    Returns:
        PixelStats of ``(B, H, W)``: label uint8 (int16 when C > 255), confidence and entropy float32.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    _check_image(image, getattr(model, "in_channels", 3))
    size = tuple(image.shape[-2:]) if size is None else tuple(size)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales: expected positive factors such as 0.75 1 1.25, got {tuple(scales)}")
    if protocol == "slide":
        window, stride = _check_windows(window, stride)
    elif protocol != "whole":
        raise ValueError(f"protocol: expected 'whole' or 'slide', got {protocol!r}")

    views: list[View] = []
    for scale in scales:
        sides = [max(1, round(scale * side)) for side in image.shape[-2:]]
        scaled = image if scale == 1 else resize_image(image, sides)
        if protocol == "slide":
            fitting = [min(pair) for pair in zip(window, sides, strict=True)]
            windows = partial(_window_probabilities, model, flip=flip, amp_dtype=amp_dtype)
            views.append(SlidingView(windows, scaled, fitting, stride, size))
            continue
        padded = _pad(scaled, model)
        logits = _network_logits(model, padded, flip, amp_dtype)
        full = _padded_result(size, padded, sides)
        if len(scales) == 1:  # directly from the low-resolution logits
            stats = ops.pixel_stats(logits, full, align_corners=model.align_corners)
            return PixelStats(*(x[:, : size[0], : size[1]] for x in stats))
        views.append(WholeView(logits, full, size[1], model.align_corners))
    return mean_stats(views, size)


@torch.no_grad()
def predict_logits(
    model: nn.Module, image: Tensor, size: Sequence[int], *, amp_dtype: torch.dtype | None = None
) -> Tensor:
    """Return float32 logits ``(B, C, H, W)`` at ``size``; ``predict_labels`` needs less memory.

    Arguments and errors are those of :func:`predict_labels` with protocol ``whole``.
    """
    _check_image(image, getattr(model, "in_channels", 3))
    padded = _pad(image, model)
    logits = _network_logits(model, padded, False, amp_dtype)
    full = upsample(logits, _padded_result(size, padded, image.shape[-2:]), model.align_corners)
    return full[..., : size[0], : size[1]]


@torch.no_grad()
def predict_cells(
    model: nn.Module, image: Tensor, cells: Sequence[int], *, amp_dtype: torch.dtype | None = None
) -> Tensor:
    """Return float32 logits ``(B, C, *cells)`` at the centers of rows × columns equal cells of the image.

    They are interpolated bilinearly between the network's logits. Arguments and errors are those of
    :func:`predict_labels` with protocol ``whole``.
    """
    _check_image(image, getattr(model, "in_channels", 3))
    padded = _pad(image, model)
    logits = _network_logits(model, padded, False, amp_dtype).float()
    axes = []
    for number, side, pad in zip(cells, image.shape[-2:], padded.shape[-2:], strict=True):
        place = (torch.arange(number, device=logits.device) + 0.5) * (side / number)  # pixels from the image's edge
        axes.append(2 * (place - 0.5) / max(1, pad - 1) - 1 if model.align_corners else 2 * place / pad - 1)
    rows, columns = axes
    points = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), -1)
    points = points.expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, points, padding_mode="border", align_corners=model.align_corners)


def _padded_result(size: Sequence[int], padded: Tensor, sides: Sequence[int]) -> list[int]:
    """Return the size of the padded image at the result's scale; the padding is removed later."""
    return [max(out, round(pad * out / side)) for out, pad, side in zip(size, padded.shape[-2:], sides, strict=True)]


def _check_windows(
    window: Sequence[int] | None, stride: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if window is None:
        raise ValueError("window: the slide protocol needs the window's height and width")
    if stride is None:
        stride = [max(1, 2 * side // 3) for side in window]
    if len(window) != 2 or len(stride) != 2 or not all(0 < s <= w for s, w in zip(stride, window, strict=True)):
        raise ValueError(f"stride: expected two numbers from 1 to the window's {tuple(window)}, got {tuple(stride)}")
    return tuple(window), tuple(stride)


def _window_probabilities(model: nn.Module, window: Tensor, flip: bool, amp_dtype: torch.dtype | None) -> Tensor:
    """Return probabilities (B, C, h, w) of a window (B, N, h, w), at its own size."""
    height, width = window.shape[-2:]
    padded = _pad(window, model)
    logits = upsample(_network_logits(model, padded, flip, amp_dtype), padded.shape[-2:], model.align_corners)
    return logits[..., :height, :width].softmax(1)


def _network_logits(model: nn.Module, image: Tensor, flip: bool, amp_dtype: torch.dtype | None) -> Tensor:
    """Return the network's logits; with ``flip``, the logarithm of the mean of both probabilities."""
    with torch.autocast(image.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits = model(image).logits
        if flip:
            mirrored = model(image.flip(-1)).logits.flip(-1)
    if not flip:
        return logits
    return torch.logaddexp(logits.float().log_softmax(1), mirrored.float().log_softmax(1))


def _pad(image: Tensor, model: nn.Module) -> Tensor:
    """Pad with the mean color, below and to the right, to a size that the model accepts."""
    height, width = image.shape[-2:]
    padded_height, padded_width = padded_size((height, width), model.pad_multiple)
    if (padded_height, padded_width) == (height, width):
        return image
    padded = image.new_empty(*image.shape[:2], padded_height, padded_width)
    color = getattr(model, "mean_color", None) or mean_color(normalization(image.shape[1])[0])
    for channel, value in enumerate(color):
        padded[:, channel].fill_(value)
    padded[..., :height, :width] = image
    return padded


def _check_image(image: Tensor, channels: int) -> None:
    if image.dtype != torch.uint8:
        raise TypeError(f"image: expected uint8 in 0..255, got {image.dtype}")
    if image.dim() != 4 or image.shape[1] != channels or 0 in image.shape:
        raise ValueError(f"image: expected (B, {channels}, h, w), got {tuple(image.shape)}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block, uncompiled because images have many sizes; restore it afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager") if model._compiled_call_impl else nullcontext():
            yield
    finally:
        for module, training in modes:
            module.training = training

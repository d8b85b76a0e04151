"""Compute the cross-entropy of low-resolution logits and full-resolution labels without upsampled logits."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks
from ._gradient import scale_gradient

REDUCTIONS = ("mean", "sum", "parts")


def upsampled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    align_corners: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute ``F.cross_entropy(F.interpolate(logits, target.shape[-2:], mode="bilinear"), target)`` in one pass.

    Two defaults differ from torch: ``ignore_index`` is 255, not −100, and upsampling is bilinear, not nearest. With l
    the upsampled logits, p = softmax(l), ε the label smoothing, w and pw the class and pixel weights, and sums over the
    pixels that are not ignored:

        ℓ = (1−ε)·w_y·(−log p_y) + (ε/C)·Σ_c w_c·(−log p_c)
        num = Σ pw·ℓ,  den = Σ pw·w_y,  mean = num / den

    The forward pass computes the gradient of num in float32 at low resolution; the backward pass scales it and converts
    its dtype. No tensor of B·C·H·W elements exists. Under AMP, pass half-precision logits unchanged.

    Args:
        logits: (B, C, h, w), contiguous or channels_last; float32, bfloat16, float16 or float64.
        target: (B, H, W), any integer dtype; larger or smaller than h×w.
        weight: (C), a weight per class.
        pixel_weight: (B, H, W), a weight per pixel, or a bool mask.
        ignore_index: the label of ignored pixels; must not be a class.
        label_smoothing: ε in [0, 1].
        reduction: ``mean``: num / den, or 0 with a gradient of 0 if den is 0. ``sum``: num. ``parts``: (num, den), for
            a mean over several processes; gradient flows through num.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        One 0-d float32 tensor, or two for ``parts`` (float64 for float64 logits), differentiable once with respect to
            the logits.

    Raises:
        ValueError: an argument has a wrong shape, device or value, a target or weight requires a gradient, or a label
            is neither a class nor ``ignore_index``. On CUDA such a label counts as ignored, and ``check_label_errors``
            raises; set ``U2PL_FAST_DEBUG=1`` to raise at once.
        TypeError: an argument has a wrong dtype.
        RuntimeError: a second derivative is requested.

    Examples:
        >>> logits, target = torch.zeros(1, 4, 2, 2, requires_grad=True), torch.randint(0, 4, (1, 8, 8))
        >>> loss = ops.upsampled_cross_entropy(logits, target)
        >>> print(f"{loss.item():.4f}")
        1.3863
        >>> loss.backward()

    Source: ``torch.nn.functional.cross_entropy``; L_s and L_u of U²PL (Wang et al., CVPR 2022).
    """
    _checks.check_logits(logits)
    _checks.check_target(target, logits, ignore_index)
    if weight is not None:
        _checks.check_constant("weight", weight, logits)
        if weight.shape != logits.shape[1:2]:
            raise ValueError(f"weight: expected ({logits.shape[1]},), one per class, got {tuple(weight.shape)}")
    if pixel_weight is not None:
        _checks.check_map("pixel_weight", pixel_weight, logits, target.shape)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    need_grad = torch.is_grad_enabled() and logits.requires_grad
    num, den, _ = _upsampled_cross_entropy(
        _checks.dense(logits),
        target.contiguous(),
        weight,
        None if pixel_weight is None else pixel_weight.contiguous(),
        ignore_index,
        float(label_smoothing),
        align_corners,
        need_grad,
    )
    if reduction == "sum":
        return num
    if reduction == "parts":
        return num, den
    return num / (den + (den == 0))  # num is 0 where den is; dividing by a tiny number overflows backwards


@torch.library.custom_op("u2pl_fast::upsampled_cross_entropy", mutates_args=())
def _upsampled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return num, den, and the gradient of num with respect to the logits, empty if not ``need_grad``."""
    arguments = (ignore_index, label_smoothing, align_corners, need_grad)
    match _backend.resolve("upsampled_cross_entropy", logits):
        case "cpu":
            return _backend.extension().upsampled_cross_entropy(logits, target, weight, pixel_weight, *arguments)
        case "triton":
            errors = _checks.label_errors(logits.device)
            kernel = _backend.kernel("upsampled_cross_entropy").upsampled_cross_entropy
            result = kernel(logits, target, weight, pixel_weight, errors, *arguments)
        case _:
            result = _plain(logits, target, weight, pixel_weight, *arguments)
            _checks.count_label_errors(target, logits.shape[1], ignore_index)
    _checks.label_errors_now(target, logits.shape[1], ignore_index)
    return result


def _plain(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss with ``reference.py``, and its derivative by formula: autograd is off inside a custom op."""
    num, den = reference.upsampled_cross_entropy(
        logits,
        target,
        weight=weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="parts",
        align_corners=align_corners,
    )
    if not need_grad:
        return num, den, num.new_empty(0)
    num_classes = logits.shape[1]
    y, kept = reference.kept_target(target, num_classes, ignore_index)
    p = reference.upsample(logits, target.shape[-2:], align_corners).softmax(1)
    w = p.new_ones(num_classes) if weight is None else weight.to(p.dtype)
    pw = kept.to(p.dtype) if pixel_weight is None else torch.where(kept, pixel_weight.to(p.dtype), 0)
    spread = (label_smoothing / num_classes * w)[:, None, None].expand_as(p)
    share = spread.scatter_add(1, y[:, None], ((1 - label_smoothing) * w[y])[:, None])
    slope = torch.where(kept[:, None], pw[:, None] * (p * share.sum(1, keepdim=True) - share), 0)
    grad = torch.ops.aten.upsample_bilinear2d_backward(
        slope, target.shape[-2:], logits.shape, align_corners, None, None
    )
    return num, den, torch.empty_like(logits, dtype=p.dtype).copy_(grad)


@_upsampled_cross_entropy.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    grad = torch.empty_like(logits, dtype=wide) if need_grad else logits.new_empty(0, dtype=wide)
    return logits.new_empty((), dtype=wide), logits.new_empty((), dtype=wide), grad


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[2], inputs[0])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)  # do not allocate zeros for the unused outputs


def _backward(ctx: Any, grad_num: Tensor | None, *_: None) -> tuple:
    grad, logits = ctx.saved_tensors
    scaled = None if grad_num is None else scale_gradient(grad, grad_num, logits, "upsampled_cross_entropy")
    return (scaled, *[None] * 7)


_upsampled_cross_entropy.register_autograd(_backward, setup_context=_save)

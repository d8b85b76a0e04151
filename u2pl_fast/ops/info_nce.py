"""Compute the pixel-to-class contrastive loss against a bank of keys, and its gradient in the same pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from . import _backend, _checks
from ._contrast_checks import check_ring_values, check_rings, check_tensor, check_values
from ._gradient import scale_gradient

NEGATIVES = ("per_anchor", "shared", "full")


def info_nce(
    anchors: Tensor,
    weight: Tensor,
    positives: Tensor,
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    *,
    indices: Tensor | None = None,
    draws: Tensor | None = None,
    negatives: str = "per_anchor",
    temperature: float = 0.5,
) -> Tensor:
    """Compute the contrastive loss of M anchors per class against the class center and the keys in a bank.

        L = Σ_c weight_c · mean_m −log( e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s⁻_j/τ}) )

    s⁺ is the cosine of anchor and positive, s⁻_j the cosine of the anchor and key j. Keys in the bank have norm 1;
    other norms are clamped at 1e-12. The softmax is online, and no tensor of C·M·N·D elements exists. The forward pass
    also computes the gradient; the backward pass scales it and converts its dtype.

    Args:
        anchors: (C, M, D), float32, bfloat16, float16 or float64.
        weight: (C); a class with weight 0 is skipped and not read.
        positives: (C, D), the class centers, of any norm.
        bank: (ΣK_c, D), float32, bfloat16 or float16, as ``ring_push`` stores it.
        offsets: int64 (C+1), the start of each ring.
        pushed: int64 (C), the keys pushed so far.
        indices: int64 slots within the class, each below its fill: (C, M, N) for ``per_anchor``, (C, N) for ``shared``.
        draws: in place of ``indices``, int64 of the same shape, uniform in [0, 2³²): slot (draw · fill) >> 32.
        negatives: ``per_anchor``: N keys for each anchor. ``shared``: N keys for each class. ``full``: all keys of the
            class, without ``indices`` or ``draws``.
        temperature: τ > 0.

    Returns:
        0-d float32, or float64 for float64 anchors; differentiable once, with respect to the anchors only.

    Raises:
        ValueError: an argument has a wrong shape, device or value. On the CPU also: a ring lies outside the bank, or a
            slot is at or past the fill of its class. On CUDA such a slot is skipped.
        TypeError: an argument has a wrong dtype.
        RuntimeError: a second derivative is requested.

    Examples:
        >>> anchors = torch.randn(3, 4, 8, requires_grad=True)
        >>> bank = torch.nn.functional.normalize(torch.randn(30, 8))
        >>> rings = (bank, torch.tensor([0, 10, 20, 30]), torch.tensor([10, 10, 10]))
        >>> loss = ops.info_nce(anchors, torch.full((3,), 1 / 3), torch.randn(3, 8), *rings, negatives="full")
        >>> loss.backward()

    Source: Wang et al., CVPR 2022, Eq. 4 (``per_anchor``) and Algorithm 1 (``shared``).
    """
    if anchors.dim() != 3 or 0 in anchors.shape:
        raise ValueError(f"anchors: expected (C, M, D), with every dimension ≥ 1, got {tuple(anchors.shape)}")
    if anchors.dtype not in _checks.FLOATS:
        raise TypeError(f"anchors: expected float32, bfloat16, float16 or float64, got {anchors.dtype}")
    num_classes, num_anchors, dim = anchors.shape
    device = anchors.device
    check_rings(bank, offsets, pushed, dim, device)
    check_tensor("pushed", pushed, torch.int64, (num_classes,), device)
    for name, x, shape in (("weight", weight, (num_classes,)), ("positives", positives, (num_classes, dim))):
        if not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {x.dtype}")
        check_tensor(name, x, x.dtype, shape, device)
        _checks.check_constant(name, x, anchors)
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives: expected one of {', '.join(NEGATIVES)}, got {negatives!r}")
    if (indices is not None) + (draws is not None) != (negatives != "full"):
        expected = "neither indices nor draws" if negatives == "full" else "either indices or draws"
        raise ValueError(f"indices: negatives {negatives!r} requires {expected}")
    name, slots = ("indices", indices) if draws is None else ("draws", draws)
    if slots is not None:
        lead = (num_classes, num_anchors) if negatives == "per_anchor" else (num_classes,)
        if slots.dim() != len(lead) + 1:
            shape = "(C, M, N)" if negatives == "per_anchor" else "(C, N)"
            raise ValueError(f"{name}: expected {shape} for {negatives!r}, got {tuple(slots.shape)}")
        check_tensor(name, slots, torch.int64, (*lead, slots.shape[-1]), device)
        slots = slots.contiguous()
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number > 0, got {temperature}")
    wide = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    loss, _ = _info_nce(
        anchors.contiguous(),
        weight.to(wide).contiguous(),
        positives.to(wide).contiguous(),
        bank.contiguous(),
        offsets.contiguous(),
        pushed.contiguous(),
        slots,
        negatives,
        float(temperature),
        torch.is_grad_enabled() and anchors.requires_grad,
        draws is not None,
    )
    return loss


@torch.library.custom_op("u2pl_fast::info_nce", mutates_args=())
def _info_nce(
    anchors: Tensor,
    weight: Tensor,
    positives: Tensor,
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    indices: Tensor | None,
    negatives: str,
    temperature: float,
    need_grad: bool,
    drawn: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient with respect to the anchors in float32, empty if not ``need_grad``.

    If ``drawn``, ``indices`` are draws.
    """
    check_ring_values(bank, offsets, pushed)
    backend = _backend.resolve("info_nce", bank if bank.dtype == torch.float64 else anchors)
    if drawn and backend != "triton":
        assert indices is not None
        indices = reference.ring_slots(indices, offsets, pushed)
    arguments = (anchors, weight, positives, bank, offsets, pushed, indices, negatives, temperature, need_grad)
    match backend:
        case "cpu":
            return _backend.extension().info_nce(*arguments)
        case "triton":
            return _backend.kernel("info_nce").info_nce_forward(*arguments, drawn)
        case _:
            return _plain(*arguments)


def _plain(
    anchors: Tensor,
    weight: Tensor,
    positives: Tensor,
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    indices: Tensor | None,
    negatives: str,
    temperature: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the loss with ``reference.py``, and its derivative by formula: autograd is off inside a custom op."""
    fill = reference.ring_fill(offsets, pushed)
    if indices is not None and indices.device.type == "cpu":
        for c in weight.nonzero()[:, 0].tolist():
            check_values("indices", indices[c], 0, int(fill[c]))
    loss = reference.info_nce(
        anchors,
        weight,
        positives,
        bank,
        offsets,
        pushed,
        indices=indices,
        negatives=negatives,
        temperature=temperature,
    )
    if not need_grad:
        return loss, loss.new_empty(0)
    x = reference.wide(anchors)
    norm = x.norm(dim=-1, keepdim=True)
    z = x / norm.clamp(min=reference.NORM_EPS)
    center = F.normalize(positives.to(z.dtype), dim=-1, eps=reference.NORM_EPS)
    slope = torch.zeros_like(z)  # with respect to z
    for c in weight.nonzero()[:, 0].tolist():
        slots = torch.arange(int(fill[c]), device=x.device) if indices is None else indices[c]
        keys = bank[offsets[c] + slots].to(z.dtype).expand(x.shape[1], -1, -1)
        scores = torch.cat((z[c] @ center[c, :, None], torch.einsum("md,mnd->mn", z[c], keys)), 1)
        p = (scores / temperature).softmax(1)
        pull = torch.einsum("mn,mnd->md", p[:, 1:], keys) - (1 - p[:, :1]) * center[c]
        slope[c] = pull * (weight[c] / (x.shape[1] * temperature))
    across = (slope - (slope * z).sum(-1, keepdim=True) * z) / norm
    return loss, torch.where(norm < reference.NORM_EPS, slope / reference.NORM_EPS, across)


@_info_nce.register_fake
def _(
    anchors: Tensor,
    weight: Tensor,
    positives: Tensor,
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    indices: Tensor | None,
    negatives: str,
    temperature: float,
    need_grad: bool,
    drawn: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if anchors.dtype == torch.float64 else torch.float32
    return anchors.new_empty((), dtype=wide), anchors.new_empty(anchors.shape if need_grad else (0,), dtype=wide)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[0])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # do not allocate zeros for the unused output


def _backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple:
    grad, anchors = ctx.saved_tensors
    return (None if grad_loss is None else scale_gradient(grad, grad_loss, anchors, "info_nce"), *[None] * 10)


_info_nce.register_autograd(_backward, setup_context=_save)

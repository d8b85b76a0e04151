"""The pixel-to-class contrastive loss against a bank of keys; the gradient is made in the forward pass."""

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
    """Σ_c weight_c · mean_m ℓ_cm, the loss of M anchors of each class against the class's center and its keys.

        ℓ = −log( e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s⁻_j/τ}) )

    s⁺ is the cosine of anchor and positive, s⁻_j that of the anchor and key j (keys are stored with norm 1; the other
    norms are clamped at 1e-12). The softmax is online, nothing of size C·M·N·D exists, and the gradient, through the
    anchor's normalization, comes from the same pass; the backward pass scales and casts it once.

    Args:
        anchors: (C, M, D), float32, bfloat16, float16 or float64.
        weight: (C); a class with weight 0 takes no part and is not read.
        positives: (C, D), the class centers, of any norm.
        bank: (ΣK_c, D), float32, bfloat16 or float16; offsets int64 (C+1); pushed int64 (C): as ``ring_push`` keeps
            them.
        indices: int64, slots within the class, each below its fill: (C, M, N) for ``per_anchor``, (C, N) for
            ``shared``.
        draws: in place of ``indices``, int64 of the same shape, uniform in [0, 2³²): slot (draw · fill) >> 32 of what
            the class holds.
        negatives: ``per_anchor``: N keys for each anchor. ``shared``: N keys for each class. ``full``: all that the
            class holds; takes neither.
        temperature: τ > 0.

    Returns:
        0-d float32 (float64 for float64 anchors), differentiable once, with respect to the anchors alone.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or device, naming the argument; on the CPU also rings that do not
            lie within the bank, and a slot at or past its class's fill, which on CUDA counts as no negative.
        RuntimeError: a second derivative is asked for.

    Source: Eq. 4 (``per_anchor``) and Algorithm 1 (``shared``) of U2PL (Wang et al., CVPR 2022).
    """
    if anchors.dim() != 3 or 0 in anchors.shape:
        raise ValueError(f"anchors: expected (C, M, D), every dimension at least 1, got {tuple(anchors.shape)}")
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
        expected = "neither these nor draws" if negatives == "full" else "either these or draws"
        raise ValueError(f"indices: {negatives!r} takes {expected}")
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
    """(loss, gradient of the loss with respect to the anchors in fp32, empty unless asked for).

    ``drawn``: ``indices`` are draws.
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
    """``reference.py`` and the derivative of its formula, written out: autograd is off inside a registered op."""
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
    ctx.set_materialize_grads(False)  # no zeros of the gradient's size in its place


def _backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple:
    grad, anchors = ctx.saved_tensors
    return (None if grad_loss is None else scale_gradient(grad, grad_loss, anchors, "info_nce"), *[None] * 10)


_info_nce.register_autograd(_backward, setup_context=_save)

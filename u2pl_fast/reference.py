"""Define the whole method in plain PyTorch, in the order of a training step.

This module is slow and simple, and it is the ground truth: every fused kernel is tested against the function of the
same name here.

Symbols: B images; C classes; H×W the size of the network's input; h×w the size of its logits; P = B·h·w pixels in bank
order (image, row, column); D channels of a representation; K_c the bank capacity of class c; M anchors per class; N
negatives.

Sums and comparisons use float32, or float64 for float64 inputs.

Source: Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-12


def wide(x: Tensor) -> Tensor:
    """Convert to float32, the dtype of all sums; return float64 unchanged."""
    return x if x.dtype == torch.float64 else x.float()


# --- Per-pixel statistics of the teacher, at full resolution ----------------------------------------------------------


class PixelStats(NamedTuple):
    """Hold per-pixel statistics of a softmax over classes.

    Attributes:
        label: (B, H, W), uint8, or int16 for more than 255 classes: the most likely class.
        confidence: (B, H, W), float32 or float64: the probability of that class.
        entropy: (B, H, W), float32 or float64, in nats.
    """

    label: Tensor
    confidence: Tensor
    entropy: Tensor


def label_dtype(num_classes: int) -> torch.dtype:
    """Return the smallest integer dtype that holds 0..C-1 and the ignore index."""
    return torch.uint8 if num_classes <= 255 else torch.int16


def upsample(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Upsample (B, C, h, w) to (B, C, H, W) in float32, as bilinear ``torch.nn.functional.interpolate`` does."""
    return F.interpolate(wide(logits), size=tuple(size), mode="bilinear", align_corners=align_corners)


def pixel_stats(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> PixelStats:
    """Compute label, confidence and entropy of softmax(upsample(logits)) at each pixel.

    With l the upsampled logits, d = l − max l and S = Σ_c e^d:

        label = argmax l,  confidence = 1 / S = max p,  entropy = log S − (Σ_c d·e^d) / S

    A tie goes to the lower class. Every term of the entropy is ≥ 0, and a class at −∞ adds 0.
    """
    full = upsample(logits, size, align_corners)
    d = full - full.amax(1, keepdim=True)
    e = d.exp()
    total = e.sum(1)
    entropy = total.log() - torch.where(e == 0, 0, d * e).sum(1) / total
    return PixelStats(full.argmax(1).to(label_dtype(logits.shape[1])), 1 / total, entropy)


# --- Cross-entropy, supervised and unsupervised -----------------------------------------------------------------------


def check_ignore_index(ignore_index: int, num_classes: int) -> None:
    """Raise a ValueError if ``ignore_index`` is a class."""
    if 0 <= ignore_index < num_classes:
        outside = "255, or -1" if num_classes <= 255 else "-1"
        raise ValueError(f"ignore_index: {ignore_index} is a class (0..{num_classes - 1}); use {outside}")


def kept_target(target: Tensor, num_classes: int, ignore_index: int, *, name: str = "target") -> tuple[Tensor, Tensor]:
    """Return (class, kept) of a label map; the class is 0 where a pixel is not kept.

    On the CPU a label that is neither a class nor ``ignore_index`` raises a ValueError. On CUDA it counts as ignored.
    """
    check_ignore_index(ignore_index, num_classes)
    target = target.long()
    kept = (target >= 0) & (target < num_classes)
    if not target.is_cuda and not bool((kept | (target == ignore_index)).all()):
        bad = int(target[~kept & (target != ignore_index)][0])
        raise ValueError(f"{name}: label {bad} is neither in 0..{num_classes - 1} nor ignore_index={ignore_index}")
    return torch.where(kept, target, 0), kept


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
    """Compute the cross-entropy of upsampled logits over the pixels that are not ignored.

    With w the class weights, pw the pixel weights and ε the label smoothing:

        ℓ = (1−ε)·w_y·(−log p_y) + (ε/C)·Σ_c w_c·(−log p_c),  num = Σ pw·ℓ,  den = Σ pw·w_y

    The mean is num / den, or 0 where den is 0. ℓ equals ``torch.nn.functional.cross_entropy``.
    """
    num_classes = logits.shape[1]
    y, kept = kept_target(target, num_classes, ignore_index)
    log_p = upsample(logits, target.shape[-2:], align_corners).log_softmax(1)
    w = torch.ones(num_classes, dtype=log_p.dtype, device=log_p.device) if weight is None else weight.to(log_p.dtype)
    loss = -w[y] * log_p.gather(1, y[:, None])[:, 0]
    if label_smoothing:
        every_class = -(w[:, None, None] * log_p).mean(1)
        loss = (1 - label_smoothing) * loss + label_smoothing * every_class
    pw = kept.to(log_p.dtype) if pixel_weight is None else torch.where(kept, pixel_weight.to(log_p.dtype), 0)
    num, den = (torch.where(kept, loss, 0) * pw).sum(), (w[y] * pw).sum()
    if reduction == "parts":
        return num, den
    if reduction == "sum":
        return num
    return num / torch.where(den == 0, math.inf, den)


def ohem_mask(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """Keep pixels with p(target) ≤ max(threshold, k-th smallest p(target)), k = min(min_kept, labeled pixels)."""
    y, kept = kept_target(target, logits.shape[1], ignore_index)
    p = upsample(logits, target.shape[-2:], align_corners).softmax(1).gather(1, y[:, None])[:, 0]
    ordered = torch.where(kept, p, math.inf).flatten().sort().values
    k = kept.sum().clamp(max=min_kept)
    kth = torch.where(k > 0, ordered[(k - 1).clamp(min=0)], 0) if ordered.numel() else p.new_zeros(())
    return kept & (p <= kth.clamp(min=threshold))


# --- Threshold, partition, weight of the unsupervised loss ------------------------------------------------------------


def unreliable_share(alpha_0: float, epoch: float, epochs: float) -> float:
    """Return α_t = α_0 · (1 − t/T), the share of unlabeled pixels that is unreliable in epoch t of T."""
    return alpha_0 * max(0.0, 1 - epoch / epochs)


def masked_quantile(x: Tensor, mask: Tensor, q: float | Tensor, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """Compute the q-quantile of ``x[mask]`` by linear interpolation, NumPy's default method.

    The result is NaN if no element is selected or a selected element is NaN. With a process group, the quantile is
    taken over the elements of all its processes.
    """
    picked = torch.where(mask, wide(x), math.inf).flatten()
    count, has_nan = mask.sum(), (mask & x.isnan()).any()
    if group is not None:
        picked = torch.cat(_all_gather_ragged(picked, group))
        dist.all_reduce(count, group=group)
        has_nan = has_nan.to(torch.int32)
        dist.all_reduce(has_nan, op=dist.ReduceOp.MAX, group=group)
    if picked.numel() == 0:
        return picked.new_full((), math.nan)
    ordered = picked.sort().values
    position = torch.as_tensor(q, dtype=torch.float64, device=x.device) * (count - 1).clamp(min=0)
    low = position.floor().long()
    a, b = ordered[low], ordered[torch.minimum(low + 1, (count - 1).clamp(min=0))]
    value = torch.where(a == b, a, torch.lerp(a.double(), b.double(), position - low).to(a.dtype))
    return torch.where((count == 0) | has_nan.bool(), math.nan, value)


def _all_gather_ragged(x: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """Gather 1-D tensors of different lengths, padded with +∞, which sorts last."""
    longest = torch.tensor(x.numel(), device=x.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
    padded = F.pad(x, (0, int(longest) - x.numel()), value=math.inf)
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, padded, group=group)
    return parts


def partition(entropy: Tensor, valid: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (reliable, unreliable) = (valid and H < γ, valid and H > γ); neither if H = γ or γ is NaN."""
    return valid & (entropy < gamma), valid & (entropy > gamma)


def unsupervised_weight(eta: float, num_valid: Tensor, num_reliable: Tensor, cap: float | None = None) -> Tensor:
    """Return λ_u = η · #valid / #reliable, at most ``cap``, and 0 if no pixel is reliable."""
    weight = torch.where(num_reliable > 0, eta * num_valid / num_reliable.clamp(min=1), 0)
    return weight if cap is None else weight.clamp(max=cap)


# --- From full resolution to the grid of the logits -------------------------------------------------------------------


def grid_index(out: int, size: int, *, align_corners: bool = False, device: torch.device | str | None = None) -> Tensor:
    """Return the full-resolution row that each of ``out`` grid rows reads, out of ``size`` rows.

    Row i reads min(size−1, ⌊(i+½)·size/out⌋). With aligned corners it reads ⌊(2i(size−1)+out−1) / (2(out−1))⌋, or 0 if
    out = 1. The computation uses integers only, so that it is exact.
    """
    i = torch.arange(out, device=device)
    if not align_corners:
        return ((2 * i + 1) * size // (2 * out)).clamp(max=size - 1)
    return (2 * i * (size - 1) + out - 1) // (2 * (out - 1)) if out > 1 else torch.zeros_like(i)


def sample_to_grid(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Sample (B, H, W) to (B, h, w) by nearest neighbor, with the indices of ``grid_index``."""
    rows = grid_index(size[0], x.shape[-2], align_corners=align_corners, device=x.device)
    columns = grid_index(size[1], x.shape[-1], align_corners=align_corners, device=x.device)
    return x.index_select(1, rows).index_select(2, columns)


def pool_to_stride4(x: Tensor, size: Sequence[int]) -> Tensor:
    """Average-pool (B, C, h, w) to the grid of stride 4 if h×w is finer than that; else return it unchanged."""
    grid = (min(x.shape[-2], math.ceil(size[0] / 4)), min(x.shape[-1], math.ceil(size[1] / 4)))
    return x if grid == x.shape[-2:] else F.adaptive_avg_pool2d(x, grid)


# --- Anchors and negatives --------------------------------------------------------------------------------------------


def class_rank(logits: Tensor) -> Tensor:
    """Return O(c) for (B, C, h, w): the number of more likely classes; of equal classes the lower comes first."""
    return wide(logits).argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def mask_words(num_classes: int) -> int:
    """Return ⌈C/32⌉, the number of int32 words that hold one bit per class."""
    return -(-num_classes // 32)


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask (P, C) into int32 words (P, ⌈C/32⌉): class c is bit c % 32 of word c // 32.

    Examples:
        >>> ops.pack_mask(torch.tensor([[True, False, True]]))
        tensor([[5]], dtype=torch.int32)
    """
    pixels, num_classes = mask.shape
    words = mask_words(num_classes)
    bits = F.pad(mask, (0, words * 32 - num_classes)).view(pixels, words, 32).long()
    packed = (bits << torch.arange(32, device=mask.device)).sum(2)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def unpack_mask(mask: Tensor, num_classes: int) -> Tensor:
    """Unpack int32 words (P, ⌈C/32⌉) into a bool mask (P, C); the inverse of ``pack_mask``.

    Examples:
        >>> ops.unpack_mask(torch.tensor([[5]], dtype=torch.int32), num_classes=3)
        tensor([[ True, False,  True]])
    """
    bits = mask[:, :, None] >> torch.arange(32, device=mask.device, dtype=torch.int32) & 1
    return bits.flatten(1)[:, :num_classes].bool()


class ContrastMasks(NamedTuple):
    """Hold the anchors and negatives of every class.

    Attributes:
        mask: int32 (P, ⌈C/32⌉). Bit c % 32 of word c // 32 is set where the pixel is a negative of class c.
        anchor_label: int16 (P), the class that the pixel is an anchor of, or −1.
        keys: int64 (C), the number of negatives of each class.
        anchors: int64 (C), the number of anchors of each class.
    """

    mask: Tensor
    anchor_label: Tensor
    keys: Tensor
    anchors: Tensor


def contrast_masks(
    logits: Tensor,
    label: Tensor,
    reliable: Tensor,
    unreliable: Tensor,
    *,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float,
    ignore_index: int = 255,
) -> ContrastMasks:
    """Find the anchors and negatives of every class among P = B·h·w pixels, labeled images first.

    A pixel is an anchor of c if y = c and p(c) > δ_p; a pixel of an unlabeled image must also be reliable.
    A pixel of a labeled image is a negative of c if y ≠ c, y is not ignored and O(c) < r_l.
    A pixel of an unlabeled image is a negative of c if it is unreliable and r_l ≤ O(c) < r_h.
    """
    num_classes = logits.shape[1]
    labeled = (torch.arange(logits.shape[0], device=logits.device) < num_labeled)[:, None, None]
    y, kept = kept_target(label, num_classes, ignore_index, name="label")
    rank = class_rank(logits)
    is_label = F.one_hot(y, num_classes).movedim(-1, 1).bool()
    negative_labeled = ~is_label & kept[:, None] & (rank < low_rank)
    negative_unlabeled = unreliable[:, None] & (rank >= low_rank) & (rank < high_rank)
    negative = torch.where(labeled[:, None], negative_labeled, negative_unlabeled)

    p_label = wide(logits).softmax(1).gather(1, y[:, None])[:, 0]
    is_anchor = kept & (p_label > positive_threshold) & (labeled | reliable)
    anchor_label = torch.where(is_anchor, y, -1).flatten()

    flat = negative.movedim(1, -1).reshape(-1, num_classes)
    anchors = torch.bincount(anchor_label + 1, minlength=num_classes + 1)[1:]
    return ContrastMasks(pack_mask(flat), anchor_label.to(torch.int16), flat.sum(0), anchors)


def thin_mask(mask: Tensor, max_keys: Tensor, draw: Tensor) -> Tensor:
    """Keep k = min(max_keys_c, n) of the n keys of each class, evenly spaced and in order; 0 for max_keys_c keeps all.

    The key of rank r stays if ⌊((r+1)k+v)/n⌋ > ⌊(rk+v)/n⌋ with v = (draw_c·n) >> 32.
    """
    keys = unpack_mask(mask, max_keys.numel())
    n = keys.sum(0)
    k = torch.where(max_keys > 0, torch.minimum(max_keys, n), n)
    v = draw * n >> 32
    rank = keys.cumsum(0) - 1
    step = ((rank + 1) * k + v) // n.clamp(min=1) > (rank * k + v) // n.clamp(min=1)
    return pack_mask(keys & step)


def class_sample(anchor_label: Tensor, num_classes: int, draws: Tensor) -> Tensor:
    """Draw M pixels of each class, uniformly with replacement.

    Draw d selects pixel number (d·n) >> 32 of the class's n pixels, in order, or −1 if n = 0.
    """
    labels = anchor_label.long()
    order = torch.where(labels < 0, num_classes, labels).sort(stable=True).indices
    n = torch.bincount(labels + 1, minlength=num_classes + 1)[1:, None]
    start = n.cumsum(0) - n
    position = (start + (draws * n >> 32)).clamp(max=max(order.numel() - 1, 0))
    picked = order[position] if order.numel() else torch.zeros_like(position)
    return torch.where(n > 0, picked, -1)


def pixel_rows(features: Tensor) -> Tensor:
    """Return (B, D, h, w) as (P, D) in bank order, and (R, D) unchanged."""
    return features if features.dim() == 2 else features.permute(0, 2, 3, 1).flatten(0, 2)


def class_sum(features: Tensor, anchor_label: Tensor, num_classes: int) -> Tensor:
    """Sum representations over the pixels of each class: float32 (C, D).

    Divide by the number of pixels to get the class center z_c⁺.
    """
    rows = wide(pixel_rows(features))
    sums = rows.new_zeros(num_classes + 1, rows.shape[1])
    return sums.index_add(0, anchor_label.long() + 1, rows)[1:]


def gather_pixels(features: Tensor, index: Tensor) -> Tensor:
    """Gather the features at pixels ``index`` from (B, D, h, w): (…) becomes (…, D), with zeros at −1.

    The result is differentiable with respect to ``features``.
    """
    rows = pixel_rows(features)
    if rows.shape[0] == 0:
        return rows.new_zeros(*index.shape, rows.shape[1])
    return torch.where((index >= 0)[..., None], rows[index.clamp(min=0)], 0)


# --- Memory bank and loss ---------------------------------------------------------------------------------------------


def ring_push(
    bank: Tensor,
    offsets: Tensor,
    pushed: Tensor,
    features: Tensor,
    mask: Tensor,
    *,
    gate: Tensor | None = None,
) -> None:
    """Append the keys of each class, L2-normalized, to its ring, in place; a full ring keeps the newest.

    Key number j of class c goes to slot offsets[c] + j mod K_c. ``pushed`` counts the keys of all calls. Nothing
    changes if ``gate`` is false.
    """
    if gate is not None and not bool(gate):
        return
    rows = F.normalize(wide(pixel_rows(features)), dim=1, eps=NORM_EPS).to(bank.dtype)
    keys = unpack_mask(mask, pushed.numel())
    for c in range(pushed.numel()):
        capacity = int(offsets[c + 1] - offsets[c])
        pixels = keys[:, c].nonzero()[:, 0]
        newest = torch.arange(max(0, len(pixels) - capacity), len(pixels), device=bank.device)
        if capacity:
            bank[offsets[c] + (pushed[c] + newest) % capacity] = rows[pixels[newest]]
        pushed[c] += len(pixels)


def ring_fill(offsets: Tensor, pushed: Tensor) -> Tensor:
    """Return min(pushed_c, K_c), the number of slots of each class that hold a key."""
    return torch.minimum(pushed, offsets.diff())


def ring_slots(draws: Tensor, offsets: Tensor, pushed: Tensor) -> Tensor:
    """Draw slots of each class, uniformly with replacement: (draw · fill) >> 32.

    ``draws`` is int64 (C, …) in [0, 2³²).
    """
    return draws * ring_fill(offsets, pushed).view(-1, *[1] * (draws.dim() - 1)) >> 32


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
    """Compute the pixel-to-class contrastive loss with s the cosine similarity (Eq. 4 of the paper).

        L = Σ_c weight_c · mean_m −log( e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s⁻_j/τ}) )

    anchors are (C, M, D), positives (C, D) and weight (C); a class with weight 0 is skipped. Negatives are slots within
    the class, given by ``indices`` or drawn from ``draws`` with ``ring_slots``: (C, M, N) for ``per_anchor`` and (C, N)
    for ``shared``. ``full`` takes neither and uses every key of the class. Gradient flows to the anchors only, through
    their normalization.
    """
    z = F.normalize(wide(anchors), dim=-1, eps=NORM_EPS)
    center = F.normalize(positives.detach().to(z.dtype), dim=-1, eps=NORM_EPS)
    fill = ring_fill(offsets, pushed)
    if draws is not None:
        indices = ring_slots(draws, offsets, pushed)
    loss = z[:0].sum()
    for c in weight.nonzero()[:, 0].tolist():
        start = int(offsets[c])
        if negatives == "full":
            keys = bank[start : start + int(fill[c])].to(z.dtype)
        else:
            assert indices is not None, f"indices: negatives {negatives!r} requires indices or draws"
            keys = bank[start + indices[c]].to(z.dtype)
        attract = z[c] @ center[c]
        repel = torch.einsum("md,mnd->mn", z[c], keys) if negatives == "per_anchor" else z[c] @ keys.T
        scores = torch.cat((attract[:, None], repel), 1) / temperature
        loss = loss + weight[c] * (scores.logsumexp(1) - scores[:, 0]).mean()
    return loss


class ContrastiveLoss(NamedTuple):
    """Hold the contrastive loss of one step and its statistics.

    Attributes:
        loss: 0-d, differentiable.
        anchors: int64 (C), anchor pixels of each class in this step.
        negatives: int64 (C), negative pixels of each class in this step.
        pushed: int64 (C), keys that the bank took in this step.
    """

    loss: Tensor
    anchors: Tensor
    negatives: Tensor
    pushed: Tensor


def contrastive_loss_from_masks(
    masks: ContrastMasks,
    features: Tensor,
    keys: Tensor,
    bank: Any,
    draws: tuple[Tensor, Tensor, Tensor | None],
    *,
    negatives: str = "per_anchor",
    temperature: float = 0.5,
    project: Callable[[Tensor], Tensor] | None = None,
    gate: Tensor | None = None,
) -> ContrastiveLoss:
    """Compute L_c of one batch from its anchors and negatives, and push the negatives to the bank.

    The steps, in order: compute class centers from ``keys``; push the negatives; draw M anchors per class from
    ``features``; compute the loss. Classes with at least one anchor and one key share the weight equally.

    ``bank`` has ``bank``, ``offsets`` and ``pushed``, and its ``push`` calls ``thin_mask`` and ``ring_push``. ``draws``
    holds the random numbers for thinning (C), anchors (C, M) and negatives. ``project`` maps the drawn rows (C·M, D')
    to (C·M, D).
    """
    thinning, anchor_draws, negative_draws = draws
    num_classes = masks.anchors.numel()
    keys = keys.detach()
    centers = class_sum(keys, masks.anchor_label, num_classes) / masks.anchors.clamp(min=1)[:, None]
    before = bank.pushed.clone()
    bank.push(keys, masks.mask, draw=thinning, gate=gate)
    index = class_sample(masks.anchor_label, num_classes, anchor_draws)
    anchors = gather_pixels(features, index)
    if project is not None:
        anchors = project(anchors.flatten(0, 1)).unflatten(0, index.shape)
    takes_part = (masks.anchors > 0) & (ring_fill(bank.offsets, bank.pushed) > 0)
    loss = info_nce(
        anchors,
        takes_part / takes_part.sum().clamp(min=1),
        centers,
        bank.bank,
        bank.offsets,
        bank.pushed,
        draws=negative_draws,
        negatives=negatives,
        temperature=temperature,
    )
    return ContrastiveLoss(loss, masks.anchors, masks.keys, bank.pushed - before)


# --- Teacher ----------------------------------------------------------------------------------------------------------


def ema_momentum(updates: int, momentum: float) -> float:
    """Return min(1 − 1/(k+1), m), where k is the number of updates attempted so far.

    The first update therefore copies the student.
    """
    return min(1 - 1 / (updates + 1), momentum)


def ema_update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    gate: Tensor | None = None,
) -> None:
    """Update θ_t ← m·θ_t + (1−m)·θ_s in place; copy integer tensors; change nothing if ``gate`` is false.

    The gate selects values. A weight of 0 would not do, since 0·NaN is NaN.
    """
    for old, new in zip(teacher, student, strict=True):
        value = torch.lerp(new, old, momentum) if old.is_floating_point() else new
        old.copy_(value if gate is None else torch.where(gate, value, old))

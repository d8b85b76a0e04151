"""The whole method in plain PyTorch, in the order of a training step: slow, obvious, the ground truth.

Every fused kernel is tested against the function of the same name here. Symbols: B images, C classes, H×W the size that
enters the network, h×w the grid of its logits, P = B·h·w pixels in bank order (image, row, column), D representation
channels, K_c the bank capacity of class c, M anchors per class, N negatives.

Source of the equations: Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022.
Sums and comparisons are in fp32, or in float64 where float64 comes in.
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
    """fp32, or float64 unchanged: the type that sums are made in."""
    return x if x.dtype == torch.float64 else x.float()


# --- Per-pixel statistics of the teacher, at full resolution ----------------------------------------------------------


class PixelStats(NamedTuple):
    """Per-pixel statistics of a softmax over classes, each (B, H, W)."""

    label: Tensor
    confidence: Tensor
    entropy: Tensor


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest integer type that holds 0..C-1 and the ignore index."""
    return torch.uint8 if num_classes <= 255 else torch.int16


def upsample(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear (B, C, h, w) → (B, C, H, W) in fp32, as ``torch.nn.functional.interpolate`` defines it."""
    return F.interpolate(wide(logits), size=tuple(size), mode="bilinear", align_corners=align_corners)


def pixel_stats(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> PixelStats:
    """label = argmax l, confidence = max p, entropy H(p) = log S − (Σ d·eᵈ)/S with d = l − max l, S = Σ eᵈ, in nats.

    Ties go to the lower class. Every term of the entropy is ≥ 0, and a class at −∞ adds nothing.
    """
    full = upsample(logits, size, align_corners)
    d = full - full.amax(1, keepdim=True)
    e = d.exp()
    total = e.sum(1)
    entropy = total.log() - torch.where(e == 0, 0, d * e).sum(1) / total
    return PixelStats(full.argmax(1).to(label_dtype(logits.shape[1])), 1 / total, entropy)


# --- Cross-entropy, supervised and unsupervised -----------------------------------------------------------------------


def check_ignore_index(ignore_index: int, num_classes: int) -> None:
    """Raise ValueError where ``ignore_index`` is a class."""
    if 0 <= ignore_index < num_classes:
        outside = "255, or -1" if num_classes <= 255 else "-1"
        raise ValueError(f"ignore_index: {ignore_index} is a class (0..{num_classes - 1}); use {outside}")


def kept_target(target: Tensor, num_classes: int, ignore_index: int, *, name: str = "target") -> tuple[Tensor, Tensor]:
    """(class or 0, kept) of a label map. On the CPU a label that is neither valid nor ignored is an error."""
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
    """num = Σ pw·ℓ and den = Σ pw·w_y over the pixels that are kept; mean = num / den, and 0 where den is 0.

    ℓ = (1−ε)·w_y·(−log p_y) + (ε/C)·Σ_c w_c·(−log p_c), as ``torch.nn.functional.cross_entropy`` defines it.
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
    """Hard examples: p(target) ≤ max(threshold, the k-th smallest p(target)), k = min(min_kept, labeled pixels)."""
    y, kept = kept_target(target, logits.shape[1], ignore_index)
    p = upsample(logits, target.shape[-2:], align_corners).softmax(1).gather(1, y[:, None])[:, 0]
    ordered = torch.where(kept, p, math.inf).flatten().sort().values
    k = kept.sum().clamp(max=min_kept)
    kth = torch.where(k > 0, ordered[(k - 1).clamp(min=0)], 0) if ordered.numel() else p.new_zeros(())
    return kept & (p <= kth.clamp(min=threshold))


# --- Threshold, partition, weight of the unsupervised loss ------------------------------------------------------------


def unreliable_share(alpha_0: float, epoch: float, epochs: float) -> float:
    """α_t = α_0 · (1 − t/T): the share of unlabeled pixels that counts as unreliable in epoch t of T."""
    return alpha_0 * max(0.0, 1 - epoch / epochs)


def masked_quantile(x: Tensor, mask: Tensor, q: float | Tensor, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """The q-quantile of ``x[mask]`` by linear interpolation, NumPy's default; NaN where nothing is selected or NaN is.

    With a process group: of the elements of all its processes.
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
    """1-D tensors of all processes, lengths may differ; the shorter are filled up with +inf, which sorts last."""
    longest = torch.tensor(x.numel(), device=x.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
    padded = F.pad(x, (0, int(longest) - x.numel()), value=math.inf)
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, padded, group=group)
    return parts


def partition(entropy: Tensor, valid: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(reliable, unreliable) = valid and H < γ, valid and H > γ. Equal, or a NaN threshold, is neither."""
    return valid & (entropy < gamma), valid & (entropy > gamma)


def unsupervised_weight(eta: float, num_valid: Tensor, num_reliable: Tensor, cap: float | None = None) -> Tensor:
    """λ_u = η · #valid / #reliable, at most ``cap``; 0 where no pixel is reliable."""
    weight = torch.where(num_reliable > 0, eta * num_valid / num_reliable.clamp(min=1), 0)
    return weight if cap is None else weight.clamp(max=cap)


# --- From full resolution to the grid of the logits -------------------------------------------------------------------


def grid_index(out: int, size: int, *, align_corners: bool = False, device: torch.device | str | None = None) -> Tensor:
    """Which of ``size`` full-resolution rows each of ``out`` grid rows reads, in integers.

    min(size−1, ⌊(i+½)·size/out⌋), or with aligned corners ⌊(2i(size−1)+out−1) / (2(out−1))⌋, 0 where out = 1.
    """
    i = torch.arange(out, device=device)
    if not align_corners:
        return ((2 * i + 1) * size // (2 * out)).clamp(max=size - 1)
    return (2 * i * (size - 1) + out - 1) // (2 * (out - 1)) if out > 1 else torch.zeros_like(i)


def sample_to_grid(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """(B, H, W) → (B, h, w) by ``grid_index``: nearest neighbor, the same rule for every map."""
    rows = grid_index(size[0], x.shape[-2], align_corners=align_corners, device=x.device)
    columns = grid_index(size[1], x.shape[-1], align_corners=align_corners, device=x.device)
    return x.index_select(1, rows).index_select(2, columns)


def pool_to_stride4(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) average-pooled to the grid of stride 4 where h×w is finer; unchanged where it isn't."""
    grid = (min(x.shape[-2], math.ceil(size[0] / 4)), min(x.shape[-1], math.ceil(size[1] / 4)))
    return x if grid == x.shape[-2:] else F.adaptive_avg_pool2d(x, grid)


# --- Anchors and negatives --------------------------------------------------------------------------------------------


def class_rank(logits: Tensor) -> Tensor:
    """O(c) for (B, C, h, w): how many classes are likelier, 0 = most likely; ties to the lower class."""
    return wide(logits).argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def mask_words(num_classes: int) -> int:
    """How many int32 words hold one bit a class."""
    return -(-num_classes // 32)


def pack_mask(mask: Tensor) -> Tensor:
    """bool (P, C) → int32 (P, ⌈C/32⌉): class c is bit c % 32 of word c // 32."""
    pixels, num_classes = mask.shape
    words = mask_words(num_classes)
    bits = F.pad(mask, (0, words * 32 - num_classes)).view(pixels, words, 32).long()
    packed = (bits << torch.arange(32, device=mask.device)).sum(2)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def unpack_mask(mask: Tensor, num_classes: int) -> Tensor:
    """int32 (P, ⌈C/32⌉) → bool (P, C)."""
    bits = mask[:, :, None] >> torch.arange(32, device=mask.device, dtype=torch.int32) & 1
    return bits.flatten(1)[:, :num_classes].bool()


class ContrastMasks(NamedTuple):
    """Which class each pixel is a negative or an anchor of, and how many of either each class has."""

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
    """Negatives and anchors of every class for P = B·h·w pixels, labeled images first.

    Anchor of c: y = c and p(c) > δ_p; an unlabeled pixel must be reliable too.
    Negative of c: labeled, y ≠ c, y not ignored, O(c) < r_l; or unlabeled, unreliable, r_l ≤ O(c) < r_h.
    Returns mask int32 (P, ⌈C/32⌉), anchor_label int16 (P) with −1 for none, keys (C) and anchors (C) int64.
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
    """Keep k = min(max_keys_c, n) of the n keys of each class, evenly spread and in order; max_keys 0 keeps all.

    Key of rank r stays iff ⌊((r+1)k+v)/n⌋ > ⌊(rk+v)/n⌋ with v = (draw_c·n) >> 32.
    """
    keys = unpack_mask(mask, max_keys.numel())
    n = keys.sum(0)
    k = torch.where(max_keys > 0, torch.minimum(max_keys, n), n)
    v = draw * n >> 32
    rank = keys.cumsum(0) - 1
    step = ((rank + 1) * k + v) // n.clamp(min=1) > (rank * k + v) // n.clamp(min=1)
    return pack_mask(keys & step)


def class_sample(anchor_label: Tensor, num_classes: int, draws: Tensor) -> Tensor:
    """M pixels of each class, uniform with replacement: the ((draw·n) >> 32)-th of its n pixels; −1 where n = 0."""
    labels = anchor_label.long()
    order = torch.where(labels < 0, num_classes, labels).sort(stable=True).indices
    n = torch.bincount(labels + 1, minlength=num_classes + 1)[1:, None]
    start = n.cumsum(0) - n
    position = (start + (draws * n >> 32)).clamp(max=max(order.numel() - 1, 0))
    picked = order[position] if order.numel() else torch.zeros_like(position)
    return torch.where(n > 0, picked, -1)


def pixel_rows(features: Tensor) -> Tensor:
    """(B, D, h, w) → (P, D) in bank order; (R, D) unchanged."""
    return features if features.dim() == 2 else features.permute(0, 2, 3, 1).flatten(0, 2)


def class_sum(features: Tensor, anchor_label: Tensor, num_classes: int) -> Tensor:
    """Σ z over the pixels of each class, fp32 (C, D); the prototype z_c⁺ is this divided by the count."""
    rows = wide(pixel_rows(features))
    sums = rows.new_zeros(num_classes + 1, rows.shape[1])
    return sums.index_add(0, anchor_label.long() + 1, rows)[1:]


def gather_pixels(features: Tensor, index: Tensor) -> Tensor:
    """(B, D, h, w), (…) → (…, D): the features at pixels ``index``, zero at −1. Differentiable in ``features``."""
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
    """Append each class's keys, L2-normalized, to its ring, in place; a full ring keeps the newest.

    Key number j ever taken by class c goes to slot offsets[c] + j mod K_c; ``pushed`` counts them; nothing moves where
    ``gate`` is false.
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
    """min(pushed_c, K_c): the slots of each class that hold a key."""
    return torch.minimum(pushed, offsets.diff())


def ring_slots(draws: Tensor, offsets: Tensor, pushed: Tensor) -> Tensor:
    """Slots within each class, uniform with replacement: (draw · fill) >> 32, draws int64 (C, …) in [0, 2³²)."""
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
    """Σ_c weight_c · mean_m −log( e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s⁻_j/τ}) ), s the cosine similarity (Eq. 4).

    anchors (C, M, D), positives (C, D), weight (C), 0 for a class that takes no part. Negatives are slots within the
    class, given as such or drawn by ``ring_slots``: (C, M, N) for ``per_anchor``, (C, N) for ``shared``, none for
    ``full``, which reads all that the class holds. Gradient flows to the anchors only, through their normalization.
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
            assert indices is not None, f"indices: negatives {negatives!r} are slots; give them, or draws"
            keys = bank[start + indices[c]].to(z.dtype)
        attract = z[c] @ center[c]
        repel = torch.einsum("md,mnd->mn", z[c], keys) if negatives == "per_anchor" else z[c] @ keys.T
        scores = torch.cat((attract[:, None], repel), 1) / temperature
        loss = loss + weight[c] * (scores.logsumexp(1) - scores[:, 0]).mean()
    return loss


class ContrastiveLoss(NamedTuple):
    """loss: 0-d, differentiable. Of this step, int64 (C) each: anchor pixels, negative pixels, keys the bank took."""

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
    """L_c of one batch: centers from ``keys``, which then enter the bank, against M anchors a class from ``features``.

    A class with an anchor and a key takes part, all with the same weight. ``bank`` holds ``bank``, ``offsets`` and
    ``pushed``; its ``push`` is ``thin_mask`` and ``ring_push``. ``draws`` are for thinning (C), anchors (C, M) and
    negatives. ``project`` maps the drawn rows (C·M, D') → (C·M, D).
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
    """min(1 − 1/(k+1), m) with k the updates attempted since the teacher began: the first update copies the student."""
    return min(1 - 1 / (updates + 1), momentum)


def ema_update(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    gate: Tensor | None = None,
) -> None:
    """θ_t ← m·θ_t + (1−m)·θ_s in place for floating tensors, copies of the others; nothing where ``gate`` is false.

    The gate is a select, not a weight of 0: 0·NaN is NaN.
    """
    for old, new in zip(teacher, student, strict=True):
        value = torch.lerp(new, old, momentum) if old.is_floating_point() else new
        old.copy_(value if gate is None else torch.where(gate, value, old))

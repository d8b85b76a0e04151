"""Compute the contrastive loss as public implementations do: with the habits that make it slow, and no others.

Written for this comparison, each habit in its cheapest form:

- thresholds: every entropy is copied to NumPy for ``np.percentile``;
- one-hot labels, made here on the small grid instead of at full resolution;
- a Python loop over classes for masks, push, sampling and loss, with counts read back to the host;
- representations gathered by boolean masks: all anchors of a class, to sample a few hundred;
- the bank on the CPU as one growing tensor per class: new keys are copied there, concatenated, and truncated; on a GPU
  the whole bank is copied back to read a few thousand rows;
- the positive and the negatives of each anchor stored side by side and passed to ``cosine_similarity``.

Two things differ from public code, so that all implementations give the same result: the rules are the method's,
without common indexing errors, and the random numbers are an argument, where public code calls ``randint`` per class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import TEMPERATURE, UNRELIABLE_SHARE, to_grid


@dataclass
class Queue:
    """Hold the keys of one class on the CPU, oldest first, and the number of keys ever pushed."""

    keys: Tensor
    capacity: int
    pushed: int


def queues(bank: Tensor, capacities: Sequence[int], pushed: Tensor) -> list[Queue]:
    """Return the contents of full rings as queues."""
    rings = bank.cpu().split(list(capacities))
    return [
        Queue(ring.roll(-(count % capacity), 0), capacity, count)
        for ring, capacity, count in zip(rings, capacities, pushed.tolist(), strict=True)
    ]


def branch(a: dict, mark: Callable[[str], None] = lambda part: None) -> tuple[Tensor, ...]:
    """Return (loss, the M anchors of each class that takes part, …) and update the queues.

    A ring counts its slots from its start, a queue from its oldest key. With ``a["ring_slots"]``, set for the compared
    call only, the same random number selects the same key in both. The gradient ends at the sampled anchors, or
    continues to the features if ``a["to_features"]``.
    """
    entropies = a["entropy"][a["valid"]].cpu().numpy()
    gamma = float(np.percentile(entropies, 100 * (1 - UNRELIABLE_SHARE)))
    reliable = a["valid"] & (a["entropy"] < gamma)
    unreliable = a["valid"] & (a["entropy"] > gamma)
    label, reliable, unreliable = to_grid(a["labels"], a["pseudo"], reliable, unreliable, a["grid"], a["align_corners"])
    mark("threshold")

    anchor_masks, key_masks = masks(
        a["logits"].float(), label.long(), reliable, unreliable, a["num_classes"], **a["settings"]
    )
    mark("masks")

    rows = a["features"].permute(0, 2, 3, 1)
    for c, queue in enumerate(a["queues"]):
        keys = rows[key_masks[c]].detach()
        if a["max_keys"] is not None:
            keys = thinned(keys, int(a["max_keys"][c]), int(a["thin_draw"][c]))
        push(queue, keys)
    mark("push")

    drawn, positives, classes = [], [], []
    for c, queue in enumerate(a["queues"]):
        candidates = rows[anchor_masks[c]]
        if len(candidates) == 0 or len(queue.keys) == 0:
            continue
        classes.append(c)
        positives.append(candidates.detach().float().mean(0))
        anchors = candidates[a["anchor_draw"][c] * len(candidates) >> 32]
        drawn.append(anchors if a["to_features"] else anchors.detach().requires_grad_())
    mark("sampling")

    a["classes"] = classes
    loss = torch.zeros((), device=a["logits"].device)
    for c, anchors, positive in zip(classes, drawn, positives, strict=True):
        queue = a["queues"][c]
        slots = a["negative_draw"][c] * len(queue.keys) >> 32
        if a["ring_slots"]:
            slots = (slots - queue.pushed) % queue.capacity
        negatives = queue.keys.to(a["logits"].device)[slots].float()
        every = torch.cat((positive.expand(len(anchors), 1, -1), negatives), 1)
        scores = F.cosine_similarity(anchors.float()[:, None], every, dim=2) / TEMPERATURE
        loss = loss + F.cross_entropy(scores, torch.zeros(len(anchors), dtype=torch.long, device=scores.device))
    return loss / max(len(classes), 1), *drawn


def masks(
    logits: Tensor,
    label: Tensor,
    reliable: Tensor,
    unreliable: Tensor,
    num_classes: int,
    *,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float,
    ignore_index: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return bool masks (B, h, w) of the anchors and of the negatives, for each class."""
    probabilities = logits.softmax(1)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    known = label != ignore_index
    one_hot = F.one_hot(torch.where(known, label, 0), num_classes).permute(0, 3, 1, 2).bool() & known[:, None]
    anchors, negatives = [], []
    for c in range(num_classes):
        likely = one_hot[:, c] & (probabilities[:, c] > positive_threshold)
        likely[num_labeled:] &= reliable[num_labeled:]
        anchors.append(likely)
        low = (order[:num_labeled, :low_rank] == c).any(1) & ~one_hot[:num_labeled, c] & known[:num_labeled]
        middle = (order[num_labeled:, low_rank:high_rank] == c).any(1) & unreliable[num_labeled:]
        negatives.append(torch.cat((low, middle)))
    return anchors, negatives


def thinned(keys: Tensor, cap: int, draw: int) -> Tensor:
    """Return at most ``cap`` of the keys, evenly spread: the method's rule."""
    n = len(keys)
    k = min(cap, n)
    if k == n:
        return keys
    rank = torch.arange(n, device=keys.device)
    v = draw * n >> 32
    return keys[((rank + 1) * k + v) // n > (rank * k + v) // n]


def push(queue: Queue, keys: Tensor) -> None:
    """Append keys to the queue and drop the oldest."""
    fresh = F.normalize(keys.float(), dim=1).to(queue.keys.dtype).cpu()
    queue.pushed += len(fresh)
    queue.keys = torch.cat((queue.keys, fresh))
    if len(queue.keys) > queue.capacity:
        queue.keys = queue.keys[-queue.capacity :]


def as_ring_bank(a: dict, outputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return (loss, gradient (C, M, D), bank, pushed) in the shapes of the ring bank, for comparison."""
    a["ring_slots"] = False
    device = outputs[0].device
    every = torch.zeros(*a["anchor_draw"].shape, a["features"].shape[1], dtype=a["features"].dtype, device=device)
    for c, grad in zip(a["classes"], grads, strict=True):
        every[c] = grad
    bank = torch.cat([queue.keys.roll(queue.pushed % queue.capacity, 0) for queue in a["queues"]])
    return outputs[0], every, bank.to(device), torch.tensor([queue.pushed for queue in a["queues"]], device=device)

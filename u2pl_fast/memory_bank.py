"""Keep one first-in-first-out ring of normalized negatives per class, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import ops, reference
from .utils import distributed


class MemoryBank(nn.Module):
    """Keep rings of capacity K_c for C classes in one (Σ K_c, D) buffer.

    Key j of class c is in slot offsets[c] + j mod K_c. The state dict contains all three buffers.

    Args:
        capacities: K_c ≥ 1 for each class.
        dim: D.
        dtype: float32, bfloat16 or float16.
        max_keys_per_step: the maximum of keys that a class takes per step, one number or one per class. 0 takes all;
            None is max(1, K_c // 16). Thinning is evenly spaced and keeps the order of the pixels.
        scope: ``local``: each process has its own ring. ``gather``: all processes have the same ring; each adds at most
            ⌈max_keys_per_step / processes⌉ keys per class, in rank order.
        group: the process group of a distributed run.

    Attributes:
        bank: (Σ K_c, D), the keys.
        offsets: int64 (C+1), the start of each ring.
        pushed: int64 (C), the keys of all pushes.

    Raises:
        ValueError: an argument has a wrong value. The message names it.

    Examples:
        >>> from u2pl_fast import MemoryBank
        >>> bank = MemoryBank(capacities=[100, 100], dim=8, max_keys_per_step=0)
        >>> mask = ops.pack_mask(torch.tensor([[True, False], [True, True], [False, False]]))
        >>> bank.push(torch.randn(3, 8), mask)
        >>> bank.fill
        tensor([2, 1])

    Source: the category-wise memory bank of U²PL (Wang et al., CVPR 2022, Section 3.4).
    """

    bank: Tensor
    offsets: Tensor
    pushed: Tensor
    max_keys: Tensor

    def __init__(
        self,
        capacities: Sequence[int],
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        max_keys_per_step: int | Sequence[int] | None = None,
        scope: str = "local",
        group: distributed.Group = None,
    ) -> None:
        super().__init__()
        if not capacities or min(capacities) < 1:
            raise ValueError(f"capacities: expected at least one class, with at least one slot each, got {capacities}")
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype}")
        if scope not in ("local", "gather"):
            raise ValueError(f"scope: expected 'local' or 'gather', got {scope!r}")
        sizes = torch.tensor(list(capacities), dtype=torch.int64)
        caps = sizes // 16 if max_keys_per_step is None else torch.as_tensor(max_keys_per_step, dtype=torch.int64)
        caps = caps.expand_as(sizes).clone()
        if max_keys_per_step is None:
            caps.clamp_(min=1)
        if (caps < 0).any():
            raise ValueError(f"max_keys_per_step: expected numbers ≥ 0, got {max_keys_per_step}")
        if scope == "gather" and (caps == 0).any():
            raise ValueError(
                "max_keys_per_step: scope 'gather' requires a maximum, got 0 (all keys); set one, or use scope='local'"
            )
        self.scope, self.group = scope, group
        self.register_buffer("bank", torch.zeros(int(sizes.sum()), dim, dtype=dtype))
        self.register_buffer("offsets", torch.cat((sizes.new_zeros(1), sizes.cumsum(0))))
        self.register_buffer("pushed", torch.zeros_like(sizes))
        share = -(-caps // distributed.world_size(group)) if scope == "gather" else caps
        self.register_buffer("max_keys", share, persistent=False)
        self.shared_keys = int(share.max()) if scope == "gather" else 0  # per class and process

    @property
    def num_classes(self) -> int:
        """Return C."""
        return self.pushed.numel()

    @property
    def fill(self) -> Tensor:
        """Return the number of keys in each ring: int64 (C)."""
        return reference.ring_fill(self.offsets, self.pushed)

    @torch.no_grad()
    def push(self, features: Tensor, mask: Tensor, *, draw: Tensor | None = None, gate: Tensor | None = None) -> None:
        """Thin ``mask`` to the maximum per class, and append the keys, L2-normalized.

        Args:
            features: (R, D), or (B, D, h, w) in bank order.
            mask: int32 (R, ⌈C/32⌉), from ``ops.contrast_masks`` or ``ops.pack_mask``.
            draw: int64 (C) in [0, 2³²), selects the keys that thinning keeps; None is 0 for every class.
            gate: 0-d bool on the device; nothing changes if it is false.

        Raises:
            ValueError: an argument has a wrong shape or device.
            TypeError: an argument has a wrong dtype.
        """
        draw = torch.zeros_like(self.pushed) if draw is None else draw
        mask = ops.thin_mask(mask, self.max_keys, draw)
        if self.scope == "local":
            ops.ring_push(self.bank, self.offsets, self.pushed, features, mask, gate=gate)
            return
        for rows, row_mask in self._gather(features, mask):
            ops.ring_push(self.bank, self.offsets, self.pushed, rows, row_mask, gate=gate)

    def _gather(self, features: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the keys of each process as (C·k, D) rows with their mask, in rank order.

        The rows have a fixed size, so that two collectives suffice: one for the rows, one for their counts.
        """
        classes, k = self.num_classes, self.shared_keys
        rows = self.bank.new_zeros(classes * k, self.bank.shape[1])
        starts = torch.arange(classes + 1, device=rows.device) * k
        counts = torch.zeros_like(self.pushed)
        ops.ring_push(rows, starts, counts, features, mask)
        all_rows = distributed.all_stack(rows, self.group)
        all_counts = distributed.all_stack(counts, self.group)
        taken = torch.arange(k, device=rows.device) < all_counts[..., None]
        own_class = torch.eye(classes, dtype=torch.bool, device=rows.device)[:, None]
        masks = (taken[..., None] & own_class).flatten(1, 2)
        return [(part, reference.pack_mask(m)) for part, m in zip(all_rows, masks, strict=True)]

    def extra_repr(self) -> str:
        """Describe classes, slots, dtype, memory and the maximum per step in ``repr``."""
        slots, dim = self.bank.shape
        megabytes = self.bank.numel() * self.bank.element_size() / 2**20
        most = int(self.max_keys.max())
        cap = f"at most {most} keys per class and step" if most else "all keys of a step"
        return f"classes={self.num_classes}, slots={slots}, dim={dim}, {self.bank.dtype}, {megabytes:.1f} MiB, {cap}"

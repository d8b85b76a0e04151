"""Pack tensors of any dtypes into one, so that one launch reads or selects them all."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class Packing:
    """Pack tensors with the shapes, dtypes and memory formats of ``like`` into one tensor of words.

    Packing is one ``cat``, which copies 128 tensors per launch on a GPU. Unpacking makes views.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._like = list(like)
        # Wide elements come first, so that each tensor begins at a multiple of its element size.
        self._order = sorted(range(len(like)), key=lambda i: -like[i].element_size())
        self._word = WORDS.get(min((x.element_size() for x in like), default=8), torch.int64)
        self._channels_last = [_is_channels_last(x) for x in like]

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return all bits as one dimension.

        A tensor whose memory format differs from that of ``like`` costs an extra launch.
        """
        return torch.cat([self._flat(tensors[i], i) for i in self._order])

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Return views of the result of :meth:`pack`, in the order of ``like``."""
        views = list(self._like)
        sizes = [views[i].numel() * views[i].element_size() // self._word.itemsize for i in self._order]
        for i, part in zip(self._order, packed.split(sizes), strict=True):
            like, part = views[i], part.view(views[i].dtype)
            # Multi-tensor operations compare strides, even those of dimensions with one element: use exactly those.
            dense = like.is_contiguous() or self._channels_last[i]
            views[i] = part.as_strided(like.shape, like.stride()) if dense else part.view(like.shape)
        return views

    def _flat(self, x: Tensor, i: int) -> Tensor:
        ordered = x.permute(0, 2, 3, 1) if self._channels_last[i] else x
        return ordered.contiguous().view(-1).view(self._word)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def by_dtype(old: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield both lists by dtype.

    Multi-tensor operations process a list of several dtypes tensor by tensor.
    """
    for dtype in dict.fromkeys(x.dtype for x in old):
        pairs = [(x, y) for x, y in zip(old, new, strict=True) if x.dtype == dtype]
        yield [x for x, _ in pairs], [y for _, y in pairs]

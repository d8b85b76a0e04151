"""Define the launch table: fixed choices by block shape and warp width. Nothing is timed at run time.

An autotuner chooses differently from run to run, waits for the device and cannot be captured in a CUDA graph. A block
of the pixel kernels holds no classes (they are looped over) and computes in fp32 for every input, so neither the number
of classes nor the dtype is a key. ``benchmarks/aot/`` compiles exactly the entries of this table for the sizes that
``_cells.py`` allows.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """Hold the cells of a block and the warps of a program."""

    cells: int
    num_warps: int


@functools.cache
def warp_size(device: torch.device) -> int:
    """Return 64 on CDNA, and 32 elsewhere and in the interpreter."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def table(pixels: int, warp: int) -> Launch:
    """Return one warp per program, with 2 to 16 pixels per lane.

    With one warp, shares move between lanes without shared memory. ``pixels`` is the number of pixels in a chunk of a
    cell, 1 to 16. A lane has one cell, or two cells of a single pixel (no upscaling).
    """
    return Launch(warp * (1 if pixels > 1 else 2), 1)


def launch(pixels: int, device: torch.device) -> Launch:
    return table(pixels, warp_size(device))


def guard(tensor: Tensor) -> torch.cuda.device:
    """Return a context that launches on the tensor's device; it does nothing for a CPU tensor in the interpreter."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)

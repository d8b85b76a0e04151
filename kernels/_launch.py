"""The launch table: fixed choices by the shape of a block and the width of a warp; nothing is timed at run time.

An autotuner picks differently from run to run, waits for the device and cannot be captured in a CUDA graph. A block of
the pixel kernels holds no classes, which are looped over, and computes in fp32 whatever it reads, so neither the class
count nor the dtype is a key. ``benchmarks/aot/`` compiles exactly what this table says and what ``_cells.py`` allows.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """Cells of a block, and warps of a program."""

    cells: int
    num_warps: int


@functools.cache
def warp_size(device: torch.device) -> int:
    """64 on CDNA, 32 elsewhere and in the interpreter."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def table(pixels: int, warp: int) -> Launch:
    """One warp a program, so that shares move between lanes without shared memory, and 2 to 16 pixels a lane.

    ``pixels``: of a cell's chunk, 1 to 16. A lane has one cell, or two of a single pixel (no upscaling).
    """
    return Launch(warp * (1 if pixels > 1 else 2), 1)


def launch(pixels: int, device: torch.device) -> Launch:
    return table(pixels, warp_size(device))


def guard(tensor: Tensor) -> torch.cuda.device:
    """Launch on the tensor's device; does nothing for a CPU tensor in the interpreter."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)

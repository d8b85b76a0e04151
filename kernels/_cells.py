"""Define the geometry that the pixel kernels share: how full-resolution pixels are assigned to lanes and blended.

A *cell* is the area between four neighboring logits: the full-resolution rows whose source position falls in [y, y+1)
and the columns whose source position falls in [x, x+1). One lane owns one cell. For each class it reads four corners
and blends all pixels of the cell from them. A logit is therefore read about four times, not once per pixel, and the
gradient folds back onto the corners within the lane. Without aligned corners there are pixels before the first source
position. They form the cells of row or column −1, whose weight lies entirely on their inner corner, as in the cells of
the last row and column. Other cells therefore need no code for borders.

Cells are numbered (image, row, column) in one sequence and divided into blocks of ``CELLS`` lanes, whatever the width
of the grid. Pixels of a cell are divided into chunks of at most ``R`` rows × ``S`` columns, one program each; the
chunks of a block are consecutive. (A second launch axis is limited to 65,535 programs.)

Bilinear weights are convex, so no pixel of a cell exceeds the largest logit at the cell's corners. This bound is
computed once per cell and subtracted at the corners, so that a sum of exponentials needs no running maximum per pixel.
Of an online step, a product, an exponential and an addition remain. A pixel far below the bound, halfway between two
corners that are sure of different classes, would lose digits. If a block holds such a pixel (``TINY``), its sums are
recomputed relative to the maximum of each pixel. So are the sums of a single class, which must be exactly 1. Below
``SHIFTED`` pixels per lane, the bound costs more than it saves.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import _launch

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
MAX_SIDE = 16384  # 2 · side² must fit int32
TINY = tl.constexpr(2.0**-24)  # a smaller sum of exponentials is recomputed
SHIFTED = tl.constexpr(4)  # pixels per chunk of a cell, from which the corners' maximum is subtracted
LOWEST = tl.constexpr(-1e30)  # lower bound of what is subtracted, so that a class at −∞ stays finite
WIDEST = 4  # rows and columns of a cell's chunk: with more pixels per lane, registers spill


class Axis(NamedTuple):
    """Describe one axis: ``out`` positions over ``size`` logits; cell i begins at ⌈(i·step + shift) / unit⌉."""

    size: int
    out: int
    step: int
    shift: int
    unit: int
    scale: float

    @property
    def longest(self) -> int:
        """Return the maximum of positions in a cell."""
        return -(-self.step // self.unit)

    @property
    def block(self) -> int:
        return min(WIDEST, triton.next_power_of_2(self.longest))

    @property
    def chunks(self) -> int:
        return -(-self.longest // self.block)


def axis(size: int, out: int, align_corners: bool) -> Axis:
    """Return the source positions of ``interpolate``.

    The start of each cell is computed in integers, so that it is exact.
    """
    if max(size, out) > MAX_SIDE:
        raise ValueError(f"size: the triton kernels take sides up to {MAX_SIDE}, got {max(size, out)}")
    if not align_corners:
        return Axis(size, out, 2 * out, out - size, 2 * size, size / out)
    if size == 1 or out == 1:  # every position reads logit 0
        return Axis(size, out, out, 0, 1, 0.0)
    return Axis(size, out, out - 1, 0, size - 1, (size - 1) / (out - 1))


class Geometry(NamedTuple):
    """Describe how one call is divided into programs.

    A cell has ``chunks`` chunks of pixels, ``column_chunks`` of them side by side. Kernels take the tuple as one
    argument; Triton's launcher specializes its numbers one by one, as it does with separate arguments.
    """

    cells: int
    rows: Axis
    columns: Axis
    column_chunks: int
    chunks: int


def geometry(logits: Tensor, height: int, width: int, align_corners: bool) -> tuple[Geometry, dict[str, int]]:
    """Return the geometry of one call, and the constants and options of its kernel launch."""
    batch, _, *size = logits.shape
    rows, columns = (axis(low, full, align_corners) for low, full in zip(size, (height, width), strict=True))
    ghost = 0 if align_corners else 1
    cells = batch * (rows.size + ghost) * (columns.size + ghost)
    launch = _launch.launch(rows.block * columns.block, logits.device)
    constants = {"ALIGN": align_corners, "R": rows.block, "S": columns.block}
    constants |= {"CELLS": launch.cells, "num_warps": launch.num_warps}
    return Geometry(cells, rows, columns, columns.chunks, rows.chunks * columns.chunks), constants


# --- Inside the kernels -----------------------------------------------------------------------------------------------


@triton.jit
def cell_start(i, axis):
    """Return the first output position of cell i; cells past the last begin at the end."""
    start = (tl.maximum(i * axis.step + axis.shift, 0) + axis.unit - 1) // axis.unit
    return tl.where(i >= axis.size, axis.out, tl.minimum(start, axis.out))


@triton.jit
def cell_weight(o_out, i, axis, ALIGN: tl.constexpr):
    """Return the weight of corner i + 1 at output position ``o_out``, in fp32 as ``interpolate`` computes it."""
    if ALIGN:
        position = o_out.to(tl.float32) * axis.scale
    else:
        position = (o_out.to(tl.float32) + 0.5) * axis.scale - 0.5
    fraction = tl.minimum(tl.maximum(position - i, 0.0), 1.0)
    return tl.where(i < 0, 1.0, tl.where(i == axis.size - 1, 0.0, fraction))


@triton.jit
def cell_position(o_cell, geometry, ALIGN: tl.constexpr):
    """Return (image, row, column) of cells by number; row and column begin at −1 without aligned corners."""
    GHOST: tl.constexpr = 0 if ALIGN else 1
    line = o_cell // (geometry.columns.size + GHOST)
    i_x = o_cell - line * (geometry.columns.size + GHOST) - GHOST
    i_image = line // (geometry.rows.size + GHOST)
    i_y = line - i_image * (geometry.rows.size + GHOST) - GHOST
    return i_image, i_y, i_x


class Pixels(NamedTuple):
    """Describe one chunk of the pixels of each cell (CELLS).

    ``first`` is the flat offset of its first pixel; ``rows_left`` and ``columns_left`` are the rows and columns of the
    cell from there on, 0 for a cell that does not exist; ``pitch`` is the offset from row to row.
    """

    first: Tensor
    rows_left: Tensor
    columns_left: Tensor
    pitch: int


@triton.jit
def cell_pixels(o_cell, i_chunk, geometry, ALIGN: tl.constexpr, R: tl.constexpr, S: tl.constexpr):
    """Return the position of the cells, one chunk of their pixels, and its weights by row and by column."""
    position = cell_position(tl.minimum(tl.maximum(o_cell, 0), geometry.cells - 1), geometry, ALIGN)
    i_image, i_y, i_x = position
    row_first = cell_start(i_y, geometry.rows) + i_chunk // geometry.column_chunks * R
    col_first = cell_start(i_x, geometry.columns) + i_chunk % geometry.column_chunks * S
    rows_left = cell_start(i_y + 1, geometry.rows) - row_first
    columns_left = cell_start(i_x + 1, geometry.columns) - col_first
    rows_left = tl.where((o_cell >= 0) & (o_cell < geometry.cells), rows_left, 0)
    o_row = row_first[None, None, :] + tl.arange(0, R)[:, None, None]
    o_col = col_first[None, None, :] + tl.arange(0, S)[None, :, None]
    b_wy = cell_weight(o_row, i_y[None, None, :], geometry.rows, ALIGN)
    b_wx = cell_weight(o_col, i_x[None, None, :], geometry.columns, ALIGN)
    o_first = (i_image.to(tl.int64) * geometry.rows.out + row_first) * geometry.columns.out + col_first
    return position, Pixels(o_first, rows_left, columns_left, geometry.columns.out), b_wy, b_wx


@triton.jit
def load_pixel(p_x, pixels, other, ROW: tl.constexpr, COL: tl.constexpr):
    m_pixel = (ROW < pixels.rows_left) & (COL < pixels.columns_left)
    return tl.load(p_x + pixels.first + (ROW * pixels.pitch + COL), mask=m_pixel, other=other)


@triton.jit
def load_row(p_x, pixels, other, ROW: tl.constexpr, S: tl.constexpr):
    """Load one row of the cells' pixels: (CELLS, S)."""
    b_0 = load_pixel(p_x, pixels, other, ROW, 0)
    if S == 1:
        b_row = tl.expand_dims(b_0, 1)
    else:
        b_1 = load_pixel(p_x, pixels, other, ROW, 1)
        if S == 2:
            b_row = tl.join(b_0, b_1)
        else:
            b_2 = load_pixel(p_x, pixels, other, ROW, 2)
            b_3 = load_pixel(p_x, pixels, other, ROW, 3)
            b_row = tl.reshape(tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)), (b_0.shape[0], 4))
    return b_row


@triton.jit
def load_pixels(p_x, pixels, other, R: tl.constexpr, S: tl.constexpr):
    """Load (R, S, CELLS) of a full-resolution map, with ``other`` past the end of a cell.

    Load pixel by pixel, one cell per lane, and join in registers. For a load of the whole block, the compiler would
    choose a layout that coalesces these few accesses, with pixels across lanes. It would keep that layout for the whole
    kernel and exchange the values of every class through shared memory.
    """
    tl.static_assert(R <= 4 and S <= 4)
    b_0 = load_row(p_x, pixels, other, 0, S)
    if R == 1:
        b_x = tl.expand_dims(b_0, 2)
    else:
        b_1 = load_row(p_x, pixels, other, 1, S)
        if R == 2:
            b_x = tl.join(b_0, b_1)
        else:
            b_2 = load_row(p_x, pixels, other, 2, S)
            b_3 = load_row(p_x, pixels, other, 3, S)
            b_x = tl.reshape(tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)), (b_0.shape[0], S, 4))
    return tl.permute(b_x, (2, 1, 0))


@triton.jit
def store_pixels(p_x, b_x, pixels, R: tl.constexpr, S: tl.constexpr):
    """Store (R, S, CELLS) to a full-resolution map, columns innermost: neighboring threads write neighboring elements.

    The minimum has no effect under the mask. It hides from the compiler that columns are adjacent, since the compiler
    would otherwise choose the layout of this store for the whole kernel (see ``load_pixels``).
    """
    o_row = tl.arange(0, R)[:, None, None]
    o_col = tl.arange(0, S)[None, None, :]
    columns_left = pixels.columns_left[None, :, None]
    o_pixel = pixels.first[None, :, None] + o_row * pixels.pitch + tl.minimum(o_col, columns_left)
    m_pixel = (o_row < pixels.rows_left[None, :, None]) & (o_col < columns_left)
    tl.store(p_x + o_pixel, tl.permute(b_x, (0, 2, 1)).to(p_x.dtype.element_ty), mask=m_pixel)


@triton.jit
def corner_offsets(position, geometry, stride_b, stride_h, stride_w):
    """Return the offsets of class 0 at the corners, each (CELLS): upper left, upper right, lower left, lower right.

    A corner outside the grid is replaced by its neighbor inside, with weight 0.
    """
    i_image, i_y, i_x = position
    image = i_image.to(tl.int64) * stride_b
    upper = tl.maximum(i_y, 0).to(tl.int64) * stride_h
    lower = tl.minimum(i_y + 1, geometry.rows.size - 1).to(tl.int64) * stride_h
    left = tl.maximum(i_x, 0).to(tl.int64) * stride_w
    right = tl.minimum(i_x + 1, geometry.columns.size - 1).to(tl.int64) * stride_w
    return image + upper + left, image + upper + right, image + lower + left, image + lower + right


@triton.jit
def corner_pointers(p_x, o_corners):
    return p_x + o_corners[0], p_x + o_corners[1], p_x + o_corners[2], p_x + o_corners[3]


@triton.jit
def load_corners(p_corners, offset):
    """Load the four corners of the class that begins at ``offset``.

    Loops add to the offset. A product of class and stride would be 64 bits wide, and so would every comparison of a
    label with the class.
    """
    return (
        tl.load(p_corners[0] + offset).to(tl.float32),
        tl.load(p_corners[1] + offset).to(tl.float32),
        tl.load(p_corners[2] + offset).to(tl.float32),
        tl.load(p_corners[3] + offset).to(tl.float32),
    )


@triton.jit
def corners(p_corners, offset, b_top):
    """Return the four corners of one class minus ``b_top``, in units of log 2, since hardware computes exp2."""
    b_ul, b_ur, b_ll, b_lr = load_corners(p_corners, offset)
    return b_ul * LOG2E - b_top, b_ur * LOG2E - b_top, b_ll * LOG2E - b_top, b_lr * LOG2E - b_top


@triton.jit
def corner_maximum(p_corners, num_classes, stride_c):
    """Return (CELLS): the largest logit at a cell's corners, in units of log 2; at least ``LOWEST``."""
    b_top = tl.full(p_corners[0].shape, LOWEST, tl.float32)
    offset = tl.zeros((), tl.int64)
    for _ in range(0, num_classes):
        b_ul, b_ur, b_ll, b_lr = load_corners(p_corners, offset)
        b_top = tl.maximum(b_top, tl.maximum(tl.maximum(b_ul, b_ur), tl.maximum(b_ll, b_lr)))
        offset += stride_c
    return tl.maximum(b_top * LOG2E, LOWEST)


@triton.jit
def blend(b_corners, b_wy, b_wx):
    """Return values (R, S, CELLS) of corners (CELLS), with row (R, 1, CELLS) and column weights (1, S, CELLS)."""
    b_ul, b_ur, b_ll, b_lr = b_corners
    upper = b_ul[None, None, :] + (b_ur - b_ul)[None, None, :] * b_wx
    lower = b_ll[None, None, :] + (b_lr - b_ll)[None, None, :] * b_wx
    return upper + (lower - upper) * b_wy


@triton.jit
def load_labels(p_target, pixels, m_own, p_errors, num_classes, ignore_index, R: tl.constexpr, S: tl.constexpr):
    """Load the labels of pixels as int32, −1 where ignored.

    Count labels in own cells that are neither a class nor ``ignore_index``.
    """
    label = load_pixels(p_target, pixels, 0, R, S)
    m_pixel = tl.arange(0, R)[:, None, None] < pixels.rows_left[None, None, :]
    m_pixel = m_pixel & (tl.arange(0, S)[None, :, None] < pixels.columns_left[None, None, :])
    m_class = (label >= 0) & (label < num_classes)
    bad = m_pixel & m_own[None, None, :] & (label != ignore_index) & ~m_class
    num_bad = tl.sum(bad.to(tl.int32))
    if num_bad > 0:
        tl.atomic_add(p_errors, num_bad)
    return tl.where(m_pixel & m_class, label.to(tl.int32), -1)


@triton.jit
def log_sum_exp_step(b_max, b_sum, b_value):
    """Add one class to an online log2-sum-exp2.

    One exp2 is enough: it scales either the old sum or the new term.
    """
    delta = b_value - b_max
    e = tl.exp2(-tl.abs(delta))
    b_sum = tl.where(delta > 0, b_sum * e + 1.0, b_sum + e)
    return tl.maximum(b_max, b_value), b_sum


@triton.jit
def online_log_sum_exp(p_corners, num_classes, stride_c, b_top, b_wy, b_wx):
    """Return (R, S, CELLS): log2 Σ exp2 of the values minus ``b_top``, for values of any size."""
    b_max = blend(corners(p_corners, 0, b_top), b_wy, b_wx)
    b_sum = tl.full(b_max.shape, 1.0, tl.float32)
    offset = tl.zeros((), tl.int64)
    for _ in range(1, num_classes):
        offset += stride_c
        b_max, b_sum = log_sum_exp_step(b_max, b_sum, blend(corners(p_corners, offset, b_top), b_wy, b_wx))
    return b_max + tl.log2(b_sum)


@triton.jit
def label_sweep(p_corners, num_classes, stride_c, b_label, b_wy, b_wx, R: tl.constexpr, S: tl.constexpr):
    """Sweep over the classes once.

    Return the value that is subtracted from the logits (CELLS), log2 Σ exp2 of the difference (R, S, CELLS), and the
    difference of the label's class (R, S, CELLS).
    """
    if R * S >= SHIFTED:
        b_top = corner_maximum(p_corners, num_classes, stride_c)
        b_sum = tl.zeros(b_label.shape, tl.float32)
        b_target = tl.zeros(b_label.shape, tl.float32)
        offset = tl.zeros((), tl.int64)
        for i_class in range(0, num_classes):
            b_value = blend(corners(p_corners, offset, b_top), b_wy, b_wx)
            b_sum += tl.exp2(b_value)
            b_target = tl.where(b_label == i_class, b_value, b_target)
            offset += stride_c
        b_lse = tl.log2(b_sum)
        if (tl.min(b_sum) < TINY) | (num_classes == 1):
            b_lse = online_log_sum_exp(p_corners, num_classes, stride_c, b_top, b_wy, b_wx)
    else:
        b_top = tl.zeros(p_corners[0].shape, tl.float32)
        b_max = blend(corners(p_corners, 0, b_top), b_wy, b_wx)
        b_sum = tl.full(b_label.shape, 1.0, tl.float32)
        b_target = b_max
        offset = tl.zeros((), tl.int64)
        for i_class in range(1, num_classes):
            offset += stride_c
            b_value = blend(corners(p_corners, offset, b_top), b_wy, b_wx)
            b_max, b_sum = log_sum_exp_step(b_max, b_sum, b_value)
            b_target = tl.where(b_label == i_class, b_value, b_target)
        b_lse = b_max + tl.log2(b_sum)
    return b_top, b_lse, b_target

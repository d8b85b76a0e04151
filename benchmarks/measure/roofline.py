"""Compute how fast an op could be: what it must move and compute, and how fast a machine can do that.

The cost of an op is what *any* implementation has to do: read every input once, write every output once, compute one
exp per class and pixel, and do the arithmetic of the formula. The floor is the slowest of the three,

    floor = max(bytes / copy bandwidth, flops / matmul rate, exps / exp rate),

so time ÷ floor ≥ 1 up to the error of the measured ceilings. ``ceilings`` measures those of this machine. ``PUBLISHED``
holds figures of vendors for other machines; what follows from them is a prediction. The ceiling of exponentials alone
is computed: torch.exp on data in a cache is limited by loads and stores, and a kernel that keeps its numbers in
registers is several times faster. On a CPU an exp costs at least ``EXP_FLOPS`` of the units that the matrix product
uses; on a GPU it goes through special-function units.

``python -m benchmarks.measure.roofline`` prints both.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from .workloads import NAMED, REPORTED, Workload

KINDS = ("bytes", "flops", "exp")
LABELED_KEYS_PER_PIXEL = 2.3  # of the r_l = 3 most likely classes, those that are not the label
UNRELIABLE_SHARE = 0.2
EXP_FLOPS = (
    16  # range reduction in two steps, a polynomial of degree 5, the power of two: 8 multiply-adds or the same time
)
IN_A_ROW = 5  # calls on a GPU that are timed together
LANES_A_CLOCK = 128  # lanes for which a multiprocessor issues an instruction
EXPS_A_CLOCK = 16  # special-function units of a multiprocessor, in all generations named here


@dataclass(frozen=True)
class Cost:
    """Count bytes moved, floating-point operations (a multiply-add is two) and exponentials."""

    bytes: float = 0
    flops: float = 0
    exps: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.bytes + other.bytes, self.flops + other.flops, self.exps + other.exps)


@dataclass(frozen=True)
class Ceilings:
    """Hold the rates of a machine: bytes/s of a copy (read + written), flop/s of an fp32 matrix product, exp/s."""

    bytes: float
    flops: float
    exps: float


@dataclass(frozen=True)
class Counts:
    """Count what depends on the data: keys written to the bank, pixels read for them, classes with an anchor."""

    written: float
    pixels: float
    classes: float


def floor(cost: Cost, ceilings: Ceilings) -> tuple[float, str]:
    """Return (milliseconds, which of ``KINDS`` sets them)."""
    times = [1e3 * getattr(cost, f.name) / getattr(ceilings, f.name) for f in fields(Cost)]
    worst = max(range(len(times)), key=times.__getitem__)
    return times[worst], KINDS[worst]


# --- What each op costs -----------------------------------------------------------------------------------------------


def offered_keys(w: Workload) -> float:
    """Return the negatives of a step before any cap: some per labeled pixel, r_h − r_l per unreliable pixel."""
    grid = w.grid[0] * w.grid[1]
    labeled = LABELED_KEYS_PER_PIXEL * min(1, w.low_rank / 3) * w.labeled * grid
    return labeled + UNRELIABLE_SHARE * w.unlabeled * grid * (w.high_rank - w.low_rank)


def expected(w: Workload, capped: bool) -> Counts:
    """Return the counts if classes shared images and negatives evenly: known without data."""
    share = offered_keys(w) / w.num_classes
    written = sum(min(share, cap if capped else k) for k, cap in zip(w.capacities, w.caps, strict=True))
    pixels = w.grid[0] * w.grid[1] * (w.labeled + UNRELIABLE_SHARE * w.unlabeled)
    absent = (1 - min(1, w.classes_per_image / w.num_classes)) ** w.images
    return Counts(written, min(pixels, written), w.num_classes * (1 - absent))


def pixel_stats(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    low, full = _low(w, w.unlabeled), _full(w, w.unlabeled)
    label = 1 if w.num_classes <= 255 else 2
    # A class of a pixel: a blend (2), the maximum (1), its distance from it (1), Σ e (1), Σ d·e (2).
    return Cost(low * w.num_classes * itemsize + full * (label + 8), 7 * full * w.num_classes, full * w.num_classes)


def upsampled_cross_entropy(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    low, full = _low(w, w.labeled), _full(w, w.labeled)
    read = low * w.num_classes * itemsize + full * (1 if w.num_classes <= 255 else 2)
    terms = full * w.num_classes
    if not gradient:
        return Cost(read, 5 * terms, terms)
    # The gradient of a class of a pixel: p − target (2), folded down to two low rows (4); e is kept from the sum.
    return Cost(read + low * w.num_classes * itemsize, 11 * terms, terms)


def masked_quantile(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    full = _full(w, w.unlabeled)
    return Cost(full * (4 + 1), full, 0)


def contrast_masks(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    pixels = w.grid_pixels
    label = 1 if w.num_classes <= 255 else 2
    read = pixels * (w.num_classes * itemsize + label + 2)
    # Two selections by rank and a softmax: a few comparisons and one exp for each class of a pixel.
    return Cost(read + pixels * (4 * _words(w) + 2), 6 * pixels * w.num_classes, pixels * w.num_classes)


def thin_mask(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    return Cost(2 * w.grid_pixels * 4 * _words(w), 0, 0)


def ring_push(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    read = n.pixels * w.dim * itemsize + w.grid_pixels * 4 * _words(w)
    return Cost(read + n.written * w.dim * itemsize, 3 * n.pixels * w.dim, 0)


def info_nce(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    rows = n.classes * w.anchors
    # An anchor's dot products, and with a gradient the same again for Σ_j p_j k_j.
    products = rows * (w.negatives + 1) * w.dim * 2 * (2 if gradient else 1)
    # Number of a ring's K slots that are drawn at least once; a slot drawn again may come from a cache.
    distinct = w.capacity * (1 - (1 - 1 / w.capacity) ** (w.anchors * w.negatives))
    read = rows * (w.dim * itemsize + 8 * w.negatives) + n.classes * w.dim * (4 + itemsize * distinct)
    return Cost(read + (rows * w.dim * itemsize if gradient else 0), products, rows * (w.negatives + 1))


def ohem_mask(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    low, full = _low(w, w.labeled), _full(w, w.labeled)
    label = 1 if w.num_classes <= 255 else 2
    # As pixel_stats, but only for the probability of the label.
    return Cost(low * w.num_classes * itemsize + full * (label + 1), 5 * full * w.num_classes, full * w.num_classes)


def class_sum(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    """Return the cost as if every pixel were an anchor; in a training most are."""
    return Cost(w.grid_pixels * (w.dim * itemsize + 2), w.grid_pixels * w.dim, 0)


def class_sample(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    return Cost(2 * w.grid_pixels + 2 * 8 * w.num_classes * w.anchors, 0, 0)


def gather_pixels(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    rows = n.classes * w.anchors * w.dim * itemsize
    index = 8 * w.num_classes * w.anchors
    # The gradient has the size of the features and is almost all zeros.
    back = rows + index + w.grid_pixels * w.dim * itemsize
    return Cost(2 * rows + index + (back if gradient else 0), n.classes * w.anchors * w.dim if gradient else 0, 0)


def contrastive_loss(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    """Return the cost of the whole loss. Its gradient ends at the sampled anchors."""
    steps = (masked_quantile, contrast_masks, thin_mask, class_sum, ring_push, class_sample)
    total = sum((step(w, itemsize, gradient, n) for step in steps), Cost())
    return total + gather_pixels(w, itemsize, False, n) + info_nce(w, itemsize, gradient, n)


def ema_update(w: Workload, itemsize: int, gradient: bool, n: Counts) -> Cost:
    """Return the cost: teacher and student are read, the teacher is written."""
    elements = sum(math.prod(shape) for shape in w.network)
    return Cost(3 * elements * itemsize, 3 * elements, 0)


COSTS: dict[str, Callable[[Workload, int, bool, Counts], Cost]] = {
    f.__name__: f
    for f in (
        pixel_stats,
        upsampled_cross_entropy,
        ohem_mask,
        masked_quantile,
        contrast_masks,
        thin_mask,
        class_sum,
        class_sample,
        gather_pixels,
        ring_push,
        info_nce,
        contrastive_loss,
        ema_update,
    )
}


def _low(w: Workload, images: int) -> int:
    return images * w.grid[0] * w.grid[1]


def _full(w: Workload, images: int) -> int:
    return images * w.crop[0] * w.crop[1]


def _words(w: Workload) -> int:
    return -(-w.num_classes // 32)


# --- What a machine can do --------------------------------------------------------------------------------------------


def best_time(call: Callable[[], object], device: str, repeats: int) -> float:
    """Return the seconds of the fastest of ``repeats`` calls: a ceiling is the best that the machine can do."""
    call()
    best = float("inf")
    for _ in range(repeats):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(IN_A_ROW):  # keeps launching out of the time
                call()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3 / IN_A_ROW)
        else:
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
    return best


def ceilings(device: str, *, quick: bool = False) -> Ceilings:
    """Measure a copy too large for any cache and an fp32 matrix product (no TF32). Compute the rate of exp."""
    repeats = 3 if quick else (5 if device == "cuda" else 15)
    size = 2**22 if quick else (2**29 if device == "cuda" else 2**26)
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / best_time(lambda: target.copy_(source), device, repeats)
    side = 512 if quick else (8192 if device == "cuda" else 2048)
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    c = torch.empty_like(a)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    flops = 2 * side**3 / best_time(lambda: torch.mm(a, b, out=c), device, repeats)
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return Ceilings(copy, flops, _special_function_rate() if device == "cuda" else flops / EXP_FLOPS)


def _special_function_rate() -> float:
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    return card.multi_processor_count * EXPS_A_CLOCK * card.clock_rate * 1e3


def _gpu(bandwidth: float, flops: float, multiprocessors: int, gigahertz: float) -> Ceilings:
    return Ceilings(bandwidth * 1e9, flops * 1e12, multiprocessors * EXPS_A_CLOCK * gigahertz * 1e9)


# Vendors' data sheets: memory GB/s, fp32 TFLOP/s outside the tensor cores, multiprocessors, boost clock.
PUBLISHED = {
    "H200 SXM": _gpu(4800, 67, 132, 1.98),
    "H100 SXM": _gpu(3350, 67, 132, 1.98),
    "A100 SXM 80 GB": _gpu(2039, 19.5, 108, 1.41),
    "RTX 4090": _gpu(1008, 82.6, 128, 2.52),
}


def predictions(op: str, workload: Workload, *, itemsize: int, gradient: bool, capped: bool) -> dict[str, tuple]:
    """Return the floor of an op on each machine of ``PUBLISHED``, without a measurement."""
    cost = COSTS[op](workload, itemsize, gradient, expected(workload, capped))
    return {name: floor(cost, ceiling) for name, ceiling in PUBLISHED.items()}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = ceilings(device)
    print(
        f"measured on this {device}: copy {here.bytes / 1e9:.1f} GB/s, matmul {here.flops / 1e9:.0f} GFLOP/s, "
        f"exp {here.exps / 1e9:.2f} G/s"
    )
    print("\nfloors in ms, fp32, forward + backward, literal bank; GPUs: predicted from published ceilings")
    print(f"{'':<40}{'here':>14}" + "".join(f"{name:>20}" for name in PUBLISHED))
    for op in COSTS:
        for name in REPORTED:
            cost = COSTS[op](NAMED[name], 4, True, expected(NAMED[name], False))
            row = [floor(cost, c) for c in (here, *PUBLISHED.values())]
            cells = [f"{ms:.3f} {kind}" for ms, kind in row]
            print(f"{op + ' ' + name:<40}{cells[0]:>14}" + "".join(f"{cell:>20}" for cell in cells[1:]))


if __name__ == "__main__":
    main()

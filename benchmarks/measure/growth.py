"""Measure how time grows with pixels, classes, bank capacity and negatives, each on a log-log line.

    {"machine": {...}, "curves": [{"axis", "op", "device", "dtype", "bank", "impl", "pass", "x", "y", "unit",
                                   "exponent"}]}

``exponent`` is the least-squares slope of log y over log x: 1 is linear, 0 is constant. Traffic over the number of
processes is computed, not measured: its ``impl`` is ``predicted``.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from u2pl_fast.training.traffic import step_traffic

from . import machine, results, roofline, runner
from .registry import BOTH, FORWARD, Setting, load
from .workloads import NAMED, Workload

IMPLS = ("eager", "class-loop", "fused")
ROUNDS = 5
WORLD = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Axis:
    """Name an axis, its workloads, and the (op, pass, bank) that are measured on them."""

    name: str
    points: tuple[tuple[float, Workload], ...]
    measured: tuple[tuple[str, str, str | None], ...]


BRANCH = ("contrastive_loss", BOTH, "capped")
PIXEL_OPS = (("pixel_stats", FORWARD, None), ("upsampled_cross_entropy", BOTH, None), BRANCH)
BANK_OPS = (("ring_push", FORWARD, "capped"), BRANCH)
LOSS_OPS = (("info_nce", BOTH, None), BRANCH)


def axes(*, quick: bool) -> list[Axis]:
    """Return the four axes; ``quick`` keeps the first points of each."""
    voc = NAMED["voc"]
    sides = (129, 185, 257, 361, 513)
    pixels = [
        (side**2 / sides[0] ** 2, dataclasses.replace(voc, crop=(side, side), grid=((side + 3) // 4,) * 2))
        for side in sides
    ]
    # Small images and rings, so that 300 classes, 100 000 slots or 4096 negatives fit in any machine's memory.
    small = dataclasses.replace(voc, labeled=2, unlabeled=2, crop=(257, 257), grid=(65, 65), dim=128, anchors=64)
    ring = {"capacity": 1000, "background_capacity": 1000, "max_keys": 500}
    classes = [(c, dataclasses.replace(small, num_classes=c, **ring)) for c in (2, 5, 10, 21, 50, 100, 150, 300)]
    capacity = [
        (k, dataclasses.replace(small, capacity=k, background_capacity=k, max_keys=500))
        for k in (1000, 3000, 10_000, 30_000, 100_000)
    ]
    negatives = [(n, dataclasses.replace(small, negatives=n, **ring)) for n in (16, 64, 256, 1024, 4096)]
    every = (
        Axis("pixels", tuple(pixels), PIXEL_OPS),
        Axis("classes", tuple(classes), PIXEL_OPS),
        Axis("bank capacity", tuple(capacity), BANK_OPS),
        Axis("negatives", tuple(negatives), LOSS_OPS),
    )
    return [dataclasses.replace(axis, points=axis.points[:2]) if quick else axis for axis in every]


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line through (log x, log y)."""
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    covariance = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
    return covariance / sum((a - mean_u) ** 2 for a in u)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the curves of the chosen ops, write ``--json``, and return what it holds."""
    data: dict[str, Any] = {"machine": machine.describe(args.device, quick=args.quick), "curves": []}
    ceilings = roofline.Ceilings(**data["machine"]["ceilings"])
    impls = [impl for impl in IMPLS if impl in args.impl]
    rounds = args.rounds or ROUNDS
    for axis in axes(quick=args.quick):
        for op, passes, bank in axis.measured:
            if op in args.op:
                data["curves"] += _curves(axis, op, passes, bank, args.device, impls, rounds, ceilings)
                if args.json:
                    results.save(args.json, data)
    data["curves"].append(_traffic(args.device))
    if args.json:
        results.save(args.json, data)
    return data


def _curves(
    axis: Axis,
    name: str,
    passes: str,
    bank: str | None,
    device: str,
    impls: Sequence[str],
    rounds: int,
    ceilings: roofline.Ceilings,
) -> list[dict[str, Any]]:
    op = load(name)
    times: dict[str, list[tuple[float, float]]] = {}
    for x, workload in axis.points:
        setting = Setting(name, workload, device, "float32", "contiguous", bank, passes)
        chosen = [impl for impl in op.implementations if impl in impls]
        options = {"rounds": rounds, "peak": False, "details": False}
        measured = runner.measure(op, setting, chosen, ceilings, setting.inputs(), **options)
        for record in measured.records:
            if record["ms_median"] is not None:
                times.setdefault(record["impl"], []).append((x, record["ms_median"]))
    curves = []
    for impl, points in times.items():
        x, y = map(list, zip(*points, strict=True))
        slope = exponent(x, y)
        times_ms = f"{y[0]:10.3f} → {y[-1]:10.3f} ms"
        print(
            f"{axis.name:<14} {name:<24} {impl:<11} ×{x[-1] / x[0]:<6.4g} {times_ms}  exponent {slope:.2f}", flush=True
        )
        curves.append(_curve(axis.name, name, device, bank, impl, passes, x, y, "ms", slope))
    return curves


def _traffic(device: str) -> dict[str, Any]:
    w, sizes = NAMED["voc"], {"parameters": 0, "buffers": 0}
    shared = [
        step_traffic(world, num_classes=w.num_classes, dim=w.dim, shared_keys=-(-max(w.caps) // world), **sizes)[
            "shared bank"
        ]
        for world in WORLD
    ]
    megabytes = [size / 1e6 for size in shared]
    slope = exponent(WORLD, megabytes)
    name = "shared bank, received"
    return _curve("processes", name, device, "capped", "predicted", None, WORLD, megabytes, "MB", slope)


def _curve(
    axis: str,
    op: str,
    device: str,
    bank: str | None,
    impl: str,
    passes: str | None,
    x: Sequence[float],
    y: Sequence[float],
    unit: str,
    slope: float,
) -> dict[str, Any]:
    names = ("axis", "op", "device", "dtype", "bank", "impl", "pass", "x", "y", "unit", "exponent")
    return dict(zip(names, (axis, op, device, "float32", bank, impl, passes, x, y, unit, slope), strict=True))

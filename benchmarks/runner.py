"""Measures one setting: agree first, then take turns.

Every implementation gets the same inputs and must return the same tensors before a clock starts. Then each round calls
each of them once, so that what the machine does meanwhile hits all alike, and ratios are formed within a round.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, profiler

from . import compiled, machine, memory, results, roofline
from .registry import DTYPES, Call, Op, Setting

SECONDS = 6
ROUNDS = (5, 31)
FLUSHED = 256 * 2**20  # bytes written before each timed call on CUDA: more than any L2 holds

# Relative error allowed: norm of the difference over the norm. Integers: share of elements that may differ.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
TIES = 1e-5
FAILED = "failed:"  # how the reason of an implementation that raised begins


class Disagreement(AssertionError):
    """Two implementations returned different results: there is nothing to time."""


def assert_agree(name: str, got: Sequence[Tensor], want: Sequence[Tensor], dtype: str) -> None:
    if len(got) != len(want):
        raise Disagreement(f"{name}: {len(got)} tensors, expected {len(want)}")
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            raise Disagreement(f"{name}: tensor {i} is {tuple(a.shape)}, expected {tuple(b.shape)}")
        if b.is_floating_point():
            a, b = a.detach(), b.detach()
            error = float((a - b).norm(dtype=torch.float32) / b.norm(dtype=torch.float32).clamp(min=1e-20))
            bound = TOLERANCE[dtype]
        else:
            error, bound = float((a != b).float().mean()), TIES
        if not error <= bound:
            raise Disagreement(f"{name}: tensor {i} differs by {error:.2e}, more than {bound:.0e}")


def measure(
    op: Op,
    setting: Setting,
    impls: Sequence[str],
    ceilings: roofline.Ceilings,
    *,
    rounds: int | None = None,
    peak: bool = True,
    trace: Path | None = None,
) -> tuple[list[results.Record], list[results.Record]]:
    """(records, parts) of the chosen implementations of one setting; profiles of a step go to the folder ``trace``."""
    inputs = setting.inputs()
    calls, reasons = _agreeing(op, setting, impls, inputs)
    times = _take_turns(calls, setting.device, rounds)
    floor_ms, floor_kind = _floor(op, setting, inputs, ceilings)
    parts = []
    for impl, call in calls.items():
        phases = call.implementation.phases
        file = trace and trace / f"{str(setting).replace(' ', '-')}-{impl}.json"
        times_of = _phases(call, phases, setting.device, file) if phases else _stages(call, setting.device)
        if times_of:
            parts.append(_key(setting, impl) | {"parts": times_of})

    peaks: dict[str, float | str] = {}
    for impl, call in list(calls.items()):
        if not peak:
            peaks[impl] = "peak memory was not asked for"
        elif setting.device == "cuda":
            peaks[impl] = memory.allocator_growth(call)
    call = None
    del calls, inputs
    gc.collect()  # learners hold themselves in cycles, and the processes below need the room
    if peak and setting.device == "cpu":
        peaks = {impl: _peak_in_child(setting, impl) for impl in times}

    stamp = {"commit": machine.commit(), "time": machine.now()}
    records = []
    for impl in impls:
        record = _key(setting, impl) | dict.fromkeys(results.VALUES)
        why = [reasons[impl]] if impl in reasons else []
        if impl in times:
            record |= {"ms_median": statistics.median(times[impl]), "ms_all": times[impl]}
            record |= {"floor_ms": floor_ms, "floor_kind": floor_kind}
            for other in ("eager", "compile"):
                if other in times:
                    pairs = zip(times[other], times[impl], strict=True)
                    record[f"ratio_vs_{other}"] = statistics.median(theirs / own for theirs, own in pairs)
                else:
                    why.append(f"ratio_vs_{other}: " + reasons.get(other, f"{other} was not measured"))
            if isinstance(peaks[impl], str):
                why.append(f"peak_mb: {peaks[impl]}")
            else:
                record["peak_mb"] = peaks[impl]
        records.append(record | {"reason": "; ".join(why) or None} | stamp)
    return records, parts


def _floor(op: Op, setting: Setting, inputs: Any, ceilings: roofline.Ceilings) -> tuple[float | None, str | None]:
    """(milliseconds, kind), or None twice for what has networks in it."""
    if op.name not in roofline.COSTS:
        return None, None
    itemsize = DTYPES[setting.dtype].itemsize
    return roofline.floor(
        roofline.COSTS[op.name](setting.workload, itemsize, setting.gradient, op.counts(inputs)), ceilings
    )


def _key(setting: Setting, impl: str) -> results.Record:
    values = (
        setting.op,
        setting.workload.name,
        setting.device,
        setting.dtype,
        setting.layout,
        setting.bank,
        impl,
        setting.passes,
    )
    return dict(zip(results.KEY, values, strict=True))


def _agreeing(op: Op, setting: Setting, impls: Sequence[str], inputs: Any) -> tuple[dict[str, Call], dict[str, str]]:
    """(calls that ran once and agree with the first of them, why the others did not run)."""
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    expected: tuple[str, Sequence[Tensor]] | None = None
    for impl in impls:
        reason = op.implementations[impl].missing(setting)
        if reason:
            reasons[impl] = reason
            continue
        call = Call(op, setting, impl, inputs)
        try:
            if impl == "compile":
                with compiled.warming_up():
                    result = call()
            else:
                result = call()
        except compiled.CompileFailed as error:
            reasons[impl] = str(error)
            continue
        except (RuntimeError, MemoryError) as error:  # out of memory, or a kernel that failed: the others still count
            reasons[impl] = f"{FAILED} {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            continue
        got = call.compared(*result)
        if got and expected is None:
            expected = impl, got
        elif got:
            assert_agree(f"{setting}: {impl} against {expected[0]}", got, expected[1], setting.dtype)
        calls[impl] = call
    return calls, reasons


def _take_turns(calls: dict[str, Call], device: str, rounds: int | None) -> dict[str, list[float]]:
    """Milliseconds of each call in each round. Unless told, as many rounds as ``SECONDS`` hold."""
    clock = _cuda_clock() if device == "cuda" else _cpu_time
    once = sum(clock(call) for call in calls.values())
    if rounds is None:
        rounds = min(max(int(1e3 * SECONDS / max(once, 1e-3)), ROUNDS[0]), ROUNDS[1])
    times: dict[str, list[float]] = {impl: [] for impl in calls}
    orders = itertools.cycle([list(calls), list(calls)[::-1]])
    for order in itertools.islice(orders, rounds):
        for impl in order:
            times[impl].append(clock(calls[impl]))
    return times


def _cpu_time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = call()
    elapsed = 1e3 * (time.perf_counter() - start)
    del kept  # giving memory back is not the op's work
    return elapsed


def _cuda_clock() -> Callable[[Callable[[], object]], float]:
    """Time between two events round the call. The write before it empties L2 and lets the launches run ahead."""
    flushed = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")

    def clock(call: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        flushed.zero_()
        start.record()
        kept = call()
        end.record()
        end.synchronize()
        del kept
        return start.elapsed_time(end)

    return clock


def _stages(call: Call, device: str, rounds: int = 3) -> dict[str, float]:
    """Median milliseconds of each stage that the implementation marks; what follows the last mark is ``loss``."""
    each: dict[str, list[float]] = {}
    for _ in range(rounds):
        last = time.perf_counter()

        def mark(part: str) -> None:
            nonlocal last
            if device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            each.setdefault(part, []).append(1e3 * (now - last))
            last = now

        kept = call(mark)
        if not each:
            return {}
        mark("loss")
        del kept
    return {part: statistics.median(times) for part, times in each.items()}


def _phases(call: Call, phases: Sequence[str], device: str, trace: Path | None) -> dict[str, float]:
    """Milliseconds of the profiler scopes of one call; on CUDA of the kernels that they launch."""
    with profiler.profile() as profile:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(trace))
    total = "device_time_total" if device == "cuda" else "cpu_time_total"
    times = {event.key: getattr(event, total) / 1e3 for event in profile.key_averages()}
    return {phase: times[phase] for phase in phases if phase in times}


def _peak_in_child(setting: Setting, impl: str) -> float | str:
    try:
        return memory.peak_growth(setting, impl)
    except memory.MemoryUnknown as error:
        return str(error)

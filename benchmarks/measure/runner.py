"""Measure one setting: compare results first, then time in paired rounds.

Every implementation gets the same inputs and must return the same tensors before anything is timed. Then each round
calls each of them once, so that other load on the machine affects all of them alike, and ratios are formed within a
round.
"""

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, profiler

from u2pl_fast.utils.peak_memory import allocator_growth

from . import clocks, compiled, machine, memory, results, roofline
from .inputs import Inputs
from .registry import DTYPES, STEP, Call, Op, Setting

# Relative error allowed: norm of the difference over the norm. Integers: share of elements that may differ.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
TIES = 1e-5
FAILED = "failed:"  # how the reason of an implementation that raised begins
FUSED = "fused"  # on a GPU, only this one is captured as a graph and has its kernels listed


class Disagreement(AssertionError):
    """Report that two implementations returned different results. Nothing is timed then."""


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


class ContextLost(RuntimeError):
    """Report that a kernel broke this process's GPU context. Only a new process can continue."""


@dataclass
class Measured:
    """Hold rows of a results file, and whether the process can continue: not after a failed capture."""

    records: list[results.Record]
    parts: list[results.Record] = field(default_factory=list)
    kernels: list[results.Record] = field(default_factory=list)
    reliable: bool = True


def measure(
    op: Op,
    setting: Setting,
    impls: Sequence[str],
    ceilings: roofline.Ceilings,
    inputs: Inputs,
    *,
    rounds: int | None = None,
    peak: bool = True,
    trace: Path | None = None,
    keep_disagreeing: bool = False,
    details: bool = True,
) -> Measured:
    """Measure the chosen implementations of one setting. Write profiles of a step to the folder ``trace``.

    With ``details``, also measure the parts, and on a GPU the kernels and the time as a graph.
    """
    inputs.bank = setting.bank
    on_gpu, steps = setting.device == "cuda", setting.passes == STEP
    calls, reasons, wrong = _agreeing(op, setting, impls, inputs, keep_disagreeing)
    timed = clocks.take_turns(calls, setting.device, rounds, steps=steps)
    floor_ms, floor_kind = _floor(op, setting, inputs, ceilings)
    parts, kernels = [], []
    for impl, call in calls.items() if details else ():
        phases = call.implementation.phases
        file = trace and trace / f"{str(setting).replace(' ', '-')}-{impl}.json"
        times_of = _phases(call, phases, setting.device, file) if phases else _stages(call, setting.device)
        if times_of:
            parts.append(_key(setting, impl) | {"parts": times_of})
        if on_gpu and impl == FUSED:
            kernels.append(_key(setting, impl) | {"kernels": _launched(call)})

    peaks: dict[str, float | str] = {}
    for impl, call in list(calls.items()):
        if not peak:
            peaks[impl] = "peak memory was not asked for"
        elif call.implementation.no_peak:
            peaks[impl] = call.implementation.no_peak
        elif on_gpu:
            peaks[impl] = allocator_growth(call)
    if on_gpu and details and FUSED in calls:
        _replay(calls[FUSED], timed[FUSED])  # last: a capture that fails leaves its process unreliable
    call = None
    del calls, inputs
    gc.collect()  # learners are in reference cycles, and the processes below need the memory
    if peak and not on_gpu:
        peaks = {impl: peaks.get(impl) or _peak_in_child(setting, impl) for impl in timed}

    records = []
    for impl in impls:
        record = unmeasured(setting, impl, reasons.get(impl))
        if impl in timed:
            why = [wrong[impl]] if impl in wrong else []
            own = timed[impl]
            record |= {"ms_median": own.median, "ms_all": own.rounds}
            record |= {"floor_ms": floor_ms, "floor_kind": floor_kind}
            if on_gpu:
                record |= {"host_ms": own.host_ms, "graph_ms": own.graph_ms}
                why += [f"graph_ms: {own.why}"] if own.why else []
            for other in ("eager", "compile"):
                if other in timed:
                    pairs = zip(timed[other].rounds, own.rounds, strict=True)
                    record[f"ratio_vs_{other}"] = statistics.median(theirs / mine for theirs, mine in pairs)
                else:
                    why.append(f"ratio_vs_{other}: " + reasons.get(other, f"{other} was not measured"))
            if isinstance(peaks[impl], str):
                why.append(f"peak_mb: {peaks[impl]}")
            else:
                record["peak_mb"] = peaks[impl]
            record["reason"] = "; ".join(why) or None
        records.append(record)
    captured = all(t.why is None for t in timed.values())
    return Measured(records, parts, kernels, reliable=captured)


def unmeasured(setting: Setting, impl: str, reason: str | None) -> results.Record:
    """Return a record without a figure."""
    record = _key(setting, impl) | dict.fromkeys(results.VALUES)
    if setting.device == "cuda":
        record |= dict.fromkeys(results.GPU_VALUES)
    return record | {"reason": reason, "commit": machine.commit(), "time": machine.now()}


def _floor(op: Op, setting: Setting, inputs: Any, ceilings: roofline.Ceilings) -> tuple[float | None, str | None]:
    """Return (milliseconds, kind), or None twice for ops that contain networks."""
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


def _agreeing(
    op: Op, setting: Setting, impls: Sequence[str], inputs: Inputs, keep_disagreeing: bool
) -> tuple[dict[str, Call], dict[str, str], dict[str, str]]:
    """Return (calls that ran once, why the others did not, how those differ that were kept although they disagree)."""
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    wrong: dict[str, str] = {}
    expected: tuple[str, Sequence[Tensor]] | None = None
    for impl in impls:
        reason = op.implementations[impl].missing(setting)
        if reason:
            reasons[impl] = reason
            continue
        try:
            call = Call(op, setting, impl, inputs)
            if impl == "compile":
                with compiled.warming_up():
                    result = call()
            else:
                result = call()
            got = call.compared(*result)
            if setting.device == "cuda":
                torch.cuda.synchronize()  # a kernel fails after its launch
        except compiled.CompileFailed as error:
            reasons[impl] = str(error)
            check_context(setting, impl, error)
            continue
        except (
            Exception
        ) as error:  # out of memory, a kernel that does not compile or fails: the others are still measured
            reasons[impl] = failure(error)
            check_context(setting, impl, error)
            continue
        if got and expected is None:
            expected = impl, got
        elif got:
            try:
                assert_agree(f"{setting}: {impl} against {expected[0]}", got, expected[1], setting.dtype)
            except Disagreement as error:
                if not keep_disagreeing:
                    raise
                wrong[impl] = f"{results.DISAGREES} {error}"
        calls[impl] = call
    return calls, reasons, wrong


def failure(error: Exception) -> str:
    """Return the reason of an implementation that raised, in one line; if one error led to another, both."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    cause = f", after {failure(error.__context__).removeprefix(FAILED)}" if error.__context__ else ""
    return f"{FAILED} {type(error).__name__}: {first}"[:200] + cause[:200]


def check_context(setting: Setting, impl: str, error: Exception) -> None:
    """Raise ContextLost if a CUDA error ended the context of the whole process."""
    if setting.device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as lost:
        raise ContextLost(f"{impl}: {failure(error)}") from lost


def _replay(call: Call, timed: clocks.Timed) -> None:
    """Add the time of ``call`` as a CUDA graph, or why it could not be captured."""
    try:
        timed.graph_ms = clocks.replayed(call, len(timed.rounds))
    except RuntimeError as error:
        timed.why = f"not captured: {failure(error).removeprefix(FAILED).strip()}"
        torch.cuda.synchronize()


def _launched(call: Call) -> list[dict[str, Any]]:
    """Return the work of the device in one call, by kernel: launches and milliseconds, the longest first."""
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]) as profile:
        kept = call()
        torch.cuda.synchronize()
    del kept
    rows = [
        {"kernel": event.key, "launches": event.count, "ms": event.self_device_time_total / 1e3}
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def _stages(call: Call, device: str, rounds: int = 3) -> dict[str, float]:
    """Return the median milliseconds of each stage that the implementation marks; the rest is ``loss``."""
    spent: list[dict[str, float]] = []
    for _ in range(rounds):
        spent.append({})
        last = time.perf_counter()

        def mark(part: str) -> None:
            nonlocal last
            if device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            spent[-1][part] = spent[-1].get(part, 0.0) + 1e3 * (now - last)
            last = now

        kept = call(mark)
        if not spent[-1]:
            return {}
        mark("loss")
        del kept
    return {part: statistics.median(times[part] for times in spent) for part in spent[0]}


def _phases(call: Call, phases: Sequence[str], device: str, trace: Path | None) -> dict[str, float]:
    """Return the milliseconds of the profiler scopes of one call; on CUDA between events at their ends."""
    if trace is not None or device == "cpu":
        with profiler.profile() as profile:
            call()
            if device == "cuda":
                torch.cuda.synchronize()
        if trace is not None:
            trace.parent.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(trace))
        times = {event.key: event.cpu_time_total / 1e3 for event in profile.key_averages()}
    if device == "cuda":
        times = _between_events(call)
    return {phase: times[phase] for phase in phases if phase in times}


def _between_events(call: Call) -> dict[str, float]:
    """Return the milliseconds of each profiler scope on the device.

    A profile would miss the backward pass, because another thread launches it.
    """
    from u2pl_fast.training import learner

    pairs: dict[str, tuple[torch.cuda.Event, torch.cuda.Event]] = {}

    @contextmanager
    def scope(name: str) -> Iterator[None]:
        pairs[name] = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pairs[name][0].record()
        yield
        pairs[name][1].record()

    with mock.patch.object(learner, "record_function", scope):
        call()
    torch.cuda.synchronize()
    return {name: start.elapsed_time(end) for name, (start, end) in pairs.items()}


def _peak_in_child(setting: Setting, impl: str) -> float | str:
    try:
        return memory.peak_growth(setting, impl)
    except memory.MemoryUnknown as error:
        return str(error)

"""Time calls.

On a CPU, time is wall-clock time. On a GPU, three times are measured apart:

- ``ms``: the time of the device. A busy wait is put on the stream first, long enough for Python to queue every launch
  of the call behind it, so the kernels run without gaps between two events. L2 is overwritten before each call.
- ``host_ms``: the time that Python takes to queue the call.
- ``graph_ms``: the device's time of the call captured as a CUDA graph and replayed: with the gaps between kernels that
  the hardware leaves, and without those that Python makes.

A training step is timed as a loop runs it: several in a row between two events, without a wait or an overwritten L2.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

SECONDS = {"cpu": 6, "cuda": 0.4}  # for all implementations of one setting
ROUNDS = {"cpu": (5, 31), "cuda": (7, 101)}
FLUSHED = 256 * 2**20  # bytes written before each timed call on CUDA: more than any L2 holds
STEPS_IN_A_ROW = 3
LONGEST_LEAD = 200.0  # ms

Work = Callable[[], object]


@dataclass
class Timed:
    """Hold the milliseconds of each round, and on CUDA those of the host and of a graph; ``why`` there is no graph."""

    rounds: list[float] = field(default_factory=list)
    host_ms: float | None = None
    graph_ms: float | None = None
    why: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


class CpuClock:
    def host_ms(self, call: Work) -> None:
        return None

    def __call__(self, call: Work, lead: float = 0) -> float:
        start = time.perf_counter()
        kept = call()
        elapsed = 1e3 * (time.perf_counter() - start)
        del kept  # freeing memory is not part of the op
        return elapsed


class StepClock:
    """Time a training step on CUDA, in milliseconds."""

    def host_ms(self, call: Work) -> float:
        return _queueing(call)

    def __call__(self, call: Work, lead: float = 0) -> float:
        start, end = _events()
        torch.cuda.synchronize()
        start.record()
        for _ in range(STEPS_IN_A_ROW):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / STEPS_IN_A_ROW


class DeviceClock:
    """Time the device alone, in milliseconds."""

    def __init__(self) -> None:
        self._flushed = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
        self._cycles_per_ms = _cycles_per_ms()

    def host_ms(self, call: Work) -> float:
        return _queueing(call)

    def __call__(self, call: Work, lead: float = 0) -> float:
        start, end = _events()
        torch.cuda.synchronize()
        self._flushed.zero_()
        torch.cuda._sleep(int(lead * self._cycles_per_ms))
        start.record()
        kept = call()
        end.record()
        end.synchronize()
        del kept
        return start.elapsed_time(end)


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _queueing(call: Work) -> float:
    """Return the milliseconds until Python returns from the call: after its launches, or after a read of results."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < 200:
        torch.cuda.synchronize()
        start = time.perf_counter()
        kept = call()
        times.append(1e3 * (time.perf_counter() - start))
        del kept
    torch.cuda.synchronize()
    return statistics.median(times)


def _cycles_per_ms(cycles: int = 20_000_000) -> float:
    times = []
    for _ in range(3):
        start, end = _events()
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return cycles / min(times)


def clock(device: str, steps: bool) -> CpuClock | StepClock | DeviceClock:
    if device == "cpu":
        return CpuClock()
    return StepClock() if steps else DeviceClock()


def take_turns(calls: dict[str, Work], device: str, rounds: int | None, *, steps: bool = False) -> dict[str, Timed]:
    """Run each call once a round. Without ``rounds``, run as many as fit into ``SECONDS``."""
    timer = clock(device, steps)
    timed = {impl: Timed(host_ms=timer.host_ms(call)) for impl, call in calls.items()}
    leads = {impl: min(1.5 * (t.host_ms or 0) + 0.1, LONGEST_LEAD) for impl, t in timed.items()}
    once = sum(timer(call, leads[impl]) + leads[impl] for impl, call in calls.items())
    if rounds is None:
        least, most = ROUNDS[device]
        rounds = min(max(int(1e3 * SECONDS[device] / max(once, 1e-3)), least), most)
    orders = itertools.cycle([list(calls), list(calls)[::-1]])
    for order in itertools.islice(orders, rounds):
        for impl in order:
            timed[impl].rounds.append(timer(calls[impl], leads[impl]))
    return timed


def replayed(call: Work, rounds: int) -> float:
    """Return the median milliseconds of ``call`` as a CUDA graph. Raise what capturing raises."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph, timer = torch.cuda.CUDAGraph(), DeviceClock()
    with torch.cuda.graph(graph):
        kept = call()
    times = [timer(graph.replay, lead=0.2) for _ in range(rounds)]
    del kept
    return statistics.median(times)

"""What of the benchmark suite only a GPU reaches, with a stand-in for ``torch.cuda`` that computes on the CPU.

It shows that the code runs and keeps its promises about failures; that the clocks are right, only a GPU can show.
"""

import sys
import time
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks import __main__ as suite
from benchmarks.measure import clocks, registry, results, runner, step, whole_step
from benchmarks.measure.inputs import Inputs
from benchmarks.measure.roofline import Ceilings
from benchmarks.measure.workloads import NAMED, trained
from u2pl_fast import mixing
from u2pl_fast.ops import _backend, draws
from u2pl_fast.training.optim import BufferGuard, build_optimizer

TINY = NAMED["tiny"]


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.time - self.time) + 1e-3


class Stream:
    def wait_stream(self, other: object) -> None: ...


class Graph:
    """Replays what ran last within ``torch.cuda.graph``: the stand-in for ``graph`` sets it."""

    replays = 0

    def replay(self) -> None:
        type(self).replays += 1

    def register_generator_state(self, generator: torch.Generator) -> None: ...


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    @contextmanager
    def block(*_: object, **__: object):
        yield

    for name, value in {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": block,
        "stream": block,
        "current_stream": Stream,
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "is_available": lambda: True,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 3 * 2**20,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **more: empty(*size, **more))
    return monkeypatch


def an_op(**functions: object) -> registry.Op:
    """An op whose implementations are functions of a tensor."""

    def implementation(function: object) -> registry.Implementation:
        return registry.Implementation(lambda x: {"x": torch.ones(4)}, lambda a, mark: (function(a["x"]),))

    return registry.Op("pixel_stats", {name: implementation(function) for name, function in functions.items()})


SETTING = registry.Setting("pixel_stats", TINY, "cuda", "float32", "contiguous", None, registry.FORWARD)


def measure(op: registry.Op, **options: object) -> runner.Measured:
    inputs = Inputs(TINY, "cpu", torch.float32, "contiguous")
    return runner.measure(op, SETTING, list(op.implementations), Ceilings(1e9, 1e9, 1e9), inputs, rounds=3, **options)


@pytest.mark.slow
def test_a_call_is_timed_on_the_device_on_the_host_and_as_a_graph(card: pytest.MonkeyPatch):
    before = Graph.replays
    measured = measure(an_op(eager=lambda x: x + 1, fused=lambda x: 1 + x))
    eager, fused = measured.records
    assert fused["host_ms"] > 0 and fused["graph_ms"] > 0 and Graph.replays == before + 3
    assert eager["host_ms"] > 0 and eager["graph_ms"] is None
    assert fused["peak_mb"] == 3 and len(fused["ms_all"]) == 3
    assert measured.kernels[0]["impl"] == "fused"
    block = dict.fromkeys(results.MACHINE)
    results.validate({"machine": block, "records": measured.records})
    with pytest.raises(ValueError, match="graph_ms"):
        results.validate({"machine": block, "records": [{k: v for k, v in fused.items() if k != "graph_ms"}]})


@pytest.mark.slow
def test_what_cannot_be_captured_is_timed_all_the_same(card: pytest.MonkeyPatch):
    @contextmanager
    def graph(_: object):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    card.setattr(torch.cuda, "graph", graph)
    (record,) = measure(an_op(fused=lambda x: x + 1)).records
    assert record["ms_median"] > 0 and record["graph_ms"] is None
    assert "graph_ms: not captured: RuntimeError: operation not permitted" in record["reason"]


@pytest.mark.slow
def test_a_kernel_that_fails_in_any_way_leaves_the_others(card: pytest.MonkeyPatch):
    class CompilationError(Exception):  # Triton's are no RuntimeError
        pass

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise CompilationError("\nat 3:5: cannot compile")

    eager, fused = measure(an_op(eager=lambda x: x + 1, fused=broken)).records
    assert eager["ms_median"] > 0
    assert fused["ms_median"] is None and fused["reason"] == "failed: CompilationError: at 3:5: cannot compile"


@pytest.mark.slow
def test_a_wrong_result_is_kept_apart_if_asked_for(card: pytest.MonkeyPatch):
    op = an_op(eager=lambda x: x + 1, fused=lambda x: x + 1.1)
    with pytest.raises(runner.Disagreement):
        measure(op)
    eager, fused = measure(op, keep_disagreeing=True).records
    assert fused["ms_median"] > 0 and fused["reason"].startswith("disagrees: pixel_stats tiny cuda")
    assert not (eager["reason"] or "").startswith("disagrees")


def test_an_error_that_shows_late_does_not_end_the_suite(card: pytest.MonkeyPatch):
    """A kernel fails after its launch, when something waits for it."""
    broken = []

    def wait() -> None:
        if broken:
            raise RuntimeError("CUDA error: unspecified launch failure")

    card.setattr(torch.cuda, "synchronize", wait)
    with pytest.raises(runner.ContextLost, match="fused: failed: RuntimeError: CUDA error: unspecified launch failure"):
        measure(an_op(eager=lambda x: x + 1, fused=lambda x: broken.append(1) or x + 1))


@pytest.mark.slow
def test_what_fails_while_it_is_timed_is_told_and_the_next_setting_measured(card: pytest.MonkeyPatch, tmp_path):
    def fails(*_: object, **__: object):
        raise RuntimeError("out of patience")

    assert suite_runs(card, tmp_path, an_op(eager=lambda x: x + 1), clocks_fail=fails) == ["--skip", "1"]
    reasons = {r["reason"] for r in results.load(tmp_path / "r.json")["records"]}
    assert reasons == {"failed: RuntimeError: out of patience"}


def suite_runs(card: pytest.MonkeyPatch, tmp_path, op: registry.Op, clocks_fail: object = None) -> list[str]:
    """Run the suite on an op; the last arguments of the process that goes on in its place."""
    executed = []
    arguments = ["--op", "pixel_stats", "--workload", "tiny", "--json", str(tmp_path / "r.json"), "--no-memory"]
    arguments += ["--rounds", "3", "--device", "cuda", "--impl", *op.implementations]
    card.setattr(suite, "entries", lambda args: {"pixel_stats": op})
    described = dict.fromkeys(results.MACHINE) | {"ceilings": {}}
    card.setattr(suite, "describe", lambda *_, **__: described)
    card.setattr(suite.roofline, "Ceilings", lambda **_: Ceilings(1e9, 1e9, 1e9))
    card.setattr(registry.Setting, "inputs", lambda self: Inputs(TINY, "cpu", torch.float32, "contiguous"))
    card.setattr(suite.os, "execv", lambda python, command: executed.append(command))
    card.setattr(sys, "argv", ["benchmarks", *arguments, "--skip", "0"])
    if clocks_fail:
        card.setattr(clocks, "take_turns", clocks_fail)
    assert suite.main(arguments) == 1
    (command,) = executed
    assert command[:-2] == [sys.executable, "-m", "benchmarks", *arguments]
    return command[-2:]


@pytest.mark.slow
def test_a_lost_context_ends_the_process_and_another_goes_on(card: pytest.MonkeyPatch, tmp_path, capsys):
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def broken(x: torch.Tensor) -> torch.Tensor:
        card.setattr(torch.cuda, "synchronize", lost)
        raise RuntimeError("illegal memory access\nmore")

    assert suite_runs(card, tmp_path, an_op(eager=lambda x: x + 1, fused=broken)) == ["--skip", "1"]
    reasons = {r["reason"] for r in results.load(tmp_path / "r.json")["records"]}
    assert reasons == {"fused: failed: RuntimeError: illegal memory access"}
    assert "a new process continues with setting 2" in capsys.readouterr().out
    assert all(map(suite._failed, results.load(tmp_path / "r.json")["records"])), "the new process must end with 1"


@pytest.mark.slow
def test_phases_of_a_step_are_timed_between_events(card: pytest.MonkeyPatch):
    inputs = Inputs(TINY, "cpu", torch.float32, "channels_last", "capped")
    op = registry.load("step")
    setting = registry.Setting("step", TINY, "cpu", "float32", "channels_last", None, registry.STEP)
    card.setattr(torch.cuda, "is_available", lambda: False)  # the optimizer asks a real one
    times = runner._between_events(registry.Call(op, setting, "u2pl-lean", inputs))
    assert set(times) == set(op.implementations["u2pl-lean"].phases) and all(ms > 0 for ms in times.values())


def test_steps_are_timed_in_a_row(card: pytest.MonkeyPatch):
    calls = []
    timed = clocks.take_turns({"a": lambda: calls.append(1)}, "cuda", 2, steps=True)
    # Three to see what the host takes, then what fits, and two rounds.
    assert len(calls) == 3 + clocks.STEPS_IN_A_ROW * (1 + 2) and len(timed["a"].rounds) == 2


@pytest.mark.slow
def test_a_whole_step_repeats_and_its_replay_is_compared(card: pytest.MonkeyPatch):
    """The stand-in's graph replays nothing, so a replay that moves nothing must be told from the step."""
    card.setattr(torch.cuda, "is_available", lambda: False)  # the optimizer asks a real one
    inputs = Inputs(trained(TINY), "cpu", torch.float32, "channels_last", "capped")
    learner = step.learner(inputs)
    repeated = whole_step.Repeated(learner, step.batch(inputs))
    number = learner.step
    graph, losses = whole_step.captured(repeated)
    assert len(losses) == 3 and learner.step == number + 1 and repeated._sent
    apart = whole_step.replay_agrees(repeated, graph, losses)
    assert apart["optimizer"] == pytest.approx(1) and apart["bank"] == apart["student"] == float("inf")

    class Steps(Graph):
        def replay(self) -> None:
            with torch.enable_grad():
                new = repeated.step()
            for own, value in zip(losses, new, strict=True):
                own.copy_(value)

    assert whole_step.replay_agrees(repeated, Steps(), losses) == dict.fromkeys(
        ("losses", "student", "teacher", "bank", "optimizer"), 0
    )


@pytest.mark.slow
def test_networks_alone_send_the_rows_of_the_first_step_through_the_head():
    inputs = Inputs(trained(TINY), "cpu", torch.float32, "channels_last", "capped")
    learner, batch = step.learner(inputs, step.NetworksOnly), step.batch(inputs)
    bank = learner.criterion.bank.pushed
    full = bank.clone()
    learner.train_step(batch)
    recorded, real = learner.criterion.index, bank.clone()
    assert recorded.shape == (TINY.num_classes, TINY.anchors) and (recorded >= 0).any() and (real > full).any()
    losses = learner.train_step(batch).losses
    assert learner.criterion.index is recorded and torch.equal(bank, real)
    assert losses.total > 0 and losses.supervised == losses.unsupervised == 0


@pytest.mark.parametrize("choices", whole_step.METHODS.values(), ids=whole_step.METHODS)
@pytest.mark.slow
def test_no_step_reads_anything_back(choices: dict[str, object]):
    """Tensors without data refuse to be read: forward, backward and update of a whole step must not try."""
    inputs = Inputs(trained(TINY), "cpu", torch.float32, "channels_last", "capped")
    learner, batch = step.learner(inputs, **choices), step.batch(inputs)

    def dataless(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)

    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        for module in [
            m for root in (learner.student, learner.criterion, learner.teacher.module) for m in root.modules()
        ]:
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = torch.nn.Parameter(dataless(p), requires_grad=p.requires_grad)
            module._buffers.update({k: dataless(b) for k, b in module._buffers.items() if b is not None})
        learner._parameters, learner._buffers = list(learner.student.parameters()), BufferGuard(learner.student)
        learner.optimizer = build_optimizer(learner.student, learner.config)
        for name in ("_window_ok", "skipped", "skipped_in_a_row"):
            setattr(learner, name, dataless(getattr(learner, name)))
        patch.setattr(_backend, "readable", lambda x: False)  # as on a GPU
        # What Python draws and sends. It reads its own numbers.
        patch.setattr(mixing, "region_masks", lambda *_, **__: dataless(batch["valid"]))
        patch.setattr(mixing, "partner_index", lambda first, count, device: torch.empty(count, dtype=torch.int64))
        patch.setattr(draws, "draw32", lambda shape, generator: torch.empty(shape, dtype=torch.int64))
        batch = {k: v.tolist() if k == "unlabeled_index" else dataless(v) for k, v in batch.items()}
        losses = learner.train_step(batch).losses
        with pytest.raises(DataDependentOutputException):  # the net has no hole: a read does raise
            losses.total.item()


def test_waits_are_counted_with_their_place(card: pytest.MonkeyPatch):
    import warnings

    modes = []
    card.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("does not yet detect all synchronizing operations", stacklevel=1)  # as torch says, once

    (place,) = whole_step.waits(call)
    assert __file__ in place and modes == ["warn", "default"]


def test_other_rounds_of_a_setting_that_is_measured_again_go():
    key = ("contrastive_loss", "voc", "cpu", "float32", "contiguous", "literal", "eager", "forward")

    def record(impl: str, rounds: int) -> dict:
        values = dict(zip(results.KEY, key, strict=True)) | {"impl": impl, "ms_all": [1.0] * rounds}
        return values | {"reason": None}

    block = {name: 1 for name in ("name", "device", "threads", "versions")}
    old = {"machine": block, "records": [record("eager", 5), record("compile", 5), record("fused", 5)], "parts": []}
    new = {"machine": block, "records": [record("eager", 7), record("fused", 7)], "parts": []}
    both = results.merged(old, new)["records"]
    assert [(r["impl"], len(r["ms_all"])) for r in both] == [("eager", 7), ("fused", 7)]
    same = results.merged(old, {**new, "records": [record("fused", 5)]})["records"]
    assert {r["impl"] for r in same} == {"eager", "compile", "fused"}

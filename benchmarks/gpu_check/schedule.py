"""Run the stages of a part: each is a process with a limit, as many at a time as their order allows."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .out import Out

ROOT = Path(__file__).resolve().parents[2]
LEAST = 5  # with fewer seconds left, no stage begins
TICK, COLLECT = 0.1, 3.0  # seconds between two checks of the processes and their results
RESULT, FAILED = "RESULT ", "FAILED"  # how a line begins that is kept with the stage, and one that is shown at once
SHOWN = 12  # failures of one stage


ended_by: list[int] = []  # signals that ask the check to end


def end_on_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: ended_by.append(received))


@dataclass
class Stage:
    """Describe one command.

    ``expected`` and ``limit`` are seconds on the machine that the check is for. The stage begins when the stages in
    ``after`` have ended, whether they passed or not. It is skipped, with the reason, if an import is missing.
    ``collect`` copies what the stage has measured so far into the output folder; it is called while the stage runs.
    """

    name: str
    command: list[str]
    expected: float
    limit: float
    after: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None
    collect: Callable[[Out], None] | None = None


def timetable(stages: Sequence[Stage], seconds: str) -> dict[str, tuple[float, float]]:
    """Return (begin, end) of each stage by name, if each takes its ``expected`` or its ``limit`` seconds."""
    times: dict[str, tuple[float, float]] = {}
    for stage in stages:
        begin = max((times[name][1] for name in stage.after), default=0.0)
        times[stage.name] = begin, begin + getattr(stage, seconds)
    return times


class _Running:
    """Hold the process of a stage, and the thread that reads what it prints."""

    def __init__(self, stage: Stage, limit: float, environment: dict[str, str], out: Out) -> None:
        self.stage, self.limit, self.out = stage, limit, out
        self.began = self.collected = time.monotonic()
        self.last, self.results, self.failures = "", [], 0
        # A process group, so that all of it can be ended; not a new session, which would outlive the check.
        self.process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env=environment | stage.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            text=True,
            errors="replace",
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.out.log(self.stage.name, line)
            line = line.strip()
            if line.startswith(RESULT):
                with contextlib.suppress(json.JSONDecodeError):
                    self.results.append(json.loads(line.removeprefix(RESULT)))
            elif line.startswith(FAILED):
                self.failures += 1
                if self.failures <= SHOWN:
                    print(f"  {self.stage.name}: {line[:300]}", flush=True)
            self.last = line or self.last

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def collect(self) -> None:
        self.collected = time.monotonic()
        if self.stage.collect is not None:
            try:
                self.stage.collect(self.out)
            except Exception as error:  # a half-written file of a running stage must not stop the check
                self.out.log(self.stage.name, f"could not be collected yet: {error!r}")

    def ended(self) -> dict[str, Any] | None:
        """Return how it ended; None while it runs."""
        code = self.process.poll()
        if code is None and self.seconds < self.limit:
            if time.monotonic() - self.collected > COLLECT:
                self.collect()
            return None
        late = code is None
        self.kill()
        self.collect()
        note = " ".join(self.last.split())[:160]
        if late:
            note = f"stopped after {self.seconds:.0f} s; what it had measured is kept"
        elif code:
            note = f"exit status {code}: {note}"
        status = "stopped" if late else "failed" if code else "passed"
        return {"status": status, "seconds": round(self.seconds, 1), "note": note, "result": self.results}

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process may hang in the driver: the others continue
            self.process.wait(5)
        self.reader.join(2)


def reason_to_leave_out(stage: Stage, left: float) -> str | None:
    if stage.skipped:
        return stage.skipped
    absent = [name for name in stage.imports if importlib.util.find_spec(name) is None]
    if absent:
        return f"no module {', '.join(absent)}; see --missing"
    return "no time left" if left < LEAST else None


def run(part: str, stages: Sequence[Stage], seconds: float, environment: dict[str, str], out: Out) -> list[dict]:
    """Run the stages for ``seconds`` at most. Return their rows, which are also in ``out``."""
    deadline = time.monotonic() + seconds
    waiting, running, rows = list(stages), [], {}

    def report(stage: Stage, row: dict[str, Any]) -> None:
        rows[stage.name] = row = {"part": part, "stage": stage.name} | row
        out.stage(row | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        print(f"{stage.name:<18} {row['status']:<9} {row['seconds']:6.1f} s  {row['note']}", flush=True)

    try:
        while waiting or running:
            for stage in [s for s in waiting if all(name in rows for name in s.after)]:
                waiting.remove(stage)
                left = deadline - time.monotonic()
                reason = reason_to_leave_out(stage, left)
                if reason:
                    report(stage, {"status": "skipped", "seconds": 0.0, "note": reason, "result": []})
                    continue
                out.stage({"part": part, "stage": stage.name, "status": "running", "command": stage.command})
                running.append(_Running(stage, min(stage.limit, left), environment, out))
            for one in list(running):
                row = one.ended()
                if row is not None:
                    running.remove(one)
                    report(one.stage, row)
            time.sleep(TICK)
            if ended_by:  # read only here, where every started process is known
                raise SystemExit(128 + ended_by[0])
    finally:
        for one in running:  # this check itself is being ended
            one.kill()
            one.collect()
            row = {"status": "stopped", "seconds": round(one.seconds, 1), "note": "the check was ended"}
            report(one.stage, row | {"result": one.results})
    return list(rows.values())

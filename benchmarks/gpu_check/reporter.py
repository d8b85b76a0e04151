"""Report tests on a GPU as they run: a pytest plugin, ``-p benchmarks.gpu_check.reporter --report-to FILE``.

- The result of a test is a line of FILE at once, and a failure is printed at once.
- A kernel that reads invalid memory ends the GPU context of its process, and every later test there would fail. The
  process of such a test ends before the next test, and pytest-xdist starts another. The next test is blamed for that;
  ``again`` runs it alone.
"""

import os
from pathlib import Path

import pytest
import torch

from .out import append

CRASHED = "crashed"
LOST = 17  # exit status of a process without a context


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report-to", type=Path, metavar="FILE", help="add a line of JSON for each test")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker())
    else:
        config.pluginmanager.register(Reporter(config))


class Reporter:
    """Write and print, in the process that sees all reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.path: Path | None = config.getoption("--report-to")
        self.manager = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        crashed = report.when not in ("setup", "call", "teardown")  # xdist's report on a process that ended
        if report.when != "call" and not report.failed and not (report.when == "setup" and report.skipped):
            return
        outcome = CRASHED if crashed else report.outcome
        message = _message(report)
        row = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 3), "message": message}
        if self.path is not None:
            append(self.path, row)
        if outcome in ("failed", CRASHED):
            terminal = self.manager.get_plugin("terminalreporter")  # what a hook prints itself is captured
            terminal.write_line(f"\nFAILED {report.nodeid}: {message}")
            terminal.flush()


def _message(report: pytest.TestReport) -> str:
    """Return the last line of a failure, or the reason of a skipped test."""
    if report.passed:
        return ""
    if report.skipped:
        return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return " ".join(text.split())[:400]


class Worker:
    """End a process whose GPU context is lost."""

    lost = False

    @pytest.hookimpl(tryfirst=True)  # pytest's own makes the report, after which no other is asked
    def pytest_runtest_makereport(self, call: pytest.CallInfo) -> None:
        if call.excinfo is not None and torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                self.lost = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> None:
        if self.lost:
            os._exit(LOST)

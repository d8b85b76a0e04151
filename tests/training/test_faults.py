"""The longer trials of `tests/faults/` in small, so that they keep working."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def trial(name: str, *flags: str) -> str:
    command = [sys.executable, "-m", f"tests.faults.{name}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_killed_at_random_moments_it_ends_as_undisturbed():
    told = trial("sigkill", "--kills", "2", "--steps", "80")
    assert told.splitlines()[-1] == "80 steps equal the undisturbed run bit for bit"


def test_a_soak_samples_memory_files_and_speed(tmp_path):
    trial("soak", "--minutes", "0.1", "--every", "0.2", "--out", str(tmp_path), "--report-only")
    rows = json.loads((tmp_path / "soak.json").read_text())
    assert min(rows["mib"][-10:]) > 100 and min(rows["files"][-10:]) > 10
    assert rows["cpu_seconds"][-1] > 1 and rows["step"][-1] > rows["step"][0]
    assert (tmp_path / "soak.png").stat().st_size > 10_000

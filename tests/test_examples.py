"""What the documentation tells people to run, run."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_plain_loop_prints_the_same_losses_and_less_memory():
    command = [sys.executable, "examples/plain_loop.py", "--steps", "2"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    difference, saved = re.search(r"difference of a loss: (\S+); memory saved: (\S+) MB", run.stdout).groups()
    assert float(difference) < 1e-4 and float(saved) > 500, run.stdout


def test_the_contrastive_page_runs_as_it_stands(capsys):
    page = (ROOT / "docs" / "contrastive-ops.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(compile(code, "docs/contrastive-ops.md", "exec"), {})
    loss = float(capsys.readouterr().out.split()[0])
    assert 0 < loss < 20

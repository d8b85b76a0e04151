"""Run the examples."""

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from u2pl_fast import ops

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"device": "cpu", "amp": False, "compile": False, "batch": 2, "size": 64, "capacity": 256}
# (example, packages that it needs, the op that "after" must call)
EXAMPLES = [
    ("plain_loop", (), "upsampled_cross_entropy"),
    ("smp_loop", ("segmentation_models_pytorch",), "upsampled_cross_entropy"),
    ("torchvision_loop", ("torchvision",), "upsampled_cross_entropy"),
    ("accelerate_loop", ("accelerate", "transformers"), "upsampled_cross_entropy"),
    ("consistency_loop", (), "pixel_stats"),
    ("distillation_loop", (), "pixel_stats"),
    ("moco_queue", (), "ring_push"),
]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield
    if "transformers" in sys.modules:
        from u2pl_fast.compat import transformers as fused_loss

        fused_loss.undo()


def losses(build, version: str, settings: dict) -> list[float]:
    if "accelerate" in sys.modules:  # one precision a process, unless told
        sys.modules["accelerate"].state.AcceleratorState._reset_state(True)
    step = build(version, argparse.Namespace(**settings))
    return [float(step()) for _ in range(2)]


@pytest.mark.parametrize(("name", "packages", "op"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_both_versions_train_alike(name, packages, op, examples, monkeypatch):
    for package in packages:
        pytest.importorskip(package)
    example, calls, original = importlib.import_module(name), [], getattr(ops, op)
    monkeypatch.setattr(ops, op, lambda *args, **kwargs: calls.append(op) or original(*args, **kwargs))
    before = losses(example.build, "before", SMALL)
    assert not calls and len(set(before)) == 2
    after = losses(example.build, "after", SMALL)
    assert len(calls) >= 2
    assert after == pytest.approx(before, rel=1e-3)
    assert losses(example.build, "after", SMALL | {"amp": True}) == pytest.approx(before, rel=3e-2)


def test_every_example_is_tested_and_in_the_docs():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"measure"}
    assert files == {name for name, *_ in EXAMPLES}
    page = (ROOT / "docs" / "examples.md").read_text()
    assert all(f"python examples/{name}.py" in page for name in files)


@pytest.mark.slow
def test_plain_loop_prints_the_same_losses_and_less_memory():
    command = [
        sys.executable,
        "examples/plain_loop.py",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--size",
        "256",
        "--batch",
        "2",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    difference, saved = re.search(r"largest loss difference: (\S+); memory saved: (\S+) MB", run.stdout).groups()
    assert float(difference) < 1e-4 and float(saved) > 100, run.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--steps", "1"], "--steps: at least 2"), (["--batch", "0"], "--batch: at least 1"), (["--device", "x"], "cpu")],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_an_example_refuses_settings_by_name(flags, message, examples, monkeypatch, capsys):
    example = importlib.import_module("plain_loop")
    monkeypatch.setattr(sys, "argv", ["plain_loop.py", *flags])
    with pytest.raises(SystemExit):
        example.compare(example.__doc__, example.build, batch=1)
    assert message in capsys.readouterr().err


def test_the_contrastive_page_runs_as_it_stands(capsys):
    page = (ROOT / "docs" / "contrastive-ops.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(compile(code, "docs/contrastive-ops.md", "exec"), {})
    loss = float(capsys.readouterr().out.split()[0])
    assert 0 < loss < 20

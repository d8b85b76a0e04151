"""Run the examples in the docstrings of the public Python API."""

import doctest

import pytest
import torch

import u2pl_fast
from u2pl_fast import ops

WITHOUT = {
    "NEGATIVES",
    "ContrastMasks",
    "ContrastiveDraws",
    "ContrastiveLoss",
    "PixelStats",
}  # a tuple, and results of ops
DOCUMENTED = {f"ops.{name}": getattr(ops, name) for name in ops.__all__ if name not in WITHOUT}
DOCUMENTED |= {
    name: getattr(u2pl_fast, name) for name in ("EMATeacher", "MemoryBank", "SegmentationOutput", "U2PLCriterion")
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_runs_and_gives_its_output(name):
    names = {"torch": torch, "u2pl_fast": u2pl_fast, "ops": ops}
    example = doctest.DocTestParser().get_doctest(DOCUMENTED[name].__doc__, names, name, None, None)
    assert example.examples, f"{name} has no example"
    assert sum(len(step.source.splitlines()) for step in example.examples) <= 6, f"{name}: more than 6 lines"
    report = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)

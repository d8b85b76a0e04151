"""Run the same cases under pytest-benchmark: ``pytest benchmarks --benchmark-autosave``, later ``--benchmark-compare``.

``-k "voc and fused"`` chooses cases; ids are op, workload, bank, pass, implementation. Ops in float32, contiguous;
steps in bfloat16, channels_last.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch

from . import compiled
from .ops import names
from .registry import Call, Setting, load
from .workloads import NAMED, REPORTED

pytest.importorskip("pytest_benchmark")

OPS = {name: load(name) for name in names()}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def cases() -> Iterator[object]:
    for workload, op in itertools.product(REPORTED, OPS.values()):
        for bank, passes, impl in itertools.product(op.banks, op.passes, op.implementations):
            setting = Setting(op.name, NAMED[workload], DEVICE, op.dtypes[0], op.layouts[0], bank, passes)
            name = "-".join(part for part in (op.name, workload, bank, passes, impl) if part)
            yield pytest.param(setting, impl, id=name)


@pytest.mark.parametrize(("setting", "impl"), cases())
def test_speed(benchmark, setting: Setting, impl: str) -> None:
    op = OPS[setting.op]
    missing = op.implementations[impl].missing(setting)
    if missing:
        pytest.skip(missing)
    call = Call(op, setting, impl, setting.inputs())
    if impl == "compile":
        try:
            with compiled.warming_up():
                call()
        except compiled.CompileFailed as error:
            pytest.skip(str(error))

    def timed() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = "-".join(part for part in (op.name, setting.workload.name, setting.bank, setting.passes) if part)
    benchmark.pedantic(timed, rounds=7, warmup_rounds=1)

"""Measure one whole u2pl step as one CUDA graph: the time without Python. It repeats, and trains nothing."""

from collections.abc import Callable

from .. import whole_step
from ..registry import STEP, Arguments, Implementation, Op, Outputs, no_mark
from .step import DTYPE, arguments, implementation, needs_gpu


def replayed() -> Implementation:
    """Return the whole step as one CUDA graph, captured at the first call."""

    def forward(a: Arguments, mark: Callable[[str], None] = no_mark) -> Outputs:
        if "graph" not in a:
            a["repeated"] = whole_step.Repeated(a["learner"], a["batch"])  # its graph reads what it sent
            a["graph"], a["losses"] = whole_step.captured(a["repeated"])
        a["graph"].replay()
        return a["losses"]

    return Implementation(
        arguments, forward, collect=lambda *_: (), missing=needs_gpu, no_peak="a graph keeps its memory between replays"
    )


OP = Op(
    "step_as_graph",
    {"u2pl-lean": implementation(missing=needs_gpu), "one-graph": replayed()},
    passes=(STEP,),
    dtypes=(DTYPE,),
    layouts=("channels_last",),
)

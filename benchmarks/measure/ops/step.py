"""Measure one whole training step, channels_last: networks, losses, backward, update."""

from collections.abc import Callable
from functools import partial

import torch

from u2pl_fast.training.learner import PHASES
from u2pl_fast.utils.precision import cpu_computes_in

from .. import step
from ..inputs import Inputs
from ..registry import STEP, Arguments, Implementation, Op, Outputs, Setting, no_mark
from ..workloads import trained


def needs_gpu(setting: Setting) -> str | None:
    return None if setting.device == "cuda" else "needs a GPU"


def always(setting: Setting) -> None:
    """Return None: it runs anywhere."""


def arguments(x: Inputs, **choices: object) -> Arguments:
    sized = Inputs(trained(x.workload), x.device, x.dtype, x.layout, x.bank)
    return {"learner": step.learner(sized, **choices), "batch": step.batch(sized)}


def implementation(
    compared: bool = False, missing: Callable[[Setting], str | None] = always, **choices: object
) -> Implementation:
    """Return a learner of ``choices``; if ``compared``, its first losses must agree with the others."""

    def forward(a: Arguments, mark: Callable[[str], None] = no_mark) -> Outputs:
        losses = a["learner"].train_step(a["batch"]).losses
        return losses.supervised, losses.unsupervised, losses.contrastive

    def collect(_: Arguments, outputs: Outputs, __: object) -> Outputs:
        return outputs if compared else ()

    return Implementation(partial(arguments, **choices), forward, None, collect, missing, PHASES)


# The type that a learner computes in here with --amp.
DTYPE = "bfloat16" if torch.cuda.is_available() or cpu_computes_in(torch.bfloat16) else "float32"
OP = Op(
    "step",
    {
        "supervised": implementation(method="supervised"),
        "mean-teacher": implementation(method="mean-teacher"),
        "mean-teacher-eager": implementation(method="mean-teacher", criterion=step.Eager),
        "networks-only": implementation(criterion=step.NetworksOnly),
        "u2pl-lean": implementation(compared=True),
        "u2pl-lean-cuda-graph": implementation(compared=True, missing=needs_gpu, cuda_graph=True),  # as --cuda-graph
        # The cost of u2pl-paper is the sum of mean-teacher, + labeled images, + head, + loss.
        "labeled-teacher": implementation(method="mean-teacher", criterion=step.LabeledTeacher),
        "paper-networks": implementation(recipe="paper", criterion=step.NetworksOnly),
        "u2pl-paper": implementation(recipe="paper"),
        # Its keys are the student's. In the first step, which is compared, both heads are still equal.
        "u2pl-class-loop": implementation(compared=True, criterion=step.ClassLoop, key_encoder="student"),
    },
    passes=(STEP,),
    dtypes=(DTYPE,),
    layouts=("channels_last",),
)

"""One whole training step: networks, losses, backward, update; channels_last, bfloat16 where it is computed in."""

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
    """It runs anywhere."""


def arguments(x: Inputs, **choices: object) -> Arguments:
    sized = Inputs(trained(x.workload), x.device, x.dtype, x.layout, x.bank)
    return {"learner": step.learner(sized, **choices), "batch": step.batch(sized)}


def implementation(
    compared: bool = False, missing: Callable[[Setting], str | None] = always, **choices: object
) -> Implementation:
    """Learners of ``choices``; where ``compared``, their first losses must agree."""

    def forward(a: Arguments, mark: Callable[[str], None] = no_mark) -> Outputs:
        losses = a["learner"].train_step(a["batch"]).losses
        return losses.supervised, losses.unsupervised, losses.contrastive

    def collect(_: Arguments, outputs: Outputs, __: object) -> Outputs:
        return outputs if compared else ()

    return Implementation(partial(arguments, **choices), forward, None, collect, missing, PHASES)


# What a learner under --amp computes in here.
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
        # What u2pl-paper costs is added up from these: mean-teacher, + labeled images, + head, + loss.
        "labeled-teacher": implementation(method="mean-teacher", criterion=step.LabeledTeacher),
        "paper-networks": implementation(recipe="paper", criterion=step.NetworksOnly),
        "u2pl-paper": implementation(recipe="paper"),
        # Its keys are the student's; at the first step, which is compared, the teacher's head is still the student's.
        "u2pl-class-loop": implementation(compared=True, criterion=step.ClassLoop, key_encoder="student"),
    },
    passes=(STEP,),
    dtypes=(DTYPE,),
    layouts=("channels_last",),
)

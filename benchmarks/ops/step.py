"""One whole training step: networks, losses, backward, update; channels_last, bfloat16 where it is computed in."""

from collections.abc import Callable

import torch

from u2pl_fast.learner import PHASES
from u2pl_fast.precision import cpu_computes_in

from .. import step
from ..inputs import Inputs
from ..registry import STEP, Arguments, Implementation, Op, Outputs, no_mark


def implementation(compared: bool = False, **choices: object) -> Implementation:
    """Learners of ``choices``; where ``compared``, their first losses must agree."""

    def arguments(x: Inputs) -> Arguments:
        sized = Inputs(step.sized(x.workload), x.device, x.dtype, x.layout, x.bank)
        return {"learner": step.learner(sized, **choices), "batch": step.batch(sized)}

    def forward(a: Arguments, mark: Callable[[str], None] = no_mark) -> Outputs:
        losses = a["learner"].train_step(a["batch"]).losses
        return losses.supervised, losses.unsupervised, losses.contrastive

    return Implementation(arguments, forward, collect=lambda _, outputs, __: outputs if compared else (), phases=PHASES)


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
        # What u2pl-paper costs is added up from these: mean-teacher, + labelled images, + head, + loss.
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

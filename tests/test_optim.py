"""The update that a flag on the device can call off."""

import pytest
import torch
from torch import nn

from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.models import build_model
from u2pl_fast.optim import build_optimizer, gated_step


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_update_that_is_called_off_leaves_no_trace(optimizer):
    config = resolve(TrainConfig(optimizer=optimizer, encoder="mobilenetv3_small_050"))

    def updated(*flags: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        student: nn.Module = build_model(config, 3)
        steps = build_optimizer(student, config)
        for flag in flags:
            for parameter in student.parameters():
                parameter.grad = torch.ones_like(parameter)
            if not flag:  # memory that a fresh buffer may be given
                garbage = [torch.full_like(parameter, 1e20) for parameter in student.parameters()]
                del garbage
            gated_step(steps, torch.tensor(flag))
        return list(student.parameters())

    for actual, expected in zip(updated(False, True, True), updated(True, True), strict=True):
        assert torch.equal(actual, expected)

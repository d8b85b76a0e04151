"""The update that a flag on the device can call off."""

import pytest
import torch
from torch import nn

from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.models import build_model
from u2pl_fast.ops import _backend
from u2pl_fast.training.optim import BufferGuard, build_optimizer, gated_step


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


@pytest.mark.parametrize("ok", [True, False])
@pytest.mark.parametrize("readable", [True, False])
def test_buffers_go_back_where_an_update_is_called_off(monkeypatch, readable, ok):
    """Counters among them, and beside buffers of other widths; also where the flag cannot be read, as on a GPU."""
    monkeypatch.setattr(_backend, "readable", lambda flag: readable)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(2).double(), nn.BatchNorm1d(5).bfloat16())
    net.register_buffer("frozen", torch.tensor([True, False, True]))
    net.register_buffer("holes", torch.arange(8.0)[::2])
    guard = BufferGuard(net)
    for _ in range(2):
        before = [x.clone() for x in net.buffers()]
        guard.save()
        for x in net.buffers():
            x.copy_(~x if x.dtype == torch.bool else x + 1 if x.dtype == torch.int64 else x / 0)
        after = [x.clone() for x in net.buffers()]
        guard.restore_unless(torch.tensor(ok))
        for x, expected in zip(net.buffers(), after if ok else before, strict=True):
            torch.testing.assert_close(x, expected, rtol=0, atol=0, equal_nan=True)

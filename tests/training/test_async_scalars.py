"""Numbers that travel to the host."""

import pytest
import torch

from u2pl_fast.training.async_scalars import AsyncScalars

VALUES = {
    "loss": torch.tensor(0.25),
    "half": torch.tensor(1.5, dtype=torch.bfloat16),
    "count": torch.tensor([2**52, 3]),
    "none": torch.zeros(0),
    "ok": torch.tensor(True),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_values_arrive_as_they_were(device):
    values = {name: value.to(device) for name, value in VALUES.items()}
    scalars = AsyncScalars(values)
    values["loss"].fill_(7)  # later work must not change what was sent
    got = scalars.values()
    assert got == {"loss": 0.25, "half": 1.5, "count": [2**52, 3], "none": [], "ok": 1}
    assert type(got["count"][0]) is int and type(got["loss"]) is float
    assert scalars.ready

"""Predict the device memory of a training step from shapes: nothing is computed, and no device is needed.

The network runs on fake tensors, which have shapes and no data, under the same autocast as in training. Hooks of
autograd report what it keeps for the backward pass.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from u2pl_fast.models import build_model

from . import step
from .workloads import Workload, trained

MIB = 2**20
HALF, SINGLE = 2, 4  # bytes


@dataclass(frozen=True)
class StepMemory:
    """Hold MiB, millions of parameters, and the number of floating-point buffers; for AdamW and bfloat16 autocast.

    weights: student, teacher and the optimizer's two averages. gradients. activations: kept for the backward pass.
    keys: dense representations and the share of the loss of their source. bank: in float32.
    """

    parameters: float
    buffers: int
    weights: float
    gradients: float
    activations: float
    keys: float
    bank: float

    @property
    def step(self) -> float:
        """Return what a step adds to what stays between steps."""
        return self.gradients + self.activations + self.keys

    @property
    def total(self) -> float:
        return self.weights + self.bank + self.step


@cache
def predicted(workload: Workload, **choices: object) -> StepMemory:
    """Return the memory of one step of ``workload`` with the benchmark's network for it."""
    w = trained(workload)
    config = step.config(w, **choices)
    with FakeTensorMode():
        network = build_model(config, w.num_classes, load_encoder_weights=False).train()
        kept = _kept(network, w, config.method == "u2pl")
        parameters = sum(p.numel() for p in network.parameters())
        buffers = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    has_bank = config.method == "u2pl"
    return StepMemory(
        parameters=parameters / 1e6,
        buffers=buffers,
        weights=(2 + 2) * SINGLE * parameters / MIB,
        gradients=SINGLE * parameters / MIB,
        activations=kept / MIB,
        keys=has_bank * HALF * w.grid_pixels * w.dim / MIB,
        bank=has_bank * SINGLE * sum(w.capacities) * w.dim / MIB,
    )


def _kept(network: torch.nn.Module, w: Workload, representations: bool) -> int:
    """Return the bytes that autograd keeps of one forward pass, without the parameters."""
    kept: dict[int, Tensor] = {}
    images = torch.empty(w.images, 3, *w.crop, dtype=torch.uint8)

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        network(images, representations=representations)
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in own)

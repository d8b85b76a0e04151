"""What a training step needs of a device's memory, added up from shapes: nothing is computed, no device is needed.

The network runs on fake tensors, which have shapes and no data, under the same autocast as in training, and autograd's
hooks tell what it keeps for the backward pass.
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
    """MiB, millions of parameters, and the number of floating-point buffers; AdamW, bfloat16 autocast.

    weights: student, teacher and the optimizer's two averages. gradients. activations: kept for the backward pass.
    keys: dense representations and their source's share of the loss. bank: in float32.
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
        """What a step adds to what stays from one to the next."""
        return self.gradients + self.activations + self.keys

    @property
    def total(self) -> float:
        return self.weights + self.bank + self.step


@cache
def predicted(workload: Workload, **choices: object) -> StepMemory:
    """The memory of one step of ``workload`` with the benchmark's network for it."""
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
    """Bytes that autograd keeps of one forward pass, the parameters themselves apart."""
    kept: dict[int, Tensor] = {}
    images = torch.empty(w.images, 3, *w.crop, dtype=torch.uint8)

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        network(images, representations=representations)
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in own)

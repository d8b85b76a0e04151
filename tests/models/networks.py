"""Small networks, images for them, and a step that reads everything that they give."""

import torch

from u2pl_fast.models import SegmentationNetwork
from u2pl_fast.outputs import SegmentationOutput

SMALL = "mobilenetv3_small_050"


def network(arch: str = "deeplabv3plus", encoder: str = SMALL, **options) -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork(arch, encoder, 5, **options)


def images(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def one_step(net: SegmentationNetwork, height: int = 64, width: int = 96) -> SegmentationOutput:
    """A forward and backward pass that reads everything; each parameter that wants a gradient must get one."""
    output = net(images(height=height, width=width), representations=True)
    total = output.logits.square().mean() + represented(output).square().mean()
    total.backward()
    missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, missing
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    return output


def represented(output: SegmentationOutput) -> torch.Tensor:
    if output.project is None:
        return output.features
    return output.project(output.features.permute(0, 2, 3, 1).flatten(0, 2))

"""DPT (Ranftl et al. 2021, arXiv:2103.13413) on plain vision transformers of timm, of any patch and image size.

segmentation-models-pytorch has the blocks; its own decoder stops where a grid of patches can't be halved evenly, and at
patches of 14 pixels, whose ratio to a stride of 4 is no integer. Here the four maps are brought to 4, 2, 1 and ½ times
the grid of the patches whatever the patch (3 pixels more or less, as DINOv2's own heads do), and a map that comes out a
row larger than the next finer one is fitted to it. Logits are on twice the finest of these grids: a stride of 2 with
patches of 16, of 1.75 with patches of 14.
"""

import math

import timm
import torch.nn.functional as F
from segmentation_models_pytorch.base import initialization
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder
from torch import Tensor, nn

WIDTH = 256  # channels of the decoder's features
REASSEMBLED = (256, 512, 1024, 1024)  # of the four maps before they are fused
POSSIBLE = "vit_*, deit_*, deit3_*, vit_*_dinov2, vit_*_dinov3, eva02_*, vit_*_siglip_*"

Stages = tuple[list[Tensor], list[Tensor | None]]


class ViTEncoder(TimmViTEncoder):
    """Four maps of a vision transformer, all on the grid of its patches, and their class tokens.

    Images may have any size that the patches divide; position embeddings are interpolated.

    Raises:
        ValueError: not a vision transformer of one grid, or one that is tied to a size.
    """

    def __init__(self, name: str, in_channels: int, pretrained: bool) -> None:
        impossible = f"encoder: dpt can't be built on {name}"
        possible = f"it takes plain vision transformers such as {POSSIBLE}; others go with fpn, upernet or segformer"
        if not timm.is_model(name):
            raise ValueError(f"{impossible}, which is none of timm's; {possible}")
        try:
            super().__init__(name, pretrained, in_channels, dynamic_img_size=True)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{impossible}, which has no image size that can be changed; {possible}") from error
        if len(set(self.output_strides)) > 1 or not hasattr(self.model, "prune_intermediate_layers"):
            raise ValueError(f"{impossible}, whose features have strides {self.output_strides}; {possible}")
        # What comes after the last map: without a gradient, data-parallel training would wait for it.
        self.model.prune_intermediate_layers(self._output_indices, prune_norm=True, prune_head=True)


class Decoder(DPTDecoder):
    """Fuses the maps of a `ViTEncoder` from the coarsest to the finest: (B, WIDTH, h', w')."""

    def __init__(self, encoder: ViTEncoder) -> None:
        patch = encoder.output_stride
        strides = [2 ** round(math.log2(patch))] * len(encoder.output_strides)
        readout = "cat" if encoder.has_prefix_tokens else "ignore"
        super().__init__(
            encoder.out_channels,
            strides,
            encoder.has_prefix_tokens,
            readout=readout,
            intermediate_channels=REASSEMBLED,
            fusion_channels=WIDTH,
        )
        initialization.initialize_decoder(self)

    def forward(self, stages: Stages) -> Tensor:
        fused = None
        levels = list(zip(self.projection_blocks, self.reassemble_blocks, *stages, strict=True))
        for fuse, (project, reassemble, tokens, prefix) in zip(self.fusion_blocks, reversed(levels), strict=True):
            here = reassemble(project(tokens, prefix))
            if fused is not None and fused.shape != here.shape:
                fused = F.interpolate(fused, size=here.shape[-2:], mode="bilinear", align_corners=True)
            fused = fuse(here, fused)
        return fused


def classifier(num_classes: int) -> nn.Module:
    """The published head without its last upsampling."""
    head = DPTSegmentationHead(WIDTH, num_classes)
    initialization.initialize_head(head)
    return head.head

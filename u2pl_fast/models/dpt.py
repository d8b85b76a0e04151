"""Build DPT (Ranftl et al. 2021, arXiv:2103.13413) on plain vision transformers of timm, for any patch and image size.

The blocks come from segmentation-models-pytorch. Its own decoder requires patch grids that can be halved evenly and
patch sizes that are multiples of 4. Here the four maps are resampled to about 4, 2, 1 and ½ times the patch grid, and a
map that is one row larger than the next finer one is resized. Logits have twice the finest of these grids: stride 2
with patches of 16, stride 1.75 with patches of 14.
"""

import math

import timm
import torch.nn.functional as F
from segmentation_models_pytorch.base import initialization
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder
from torch import Tensor, nn

WIDTH = 256  # channels of the decoder's features
REASSEMBLED = (256, 512, 1024, 1024)  # channels of the four maps before fusion
POSSIBLE = "vit_*, deit_*, deit3_*, vit_*_dinov2, vit_*_dinov3, eva02_*, vit_*_siglip_*"

Stages = tuple[list[Tensor], list[Tensor | None]]


class ViTEncoder(TimmViTEncoder):
    """Return four maps of a vision transformer, all on its patch grid, and their class tokens.

    Images may have any size that is a multiple of the patch size; position embeddings are interpolated.

    Raises:
        ValueError: the model is not a plain vision transformer, or its image size is fixed.
    """

    def __init__(self, name: str, in_channels: int, pretrained: bool) -> None:
        impossible = f"encoder: cannot build dpt on {name}"
        possible = f"use a plain vision transformer such as {POSSIBLE}, or another --arch: fpn, upernet, segformer"
        if not timm.is_model(name):
            raise ValueError(f"{impossible}, which is not a timm model; {possible}")
        try:
            super().__init__(name, pretrained, in_channels, dynamic_img_size=True)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{impossible}, whose image size is fixed; {possible}") from error
        if len(set(self.output_strides)) > 1 or not hasattr(self.model, "prune_intermediate_layers"):
            raise ValueError(f"{impossible}, whose features have strides {self.output_strides}; {possible}")
        # Remove what follows the last map: it gets no gradient, and data-parallel training would wait for one.
        self.model.prune_intermediate_layers(self._output_indices, prune_norm=True, prune_head=True)


class Decoder(DPTDecoder):
    """Fuse the maps of a `ViTEncoder` from the coarsest to the finest: (B, WIDTH, h', w')."""

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
    """Return the published head without its last upsampling."""
    head = DPTSegmentationHead(WIDTH, num_classes)
    initialization.initialize_head(head)
    return head.head

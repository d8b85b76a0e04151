"""Define a segmentation network with a representation head; logits keep the decoder's resolution."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.image_format import mean_color, normalization
from ..data.views import padded_size
from ..outputs import SegmentationOutput
from ..reference import pool_to_stride4
from . import encoders, heads
from .architectures import create_parts

COMPILER = "inductor"


class SegmentationNetwork(nn.Module):
    """Segment images with an encoder, a decoder, a classifier, and optionally a representation head.

    Takes images (B, N, H, W) as uint8, or as floats in 0..255, and normalizes them. With N = 3 the order is RGB.

    Args:
        arch: short name of a segmentation-models-pytorch architecture with a ``decoder``. ``"dpt"`` takes plain vision
            transformers, the others take encoders with features at several scales.
        encoder: name of a timm model or of an encoder of segmentation-models-pytorch.
        num_classes: C.
        in_channels: N. Pretrained weights of the first convolution are adapted as in timm: summed for one channel, else
            repeated and scaled by 3 ÷ N.
        encoder_weights: ``None``, ``"imagenet"`` (downloaded by timm) or a ``.safetensors`` file with timm's names.
        projection: ``None``, ``"pointwise"`` (linear, LayerNorm, ReLU, linear on decoder features, for chosen pixels
            only) or ``"conv"`` (two 3×3 conv-BN-ReLU-dropout and a 1×1, computed everywhere, as published).
        representation_dim: D.
        projection_width: hidden channels of the head.
        output_stride: 8, 16 or 32 for the encoder; None = the architecture's default.
        decoder_width: channels of the decoder, for architectures with one width; None = the architecture's default.
        auxiliary: add a classifier on the second-to-last encoder stage, returned as ``aux_logits``.
        align_corners: how to upsample the logits; stored for the callers that upsample them.
        image_mean, image_std: N numbers each, where white is 1; None = see
            :func:`u2pl_fast.data.image_format.normalization`.
        checkpoint_encoder: recompute the encoder's activations in the backward pass instead of storing them.
        freeze_batchnorm: keep the encoder's batch norm statistics during training; its scales and shifts are trained.
        freeze_stages: number of encoder stages, from the first, that keep their weights and statistics.
        feature_dropout: share of the encoder's channels to drop for perturbed images.
    """

    def __init__(
        self,
        arch: str,
        encoder: str,
        num_classes: int,
        *,
        in_channels: int = 3,
        encoder_weights: str | Path | None = None,
        projection: str | None = None,
        representation_dim: int = 256,
        projection_width: int = 256,
        output_stride: int | None = None,
        decoder_width: int | None = None,
        auxiliary: bool = False,
        align_corners: bool = False,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        checkpoint_encoder: bool = False,
        freeze_batchnorm: bool = False,
        freeze_stages: int = 0,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        pretrained = encoder_weights == "imagenet"
        parts = create_parts(arch, encoder, num_classes, in_channels, pretrained, output_stride, decoder_width)
        self.encoder, self.decoder, self.classifier = parts.encoder, parts.decoder, parts.classifier
        if encoder_weights not in (None, "imagenet"):
            encoders.load_encoder_weights(getattr(self.encoder, "model", self.encoder), Path(encoder_weights))
        self.freeze_batchnorm, self.freeze_stages = freeze_batchnorm, freeze_stages
        self.feature_dropout = feature_dropout
        if freeze_batchnorm and not any(encoders.batch_norms(self.encoder)):
            raise ValueError(f"freeze_batchnorm: {encoder} has no batch norm; remove it, or add --no-freeze-batchnorm")
        encoders.freeze_stages(self.encoder, freeze_stages, in_channels)
        if checkpoint_encoder:
            encoders.checkpoint_activations(self.encoder, encoder, freeze_batchnorm)
        self.in_channels, self.align_corners, self.pad_multiple = in_channels, align_corners, parts.pad_multiple
        self.projection = heads.projection(projection, parts.width, projection_width, representation_dim)
        self.dense_projection = projection == "conv"
        self.representation_dim = representation_dim
        self.auxiliary = heads.auxiliary(self.encoder.out_channels[-2], num_classes) if auxiliary else None
        mean, std = normalization(in_channels, image_mean, image_std)
        self.mean_color = mean_color(mean)
        self.register_buffer("image_mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("image_std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.train()  # freezes layers as requested

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        super().train(mode)
        for norm in encoders.batch_norms(self.encoder):
            if self.freeze_batchnorm or (self.freeze_stages and norm.affine and not norm.weight.requires_grad):
                norm.eval()
        return self

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but the encoder's, which may get a higher learning rate."""
        encoder = {id(p) for p in self.encoder.parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    def forward(self, images: Tensor, *, representations: bool = False, perturbed: int = 0) -> SegmentationOutput:
        """Return logits and, if asked for, the features that the contrastive loss uses.

        Args:
            images: (B, N, H, W); H and W must be multiples of ``pad_multiple``.
            representations: return features, and the head in ``project`` unless it was applied.
            perturbed: drop a share ``feature_dropout`` of the channels of each encoder stage for the last ``perturbed``
                images.
        """
        height, width = images.shape[-2:]
        if images.shape[1] != self.in_channels:
            raise ValueError(f"images: expected {self.in_channels} channels, got {images.shape[1]}")
        if height % self.pad_multiple or width % self.pad_multiple:
            padded = padded_size((height, width), self.pad_multiple)
            raise ValueError(
                f"images: {height}×{width} must be multiples of {self.pad_multiple} for this network; "
                f"pad to {padded[0]}×{padded[1]}"
            )
        encoded = self.encoder((images - self.image_mean) / self.image_std)
        if perturbed:
            encoded = encoders.drop_channels(encoded, perturbed, self.feature_dropout)
        decoded = self.decoder(encoded)
        logits = self.classifier(decoded)
        aux_logits = None
        if self.auxiliary is not None and self.training:
            aux_logits = self.auxiliary(encoders.feature_maps(encoded)[-2])
        if not representations:
            return SegmentationOutput(logits, aux_logits=aux_logits)
        if self.projection is None:
            raise ValueError("representations: this network has no head for them; build it with projection='pointwise'")
        features = pool_to_stride4(decoded, (height, width))
        if self.dense_projection:
            return SegmentationOutput(logits, self.projection(features), None, aux_logits)
        return SegmentationOutput(logits, features, self.projection, aux_logits)


def build_model(config: TrainConfig, num_classes: int, *, load_encoder_weights: bool = True) -> SegmentationNetwork:
    """Build the network of a resolved config; skip the encoder weights if a checkpoint will replace them."""
    weights = None if config.encoder_weights == "none" or not load_encoder_weights else config.encoder_weights
    return SegmentationNetwork(
        config.arch,
        config.encoder,
        num_classes,
        in_channels=config.in_channels,
        encoder_weights=weights,
        projection=config.projection if config.method == "u2pl" else None,
        representation_dim=config.representation_dim,
        projection_width=config.projection_width,
        output_stride=config.output_stride,
        decoder_width=config.decoder_width,
        auxiliary=config.auxiliary,
        align_corners=config.align_corners,
        image_mean=config.image_mean,
        image_std=config.image_std,
        checkpoint_encoder=config.checkpoint_encoder,
        freeze_batchnorm=config.freeze_batchnorm,
        freeze_stages=config.freeze_stages,
        feature_dropout=config.feature_dropout,
    )


def compile_network(network: nn.Module) -> None:
    """Compile ``network`` at its first call; if that fails, warn and run it uncompiled.

    Its state dict and its modules stay the same.
    """
    network.compile(backend=_compiled_or_eager, dynamic=False)


def _compiled_or_eager(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    from torch._dynamo import lookup_backend  # takes seconds to import

    try:
        return lookup_backend(COMPILER)(graph, examples)
    except Exception as error:  # compilers raise many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"compile: the network runs uncompiled ({reason[:200]})", RuntimeWarning, stacklevel=2)
        return graph.forward

"""A segmentation-models-pytorch network with a representation head; logits stay on the decoder's grid."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .config import TrainConfig
from .outputs import SegmentationOutput
from .reference import pool_to_stride4

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
PROJECTIONS = ("pointwise", "conv")
COMPILER = "inductor"


class SegmentationNetwork(nn.Module):
    """Encoder, decoder, classifier at the decoder's resolution, and optionally a representation head.

    Takes images as uint8, or floats in 0..255, (B, 3, H, W) in RGB order, and normalises them itself.

    Args:
        arch: a segmentation-models-pytorch architecture with a ``decoder``, by its short name.
        encoder: a timm model name.
        num_classes: C.
        encoder_weights: ``None``, ``"imagenet"`` (downloaded by timm) or a ``.safetensors`` file of timm's names.
        projection: ``None``, ``"pointwise"`` (linear, LayerNorm, ReLU, linear on decoder features, so that it can be
            evaluated at chosen pixels) or ``"conv"`` (two 3×3 conv-BN-ReLU-dropout and a 1×1, dense, as published).
        representation_dim: D.
        projection_width: hidden channels of the head.
        output_stride: 8, 16 or 32 for the encoder; None keeps the architecture's own.
        auxiliary: adds a classifier on the last but one encoder stage, returned as ``aux_logits``.
        align_corners: how the logits are meant to be upsampled; read by those who do.
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
        auxiliary: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        network = _create(arch, encoder, num_classes, in_channels, encoder_weights == "imagenet", output_stride)
        self.encoder, self.decoder, self.classifier = network.encoder, network.decoder, network.segmentation_head[0]
        if encoder_weights not in (None, "imagenet"):
            load_encoder_weights(self.encoder.model, Path(encoder_weights))
        self.align_corners = align_corners
        self.pad_multiple = self.encoder.output_stride if network.requires_divisible_input_shape else 1
        width = self.classifier.in_channels
        self.projection = _projection(projection, width, projection_width, representation_dim)
        self.dense_projection = projection == "conv"
        self.representation_dim = representation_dim
        self.auxiliary = _auxiliary(self.encoder.out_channels[-2], num_classes) if auxiliary else None
        mean, std = (255 * torch.tensor(x).view(1, -1, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
        if in_channels != 3:
            mean, std = (x.mean().expand(1, in_channels, 1, 1).clone() for x in (mean, std))
        self.register_buffer("image_mean", mean, persistent=False)
        self.register_buffer("image_std", std, persistent=False)

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """All but the encoder's: those that a recipe may train with a higher learning rate."""
        encoder = {id(p) for p in self.encoder.parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    def forward(self, images: Tensor, *, representations: bool = False) -> SegmentationOutput:
        """Logits, and where asked for what the contrastive loss reads."""
        height, width = images.shape[-2:]
        if height % self.pad_multiple or width % self.pad_multiple:
            padded = [-(-n // self.pad_multiple) * self.pad_multiple for n in (height, width)]
            raise ValueError(
                f"images: {height}×{width} must be multiples of {self.pad_multiple} for this network; "
                f"pad to {padded[0]}×{padded[1]}"
            )
        stages = self.encoder((images - self.image_mean) / self.image_std)
        decoded = self.decoder(stages)
        logits = self.classifier(decoded)
        aux_logits = self.auxiliary(stages[-2]) if self.auxiliary is not None and self.training else None
        if not representations:
            return SegmentationOutput(logits, aux_logits=aux_logits)
        if self.projection is None:
            raise ValueError("representations: this network was built with projection=None and has no head for them")
        features = pool_to_stride4(decoded, (height, width))
        if self.dense_projection:
            return SegmentationOutput(logits, self.projection(features), None, aux_logits)
        return SegmentationOutput(logits, features, self.projection, aux_logits)


def _create(arch: str, encoder: str, num_classes: int, in_channels: int, pretrained: bool, output_stride: int | None):
    encoder = encoder.removeprefix("tu-")
    if not timm.is_model(encoder):
        close = ", ".join(timm.list_models(f"*{encoder}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"encoder: timm has no model {encoder!r}; close names: {close}")
    options = {} if output_stride is None else {"encoder_output_stride": output_stride}
    try:
        network = smp.create_model(
            arch,
            f"tu-{encoder}",
            encoder_weights=True if pretrained else None,
            in_channels=in_channels,
            classes=num_classes,
            **options,
        )
    except OSError as error:
        raise ValueError(
            f"encoder_weights: could not download the ImageNet weights of {encoder} ({type(error).__name__}); "
            "give a .safetensors file of timm's weights, or 'none' to start from scratch"
        ) from error
    except KeyError as error:
        raise ValueError(f"arch: {error.args[0]}") from error
    except TypeError as error:
        raise ValueError(f"arch: {arch} with encoder {encoder} does not take these options: {error}") from error
    if not hasattr(network, "decoder") or not isinstance(network.segmentation_head[0], nn.Conv2d):
        raise ValueError(f"arch: {arch} has no decoder followed by a convolution; choose another architecture")
    return network


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a timm ``.safetensors`` file into a timm encoder; what the encoder lacks (its classifier) is left out."""
    if not path.is_file():
        raise ValueError(f"encoder_weights: no file {path}; give a .safetensors file, 'imagenet' or 'none'")
    try:
        weights: Mapping[str, Tensor] = load_file(path)
    except Exception as error:
        raise ValueError(f"encoder_weights: {path} is not a readable .safetensors file ({error})") from error
    wanted = encoder.state_dict()
    missing = [name for name in wanted if name not in weights]
    unequal = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    if missing or unequal:
        raise ValueError(
            f"encoder_weights: {path} does not fit this encoder: {len(missing)} tensors missing, {len(unequal)} of "
            f"another shape, first {(missing + unequal)[0]}; is it the file of this timm model?"
        )
    encoder.load_state_dict({name: weights[name] for name in wanted})


def _projection(kind: str | None, width: int, hidden: int, dim: int) -> nn.Module | None:
    if kind is None:
        return None
    if kind == "pointwise":
        return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, dim))
    if kind == "conv":
        blocks = (_conv_block(width, hidden), _conv_block(hidden, hidden))
        return nn.Sequential(*blocks, nn.Conv2d(hidden, dim, 1))
    raise ValueError(f"projection: expected one of {', '.join(PROJECTIONS)} or None, got {kind!r}")


def _conv_block(width: int, hidden: int) -> nn.Sequential:
    conv = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Dropout2d(0.1))


def _auxiliary(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(_conv_block(width, max(width // 4, 16)), nn.Conv2d(max(width // 4, 16), num_classes, 1))


def build_model(config: TrainConfig, num_classes: int, *, load_encoder_weights: bool = True) -> SegmentationNetwork:
    """The network of a resolved config; ``load_encoder_weights=False`` where a checkpoint will fill it anyway."""
    weights = None if config.encoder_weights == "none" or not load_encoder_weights else config.encoder_weights
    return SegmentationNetwork(
        config.arch,
        config.encoder,
        num_classes,
        encoder_weights=weights,
        projection=config.projection if config.method == "u2pl" else None,
        representation_dim=config.representation_dim,
        projection_width=config.projection_width,
        output_stride=config.output_stride,
        auxiliary=config.auxiliary,
        align_corners=config.align_corners,
    )


def compile_network(network: nn.Module) -> None:
    """Have ``network`` compiled at its first call; what cannot be compiled runs as it is, with a warning that says so.

    Its state dict and its modules stay as they are.
    """
    network.compile(backend=_compiled_or_eager, dynamic=False)


def _compiled_or_eager(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    from torch._dynamo import lookup_backend  # seconds to import, for those who compile

    try:
        return lookup_backend(COMPILER)(graph, examples)
    except Exception as error:  # a compiler raises dozens of kinds
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"compile: the network runs uncompiled ({reason[:200]})", RuntimeWarning, stacklevel=2)
        return graph.forward

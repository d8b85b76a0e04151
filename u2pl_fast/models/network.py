"""A segmentation-models-pytorch network with a representation head; logits stay on the decoder's grid."""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.image_format import mean_color, normalisation
from ..data.views import padded_size
from ..outputs import SegmentationOutput
from ..reference import pool_to_stride4
from . import dpt

PROJECTIONS = ("pointwise", "conv")
# What segmentation-models-pytorch calls the one width of each of these decoders; the others have a width a level.
DECODER_WIDTHS = {
    "deeplabv3": ("decoder_channels",),
    "deeplabv3plus": ("decoder_channels",),
    "fpn": ("decoder_pyramid_channels", "decoder_segmentation_channels"),
    "pan": ("decoder_channels",),
    "pspnet": ("psp_out_channels",),
    "segformer": ("decoder_segmentation_channels",),
    "upernet": ("decoder_channels",),
}
COMPILER = "inductor"


class SegmentationNetwork(nn.Module):
    """Encoder, decoder, classifier at the decoder's resolution, and optionally a representation head.

    Takes images as uint8, or floats in 0..255, (B, N, H, W), N = 3 in RGB order, and normalises them itself.

    Args:
        arch: a segmentation-models-pytorch architecture with a ``decoder``, by its short name. ``"dpt"`` takes plain
            vision transformers, the others take encoders with a pyramid of features.
        encoder: a timm model name, or one of segmentation-models-pytorch's own encoders.
        num_classes: C.
        in_channels: N. Pretrained weights of the first convolution are adapted to it as timm does: summed for one
            channel, else repeated and scaled by 3 ÷ N.
        encoder_weights: ``None``, ``"imagenet"`` (downloaded by timm) or a ``.safetensors`` file of timm's names.
        projection: ``None``, ``"pointwise"`` (linear, LayerNorm, ReLU, linear on decoder features, so that it can be
            evaluated at chosen pixels) or ``"conv"`` (two 3×3 conv-BN-ReLU-dropout and a 1×1, dense, as published).
        representation_dim: D.
        projection_width: hidden channels of the head.
        output_stride: 8, 16 or 32 for the encoder; None keeps the architecture's own.
        decoder_width: channels of the decoder, where one number says them; None keeps the architecture's own.
        auxiliary: adds a classifier on the last but one encoder stage, returned as ``aux_logits``.
        align_corners: how the logits are meant to be upsampled; read by those who do.
        image_mean, image_std: N numbers each, where white is 1; None: see
            :func:`u2pl_fast.data.image_format.normalisation`.
        checkpoint_encoder: keep no activations of the encoder, compute them again in the backward pass.
        freeze_batchnorm: the encoder's batch norm keeps the running statistics of its weights, in training as well;
            its scales and shifts are trained.
        freeze_stages: this many stages of the encoder, first ones first, keep their weights and statistics.
        feature_dropout: share of the encoder's channels that perturbed images lose.
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
        parts = _create(arch, encoder, num_classes, in_channels, pretrained, output_stride, decoder_width)
        self.encoder, self.decoder, self.classifier = parts.encoder, parts.decoder, parts.classifier
        if encoder_weights not in (None, "imagenet"):
            load_encoder_weights(getattr(self.encoder, "model", self.encoder), Path(encoder_weights))
        self.freeze_batchnorm, self.freeze_stages = freeze_batchnorm, freeze_stages
        self.feature_dropout = feature_dropout
        if freeze_batchnorm and not any(_batch_norms(self.encoder)):
            raise ValueError(
                f"freeze_batchnorm: {encoder} has no batch norm; leave it out, or add --no-freeze-batchnorm"
            )
        _freeze_stages(self.encoder, freeze_stages, in_channels)
        if checkpoint_encoder:
            _checkpoint(self.encoder, encoder, freeze_batchnorm)
        self.in_channels, self.align_corners, self.pad_multiple = in_channels, align_corners, parts.pad_multiple
        self.projection = _projection(projection, parts.width, projection_width, representation_dim)
        self.dense_projection = projection == "conv"
        self.representation_dim = representation_dim
        self.auxiliary = _auxiliary(self.encoder.out_channels[-2], num_classes) if auxiliary else None
        mean, std = normalisation(in_channels, image_mean, image_std)
        self.mean_color = mean_color(mean)
        self.register_buffer("image_mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("image_std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.train()  # freezes, where asked

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        super().train(mode)
        for norm in _batch_norms(self.encoder):
            if self.freeze_batchnorm or (self.freeze_stages and norm.affine and not norm.weight.requires_grad):
                norm.eval()
        return self

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """All but the encoder's: those that a recipe may train with a higher learning rate."""
        encoder = {id(p) for p in self.encoder.parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    def forward(self, images: Tensor, *, representations: bool = False, perturbed: int = 0) -> SegmentationOutput:
        """Logits, and where asked for what the contrastive loss reads.

        The last ``perturbed`` images lose a share ``feature_dropout`` of the channels of each encoder stage.
        """
        height, width = images.shape[-2:]
        if images.shape[1] != self.in_channels:
            raise ValueError(f"images: {images.shape[1]} channels, this network was built for {self.in_channels}")
        if height % self.pad_multiple or width % self.pad_multiple:
            padded = padded_size((height, width), self.pad_multiple)
            raise ValueError(
                f"images: {height}×{width} must be multiples of {self.pad_multiple} for this network; "
                f"pad to {padded[0]}×{padded[1]}"
            )
        stages = self.encoder((images - self.image_mean) / self.image_std)
        if perturbed:
            stages = _without_channels(stages, perturbed, self.feature_dropout)
        decoded = self.decoder(stages)
        logits = self.classifier(decoded)
        maps = stages[0] if isinstance(stages, tuple) else stages  # dpt: beside them the class tokens
        aux_logits = self.auxiliary(maps[-2]) if self.auxiliary is not None and self.training else None
        if not representations:
            return SegmentationOutput(logits, aux_logits=aux_logits)
        if self.projection is None:
            raise ValueError("representations: this network was built with projection=None and has no head for them")
        features = pool_to_stride4(decoded, (height, width))
        if self.dense_projection:
            return SegmentationOutput(logits, self.projection(features), None, aux_logits)
        return SegmentationOutput(logits, features, self.projection, aux_logits)


class _Parts(NamedTuple):
    """``width``: channels of the decoder's features. ``pad_multiple``: of the image sizes that it takes."""

    encoder: nn.Module
    decoder: nn.Module
    classifier: nn.Module
    width: int
    pad_multiple: int


def _create(
    arch: str,
    encoder: str,
    num_classes: int,
    in_channels: int,
    pretrained: bool,
    output_stride: int | None,
    decoder_width: int | None,
) -> _Parts:
    arch, encoder = arch.lower(), encoder.removeprefix("tu-")
    if not timm.is_model(encoder) and encoder not in smp.encoders.get_encoder_names():
        close = ", ".join(timm.list_models(f"*{encoder}*")[:5]) or "see timm.list_models()"
        raise ValueError(
            f"encoder: timm has no model {encoder!r}, and it is none of segmentation-models-pytorch's own, such as "
            f"mit_b0; close names: {close}"
        )
    options = _decoder_options(arch, decoder_width)
    if output_stride is not None:
        options["encoder_output_stride"] = output_stride
    try:
        if arch == "dpt":
            return _create_dpt(encoder, num_classes, in_channels, pretrained, output_stride)
        return _create_smp(arch, encoder, num_classes, in_channels, pretrained, options)
    except OSError as error:
        raise ValueError(
            f"encoder_weights: could not download the ImageNet weights of {encoder} ({type(error).__name__}); "
            "give a .safetensors file of timm's weights, or 'none' to start from scratch"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"encoder: {error}") from error  # timm has no such weights


def _decoder_options(arch: str, width: int | None) -> dict[str, Any]:
    if width is None:
        return {}
    if arch not in DECODER_WIDTHS:
        raise ValueError(f"decoder_width: {arch} has no single width; {', '.join(DECODER_WIDTHS)} have")
    if width < 1:
        raise ValueError(f"decoder_width: expected a positive number of channels, got {width}")
    return dict.fromkeys(DECODER_WIDTHS[arch], width)


def _create_dpt(
    encoder: str, num_classes: int, in_channels: int, pretrained: bool, output_stride: int | None
) -> _Parts:
    if output_stride is not None:
        raise ValueError("output_stride: a vision transformer has one grid, that of its patches; leave it out")
    vit = dpt.ViTEncoder(encoder, in_channels, pretrained)
    return _Parts(vit, dpt.Decoder(vit), dpt.classifier(num_classes), dpt.WIDTH, vit.output_stride)


def _create_smp(
    arch: str, encoder: str, num_classes: int, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> _Parts:
    in_timm = timm.is_model(encoder)
    if in_timm and "swin_transformer" in timm.models.model_entrypoint(encoder).__module__:
        options["strict_img_size"] = False  # else it takes images of its pretraining's size alone
    try:
        network = smp.create_model(
            arch,
            f"tu-{encoder}" if in_timm else encoder,
            encoder_weights="imagenet" if pretrained and not in_timm else pretrained or None,
            in_channels=in_channels,
            classes=num_classes,
            **options,
        )
    except KeyError as error:
        raise ValueError(f"{'encoder_weights' if 'weights' in str(error) else 'arch'}: {error.args[0]}") from error
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error)
        if "output_stride" in reason or isinstance(error, AssertionError):  # HRNet asserts a stride of 32
            reason += "; the encoder can't be dilated as this architecture wants, use fpn, upernet, segformer or unet"
        elif "downsampling pattern" in reason:
            reason = "it has no features at strides 4, 8, 16 and 32; plain vision transformers are for --arch dpt"
        raise ValueError(f"arch: {arch} can't be built on {encoder}: {reason.removeprefix('; ')}") from error
    if not hasattr(network, "decoder") or not isinstance(network.segmentation_head[0], nn.Conv2d):
        raise ValueError(f"arch: {arch} has no decoder followed by a convolution; choose another architecture")
    classifier = network.segmentation_head[0]
    multiple = network.encoder.output_stride if network.requires_divisible_input_shape else 1
    if arch == "pspnet":
        _freeze_unread(network.encoder, in_channels)
    if arch == "segformer":
        network.decoder.__class__ = SegformerDecoder  # the same parameters, drawn alike
    return _Parts(network.encoder, network.decoder, classifier, classifier.in_channels, multiple)


def _freeze_unread(encoder: nn.Module, in_channels: int) -> None:
    """Freeze what no feature depends on: PSPNet reads three stages, and some encoders keep the later ones.

    Data-parallel training waits for the gradient of every parameter that wants one.
    """
    traced = copy.deepcopy(encoder).to("meta").train()
    read = _behind(traced, _trace(traced, in_channels))
    for parameter, is_read in zip(encoder.parameters(), read, strict=True):
        parameter.requires_grad_(is_read)


def _freeze_stages(encoder: nn.Module, stages: int, in_channels: int) -> None:
    """Freeze every parameter that the first ``stages`` feature maps depend on. The image is not counted as one."""
    if not stages:
        return
    traced = copy.deepcopy(encoder).to("meta").train()
    features = _trace(traced, in_channels)
    if not 0 <= stages <= len(features):
        raise ValueError(f"freeze_stages: expected 0 to {len(features)}, the stages of this encoder, got {stages}")
    for parameter, is_behind in zip(encoder.parameters(), _behind(traced, features[:stages]), strict=True):
        parameter.requires_grad_(parameter.requires_grad and not is_behind)


def _trace(encoder: nn.Module, in_channels: int) -> list[Tensor]:
    """The feature maps of an encoder on the meta device that depend on its parameters, finest first."""
    side = 4 * encoder.output_stride
    features = encoder(torch.empty(2, in_channels, side, side, device="meta"))
    maps = features[0] if isinstance(features, tuple) else features  # dpt: beside them the class tokens
    return [x for x in maps if x.requires_grad and x.numel()]


def _behind(encoder: nn.Module, features: list[Tensor]) -> list[bool]:
    """For each parameter, whether one of the feature maps depends on it."""
    wanted = [p for p in encoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad([x.sum() for x in features], wanted, allow_unused=True)
    behind = {id(p) for p, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    return [id(p) in behind for p in encoder.parameters()]


def _without_channels(stages: Any, number: int, share: float) -> Any:
    """The stages with a share of the channels of the last ``number`` images set to 0, another one in each stage."""

    def drop(x: Tensor) -> Tensor:
        return torch.cat((x[:-number], F.dropout2d(x[-number:], share)))

    if isinstance(stages, tuple):  # dpt: beside the maps the class tokens
        return [drop(x) for x in stages[0]], *stages[1:]
    return [stages[0], *(drop(x) for x in stages[1:])]  # the first one is the image


class SegformerDecoder(smp.decoders.segformer.decoder.SegformerDecoder):
    """The library's decoder with its 1×1 fusion before the upsampling, where there are 4 to 64 times fewer pixels.

    Σ W_i up(x_i) = Σ up(W_i x_i), since a 1×1 convolution and an interpolation commute: equal up to rounding.
    """

    def forward(self, features: list[Tensor]) -> Tensor:
        size = [side // 4 for side in features[0].shape[-2:]]
        features = [x for x in features[1:] if x.shape[1]][::-1]  # some encoders have an empty map at stride 2
        convolution, norm, activation = self.fuse_stage
        weights = convolution.weight.chunk(len(self.mlp_stage), dim=1)
        fused = 0
        for x, mlp, weight in zip(features, self.mlp_stage, weights, strict=False):
            linear = mlp.linear
            x = F.conv2d(F.conv2d(x, linear.weight[:, :, None, None], linear.bias), weight)
            fused = fused + F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return activation(norm(fused))


def _batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def _checkpoint(encoder: nn.Module, name: str, freeze_batchnorm: bool) -> None:
    network = getattr(encoder, "model", encoder)
    if not hasattr(network, "set_grad_checkpointing"):
        raise ValueError(f"checkpoint_encoder: {name} can't compute its activations again; leave it out")
    if not freeze_batchnorm and any(_batch_norms(network)):
        raise ValueError(
            f"checkpoint_encoder: {name} has batch norm, which would count every batch twice; add freeze_batchnorm, or "
            "use encoders that have none, such as vision transformers, ConvNeXt or Swin"
        )
    network.set_grad_checkpointing(True)


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` file of the encoder's own library; what the encoder lacks (its classifier) is left out.

    The weights of a first convolution for three channels are adapted to as many as the encoder has.
    """
    if not path.is_file():
        raise ValueError(f"encoder_weights: no file {path}; give a .safetensors file, 'imagenet' or 'none'")
    try:
        weights: Mapping[str, Tensor] = load_file(path)
    except Exception as error:
        raise ValueError(f"encoder_weights: {path} is not a readable .safetensors file ({error})") from error
    wanted = encoder.state_dict()
    weights = {name: _adapted(weights[key], wanted[name]) for name in wanted if (key := _stored(name, weights))}
    missing = [name for name in wanted if name not in weights]
    unequal = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    if missing or unequal:
        raise ValueError(
            f"encoder_weights: {path} does not fit this encoder: {len(missing)} tensors missing, {len(unequal)} of "
            f"another shape, first {(missing + unequal)[0]}; is it the file of this timm model?"
        )
    encoder.load_state_dict(weights)


def _stored(name: str, weights: Mapping[str, Tensor]) -> str | None:
    """What the file calls a tensor of the encoder: timm renames ``stages.0`` to ``stages_0`` to read features there."""
    unflattened = re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", name)
    return next((key for key in (name, unflattened) if key in weights), None)


def _adapted(weight: Tensor, wanted: Tensor) -> Tensor:
    """A convolution for three channels as one for N; any other weight as it is."""
    if wanted.dim() != 4 or weight.shape == wanted.shape or weight.shape != (len(wanted), 3, *wanted.shape[2:]):
        return weight
    return timm.models.adapt_input_conv(wanted.shape[1], weight)


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


def check_batch(arch: str, images: int) -> None:
    """Refuse a batch that this decoder cannot train on: one that pools the image to a pixel normalizes over the batch.

    Raises:
        ValueError: ``images`` per process and step are too few.
    """
    if images == 1 and arch in ("deeplabv3", "deeplabv3plus", "pspnet", "pan"):
        raise ValueError(
            f"batch_size: {arch} pools each image to one pixel and batch norm needs two of them; "
            "use --batch-size 2 or more"
        )

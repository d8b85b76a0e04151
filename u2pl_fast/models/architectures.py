"""Decoders by their names: how each is built, and what sets it apart. No other module branches on these names.

A new decoder is one entry in `ARCHITECTURES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import timm
from torch import nn

from . import dpt
from .encoders import freeze_unread
from .segformer import SegformerDecoder


class Parts(NamedTuple):
    """The parts of a network.

    ``encoder`` gives a list of feature maps, finest first; the first is the image. ``decoder`` makes one map of
    ``width`` channels of them, and ``classifier`` makes logits of that. Image sizes are multiples of ``pad_multiple``.
    """

    encoder: nn.Module
    decoder: nn.Module
    classifier: nn.Module
    width: int
    pad_multiple: int


def build_from_library(
    arch: str, encoder: str, num_classes: int, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> Parts:
    """Take the parts of the network that segmentation-models-pytorch makes of its own ``options``."""

    def make(name: str, weights: str | bool | None, **options: Any) -> nn.Module:
        return smp.create_model(
            arch, name, encoder_weights=weights, in_channels=in_channels, classes=num_classes, **options
        )

    network = from_library(make, arch, encoder, pretrained, options)
    if not hasattr(network, "decoder") or not isinstance(network.segmentation_head[0], nn.Conv2d):
        raise ValueError(f"arch: {arch} has no decoder followed by a convolution; choose another architecture")
    classifier = network.segmentation_head[0]
    multiple = network.encoder.output_stride if network.requires_divisible_input_shape else 1
    return Parts(network.encoder, network.decoder, classifier, classifier.in_channels, multiple)


def from_library(
    make: Callable[..., nn.Module], arch: str, encoder: str, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """Call ``make`` with the library's name for the encoder and its weights; what can't be built is a ValueError."""
    in_timm = timm.is_model(encoder)
    if in_timm and "swin_transformer" in timm.models.model_entrypoint(encoder).__module__:
        options["strict_img_size"] = False  # else it takes images of its pretraining's size alone
    weights = "imagenet" if pretrained and not in_timm else pretrained or None
    try:
        return make(f"tu-{encoder}" if in_timm else encoder, weights, **options)
    except KeyError as error:
        raise ValueError(f"{'encoder_weights' if 'weights' in str(error) else 'arch'}: {error.args[0]}") from error
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error)
        if "output_stride" in reason or isinstance(error, AssertionError):  # HRNet asserts a stride of 32
            reason += "; the encoder can't be dilated as this architecture wants, use fpn, upernet, segformer or unet"
        elif "downsampling pattern" in reason:
            reason = "it has no features at strides 4, 8, 16 and 32; plain vision transformers are for --arch dpt"
        raise ValueError(f"arch: {arch} can't be built on {encoder}: {reason.removeprefix('; ')}") from error


def _build_dpt(
    arch: str, encoder: str, num_classes: int, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> Parts:
    if "encoder_output_stride" in options:
        raise ValueError("output_stride: a vision transformer has one grid, that of its patches; leave it out")
    vit = dpt.ViTEncoder(encoder, in_channels, pretrained)
    return Parts(vit, dpt.Decoder(vit), dpt.classifier(num_classes), dpt.WIDTH, vit.output_stride)


def _freeze_unread_stages(parts: Parts, in_channels: int) -> None:
    freeze_unread(parts.encoder, in_channels)


def _fuse_before_upsampling(parts: Parts, in_channels: int) -> None:
    parts.decoder.__class__ = SegformerDecoder  # the same parameters, drawn alike


@dataclass(frozen=True)
class Architecture:
    """What sets a decoder apart. The defaults fit any architecture of segmentation-models-pytorch with a decoder."""

    width_options: tuple[str, ...] = ()
    """What the library calls the decoder's one width (``--decoder-width``); empty where each level has its own."""
    pools_to_one_pixel: bool = False
    """Whether a batch norm sees each image pooled to one pixel, so that a batch of one can't train."""
    build: Callable[[str, str, int, int, bool, dict[str, Any]], Parts] = build_from_library
    """Takes the arguments of `build_from_library`, ``options`` being those of that library."""
    finish: Callable[[Parts, int], None] | None = None
    """Changes the parts after they are built. Takes them and the number of channels of the images."""


# In the order of the table in docs/models.md.
ARCHITECTURES = {
    "unet": Architecture(),
    "unetplusplus": Architecture(),
    "manet": Architecture(),
    "linknet": Architecture(),
    "fpn": Architecture(width_options=("decoder_pyramid_channels", "decoder_segmentation_channels")),
    # It reads three stages, and has no batch norm where it pools to one pixel.
    "pspnet": Architecture(width_options=("psp_out_channels",), finish=_freeze_unread_stages),
    "deeplabv3": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "deeplabv3plus": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "pan": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "upernet": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "segformer": Architecture(width_options=("decoder_segmentation_channels",), finish=_fuse_before_upsampling),
    "dpt": Architecture(build=_build_dpt),
}


def _architecture(arch: str) -> Architecture:
    """Return the entry of a name in lower case; one that only the library knows has the defaults."""
    return ARCHITECTURES.get(arch, Architecture())


def create_parts(
    arch: str,
    encoder: str,
    num_classes: int,
    in_channels: int,
    pretrained: bool,
    output_stride: int | None,
    decoder_width: int | None,
) -> Parts:
    """Build the encoder, decoder and classifier of a network.

    Raises:
        ValueError: a name is not known, or the two don't fit together; the message says what does.
    """
    arch, encoder = arch.lower(), encoder.removeprefix("tu-")
    if not timm.is_model(encoder) and encoder not in smp.encoders.get_encoder_names():
        close = ", ".join(timm.list_models(f"*{encoder}*")[:5]) or "see timm.list_models()"
        raise ValueError(
            f"encoder: timm has no model {encoder!r}, and it is none of segmentation-models-pytorch's own, such as "
            f"mit_b0; close names: {close}"
        )
    options = _width_options(arch, decoder_width)
    if output_stride is not None:
        options["encoder_output_stride"] = output_stride
    architecture = _architecture(arch)
    try:
        parts = architecture.build(arch, encoder, num_classes, in_channels, pretrained, options)
        if architecture.finish is not None:
            architecture.finish(parts, in_channels)
        return parts
    except OSError as error:
        raise ValueError(
            f"encoder_weights: could not download the ImageNet weights of {encoder} ({type(error).__name__}); "
            "give a .safetensors file of timm's weights, or 'none' to start from scratch"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"encoder: {error}") from error  # timm has no such weights


def _width_options(arch: str, width: int | None) -> dict[str, Any]:
    if width is None:
        return {}
    names = _architecture(arch).width_options
    if not names:
        able = sorted(name for name, architecture in ARCHITECTURES.items() if architecture.width_options)
        raise ValueError(f"decoder_width: {arch} has no single width; {', '.join(able)} have")
    if width < 1:
        raise ValueError(f"decoder_width: expected a positive number of channels, got {width}")
    return dict.fromkeys(names, width)


def check_batch(arch: str, images_per_process: int) -> None:
    """Refuse a batch of one for a decoder that pools each image to one pixel: nothing is left to normalize over.

    Raises:
        ValueError: naming the flag.
    """
    if images_per_process == 1 and _architecture(arch.lower()).pools_to_one_pixel:
        raise ValueError(
            f"batch_size: {arch} pools each image to one pixel and batch norm needs two of them; "
            "use --batch-size 2 or more"
        )

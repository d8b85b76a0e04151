"""Build a network's encoder, decoder and classifier from their names.

To add a decoder, add one entry to `ARCHITECTURES`. No other module depends on a decoder's name.
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
    """Hold the parts of a network.

    Attributes:
        encoder: returns a list of feature maps, finest first; the first is the image.
        decoder: turns them into one map of ``width`` channels.
        classifier: turns that map into logits.
        width: channels of the decoder's map.
        pad_multiple: image height and width must be multiples of it.
    """

    encoder: nn.Module
    decoder: nn.Module
    classifier: nn.Module
    width: int
    pad_multiple: int


def build_from_library(
    arch: str, encoder: str, num_classes: int, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> Parts:
    """Build the network with segmentation-models-pytorch, passing it ``options``, and return its parts."""

    def make(name: str, weights: str | bool | None, **options: Any) -> nn.Module:
        return smp.create_model(
            arch, name, encoder_weights=weights, in_channels=in_channels, classes=num_classes, **options
        )

    network = from_library(make, arch, encoder, pretrained, options)
    if not hasattr(network, "decoder") or not isinstance(network.segmentation_head[0], nn.Conv2d):
        raise ValueError(f"arch: {arch} does not end in a decoder and a convolution; choose another architecture")
    classifier = network.segmentation_head[0]
    multiple = network.encoder.output_stride if network.requires_divisible_input_shape else 1
    return Parts(network.encoder, network.decoder, classifier, classifier.in_channels, multiple)


def from_library(
    make: Callable[..., nn.Module], arch: str, encoder: str, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """Call ``make`` with the library's names of the encoder and its weights.

    Raises:
        ValueError: the library cannot build the network; the message names the setting.
    """
    in_timm = timm.is_model(encoder)
    if in_timm and "swin_transformer" in timm.models.model_entrypoint(encoder).__module__:
        options["strict_img_size"] = False  # accept other sizes than that of the pretraining
    weights = "imagenet" if pretrained and not in_timm else pretrained or None
    try:
        return make(f"tu-{encoder}" if in_timm else encoder, weights, **options)
    except KeyError as error:
        raise ValueError(f"{'encoder_weights' if 'weights' in str(error) else 'arch'}: {error.args[0]}") from error
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error)
        if "output_stride" in reason or isinstance(error, AssertionError):  # HRNet asserts a stride of 32
            reason += "; the encoder does not support dilation, use fpn, upernet, segformer or unet instead"
        elif "downsampling pattern" in reason:
            reason = "it has no features at strides 4, 8, 16 and 32; use --arch dpt for plain vision transformers"
        raise ValueError(f"arch: cannot build {arch} on {encoder}: {reason.removeprefix('; ')}") from error


def _build_dpt(
    arch: str, encoder: str, num_classes: int, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> Parts:
    if "encoder_output_stride" in options:
        raise ValueError("output_stride: a vision transformer's stride is its patch size; remove output_stride")
    vit = dpt.ViTEncoder(encoder, in_channels, pretrained)
    return Parts(vit, dpt.Decoder(vit), dpt.classifier(num_classes), dpt.WIDTH, vit.output_stride)


def _freeze_unread_stages(parts: Parts, in_channels: int) -> None:
    freeze_unread(parts.encoder, in_channels)


def _fuse_before_upsampling(parts: Parts, in_channels: int) -> None:
    parts.decoder.__class__ = SegformerDecoder  # same parameters and initial values


@dataclass(frozen=True)
class Architecture:
    """Describe a decoder. The defaults fit any architecture of segmentation-models-pytorch that has a decoder."""

    width_options: tuple[str, ...] = ()
    """Library options that ``--decoder-width`` sets; empty if the decoder has a width per level."""
    pools_to_one_pixel: bool = False
    """Tell whether batch norm follows pooling to one pixel, which makes training on single images impossible."""
    build: Callable[[str, str, int, int, bool, dict[str, Any]], Parts] = build_from_library
    """Function with the arguments of `build_from_library` that builds the parts."""
    finish: Callable[[Parts, int], None] | None = None
    """Function that modifies the built parts, given them and the number of image channels."""


# In the order of the table in docs/models.md.
ARCHITECTURES = {
    "unet": Architecture(),
    "unetplusplus": Architecture(),
    "manet": Architecture(),
    "linknet": Architecture(),
    "fpn": Architecture(width_options=("decoder_pyramid_channels", "decoder_segmentation_channels")),
    # It uses three stages, and has no batch norm where it pools to one pixel.
    "pspnet": Architecture(width_options=("psp_out_channels",), finish=_freeze_unread_stages),
    "deeplabv3": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "deeplabv3plus": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "pan": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "upernet": Architecture(width_options=("decoder_channels",), pools_to_one_pixel=True),
    "segformer": Architecture(width_options=("decoder_segmentation_channels",), finish=_fuse_before_upsampling),
    "dpt": Architecture(build=_build_dpt),
}


def _architecture(arch: str) -> Architecture:
    """Return the entry of a lower-case name, or the defaults for a name that only the library knows."""
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
        ValueError: a name is unknown, or encoder and decoder do not fit together; the message names alternatives.
    """
    arch, encoder = arch.lower(), encoder.removeprefix("tu-")
    if not timm.is_model(encoder) and encoder not in smp.encoders.get_encoder_names():
        close = ", ".join(timm.list_models(f"*{encoder}*")[:5]) or "see timm.list_models()"
        raise ValueError(
            f"encoder: {encoder!r} is neither a model of timm nor one of segmentation-models-pytorch, such as mit_b0; "
            f"similar names: {close}"
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
            "pass a .safetensors file of timm's weights, or 'none' to train from scratch"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"encoder: {error}") from error  # timm has no such weights


def _width_options(arch: str, width: int | None) -> dict[str, Any]:
    if width is None:
        return {}
    names = _architecture(arch).width_options
    if not names:
        able = sorted(name for name, architecture in ARCHITECTURES.items() if architecture.width_options)
        raise ValueError(f"decoder_width: {arch} has several widths; use it with {', '.join(able)}")
    if width < 1:
        raise ValueError(f"decoder_width: expected a positive number of channels, got {width}")
    return dict.fromkeys(names, width)


def check_batch(arch: str, images_per_process: int) -> None:
    """Refuse a batch of one image for a decoder that pools each image to one pixel.

    Batch norm needs at least two values per channel.

    Raises:
        ValueError: naming the flag.
    """
    if images_per_process == 1 and _architecture(arch.lower()).pools_to_one_pixel:
        raise ValueError(
            f"batch_size: {arch} pools each image to one pixel, and batch norm needs two images; "
            "use --batch-size 2 or more"
        )

"""What an input image is made of: its channels, how stored values become 0..255, and how networks normalize them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFormat(NamedTuple):
    """Channels of an image, and the two stored values that become 0 and 255.

    Without `value_range` 8-bit values stay as they are, 16-bit ones are divided by 256, and other types are refused.
    8-bit values stay as they are with it too.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None


RGB = ImageFormat()


def normalization(
    channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on a scale where 1 is white.

    What is None becomes ImageNet's with three channels, and the average over ImageNet's three with any other number.
    """

    def chosen(given: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
        if given is not None:
            return tuple(given)
        return default if channels == 3 else (sum(default) / 3,) * channels

    return chosen(mean, IMAGENET_MEAN), chosen(std, IMAGENET_STD)


def pretrained_normalization(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that timm's weights of an encoder were trained with; None where it has none."""
    import timm  # seconds, for those who ask

    encoder = encoder.removeprefix("tu-")
    try:
        known = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder) else None
    except RuntimeError:  # no such weights, which building the network tells
        return None
    return None if known is None else (tuple(known.mean), tuple(known.std))


def mean_color(mean: Sequence[float]) -> tuple[int, ...]:
    """The mean as a uint8 pixel, which padding is made of: the network sees nearly zero there."""
    return tuple(round(255 * min(1.0, max(0.0, value))) for value in mean)


def viewable(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, N) as RGB (H, W, 3) to look at: the first three bands, or the first one as gray where N < 3."""
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)

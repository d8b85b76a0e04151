"""Format of input images: channels, range of the stored values, and normalization."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFormat(NamedTuple):
    """Channels of an image, and the two stored values that become 0 and 255.

    8-bit values never change. Without `value_range`, 16-bit values are divided by 256 and other types are refused.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None


RGB = ImageFormat()


def normalization(
    channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, where white is 1.

    None becomes ImageNet's values for three channels, and their average for any other number of channels.
    """

    def chosen(given: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
        if given is not None:
            return tuple(given)
        return default if channels == 3 else (sum(default) / 3,) * channels

    return chosen(mean, IMAGENET_MEAN), chosen(std, IMAGENET_STD)


def pretrained_normalization(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation that timm's weights of an encoder were trained with, or None."""
    import timm  # takes seconds

    encoder = encoder.removeprefix("tu-")
    try:
        known = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder) else None
    except RuntimeError:  # no such weights; building the network reports it
        return None
    return None if known is None else (tuple(known.mean), tuple(known.std))


def mean_color(mean: Sequence[float]) -> tuple[int, ...]:
    """Return the mean as a uint8 pixel, the color of padding: after normalization it is nearly zero."""
    return tuple(round(255 * min(1.0, max(0.0, value))) for value in mean)


def viewable(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, N) as RGB (H, W, 3) for display: the first three bands, or the first as gray if N < 3."""
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)

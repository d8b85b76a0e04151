"""Draw one prediction: class ids, overlay, entropy and reliability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .. import gates
from ..reference import PixelStats
from .palette import colorize, heat, palette

NEITHER, RELIABLE, UNRELIABLE = range(3)
RELIABILITY_COLORS = np.array([[150, 150, 150], [38, 102, 128], [255, 176, 46]], np.uint8)
_LEGEND_MIN_WIDTH = 240
_STRIP_PIXELS = 2**20


@dataclass
class Maps:
    """Maps of one prediction, each (H, W)."""

    label: np.ndarray
    """Class ids, uint8 (int16 when C > 255)."""
    uncertainty: np.ndarray
    """Entropy ÷ log C, fp32 in [0, 1]."""
    reliability: np.ndarray
    """uint8: RELIABLE, UNRELIABLE, or NEITHER where the entropy equals the threshold."""
    gamma: float
    """Threshold in nats."""
    areas: np.ndarray
    """Pixels of each class, int64 (C,)."""

    @property
    def unreliable_share(self) -> float:
        return float((self.reliability == UNRELIABLE).mean())


def maps_of(stats: PixelStats, num_classes: int, *, alpha: float = 0.2, gamma: float | None = None) -> Maps:
    """Return the maps of one image from its ``stats``, each (H, W).

    A pixel is reliable if H < γ and unreliable if H > γ, where γ is the (1 − alpha) quantile of the image's entropies
    H, or ``gamma`` in nats. Training uses the quantile over all pixels of a step.
    """
    entropy = stats.entropy
    every = torch.ones_like(entropy, dtype=torch.bool)
    reliable, unreliable, threshold = gates.reliability(entropy, every, 1 - alpha, gamma=gamma)
    return Maps(
        stats.label.cpu().numpy(),
        (entropy / math.log(max(num_classes, 2))).cpu().numpy(),
        (RELIABLE * reliable.byte() + UNRELIABLE * unreliable.byte()).cpu().numpy(),
        float(threshold),
        torch.bincount(stats.label.flatten(), minlength=num_classes).cpu().numpy(),
    )


def mask(maps: Maps, *, color: bool = False) -> Image.Image:
    """Return class ids as gray values, 8-bit, or 16-bit for more than 255 classes.

    With ``color`` they are indices into a palette of class colors, for at most 256 classes.
    """
    num_classes = len(maps.areas)
    picture = Image.fromarray(maps.label.astype(np.uint8 if color or num_classes <= 255 else np.uint16))
    if color:
        picture.putpalette(palette(num_classes).ravel())
    return picture


def overlay(maps: Maps, pixels: np.ndarray, opacity: float) -> Image.Image:
    """Blend class colors over the image, uint8 (H, W, 3)."""
    out = np.empty_like(pixels)
    step = max(1, _STRIP_PIXELS // pixels.shape[1])  # strips bound the memory of the blend
    for top in range(0, len(pixels), step):
        here = slice(top, top + step)
        out[here] = ((1 - opacity) * pixels[here] + opacity * colorize(maps.label[here], len(maps.areas))).round()
    return Image.fromarray(out)


def entropy(maps: Maps) -> Image.Image:
    """Return entropy ÷ log C in colors: dark = certain, light = uncertain."""
    return Image.fromarray(heat(maps.uncertainty))


def reliability(maps: Maps) -> Image.Image:
    """Return indices 0 (neither), 1 (reliable) and 2 (unreliable) into a palette of gray, blue and orange."""
    picture = Image.fromarray(maps.reliability)
    picture.putpalette(RELIABILITY_COLORS.ravel())
    return picture


def with_legend(picture: Image.Image, areas: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Add a legend below ``picture``: classes with an area, largest first. Without names, return it unchanged."""
    if not class_names:
        return picture
    present = [index for index in np.argsort(-areas, kind="stable") if areas[index]]
    colors = palette(len(class_names))
    text_size = min(28, max(13, picture.height // 24))
    font = ImageFont.load_default(text_size)
    box, gap = text_size, text_size // 2
    width = max(picture.width, _LEGEND_MIN_WIDTH)

    # Left to right, then the next line.
    places, left, top = [], gap, gap
    for index in present:
        needed = box + gap // 2 + math.ceil(font.getlength(str(class_names[index]))) + gap
        if left > gap and left + needed > width:
            left, top = gap, top + box + gap
        places.append((left, top))
        left += needed + gap
    canvas = Image.new("RGB", (width, picture.height + top + box + gap), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (left, top) in zip(present, places, strict=True):
        top += picture.height
        draw.rectangle((left, top, left + box, top + box), fill=tuple(colors[index].tolist()), outline="black")
        position = (left + box + gap // 2, top + box / 2)
        draw.text(position, str(class_names[index]), fill="black", font=font, anchor="lm")
    return canvas

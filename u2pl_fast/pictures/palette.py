"""Colors for class ids and scalar maps, chosen by their distance in OKLab, a perceptual color space."""

from functools import lru_cache

import numpy as np

# OKLab (Björn Ottosson, 2020): linear sRGB → cone responses, then their cube roots → lightness and two color axes.
_RGB_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONES_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_DISTINCT = 1024


def palette(num_classes: int) -> np.ndarray:
    """Return a color per class, uint8 ``(num_classes, 3)`` RGB, which does not depend on the number of classes.

    Each color is the farthest from all before it, among 16 levels per channel without very dark and very light ones.
    Class 0, often the background, is gray. Colors repeat after 1,024.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    return _colors()[np.arange(num_classes) % _DISTINCT]


def colorize(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return uint8 RGB ``(H, W, 3)`` for class ids ``(H, W)``; ids outside ``0..num_classes-1`` are black."""
    colors = np.concatenate([palette(num_classes), np.zeros((1, 3), np.uint8)])
    known = (labels >= 0) & (labels < num_classes)
    return colors[np.where(known, labels, num_classes)]


def heat(values: np.ndarray) -> np.ndarray:
    """Return uint8 RGB for numbers in [0, 1], from dark blue over red to pale yellow; lightness rises evenly.

    Values outside are clamped; NaN is black.
    """
    index = np.nan_to_num(np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    colors = _heat_scale()[index]
    colors[np.isnan(values)] = 0
    return colors


@lru_cache(maxsize=1)
def _colors() -> np.ndarray:
    levels = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _to_oklab(candidates / 255)
    fair = (lab[:, 0] > 0.4) & (lab[:, 0] < 0.93)
    candidates, lab = candidates[fair], lab[fair]
    chosen = [int(np.abs(candidates - 119).sum(1).argmin())]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < _DISTINCT:
        distance = np.minimum(distance, np.square(lab - lab[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return candidates[chosen].astype(np.uint8)


@lru_cache(maxsize=1)
def _heat_scale() -> np.ndarray:
    position = np.linspace(0, 1, 256)
    lightness = 0.15 + 0.82 * position
    hue = np.deg2rad(-90 + 195 * position)
    # Largest chroma that sRGB has at each lightness and hue, up to a bound.
    chroma = np.linspace(0, 0.19, 96)[:, None]
    lab = np.stack(np.broadcast_arrays(lightness, chroma * np.cos(hue), chroma * np.sin(hue)), -1)
    rgb = _from_oklab(lab)
    inside = ((rgb >= 0) & (rgb <= 1)).all(-1)
    most = np.where(inside, np.arange(len(chroma))[:, None], 0).max(0)
    linear = rgb[most, np.arange(256)].clip(0, 1)
    return (255 * _gamma(linear)).round().astype(np.uint8)


def _to_oklab(srgb: np.ndarray) -> np.ndarray:
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _RGB_TO_CONES.T) @ _CONES_TO_LAB.T


def _from_oklab(lab: np.ndarray) -> np.ndarray:
    """Return linear sRGB, outside [0, 1] for colors that sRGB lacks."""
    return (lab @ np.linalg.inv(_CONES_TO_LAB).T) ** 3 @ np.linalg.inv(_RGB_TO_CONES).T


def _gamma(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)

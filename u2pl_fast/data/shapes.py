"""`shapes`: a small procedural data set that needs no download. A class is a shape *and* a texture, never a color."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..utils.randomness import stream
from .arrays import to_channels
from .base import DataError, Entry, default_ignore_index
from .image_format import RGB, ImageFormat

CLASS_NAMES = ["background", "striped disc", "striped box", "checked", "dotted", "ring"]
SPLIT_SIZES = {"train": 400, "val": 100}

# (shapes, texture, class, tint). The class of a striped object depends on its outline; that of checks and dots does
# not. Plain discs and boxes are background. An object's colors scatter widely around its tint, and similar classes
# share a tint.
_OBJECTS = (
    (("disc",), "stripes", 1, (160, 128, 96)),
    (("box",), "stripes", 2, (160, 128, 96)),
    (("disc", "box"), "checks", 3, (96, 160, 128)),
    (("disc", "box"), "dots", 4, (128, 96, 160)),
    (("ring",), "plain", 5, (160, 160, 96)),
    (("disc", "box"), "plain", 0, (128, 128, 128)),
)


class Shapes:
    """Scenes of 4 to 7 objects that overlap, on a cluttered background, under uneven light and noise.

    Image and label are a function of (seed, split, index). `size` is (height, width) in pixels. Texture and outline
    give the class; color says little.
    """

    image_format: ImageFormat = RGB

    def __init__(
        self, split: str, *, seed: int = 0, size: tuple[int, int] = (128, 160), length: int | None = None
    ) -> None:
        if split not in SPLIT_SIZES:
            raise DataError(f"shapes has no split {split!r}; choose one of {', '.join(SPLIT_SIZES)}")
        if min(size) < 32:
            raise DataError(f"size must be at least 32x32 for shapes, got {size[0]}x{size[1]}")
        self.split, self.seed, self.size = split, seed, size
        length = SPLIT_SIZES[split] if length is None else length
        self.names = [f"{split}_{index:05d}" for index in range(length)]
        self.notes: list[str] = []
        self.class_names = list(CLASS_NAMES)
        self.num_classes = len(CLASS_NAMES)
        self.ignore_index = default_ignore_index(self.num_classes)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        return to_channels(self._render(index)[0], self.image_format, self.names[index])

    def label(self, index: int) -> np.ndarray:
        return self._render(index)[1]

    def has_label(self, index: int) -> bool:
        return True

    def include(self, entries: Sequence[Entry], source: str) -> list[int]:
        index_of = {name: index for index, name in enumerate(self.names)}
        for entry in entries:
            if entry.image not in index_of:
                raise DataError(f"{source}: shapes/{self.split} has no sample {entry.image!r} ({self.names[0]}, ...)")
        return [index_of[entry.image] for entry in entries]

    def check(self, labeled: Sequence[int], unlabeled: Sequence[int] = ()) -> None:
        """Do nothing: there are no files."""

    def _render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"shapes/{self.split} has samples 0 .. {len(self) - 1}, got {index}")
        return _render(self.seed, self.split, index, self.size)


@lru_cache(maxsize=8)  # image(i) and label(i) are read one after the other, by a few threads at a time
def _render(seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(stream(seed, "shapes", split, index))
    height, width = size
    image = _smooth_field(rng, size, (5, 6), 3) * 50 + _color(rng)
    label = np.zeros(size, np.uint8)
    for _ in range(rng.integers(3, 7)):  # patches of texture without an outline
        _draw_scrap(rng, image)
    for _ in range(rng.integers(4, 8)):
        _draw_object(rng, image, label)
    image *= 1 + 0.25 * _smooth_field(rng, size, (3, 3), 1)
    image += rng.integers(-10, 11, (height, width, 3), dtype=np.int8)
    image = image.clip(0, 255).astype(np.uint8)
    image.flags.writeable = label.flags.writeable = False  # the cache returns both again
    return image, label


def _color(rng: np.random.Generator, tint: tuple[int, int, int] = (128, 128, 128)) -> np.ndarray:
    return (rng.uniform(-85, 85, 3) + tint).astype(np.float32)


def _two_colors(rng: np.random.Generator, tint: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a color and a clearly lighter or darker one, so that the texture is visible in gray too."""
    first = _color(rng, tint)
    step = rng.uniform(80, 130) * (1 if first.mean() < 128 else -1)
    return first, (first + step + rng.uniform(-25, 25, 3)).clip(0, 255).astype(np.float32)


def _smooth_field(rng: np.random.Generator, size: tuple[int, int], knots: tuple[int, int], channels: int) -> np.ndarray:
    """Interpolate random knots in [-1, 1] bilinearly: (H, W, channels) float32."""
    grid = rng.uniform(-1, 1, (channels, *knots)).astype(np.float32)
    field = _hat_matrix(size[0], knots[0]) @ grid @ _hat_matrix(size[1], knots[1]).T
    return np.ascontiguousarray(field.transpose(1, 2, 0))


@lru_cache(maxsize=16)
def _hat_matrix(out: int, knots: int) -> np.ndarray:
    position = np.linspace(0, knots - 1, out, dtype=np.float32)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(knots, dtype=np.float32)))


def _texture(
    rng: np.random.Generator, kind: str, u: np.ndarray, v: np.ndarray, unit: float, tint: tuple[int, int, int]
) -> np.ndarray:
    """Return the colors of the texture at the object's coordinates (u, v), in pixels: (H, W, 3) float32."""
    first, second = _two_colors(rng, tint)
    if kind == "plain":
        return np.broadcast_to(first, (*u.shape, 3))
    cell = rng.uniform(0.9, 1.3) * unit
    u, v = (u + rng.uniform(0, 2 * cell)) / cell, (v + rng.uniform(0, 2 * cell)) / cell
    if kind == "dots":
        pattern = (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.1
    else:
        odd = np.floor(u).astype(np.int32)
        if kind == "checks":
            odd += np.floor(v).astype(np.int32)
        pattern = (odd & 1).astype(bool)
    return np.where(pattern[:, :, None], second, first)


def _patch(rng: np.random.Generator, size: tuple[int, int], reach: float):
    """Return a window within `reach` of a random center, and rotated pixel coordinates (u, v) in it."""
    height, width = size
    row, column = rng.uniform(0, height), rng.uniform(0, width)
    top, left = max(0, int(row - reach)), max(0, int(column - reach))
    window = slice(top, max(top, int(row + reach) + 1)), slice(left, max(left, int(column + reach) + 1))
    y = np.arange(top, min(height, window[0].stop), dtype=np.float32)[:, None] - np.float32(row)
    x = np.arange(left, min(width, window[1].stop), dtype=np.float32)[None, :] - np.float32(column)
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return window, cosine * x + sine * y, cosine * y - sine * x


def _draw_object(rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> None:
    shapes, texture, class_id, tint = _OBJECTS[rng.integers(len(_OBJECTS))]
    shape = shapes[rng.integers(len(shapes))]
    radius = np.float32(rng.uniform(0.16, 0.26) * min(label.shape))
    window, u, v = _patch(rng, label.shape, 1.45 * radius)
    if shape == "box":
        aspect = rng.uniform(0.7, 1.0)
        inside = (np.abs(u) < radius) & (np.abs(v) < radius * aspect)
    else:
        square = u * u + v * v
        inside = square < radius * radius
        if shape == "ring":
            inside &= square > (0.55 * radius) ** 2
    colors = _texture(rng, texture, u, v, min(label.shape) / 16, tint)
    np.copyto(image[window], colors, where=inside[:, :, None])
    label[window][inside] = class_id


def _draw_scrap(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a small diamond of stripes or dots: the texture of a class without its outline, at similar contrast."""
    reach = rng.uniform(0.05, 0.09) * min(image.shape[:2])
    window, u, v = _patch(rng, image.shape[:2], reach)
    kind = ("stripes", "dots")[rng.integers(2)]
    colors = _texture(rng, kind, u, v, min(image.shape[:2]) / 16, (128, 128, 128))
    np.copyto(image[window], colors, where=(np.abs(u) + np.abs(v) < reach)[:, :, None])

"""Read images from arrays: `.npy` files, and TIFF files with any number of bands and any type of values."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from .base import DataError
from .image_format import ImageFormat

TIFF_SUFFIXES = (".tif", ".tiff")


def is_array(path: Path, image_format: ImageFormat) -> bool:
    """Return whether this module reads the file. PIL reads no .npy, and of TIFF only 8-bit and one-band files."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return True
    return suffix in TIFF_SUFFIXES and (image_format.channels not in (1, 3) or image_format.value_range is not None)


def read_array(path: Path, image_format: ImageFormat) -> np.ndarray:
    """Return a file for which `is_array` holds as uint8 (H, W, N). Raises `DataError`."""
    with _array(path) as array:
        axis = _band_axis(array.shape, image_format.channels, path)
        values = np.asarray(array if isinstance(array, np.ndarray) else array.asarray())
        bands = values[:, :, None] if axis is None else np.moveaxis(values, axis, -1)
        return to_channels(scale(bands, image_format, path), image_format, path)


def array_size(path: Path, image_format: ImageFormat) -> tuple[int, int]:
    """Return (width, height) from the header, after checking the number of bands and the type of the values."""
    with _array(path) as array:
        axis = _band_axis(array.shape, image_format.channels, path)
        _check_type(array.dtype, image_format, path)
        sides = [side for index, side in enumerate(array.shape) if index != axis]
    return sides[1], sides[0]


def to_channels(pixels: np.ndarray, image_format: ImageFormat, name: Path | str) -> np.ndarray:
    """Convert uint8 (H, W, k) to (H, W, N): RGB to luma, or gray to RGB. Other images must have N channels."""
    found, wanted = pixels.shape[2], image_format.channels
    if found == wanted:
        return pixels
    if (found, wanted) == (3, 1):
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    if (found, wanted) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    raise DataError(f"{name}: has {found} channels, but in_channels is {wanted}; use --in-channels {found}", "channels")


def scale(values: np.ndarray, image_format: ImageFormat, path: Path | str) -> np.ndarray:
    """Convert stored values to uint8 as `ImageFormat` says. Clip values to the range; NaN becomes its lower end."""
    _check_type(values.dtype, image_format, path)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if image_format.value_range is None:
        return np.ascontiguousarray(values >> 8, dtype=np.uint8)
    low, high = image_format.value_range
    share = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.ascontiguousarray((np.nan_to_num(share, nan=0.0).clip(0, 1) * 255).round(), dtype=np.uint8)


def _check_type(dtype: np.dtype, image_format: ImageFormat, path: Path | str) -> None:
    if dtype.kind not in "iuf":
        raise DataError(f"{path}: holds {dtype} values; save integers or floats", "range")
    if image_format.value_range is None and dtype.kind + str(dtype.itemsize) not in ("u1", "u2"):
        raise DataError(
            f"{path}: holds {dtype} values of unknown range; set --value-range LOW HIGH, the values that become 0 and "
            "255",
            "range",
        )


def _band_axis(shape: tuple[int, ...], channels: int, path: Path) -> int | None:
    """Return the axis of the bands: the last if its length is N, else the first; None for (H, W), which is one band.

    Gray is accepted for RGB, and RGB for gray.
    """
    if 0 in shape:
        raise DataError(f"{path}: an empty image, its shape is {shape}")
    if len(shape) == 2 and channels in (1, 3):
        return None
    for count in (channels, *((3,) if channels == 1 else (1,) if channels == 3 else ())):
        if len(shape) == 3 and count in (shape[2], shape[0]):
            return 2 if shape[2] == count else 0
    if len(shape) == 2:
        found = "1 channel"
    else:
        found = f"{min(shape[0], shape[2])} channels" if len(shape) == 3 else f"{len(shape)} axes"
    raise DataError(
        f"{path}: has {found}, but in_channels is {channels}; its shape is {shape}, expected (H, W, {channels}) "
        f"or ({channels}, H, W){' or (H, W)' if channels == 1 else ''}",
        "channels",
    )


@contextmanager
def _array(path: Path) -> Iterator:
    """Open the file as an object with `shape` and `dtype`; turn any error inside the block into a `DataError`."""
    try:
        if path.suffix.lower() == ".npy":
            yield np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with _tifffile(path).TiffFile(path) as file:
                yield file.series[0]
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "missing") from None
    except Exception as error:  # numpy and tifffile raise many types for a damaged file or a missing codec
        raise DataError(f"{path}: not a readable image ({error})", "unreadable") from error


def _tifffile(path: Path):
    try:
        import tifffile
    except ImportError:
        raise DataError(
            f"{path}: a TIFF with these channels or values needs tifffile: pip install tifffile imagecodecs", "tifffile"
        ) from None
    return tifffile

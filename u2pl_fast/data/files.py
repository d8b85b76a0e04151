"""Read images and masks from disk. Errors name the file; checks read only headers where these are enough."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .arrays import TIFF_SUFFIXES, array_size, is_array, read_array, scale, to_channels
from .base import DataError
from .image_format import RGB, ImageFormat

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".npy", ".png", ".ppm", *TIFF_SUFFIXES, ".webp"})
MASK_SUFFIX = ".png"

_ORIENTATION_TAG = 0x0112
_GRAY_16_MODES = ("I;16", "I;16B", "I;16L", "I")
_MASK_MODES = ("L", "P", "1", *_GRAY_16_MODES)
_CHANNEL_MODES = ("LA", "RGBA")  # kept unless gray or RGB is wanted
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
_FEW_BITS = {"L;2": 2, "L;4": 4}  # PIL's names of gray samples that it scales to 8 bits


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open the file as a PIL image; turn any error inside the block, such as one of decoding, into a `DataError`."""
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "missing") from None
    # PIL raises any of these for a damaged file, depending on the format and on how far it got.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})", "unreadable") from error


def read_image(path: Path | str, image_format: ImageFormat = RGB) -> np.ndarray:
    """Return an image file as uint8 (H, W, N), turned upright by its EXIF orientation.

    N = 1: gray; colors become luma. N = 3: RGB; gray is repeated, alpha is dropped. Any other N: the file must have
    exactly N channels (RGBA files 4, gray files with alpha 2, .npy and TIFF files any number).
    """
    path = Path(path)
    if is_array(path, image_format):
        return read_array(path, image_format)
    with _opened(path) as image:
        return image_pixels(image, image_format, path)


def image_pixels(image: Image.Image, image_format: ImageFormat = RGB, name: Path | str = "image") -> np.ndarray:
    """Return the pixels of a PIL image as `read_image` does; errors begin with ``name``."""
    _check_pil(image, image_format, name)
    deep = image.mode in (*_GRAY_16_MODES, "F")
    image = ImageOps.exif_transpose(image)
    if deep:  # PIL's own conversion clips at 255 instead of scaling
        values = np.asarray(image)
        if image_format.value_range is None:
            values = values.clip(0, 65535).astype(np.uint16)
        pixels = scale(values[:, :, None], image_format, name)
    else:
        if image.mode == "P":  # not straight to RGB, PIL warns about transparent palette entries
            image = image.convert("RGBA")
        pixels = np.asarray(image.convert("RGB") if image_format.channels in (1, 3) else image)
    return to_channels(pixels, image_format, name)


def _check_pil(image: Image.Image, image_format: ImageFormat, path: Path | str) -> None:
    """Refuse a wrong number of channels, and values that PIL has rounded or that have no scale."""
    has_range = image_format.value_range is not None
    layout = str([tile.args for tile in getattr(image, "tile", ())])  # only files have tiles
    if image.mode == "F" and not has_range:
        raise DataError(f"{path}: holds floats; set --value-range LOW HIGH, the values that become 0 and 255", "range")
    if has_range and image.mode not in _GRAY_16_MODES and ";16" in layout:
        raise DataError(
            f"{path}: value_range cannot be used, because only the upper 8 bits of 16-bit colors can be read from "
            "this format; save the image as .npy or TIFF",
            "range",
        )
    if image_format.channels in (1, 3):
        return
    mode = "RGBA" if image.mode == "P" and "transparency" in image.info else image.mode
    found = len(mode) if mode in _CHANNEL_MODES else len(image.getbands())
    if mode not in _CHANNEL_MODES or found != image_format.channels:
        raise DataError(
            f"{path}: has {found} channel{'s' * (found > 1)} (mode {mode}), but in_channels is "
            f"{image_format.channels}; RGBA files have 4, .npy and TIFF files any number",
            "channels",
        )


def read_mask(path: Path | str) -> np.ndarray:
    """Return the values of a mask file, gray or palette indices: (H, W), uint8, or int32 for 16-bit files."""
    path = Path(path)
    with _opened(path) as mask:
        if mask.mode not in _MASK_MODES:
            raise DataError(
                f"{path}: a color mask (mode {mask.mode}); save it as a gray or palette PNG whose values are class "
                "ids, 0 .. classes - 1, and 255 for ignore",
                "color",
            )
        if mask.format in _LOSSY_FORMATS:
            raise DataError(
                f"{path}: a {mask.format} mask, and {mask.format} compression changes class ids; save the original "
                "mask as PNG",
                "lossy",
            )
        bits = _FEW_BITS.get(mask.tile[0].args) if mask.tile else None
        if bits is not None:
            raise DataError(
                f"{path}: a gray mask with {bits} bits per pixel, which some programs read as class ids and others as "
                "shades of gray; save it as an 8-bit gray or palette PNG",
                "bits",
            )
        ids = np.asarray(ImageOps.exif_transpose(mask))
    return ids.astype(np.uint8 if ids.dtype.itemsize == 1 else np.int32)


def check_sizes(image_path: Path, mask_path: Path | None, image_format: ImageFormat = RGB) -> None:
    """Refuse an unreadable image or mask, a wrong number of channels, or a pair of different sizes.

    Reads only headers, unless they disagree.
    """
    image_size = header_size(image_path, image_format)
    if mask_path is None or image_size == header_size(mask_path):
        return
    # A PNG may store its orientation after the pixels, where only decoding finds it.
    height, width = read_image(image_path, image_format).shape[:2]
    mask_height, mask_width = read_mask(mask_path).shape
    if (height, width) != (mask_height, mask_width):
        raise DataError(
            f"{mask_path}: the mask is {mask_width}x{mask_height} but its image {image_path} is {width}x{height} "
            "(width x height); they must be equal",
            "size",
        )


def header_size(path: Path, image_format: ImageFormat | None = None) -> tuple[int, int]:
    """Return (width, height) after EXIF orientation without decoding pixels; `image_format` is None for a mask."""
    if image_format is not None and is_array(path, image_format):
        return array_size(path, image_format)
    with _opened(path) as image:
        if image_format is not None:
            _check_pil(image, image_format, path)
        # PIL decodes a whole PNG to search it for an EXIF block.
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def list_files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return `{id: path}` of all files below `folder`, sorted; an id is the path below it without the suffix."""
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            link = Path(parent, name)
            if link.is_symlink() and Path(parent).resolve().is_relative_to(link.resolve()):
                raise DataError(f"{link}: a link to a folder above it, so images would be listed many times; remove it")
        for file in files:
            path = Path(parent, file)
            if file.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{path}: same name as {found[name]}; image names must differ in more than the suffix")
            found[name] = path
    return dict(sorted(found.items()))


def thread_count() -> int:
    """Return the number of threads for reading many files; more than cores, since reading waits for disks."""
    return min(16, 4 * (os.cpu_count() or 1))

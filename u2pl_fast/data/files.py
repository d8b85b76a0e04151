"""Reading images and masks from disk: one error type that names the file, found by its header where that is enough."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MASK_SUFFIX = ".png"

_ORIENTATION_TAG = 0x0112
_GREY_16_MODES = ("I;16", "I;16B", "I;16L", "I")
_MASK_MODES = ("L", "P", "1", *_GREY_16_MODES)
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
_FEW_BITS = {"L;2": 2, "L;4": 4}  # how PIL calls grey samples that it scales up to 8 bits


class DataError(ValueError):
    """A data set that cannot be used as it is. The message names the file or folder and what to do about it.

    `kind` tells apart what befalls single files: missing, unreadable, colour, lossy, bits, size, values, unlabelled.
    It is "process" where a loader process died, and "other" for everything else.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as a PIL image; whatever goes wrong inside the block, decoding too, becomes a `DataError`."""
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


def read_image(path: Path | str) -> np.ndarray:
    """Any image file as uint8 (H, W, 3) RGB, turned upright as its EXIF orientation says; alpha is dropped."""
    path = Path(path)
    with _opened(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode in _GREY_16_MODES:  # PIL's own conversion clips at 255 instead of scaling
            grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode == "F":
            raise DataError(f"{path}: floating-point images are not supported; save it as 8-bit RGB", "unreadable")
        if image.mode == "P":  # straight to RGB, PIL warns about transparent palette entries
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def read_mask(path: Path | str) -> np.ndarray:
    """A mask file as its raw class ids, (H, W), uint8 or (16-bit files) int32: grey values or palette indices."""
    path = Path(path)
    with _opened(path) as mask:
        if mask.mode not in _MASK_MODES:
            raise DataError(
                f"{path}: a colour mask (mode {mask.mode}); masks hold class ids, so save it as an 8- or 16-bit grey "
                "or a palette PNG whose pixel values are 0 .. classes - 1, and 255 for ignore",
                "colour",
            )
        if mask.format in _LOSSY_FORMATS:
            raise DataError(
                f"{path}: a {mask.format} mask, whose compression turns class ids into their neighbours; save the "
                "original as a PNG",
                "lossy",
            )
        bits = _FEW_BITS.get(mask.tile[0].args) if mask.tile else None
        if bits is not None:
            raise DataError(
                f"{path}: a grey mask of {bits} bits a pixel, which some programs read as class ids and others as "
                "shares of white; save it as an 8-bit grey or a palette PNG",
                "bits",
            )
        ids = np.asarray(ImageOps.exif_transpose(mask))
    return ids.astype(np.uint8 if ids.dtype.itemsize == 1 else np.int32)


def check_sizes(image_path: Path, mask_path: Path | None) -> None:
    """Refuse an unreadable image or mask, or a pair of different sizes. Reads headers only, unless they disagree."""
    image_size = header_size(image_path)
    if mask_path is None or image_size == header_size(mask_path):
        return
    # A PNG may carry its orientation after the pixels, where the header doesn't show it: let the decoder decide.
    height, width = read_image(image_path).shape[:2]
    mask_height, mask_width = read_mask(mask_path).shape
    if (height, width) != (mask_height, mask_width):
        raise DataError(
            f"{mask_path}: the mask is {mask_width}x{mask_height} but its image {image_path} is {width}x{height} "
            "(width x height); they must be equal",
            "size",
        )


def header_size(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF orientation, without decoding the pixels."""
    with _opened(path) as image:
        # Asked for its EXIF block, PIL decodes a whole PNG in search of one.
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def list_files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """`{id: path}` of the files under `folder`, subfolders too, sorted; id = path below it without the suffix."""
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            link = Path(parent, name)
            if link.is_symlink() and Path(parent).resolve().is_relative_to(link.resolve()):
                raise DataError(f"{link}: a link to a folder above it, which would list the same images many times")
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
    """Threads for reading many files: reading waits for disks as much as for cores."""
    return min(16, 4 * (os.cpu_count() or 1))

"""Label images with a trained network, and write the label maps as pictures.

For each image, at its own size and turned upright as its EXIF data says:

- STEM_mask.png: class ids, 8-bit gray, 16-bit for more than 255 classes; with --color the same ids as a palette PNG,
  which viewers show in the colors of the classes
- STEM_overlay.png: the image with the color of each class on top, and a legend of the classes in it
- STEM_entropy.png: entropy / log C; dark = certain, light = uncertain
- STEM_reliability.png: a palette PNG; 1 = reliable (entropy below the threshold), 2 = unreliable (above), 0 = exactly
  at the threshold

gallery.html shows all of them side by side in one file.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from rich.progress import track

from .config import DeviceSettings, setting
from .data import DataError, read_image
from .data.image_format import viewable
from .inference import InferenceSettings, Network, choose_resize, choose_window, load
from .inference.input_files import find_images, result_names
from .pictures import prediction
from .pictures.gallery import Gallery
from .utils.command_line import parse
from .utils.distributed import session
from .utils.precision import amp_ignored, autocast_dtype

GALLERY = "gallery.html"
PICTURES = ("mask", "overlay", "entropy", "reliability")
Result = Literal["mask", "overlay", "entropy", "reliability", "gallery"]


@dataclass(kw_only=True)
class PredictConfig(InferenceSettings, DeviceSettings):
    """Settings of ``u2pl predict``."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional] = setting(metavar="IMAGE [...]")
    """Image files, folders (all images in them), or quoted patterns such as 'a/*.jpg' and 'a/**/*.png'."""
    checkpoint: Path = setting(metavar="FILE")
    """Checkpoint that the training wrote, or an exported .safetensors file."""
    out: Path = setting(metavar="DIR")
    """Folder for the results."""
    only: tuple[Result, ...] = (*PICTURES, "gallery")
    """Results to write."""
    network: Network = "auto"
    """Network to use. auto: the one that the training evaluated."""
    alpha: float = 0.2
    """Share of each image's pixels shown as unreliable: those with the highest entropy."""
    gamma: float | None = None
    """Entropy in nats above which a pixel is unreliable, for all images, as the training logs it. Unset: alpha decides
    for each image."""
    color: bool = False
    """Write masks as palette PNGs: the same class ids, shown in the colors of the classes."""
    opacity: float = 0.55
    """Opacity of the colors in the overlay, 0 to 1."""
    gallery_limit: int = 200
    """Largest number of images in the gallery, spread evenly over all; each takes about 100 KiB."""


def run(config: PredictConfig) -> tuple[int, list[str]]:
    """Predict every image that can be read.

    Returns:
        The number of images done, and a message for each input that failed; messages are printed as they occur.

    Raises:
        ValueError: a setting or the checkpoint cannot be used.
        OSError: results cannot be written.
    """
    _check(config)
    with session(config.device) as (device, _):
        model = load(config.checkpoint, device, config.network)
        if config.channels_last:
            model.network = model.network.to(memory_format=torch.channels_last)
        if config.color and model.num_classes > 256:
            raise ValueError(f"color: a palette holds 256 classes, this network has {model.num_classes}; drop the flag")
        protocol = config.protocol or model.config.protocol
        window = choose_window(protocol, config.window, model.config)
        resize = choose_resize(config.resize, model.config)
        config.out.mkdir(parents=True, exist_ok=True)

        paths, failures = find_images(config.images, lambda path: _is_result(path, config.out))
        for message in failures:
            print(message, file=sys.stderr)
        gallery = Gallery(
            model.class_names,
            total=len(paths),
            limit=config.gallery_limit,
            alpha=config.alpha,
            gamma=config.gamma,
            about=[
                ("network", f"{model.source} of {config.checkpoint}"),
                ("views", _views(config, protocol, window, resize)),
            ],
        )
        if config.amp != "off" and autocast_dtype(config.amp, device) is None:
            print(amp_ignored(config.amp), file=sys.stderr)
        views = {field.name: getattr(config, field.name) for field in dataclasses.fields(InferenceSettings)}
        jobs = list(zip(paths, result_names(paths), strict=True))
        done = 0
        try:
            for index, (path, name) in enumerate(track(jobs, "predicting", disable=not sys.stdout.isatty())):
                try:
                    with _memory_named(path, device):
                        pixels = read_image(path, model.config.image_format)
                        stats = model.predict(pixels, **views, amp=config.amp)
                        found = prediction.maps_of(stats, model.num_classes, alpha=config.alpha, gamma=config.gamma)
                        photo = viewable(pixels)
                        pictures = _pictures(found, photo, config)
                        _write(pictures, found, model.class_names, config, name)
                except DataError as error:
                    failures.append(str(error))
                    print(failures[-1], file=sys.stderr)
                else:
                    done += 1
                    if "gallery" in config.only:
                        gallery.add(index, str(path), photo, found, pictures)
        finally:  # an interrupted run leaves the page of its finished results
            if gallery.done:
                gallery.write(config.out / GALLERY)
    return done, failures


def _check(config: PredictConfig) -> None:
    if not config.images:
        raise ValueError("images: name at least one file, folder or pattern")
    for name in ("opacity", "alpha"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(config, name)}")
    if config.gamma is not None and not 0 <= config.gamma < math.inf:
        raise ValueError(f"gamma: expected an entropy of at least 0 nats, got {config.gamma}")
    if config.gallery_limit < 1:
        raise ValueError(f"gallery_limit: expected at least 1, got {config.gallery_limit}")


def _is_result(path: Path, out: Path) -> bool:
    endings = tuple(f"_{kind}" for kind in PICTURES)
    return path.suffix == ".png" and path.stem.endswith(endings) and path.parent.resolve() == out.resolve()


@contextmanager
def _memory_named(path: Path, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory into an error of this one image."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise DataError(
            f"{path}: too large for the memory of {device}; use --protocol slide, or --device cpu"
        ) from None


def _views(config: PredictConfig, protocol: str, window: tuple[int, int] | None, resize: tuple[int, int] | None) -> str:
    """Describe what is averaged."""
    parts = [f"windows of {window[0]}×{window[1]}" if protocol == "slide" else "whole images"]
    parts += [f"resized to {resize[0]}×{resize[1]}"] if resize else []
    parts += [f"scales {', '.join(f'{scale:g}' for scale in config.scales)}"] if config.scales != (1.0,) else []
    parts += ["mirrored too"] if config.flip else []
    return ", ".join(parts)


def _pictures(found: prediction.Maps, pixels: np.ndarray, config: PredictConfig) -> dict[str, Image.Image]:
    """Draw the pictures that are written or shown."""
    drawers = {
        "mask": lambda: prediction.mask(found, color=config.color),
        "overlay": lambda: prediction.overlay(found, pixels, config.opacity),
        "entropy": lambda: prediction.entropy(found),
        "reliability": lambda: prediction.reliability(found),
    }
    return {kind: draw() for kind, draw in drawers.items() if kind in config.only or "gallery" in config.only}


def _write(
    pictures: dict[str, Image.Image], found: prediction.Maps, class_names: list[str], config: PredictConfig, name: str
) -> None:
    for kind in PICTURES:
        if kind in config.only:
            picture = pictures[kind]
            if kind == "overlay":
                picture = prediction.with_legend(picture, found.areas, class_names)
            picture.save(config.out / f"{name}_{kind}.png")


def main(arguments: list[str] | None = None) -> None:
    """Parse flags and predict. Print bad input as one line; exit with status 1 if an image could not be read."""
    config = None
    try:
        config = parse(PredictConfig, arguments, command="predict", description=__doc__)
        done, failures = run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; finished results are in {config.out}" if config else "interrupted")
    kinds = [kind for kind in PICTURES if kind in config.only]
    if kinds:
        print(f"{done} images -> {config.out}/*_{{{','.join(kinds)}}}.png")
    if done and "gallery" in config.only:
        page = config.out / GALLERY
        print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB")
    if failures:
        sys.exit(f"error: {len(failures)} inputs could not be used; they are listed above")


if __name__ == "__main__":
    main()

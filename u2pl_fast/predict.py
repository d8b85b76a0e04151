"""``python -m u2pl_fast.predict IMAGES… --checkpoint F --out DIR``: label maps of images, as pictures.

For each image, at its own size (turned upright as its EXIF data says):

- ``STEM_mask.png``: class ids, 8-bit gray, 16-bit where there are more than 255 classes; with ``--color`` the same ids
  as a palette PNG, which viewers show in the classes' colors;
- ``STEM_overlay.png``: the image with each class's color laid over it, and a legend of the classes that occur;
- ``STEM_entropy.png``: entropy ÷ log C, dark = certain, light = uncertain;
- ``STEM_reliability.png``: a palette PNG, 1 = reliable (entropy below γ), 2 = unreliable (above), 0 = neither (equal).

And ``gallery.html``: all of it side by side, in one file. ``--only`` chooses among these.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from rich.progress import track

from .data import DataError, read_image
from .data.image_format import viewable
from .data.loader import to_tensor
from .data.views import resize_image
from .inference import Protocol, choose_resize, choose_window, load_model, predict_labels
from .inference.input_files import find_images, result_names
from .pictures import prediction
from .pictures.gallery import Gallery
from .utils.class_names import numbered_classes
from .utils.distributed import session
from .utils.precision import autocast_dtype, refusal

GALLERY = "gallery.html"
PICTURES = ("mask", "overlay", "entropy", "reliability")
Result = Literal["mask", "overlay", "entropy", "reliability", "gallery"]


@dataclass
class PredictConfig:
    """Label maps of images, as pictures: STEM_mask.png (class ids), STEM_overlay.png (colors laid over the image, and
    a legend), STEM_entropy.png (dark = certain, light = uncertain) and STEM_reliability.png (reliable or not, as the
    method means it) for each, and gallery.html, one page of all."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, folders (all images below them), or quoted patterns such as 'a/*.jpg' and 'a/**/*.png'."""
    checkpoint: Path
    """File that the training wrote, or an exported .safetensors."""
    out: Path
    """Folder for the results."""
    only: tuple[Result, ...] = (*PICTURES, "gallery")
    """What to write."""
    network: Literal["auto", "teacher", "student"] = "auto"
    """Network to use; auto: the one that the training evaluated."""
    protocol: Protocol | None = None
    """whole image at once, or averaged sliding windows; unset: as in the training."""
    window: tuple[int, int] | None = None
    """Height and width of the windows of slide; unset: the training's crop."""
    stride: tuple[int, int] | None = None
    """Distance between windows; unset: two thirds of the window."""
    flip: bool = False
    """Average with the prediction for the mirrored image."""
    scales: tuple[float, ...] = (1.0,)
    """Average over the image at these multiples of its size."""
    resize: tuple[int, int] | None = None
    """Height and width that the network sees; unset: as in the training; 0 0: the image's own."""
    alpha: float = 0.2
    """Share of each image's pixels that is shown as unreliable: those with the highest entropy."""
    gamma: float | None = None
    """Entropy in nats above which a pixel is unreliable, in all images alike, as the training logs it; unset: alpha
    decides, image by image."""
    color: bool = False
    """Write masks as palette PNGs: the same class ids, shown in the classes' colors."""
    opacity: float = 0.55
    """Of the classes' colors in the overlay, 0 to 1."""
    gallery_limit: int = 200
    """Images that the gallery shows, at most, spread evenly over all; about 100 KiB each."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    amp: bool = False
    """Run the network in bfloat16; left off on CPUs that only emulate it."""
    channels_last: bool = False


def run(config: PredictConfig) -> tuple[int, list[str]]:
    """Predict all images that can be read.

    Returns:
        The number of images done, and a message for each input that wasn't; they are also printed as they occur.

    Raises:
        ValueError: settings, or a checkpoint, that can't be used.
        OSError: results can't be written.
    """
    _check(config)
    with session(config.device) as (device, _):
        model, trained, state = load_model(config.checkpoint, device, config.network)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        num_classes, class_names = state["num_classes"], state["class_names"]
        if config.color and num_classes > 256:
            raise ValueError(f"color: a palette holds 256 classes, this network has {num_classes}; leave the flag out")
        protocol = config.protocol or trained.eval_protocol
        window = choose_window(protocol, config.window, trained)
        resize = choose_resize(config.resize, trained)
        config.out.mkdir(parents=True, exist_ok=True)

        paths, failures = find_images(config.images, lambda path: _is_result(path, config.out))
        for message in failures:
            print(message, file=sys.stderr)
        gallery = Gallery(
            class_names or numbered_classes(num_classes),
            total=len(paths),
            limit=config.gallery_limit,
            alpha=config.alpha,
            gamma=config.gamma,
            about=[
                ("network", f"{state['network']} of {config.checkpoint}"),
                ("views", _views(config, protocol, window, resize)),
            ],
        )
        amp_dtype = autocast_dtype(config.amp, torch.bfloat16, device)
        if config.amp and amp_dtype is None:
            print(refusal(torch.bfloat16), file=sys.stderr)
        predict = partial(
            predict_labels,
            model,
            protocol=protocol,
            window=window,
            stride=config.stride,
            flip=config.flip,
            scales=config.scales,
            amp_dtype=amp_dtype,
        )
        jobs = list(zip(paths, result_names(paths), strict=True))
        done = 0
        try:
            for index, (path, name) in enumerate(track(jobs, "predicting", disable=not sys.stdout.isatty())):
                try:
                    with _memory_named(path, device):
                        pixels = read_image(path, trained.image_format)
                        image = to_tensor(pixels)
                        image = (image if resize is None else resize_image(image, resize))[None].to(device)
                        stats = predict(image, pixels.shape[:2])
                        found = prediction.maps_of(stats, num_classes, alpha=config.alpha, gamma=config.gamma)
                        photo = viewable(pixels)
                        pictures = _pictures(found, photo, config)
                        _write(pictures, found, class_names, config, name)
                except DataError as error:
                    failures.append(str(error))
                    print(failures[-1], file=sys.stderr)
                else:
                    done += 1
                    if "gallery" in config.only:
                        gallery.add(index, str(path), photo, found, pictures)
        finally:  # a run that is stopped leaves the page of what it has done
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
        raise ValueError(f"gallery_limit: expected at least 1, got {config.gallery_limit}; leave gallery out of --only")


def _is_result(path: Path, out: Path) -> bool:
    endings = tuple(f"_{kind}" for kind in PICTURES)
    return path.suffix == ".png" and path.stem.endswith(endings) and path.parent.resolve() == out.resolve()


@contextmanager
def _memory_named(path: Path, device: torch.device) -> Iterator[None]:
    """Turns a lack of memory, of a GPU or of the machine, into an error of this one image."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise DataError(
            f"{path}: too large for the memory of {device}; use --protocol slide, or --device cpu"
        ) from None


def _views(config: PredictConfig, protocol: str, window: tuple[int, int] | None, resize: tuple[int, int] | None) -> str:
    """What was averaged, for people."""
    parts = [f"windows of {window[0]}×{window[1]}" if protocol == "slide" else "whole images"]
    parts += [f"resized to {resize[0]}×{resize[1]}"] if resize else []
    parts += [f"scales {', '.join(f'{scale:g}' for scale in config.scales)}"] if config.scales != (1.0,) else []
    parts += ["mirrored too"] if config.flip else []
    return ", ".join(parts)


def _pictures(found: prediction.Maps, pixels: np.ndarray, config: PredictConfig) -> dict[str, Image.Image]:
    """Those that are written or shown."""
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
    """Parse flags and predict; bad input ends in one line, unreadable images in exit status 1 after the others."""
    config = tyro.cli(PredictConfig, args=arguments, prog="python -m u2pl_fast.predict")
    try:
        done, failures = run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: what is done lies in {config.out}")
    kinds = [kind for kind in PICTURES if kind in config.only]
    if kinds:
        print(f"{done} images -> {config.out}/*_{{{','.join(kinds)}}}.png")
    if done and "gallery" in config.only:
        page = config.out / GALLERY
        print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB")
    if failures:
        sys.exit(f"error: {len(failures)} inputs could not be used, named above")


if __name__ == "__main__":
    main()

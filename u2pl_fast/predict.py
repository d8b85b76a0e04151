"""``python -m u2pl_fast.predict IMAGES… --checkpoint F --out DIR``: label maps of images, as pictures.

For each image, at its own size (turned upright as its EXIF data says):

- ``STEM_mask.png``: class ids, 8-bit grey, 16-bit where there are more than 255 classes;
- ``STEM_overlay.png``: the image with each class's colour laid over it, and a legend of the classes that occur;
- ``STEM_entropy.png``: entropy ÷ log C, dark = certain, light = uncertain.
"""

import glob
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from .data import DataError, read_image
from .data.files import IMAGE_SUFFIXES
from .data.loader import to_tensor
from .data.views import resize_image
from .distributed import session
from .images import viewable
from .inference import Protocol, choose_resize, choose_window, load_model, predict_labels
from .palette import colorize, heat, palette
from .reference import PixelStats

_RESULTS = ("mask", "overlay", "entropy")
_LEGEND_MIN_WIDTH = 240


@dataclass
class PredictConfig:
    """Label maps of images, as pictures: STEM_mask.png (class ids), STEM_overlay.png (colours laid over the image, and
    a legend) and STEM_entropy.png (dark = certain, light = uncertain) for each."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, folders (all images below them), or quoted patterns such as 'a/*.jpg'."""
    checkpoint: Path
    """File that the training wrote."""
    out: Path
    """Folder for the results."""
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
    resize: tuple[int, int] | None = None
    """Height and width that the network sees; unset: as in the training; 0 0: the image's own."""
    opacity: float = 0.55
    """Of the classes' colours in the overlay, 0 to 1."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    amp: bool = False
    """Run the network in bfloat16."""
    channels_last: bool = False


def run(config: PredictConfig) -> tuple[int, list[str]]:
    """Predict all images that can be read.

    Returns:
        The number of images done, and a message for each input that wasn't; they are also printed as they occur.

    Raises:
        ValueError: settings, or a checkpoint, that can't be used.
        OSError: results can't be written.
    """
    if not config.images:
        raise ValueError("images: name at least one file, folder or pattern")
    if not 0 <= config.opacity <= 1:
        raise ValueError(f"opacity: expected a number in [0, 1], got {config.opacity}")
    with session(config.device) as (device, _):
        model, trained, state = load_model(config.checkpoint, device, config.network)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        num_classes, class_names = state["num_classes"], state["class_names"]
        protocol = config.protocol or trained.eval_protocol
        window = choose_window(protocol, config.window, trained)
        resize = choose_resize(config.resize, trained)
        config.out.mkdir(parents=True, exist_ok=True)

        paths, failures = find_images(config.images, config.out)
        for message in failures:
            print(message, file=sys.stderr)
        jobs = list(zip(paths, result_names(paths), strict=True))
        done = 0
        for path, name in track(jobs, "predicting", disable=not sys.stdout.isatty()):
            try:
                pixels = read_image(path, trained.image_format)
                image = to_tensor(pixels)
                image = (image if resize is None else resize_image(image, resize))[None].to(device)
                stats = predict_labels(
                    model,
                    image,
                    pixels.shape[:2],
                    protocol=protocol,
                    window=window,
                    stride=config.stride,
                    flip=config.flip,
                    amp_dtype=torch.bfloat16 if config.amp else None,
                )
            except DataError as error:
                failures.append(str(error))
            except torch.OutOfMemoryError:
                failures.append(f"{path}: too large for the memory of {device}; use --protocol slide, or --device cpu")
            else:
                _write(config.out / name, pixels, stats, num_classes, class_names, config.opacity)
                done += 1
                continue
            print(failures[-1], file=sys.stderr)
    return done, failures


def find_images(inputs: Sequence[str], out: Path) -> tuple[list[Path], list[str]]:
    """Image files that ``inputs`` name, each once and in order, and a message for each input that names none.

    Of a folder, everything below it with an image's suffix is taken, save hidden files and earlier results in ``out``.
    """
    found: dict[Path, Path] = {}
    failures = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            matches = [file for file in sorted(path.rglob("*")) if _is_input(file, path, out)]
            missing = f"{name}: no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
        elif path.exists() or not glob.has_magic(name):
            matches, missing = [path], ""  # a missing file is named when it's read
        else:
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
            missing = f"{name}: no file matches this pattern"
        if not matches:
            failures.append(missing)
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values()), failures


def _is_input(file: Path, folder: Path, out: Path) -> bool:
    if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
        return False
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return False
    result = file.suffix == ".png" and file.stem.endswith(tuple(f"_{kind}" for kind in _RESULTS))
    return not (result and file.parent.resolve() == out.resolve())


def result_names(paths: Sequence[Path]) -> list[str]:
    """A name for each image's results: its stem, preceded by parent folders, then numbered, where stems are equal."""
    parts = [path.resolve().with_suffix("").parts for path in paths]
    names = [own[-1] for own in parts]
    for depth in range(2, max((len(own) for own in parts), default=0)):
        count = Counter(names)
        if len(count) == len(names):
            return names
        names = ["_".join(own[-depth:]) if count[name] > 1 else name for own, name in zip(parts, names, strict=True)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 1
        while names[index] in taken:
            number += 1
            names[index] = f"{name}_{number}"
        taken.add(names[index])
    return names


def _write(
    prefix: Path, pixels: np.ndarray, stats: PixelStats, num_classes: int, class_names: list[str], opacity: float
) -> None:
    label = stats.label[0].cpu().numpy()
    uncertainty = stats.entropy[0].cpu().numpy() / math.log(max(num_classes, 2))
    blend = (1 - opacity) * viewable(pixels) + opacity * colorize(label, num_classes)
    overlay = Image.fromarray(blend.round().astype(np.uint8))
    pictures = {
        "mask": Image.fromarray(label.astype(np.uint8 if num_classes <= 255 else np.uint16)),
        "overlay": with_legend(overlay, label, class_names),
        "entropy": Image.fromarray(heat(uncertainty)),
    }
    for kind, picture in pictures.items():
        picture.save(prefix.with_name(f"{prefix.name}_{kind}.png"))


def with_legend(picture: Image.Image, label: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """``picture`` above a strip that names the classes of ``label``, largest first; as it is without names."""
    if not class_names:
        return picture
    area = np.bincount(label.ravel(), minlength=len(class_names))
    present = [index for index in np.argsort(-area, kind="stable") if area[index]]
    colours = palette(len(class_names))
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
        draw.rectangle((left, top, left + box, top + box), fill=tuple(colours[index].tolist()), outline="black")
        position = (left + box + gap // 2, top + box / 2)
        draw.text(position, str(class_names[index]), fill="black", font=font, anchor="lm")
    return canvas


def main(arguments: list[str] | None = None) -> None:
    """Parse flags and predict; bad input ends in one line, unreadable images in exit status 1 after the others."""
    config = tyro.cli(PredictConfig, args=arguments, prog="python -m u2pl_fast.predict")
    try:
        done, failures = run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{done} images -> {config.out}/*_{{{','.join(_RESULTS)}}}.png")
    if failures:
        sys.exit(f"error: {len(failures)} inputs could not be used, named above")


if __name__ == "__main__":
    main()

"""Weak and strong views: torchvision transforms, each with a named random stream of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..utils.randomness import stream
from .image_format import IMAGENET_MEAN, mean_color

MEAN_COLOR = mean_color(IMAGENET_MEAN)  # color of padding in RGB


@dataclass(frozen=True)
class ViewOptions:
    """Options of the views. Sizes are (height, width) in pixels.

    `crop_size` is padded to a multiple of `multiple`, which gives H×W. `scale_range` is relative to the image after
    `resize`. `color` is the uint8 pixel of the padding; its length is the number of channels.
    """

    crop_size: tuple[int, int]
    multiple: int = 1
    resize: tuple[int, int] | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip_prob: float = 0.5
    jitter_prob: float = 0.8
    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.25)  # brightness, contrast, saturation, hue
    grayscale_prob: float = 0.2
    blur_prob: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    strong_colors: Literal["jitter", "intensity"] = "jitter"
    jitter_labeled: bool = False
    color: tuple[int, ...] = MEAN_COLOR

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range must be 0 < low <= high, got {self.scale_range}")
        for name in ("crop_size", "resize"):
            size = getattr(self, name)
            if size is not None and min(size) < 1:
                raise ValueError(f"{name} must be positive, got {size}")

    @property
    def size(self) -> tuple[int, int]:
        """H×W, the size of the network's input."""
        return padded_size(self.crop_size, self.multiple)


class Window(NamedTuple):
    """Position of a view in its image, in pixels: a window of height×width at (top, left), the size that it is scaled
    to before padding, `flip` = 1 if it is then mirrored, and the size of the image."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int
    flip: int
    image_height: int
    image_width: int


class Views:
    """Training views of one image. Every method is a function of its arguments and keeps the global RNG state."""

    def __init__(self, options: ViewOptions, ignore_index: int) -> None:
        self._resize, self._jitter_labeled = options.resize, options.jitter_labeled
        geometry = [RandomScaleCrop(options.crop_size, options.scale_range), v2.RandomHorizontalFlip(options.flip_prob)]
        self._geometry = v2.Compose(geometry)
        self._pad_labeled = PadTo(options.size, ignore_index, options.color)
        self._pad_unlabeled = PadTo(options.size, 0, options.color)
        # 9 taps reach two standard deviations at the strongest blur; more would cost time and change little.
        blur = v2.RandomApply([v2.GaussianBlur(9, options.blur_sigma)], options.blur_prob)
        self._is_rgb = len(options.color) == 3
        if options.strong_colors == "intensity":
            if not self._is_rgb:
                raise ValueError("strong_colors: intensity needs RGB images; use jitter")
            self._color = RandomIntensity(options.blur_sigma)
        elif self._is_rgb:
            jitter = v2.RandomApply([v2.ColorJitter(*options.jitter)], options.jitter_prob)
            self._color = v2.Compose([jitter, v2.RandomGrayscale(options.grayscale_prob), blur])
        else:  # saturation, hue and grayscale mean nothing outside RGB
            jitter = v2.RandomApply([v2.ColorJitter(*options.jitter[:2])], options.jitter_prob)
            self._color = v2.Compose([jitter, blur])

    def prepare(self, image: Tensor) -> Tensor:
        """Resize an image uint8 (N, h, w) as the options say. Nothing here is random, so results can be cached."""
        return image if self._resize is None else resize_image(image, self._resize)

    def prepare_label(self, label: Tensor) -> Tensor:
        """Resize a label (h, w) as the options say."""
        return label if self._resize is None else resize_label(label, self._resize)

    def labeled(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return a view (N, H, W) uint8 and its label (H, W), padded with `color` and `ignore_index`.

        The view is weak, or has the colors of a strong view with `jitter_labeled`. Colors are drawn after the
        geometry, which `jitter_labeled` does not change.
        """
        with _seeded(seed):
            image, label = self._geometry(tv_tensors.Image(image), tv_tensors.Mask(label))
            if self._jitter_labeled:
                image = self._recolor(image)
        image, label = self._pad_labeled(image, label)
        return _plain(image), _plain(label)

    def unlabeled(self, image: Tensor, weak_seed: int, *strong_seeds: int) -> tuple[Tensor, ...]:
        """Return the weak view, one strong view per seed, (N, H, W) uint8, and valid (H, W) bool, false on padding."""
        inside = torch.ones(image.shape[-2:], dtype=torch.uint8)
        with _seeded(weak_seed):
            weak, valid = self._pad_unlabeled(*self._geometry(tv_tensors.Image(image), tv_tensors.Mask(inside)))
        weak, valid = _plain(weak), _plain(valid).bool()
        strong = []
        for seed in strong_seeds:
            with _seeded(seed):
                changed = _plain(self._recolor(tv_tensors.Image(weak)))
            # Padding keeps its color in every view.
            strong.append(torch.where(valid, changed, weak))
        return weak, *strong, valid

    def window(self, image: Tensor, weak_seed: int) -> Window:
        """Return the position of the views that `unlabeled` makes with this seed: same draws, same order."""
        crop, flip = self._geometry.transforms
        with _seeded(weak_seed):
            place = crop.make_params([image])
            flipped = int(torch.rand(1) < flip.p)
        sides = (place[name] for name in ("top", "left", "height", "width"))
        return Window(*sides, *place["size"], flipped, *image.shape[-2:])

    def _recolor(self, image: Tensor) -> Tensor:
        """Change the colors of a strong view. Outside RGB, one draw changes all bands, each as a gray image: contrast
        changes around the band's own mean."""
        return self._color(image) if self._is_rgb else self._color(tv_tensors.Image(image[:, None]))[:, 0]


class RandomScaleCrop(v2.Transform):
    """Scale by a factor uniform in `scale_range`, then crop at random to at most `crop_size`.

    The window is cut out before it is scaled, so the cost depends on the crop and not on the image. Images are
    interpolated (bilinear, antialiased); masks take the nearest pixel.
    """

    _transformed_types = (tv_tensors.Image, tv_tensors.Mask)

    def __init__(self, crop_size: tuple[int, int], scale_range: tuple[float, float]) -> None:
        super().__init__()
        self.crop_size, self.scale_range = crop_size, scale_range

    def make_params(self, flat_inputs: list[Tensor]) -> dict:
        low, high = self.scale_range
        scale = low + (high - low) * torch.rand(()).item()
        params: dict = {"size": []}
        for side, length, crop in zip(("height", "width"), flat_inputs[0].shape[-2:], self.crop_size, strict=True):
            window = max(1, round(crop / scale))
            if window > length:
                params["size"].append(min(crop, max(1, round(length * scale))))
                window = length
            else:
                params["size"].append(crop)
            start = int(torch.randint(length - window + 1, ()))
            params |= {side: window, "top" if side == "height" else "left": start}
        return params

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        size = params["size"]
        window = F.crop(inpt, params["top"], params["left"], params["height"], params["width"])
        is_mask = isinstance(inpt, tv_tensors.Mask)
        resized = resize_label(_plain(window), size) if is_mask else resize_image(_plain(window), size)
        return tv_tensors.wrap(resized, like=inpt)


class RandomIntensity(v2.Transform):
    """Apply one to three of ten changes of color or sharpness and the identity, each with a uniform random strength.

    Source: Zhao et al., "Augmentation Matters", CVPR 2023 (AugSeg), section 3.2 and its table of ranges.
    """

    _transformed_types = (tv_tensors.Image,)
    most = 3

    def __init__(self, blur_sigma: tuple[float, float]) -> None:
        super().__init__()
        self.changes: list[tuple[Callable[..., Tensor], tuple[float, float] | None]] = [
            (lambda x: x, None),
            (F.autocontrast, None),
            (F.equalize, None),
            (lambda x, sigma: F.gaussian_blur(x, [9, 9], [sigma, sigma]), blur_sigma),
            (F.adjust_contrast, (0.05, 0.95)),
            (F.adjust_sharpness, (0.05, 0.95)),
            (F.adjust_saturation, (0.05, 0.95)),
            (F.adjust_brightness, (0.05, 0.95)),
            (F.adjust_hue, (0.0, 0.5)),
            (lambda x, bits: F.posterize(x, round(bits)), (4, 8)),
            (F.solarize, (1, 255)),
        ]

    def make_params(self, flat_inputs: list[Tensor]) -> dict:
        number = 1 + int(torch.randint(self.most, ()))
        chosen = torch.randperm(len(self.changes))[:number].tolist()
        return {"chosen": [(index, torch.rand(()).item()) for index in chosen]}

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        for index, strength in params["chosen"]:
            change, bounds = self.changes[index]
            inpt = change(inpt) if bounds is None else change(inpt, bounds[0] + (bounds[1] - bounds[0]) * strength)
        return inpt


class PadTo(v2.Transform):
    """Pad to `size` below and to the right: images with `color`, masks with `mask_fill`."""

    _transformed_types = (tv_tensors.Image, tv_tensors.Mask)

    def __init__(self, size: tuple[int, int], mask_fill: int, color: Sequence[int] = MEAN_COLOR) -> None:
        super().__init__()
        self.size, self.mask_fill, self.color = size, mask_fill, list(color)

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        bottom, right = (full - length for full, length in zip(self.size, inpt.shape[-2:], strict=True))
        if bottom == right == 0:
            return inpt
        fill = self.mask_fill if isinstance(inpt, tv_tensors.Mask) else self.color
        return F.pad(inpt, [0, 0, right, bottom], fill=fill)


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize uint8 (…, N, h, w) to (…, N, *size), bilinear, antialiased."""
    if tuple(size) == (1, 1):  # torch's antialiasing kernel fails on a single pixel
        return image.float().mean((-2, -1), keepdim=True).round().to(image.dtype)
    return F.resize(image, list(size), antialias=True)


def resize_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (h, w) to `size`: take the pixel whose center is nearest, on the grid of `resize_image`."""
    nearest = v2.InterpolationMode.NEAREST_EXACT
    return F.resize(label[None], list(size), interpolation=nearest, antialias=False)[0]


def padded_size(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Return (height, width), each rounded up to a multiple."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def view_seed(seed: int, step: int, sample: int, purpose: str) -> int:
    """Return the random stream of one view, from the run's seed, step, global sample number and purpose."""
    return stream(seed, purpose, step, sample)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generator, which torchvision draws from, inside the block; restore it afterward.

    `torch.manual_seed` would also seed the generators of the GPUs, which are not restored here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _plain(x: Tensor) -> Tensor:
    return x.as_subclass(Tensor)

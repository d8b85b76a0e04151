"""Load a trained network and predict with it, in two calls."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config import TrainConfig
from ..data import read_image
from ..data.arrays import to_channels
from ..data.files import image_pixels
from ..data.loader import to_tensor
from ..data.views import resize_image
from ..reference import PixelStats
from ..utils.class_names import numbered_classes
from ..utils.distributed import choose_device
from ..utils.fields import Precision
from ..utils.precision import autocast_dtype
from .load import choose_resize, choose_window, load_model
from .predict import Protocol, predict_labels

Input = str | Path | np.ndarray | Image.Image | Tensor


def load(
    path: str | Path,
    device: torch.device | str = "auto",
    network: Literal["auto", "teacher", "student"] = "auto",
) -> "Predictor":
    """Load a trained network.

    Args:
        path: checkpoint that a training wrote (``best.pt``, ``last.pt``), or an exported ``.safetensors`` file.
        device: ``"auto"`` = a GPU if there is one.
        network: ``"auto"`` = the network that the training evaluated.

    Raises:
        CheckpointError: the file cannot be read, or holds no such network.

    Examples:
        >>> import u2pl_fast
        >>> model = u2pl_fast.load("runs/mine/best.pt")  # doctest: +SKIP
        >>> result = model.predict("photo.jpg")  # doctest: +SKIP
    """
    chosen = choose_device(device)
    return Predictor(*load_model(path, chosen, network), device=chosen)


class Predictor:
    """Label images with a trained network. :func:`u2pl_fast.load` returns one.

    Attributes:
        network: the network in evaluation mode; calling it returns logits at the decoder's stride.
        config: settings of its training.
        class_names: names of the classes, by class id.
        num_classes: C.
        device: device of the network.
    """

    def __init__(
        self, network: nn.Module, config: TrainConfig, state: dict[str, Any], device: torch.device | str
    ) -> None:
        self.network = network
        self.config = config
        self.device: torch.device = torch.device(device)
        self.num_classes: int = state["num_classes"]
        self.class_names: list[str] = list(state["class_names"]) or numbered_classes(self.num_classes)
        self.source: str = state["network"]  # teacher or student

    @overload
    def predict(self, image: list[Input] | tuple[Input, ...], **options: Any) -> list[PixelStats]: ...
    @overload
    def predict(self, image: Input, **options: Any) -> PixelStats: ...

    def predict(
        self,
        image: Input | Sequence[Input],
        *,
        protocol: Protocol | None = None,
        window: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        resize: Sequence[int] | None = None,
        amp: Precision = "off",
    ) -> PixelStats | list[PixelStats]:
        """Label every pixel of an image, a batch or a list of images.

        Args:
            image: a path, a PIL image, an array ``(H, W, 3)`` or gray ``(H, W)``, a tensor ``(N, H, W)``, a batch
                ``(B, N, H, W)``, or a list of these. Pixels are uint8, not normalized.
            protocol: ``"whole"`` or ``"slide"`` (sliding windows); None = that of the training.
            window, stride: of ``"slide"``, in pixels; None = the crop size, and two thirds of it.
            flip: average with the prediction for the mirrored image.
            scales: average over these multiples of the image's size.
            resize: size (height, width) that the network sees; None = that of the training, ``(0, 0)`` = no resizing.
            amp: compute in ``"bfloat16"`` or ``"float16"``.

        Returns:
            ``label`` (uint8, or int16 for more than 255 classes), ``confidence`` ``max p`` and ``entropy``
            ``−Σ p log p`` in nats (float32), each ``(H, W)`` at the image's own size, ``(B, H, W)`` for a batch, a list
            of such results for a list. They are on the CPU, or on the device of the tensor that was given.

        Raises:
            ValueError, TypeError: an argument, or an image, cannot be used; the message names it.
        """
        options = {
            "protocol": protocol, "window": window, "stride": stride, "flip": flip, "scales": scales,
            "resize": resize, "amp": amp,
        }  # fmt: skip
        if isinstance(image, list | tuple):
            return [self.predict(one, **options) for one in image]
        pixels = self._pixels(image)
        batch = pixels if pixels.ndim == 4 else pixels[None]
        size = batch.shape[-2:]
        protocol = protocol or self.config.protocol
        smaller = choose_resize(resize, self.config)
        batch = batch if smaller is None else resize_image(batch, smaller)
        stats = predict_labels(
            self.network,
            batch.to(self.device),
            size,
            protocol=protocol,
            window=choose_window(protocol, window, self.config),
            stride=stride,
            flip=flip,
            scales=scales,
            amp_dtype=autocast_dtype(amp, self.device),
        )
        return PixelStats(*(x.to(pixels.device) if pixels.ndim == 4 else x[0].to(pixels.device) for x in stats))

    def _pixels(self, image: Input) -> Tensor:
        """Return uint8 pixels ``(N, H, W)``, or ``(B, N, H, W)`` for a batch."""
        if isinstance(image, Tensor):
            if image.ndim not in (3, 4) or image.dtype != torch.uint8:
                raise TypeError(
                    f"image: expected a uint8 tensor (N, H, W) or (B, N, H, W), got {image.dtype} {tuple(image.shape)}"
                )
            return image
        image_format = self.config.image_format
        if isinstance(image, str | Path):
            return to_tensor(read_image(image, image_format))
        if isinstance(image, Image.Image):
            return to_tensor(image_pixels(image, image_format))
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            pixels = image[:, :, None] if image.ndim == 2 else image
            return to_tensor(to_channels(pixels, image_format, "image"))
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image: expected a path, a PIL image, a tensor or a uint8 array (H, W, channels), got {given}")

    def __repr__(self) -> str:
        names = f"{self.config.arch}/{self.config.encoder}"
        return f"Predictor({self.source}, {names}, {self.num_classes} classes, {self.device})"

"""Settings that evaluation and prediction share."""

from dataclasses import dataclass
from typing import Literal

from ..config import setting
from ..config.settings import SIZE
from .predict import Protocol

Network = Literal["auto", "teacher", "student"]


@dataclass(kw_only=True)
class InferenceSettings:
    """Sizes, windows and averaging."""

    protocol: Protocol | None = None
    """Predict whole images, or average sliding windows. Unset: as in the training."""
    window: tuple[int, int] | None = setting(None, metavar=SIZE)
    """Size of the windows of slide. Unset: the crop size of the training."""
    stride: tuple[int, int] | None = setting(None, metavar=SIZE)
    """Distance between windows. Unset: two thirds of the window."""
    flip: bool = False
    """Average the predictions for the image and its mirror image."""
    scales: tuple[float, ...] = setting((1.0,), metavar="SCALE [...]")
    """Average over these multiples of the image's size."""
    resize: tuple[int, int] | None = setting(None, metavar=SIZE)
    """Size that the network sees. Unset: as in the training; 0 0: the image's own. Results keep the image's size."""

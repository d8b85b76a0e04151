"""Fused segmentation losses for PyTorch, and U²PL semi-supervised training built on them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops as ops
    from .config import TrainConfig as TrainConfig
    from .criterion import Losses as Losses
    from .criterion import U2PLCriterion as U2PLCriterion
    from .evaluate import evaluate as evaluate
    from .gates import PseudoLabels as PseudoLabels
    from .inference import Predictor as Predictor
    from .inference import load as load
    from .memory_bank import MemoryBank as MemoryBank
    from .outputs import SegmentationOutput as SegmentationOutput
    from .teacher import EMATeacher as EMATeacher
    from .train import train as train
    from .training.record import Run as Run

__version__ = "0.2.0"

# Imported at first use: `import u2pl_fast` takes milliseconds, and the ops need only torch.
_HOMES = {
    "EMATeacher": "teacher",
    "Losses": "criterion",
    "MemoryBank": "memory_bank",
    "Predictor": "inference",
    "PseudoLabels": "gates",
    "Run": "training.record",
    "SegmentationOutput": "outputs",
    "TrainConfig": "config",
    "U2PLCriterion": "criterion",
    "load": "inference",
}
_MODULES = ("evaluate", "ops", "train")  # evaluate and train can be called: see utils/callable_module.py
__all__ = [
    "EMATeacher",
    "Losses",
    "MemoryBank",
    "Predictor",
    "PseudoLabels",
    "Run",
    "SegmentationOutput",
    "TrainConfig",
    "U2PLCriterion",
    "evaluate",
    "load",
    "ops",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""U2PL semi-supervised semantic segmentation, and the fused ops that make it cheap."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops as ops
    from .config import TrainConfig as TrainConfig
    from .criterion import Losses as Losses
    from .criterion import U2PLCriterion as U2PLCriterion
    from .gates import PseudoLabels as PseudoLabels
    from .inference import evaluate_model as evaluate_model
    from .inference import load_model as load_model
    from .inference import predict_labels as predict_labels
    from .memory_bank import MemoryBank as MemoryBank
    from .outputs import SegmentationOutput as SegmentationOutput
    from .teacher import EMATeacher as EMATeacher

__version__ = "0.1.0"

# Imported at first use: `import u2pl_fast` is quick, and the ops need nothing but torch.
_HOMES = {
    "EMATeacher": "teacher",
    "Losses": "criterion",
    "MemoryBank": "memory_bank",
    "PseudoLabels": "gates",
    "SegmentationOutput": "outputs",
    "TrainConfig": "config",
    "U2PLCriterion": "criterion",
    "evaluate_model": "inference",
    "load_model": "inference",
    "predict_labels": "inference",
}
__all__ = [
    "EMATeacher",
    "Losses",
    "MemoryBank",
    "PseudoLabels",
    "SegmentationOutput",
    "TrainConfig",
    "U2PLCriterion",
    "evaluate_model",
    "load_model",
    "ops",
    "predict_labels",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

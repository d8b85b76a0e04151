"""Predict with a trained network, and score it."""

from .evaluate import evaluate_model
from .load import choose_resize, choose_window, load_model
from .predict import Protocol, Sample, evaluating, predict_cells, predict_labels, predict_logits
from .predictor import Predictor, load
from .settings import InferenceSettings, Network

__all__ = [
    "InferenceSettings",
    "Network",
    "Predictor",
    "Protocol",
    "Sample",
    "choose_resize",
    "choose_window",
    "evaluate_model",
    "evaluating",
    "load",
    "load_model",
    "predict_cells",
    "predict_labels",
    "predict_logits",
]

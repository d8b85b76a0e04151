"""Build segmentation networks with a representation head."""

from .architectures import ARCHITECTURES, Architecture, check_batch
from .encoders import load_encoder_weights
from .network import SegmentationNetwork, build_model, compile_network

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "SegmentationNetwork",
    "build_model",
    "check_batch",
    "compile_network",
    "load_encoder_weights",
]

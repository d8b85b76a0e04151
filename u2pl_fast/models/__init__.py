"""Segmentation networks with a representation head."""

from .network import (
    DECODER_WIDTHS,
    SegmentationNetwork,
    build_model,
    check_batch,
    compile_network,
    load_encoder_weights,
)

__all__ = [
    "DECODER_WIDTHS",
    "SegmentationNetwork",
    "build_model",
    "check_batch",
    "compile_network",
    "load_encoder_weights",
]

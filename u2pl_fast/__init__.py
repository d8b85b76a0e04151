"""U2PL semi-supervised semantic segmentation, and the fused ops that make it cheap."""

__version__ = "0.1.0"

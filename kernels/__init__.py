"""Provide the Triton kernels, one file per op of ``u2pl_fast.ops``, importable as ``u2pl_fast.kernels``."""

"""Triton kernels, one file an op, by the names of ``u2pl_fast.ops``; importable as ``u2pl_fast.kernels``."""

"""Measure time and memory: ``python -m benchmarks``."""

"""Measure the time and memory of the ops, their distance from the machine's limits, and how they grow.

``python -m benchmarks --help`` measures; ``python -m benchmarks.draw.tables`` writes the tables of the documentation
from the results; ``pytest benchmarks`` runs the same cases under pytest-benchmark.
"""

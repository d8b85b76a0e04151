"""How much faster, how much smaller, how close to the limit, and does it stay so as the work grows?

``python -m benchmarks --help`` measures; ``python -m benchmarks.draw.tables`` writes the tables of the documentation
from the results; ``pytest benchmarks`` runs the same cases under pytest-benchmark.
"""

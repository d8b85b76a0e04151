"""Everything that needs a GPU, in parts that keep what they measured: ``python -m benchmarks.gpu_check --help``."""

"""Run everything that needs a GPU, in parts that keep their results: ``python -m benchmarks.gpu_check --help``."""

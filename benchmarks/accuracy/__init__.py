"""Measure on real images what each method gains over labels alone. ``python -m benchmarks.accuracy`` trains."""

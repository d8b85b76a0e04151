"""Accuracy on real images: which method gains what over labels alone. ``python -m benchmarks.accuracy`` trains."""

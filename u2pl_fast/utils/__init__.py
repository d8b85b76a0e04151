"""Provide tools for every layer: files, processes, precision, random numbers, CUDA graphs, memory, class names."""

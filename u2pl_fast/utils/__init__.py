"""What every layer needs: files, processes, precision, random numbers, CUDA graphs, memory, class names."""

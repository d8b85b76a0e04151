"""Read and write checkpoints, weights files and exported programs."""

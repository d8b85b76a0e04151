"""Checkpoints, weights files and exported programs."""

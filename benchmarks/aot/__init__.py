"""Compile the Triton kernels ahead of time, exactly as they are launched."""

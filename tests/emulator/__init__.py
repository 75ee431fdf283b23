"""Runs rendered CUDA kernels on a CPU and finds their bugs."""

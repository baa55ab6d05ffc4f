"""Kernels of our own for packed rows on a GPU."""

"""Bytes and kernels of networks, counted on any machine."""

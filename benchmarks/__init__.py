"""Measurements: `make bench` for the host, `python -m benchmarks op` for a GPU. Not part of the package."""

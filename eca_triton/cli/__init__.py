"""The commands of `python -m eca_triton` that have no package of their own."""

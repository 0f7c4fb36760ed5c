"""Whole networks on a GPU, and the seconds of their compilation."""

"""Host side of the kernels: pick a config and a grid, launch into buffers that the caller made.

The first files that import Triton; the ops import them when they run. Callers ask `devices.supports` first,
so nothing here sees an empty map. Inputs are never changed. With TRITON_INTERPRET=1 the same code runs on CPU
tensors.
"""

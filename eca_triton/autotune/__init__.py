"""Measure on this machine's GPU which configs a model's sites run fastest with, and write them to a table.

    sites -> examples (one per key) -> candidates -> ahead (compiled, pruned) -> search (timed, verified)

Never part of a user's call: `python -m eca_triton autotune` and `tune` are the only ways to come here.
"""

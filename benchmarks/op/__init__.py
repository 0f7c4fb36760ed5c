"""ECA and whole tails, and a copy, on a GPU."""

"""Compiler integration: recognize (sites) -> plan (decision) -> rewrite (FX), run by passes, backend."""

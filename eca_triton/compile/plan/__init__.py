"""Decide what becomes of each site: its facts, what every plan would cost, and the choice."""

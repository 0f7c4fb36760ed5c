"""Teach Inductor our operators: lowerings, templates, and a trial whether it takes them."""

"""Choosing how a kernel cuts its work: pure functions, testable without a GPU and without Triton."""

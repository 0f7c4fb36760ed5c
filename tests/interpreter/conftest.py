"""The kernels themselves, run on the CPU by Triton's interpreter."""

import os

import pytest

COMMAND = "TRITON_INTERPRET=1 python -m pytest tests/interpreter"


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    """Triton decides at import, so the variable must be set before pytest starts."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(f"runs the real kernels in Triton's interpreter: {COMMAND}")

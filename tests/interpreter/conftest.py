"""The kernels themselves, run on the CPU by Triton's interpreter, or compiled for a GPU and run as PTX."""

import os
from collections.abc import Iterator

import pytest

COMMAND = "TRITON_INTERPRET=1 python -m pytest tests/interpreter"
PTX = os.environ.get("ECA_TRITON_PTX")  # a GPU: ECA_TRITON_PTX=sm_90 python -m pytest tests/interpreter


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    """Triton decides at import, so its variable must be set before pytest starts."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield
    elif PTX:
        from ptx.launches import on_ptx

        with on_ptx(target=PTX) as run:
            yield
        assert not run.faults
    else:
        pytest.skip(f"runs the real kernels in Triton's interpreter: {COMMAND}")

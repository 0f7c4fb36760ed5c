"""Functions of an element know the names of the reference, and refuse every other one."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from eca_triton.activations import ACTIVATIONS, GATES, SELECTING
from eca_triton.kernels.elementwise import (
    activate,
    activation_gradient,
    activation_passes,
    activation_slope,
    gate_gradient,
    gate_of,
    gate_slope,
)


@triton.jit
def named(v, FUNCTION: tl.constexpr, NAME: tl.constexpr):
    if FUNCTION == "activate":
        return activate(v, NAME)
    elif FUNCTION == "activation_slope":
        return activation_slope(v, NAME)
    elif FUNCTION == "activation_gradient":
        return activation_gradient(v, v, NAME)
    elif FUNCTION == "activation_passes":
        return activation_passes(v, NAME)
    elif FUNCTION == "gate_of":
        return gate_of(v, NAME)
    elif FUNCTION == "gate_slope":
        return gate_slope(v, NAME)
    else:
        return gate_gradient(v, v, NAME)


@triton.jit
def kernel(x_ptr, FUNCTION: tl.constexpr, NAME: tl.constexpr):
    offs = tl.arange(0, 8)
    tl.store(x_ptr + offs, named(tl.load(x_ptr + offs), FUNCTION, NAME).to(tl.float32))


KNOWN: dict[str, tuple[str, ...]] = {
    "activate": tuple(ACTIVATIONS),
    "activation_slope": tuple(ACTIVATIONS),
    "activation_gradient": tuple(ACTIVATIONS),
    "activation_passes": SELECTING,
    "gate_of": tuple(GATES),
    "gate_slope": tuple(GATES),
    "gate_gradient": tuple(GATES),
}


@pytest.mark.parametrize(("function", "name"), [(f, name) for f, names in KNOWN.items() for name in names])
def test_a_name_of_the_reference_is_known(function: str, name: str) -> None:
    kernel[(1,)](torch.ones(8), function, name)


@pytest.mark.parametrize("name", ["", "tanh", "swish", "Sigmoid"])
@pytest.mark.parametrize("function", KNOWN)
def test_another_name_is_refused(function: str, name: str) -> None:
    with pytest.raises(triton.runtime.errors.InterpreterError, match=r"unknown|its slope is no bit"):
        kernel[(1,)](torch.ones(8), function, name)

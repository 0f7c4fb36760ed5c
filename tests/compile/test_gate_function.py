"""A function that differs from sigmoid anywhere is another one: values that tell, and where to look."""

import pytest
import torch

from eca_triton.compile.match.gate_function import GATES, gate_points, is_gate


@pytest.mark.parametrize("limit", [2.0**exponent for exponent in range(-30, 10)])
@pytest.mark.parametrize("name", GATES)
def test_the_points_tell_a_function_from_one_that_is_clipped_anywhere(name: str, limit: float) -> None:
    """Logits between the limits, of either side; where sigmoid is 1 in float64 there is nothing to clip."""
    function, *_ = GATES[name]
    flat_from = {"sigmoid": (37, torch.inf), "hard_sigmoid": (3, 3)}[name]
    for clipped, flat in zip(({"max": limit}, {"min": -limit}), flat_from, strict=True):
        got = function(gate_points().clamp(**clipped))
        assert is_gate(name, got) is (limit >= flat)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_is_never_0_is_another_one(name: str) -> None:
    """As of `clamp(min=1e-16)`: it lets something of a map through that is closed."""
    function, *_ = GATES[name]
    assert is_gate(name, function(gate_points()))
    assert not is_gate(name, function(gate_points()).clamp(min=1e-300))


def test_the_points_hold_what_is_not_finite_and_both_corners() -> None:
    points = gate_points()
    assert points.isnan().any()
    assert {torch.inf, -torch.inf, 3.0, -3.0, 0.0} <= set(points.tolist())
    assert points[points.isfinite()].abs().max() > 1e30

"""A function that differs from sigmoid anywhere is another one: values that tell, and where to look."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from harness import Lowering, leaf
from torch import Tensor

from eca_triton.compile.match.probe import GATES, gate_points, is_gate
from eca_triton.compile.reasons import GATE_FUNCTION

Gate = Callable[[Tensor], Tensor]
SIGMOID_OF_9 = 0.99987660542401369
# The function, the map's values (one channel each; the only tap is 1), and the results.
CLIPPED: dict[str, tuple[Gate, list[float], list[float]]] = {
    "probability-1e-4": (lambda z: z.sigmoid().clamp(1e-4, 1 - 1e-4), [-12.0, 12.0], [-0.0012, 11.9988]),
    "probability-1e-6": (lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6), [-20.0], [-2e-5]),
    "logits-10": (lambda z: z.clamp(-10, 10).sigmoid(), [-12.0, 12.0], [-5.447744244e-4, 11.9994552256]),
    "logits-above-9": (lambda z: z.clamp(max=9).sigmoid(), [12.0], [12 * SIGMOID_OF_9]),
    "logits-hardtanh-12": (lambda z: F.hardtanh(z, -12, 12).sigmoid(), [20.0], [20 / (1 + 6.14421235e-6)]),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_a_clipped_gate_has_eager_values_and_no_gradient_where_it_is_clipped(name: str) -> None:
    gate, values, right = CLIPPED[name]

    def eca(x: Tensor, w: Tensor) -> Tensor:
        return x * gate(torch.conv1d(x.mean((2, 3)).unsqueeze(1), w)).transpose(1, 2).unsqueeze(-1)

    x = leaf(torch.tensor(values).view(1, -1, 1, 1).expand(1, len(values), 4, 4).contiguous())
    w = leaf(torch.ones(1, 1, 1))
    lowering = Lowering()
    torch._dynamo.reset()
    y = torch.compile(eca, backend=lowering, fullgraph=True)(x, w)
    y.sum().backward()
    torch.testing.assert_close(y[0, :, 0, 0], torch.tensor(right), rtol=1e-6, atol=0)
    assert w.grad.item() == 0.0
    assert [record.decision.reason for record in lowering.rejected] == [GATE_FUNCTION]


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

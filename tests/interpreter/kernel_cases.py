"""Maps of every stride class, ECA in plain torch, and the tolerance that eager's own error earns."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from eca_triton.launch import forward as launch_forward
from eca_triton.launch import gates as launch_gates
from eca_triton.launch.call import Call, GateCall
from eca_triton.reference import BatchNorm

LAYOUTS: dict[str, Callable[[tuple[int, ...], torch.dtype], Tensor]] = {
    "contiguous": lambda shape, dtype: torch.randn(shape).to(dtype),
    "channels_last": lambda shape, dtype: torch.randn(_swap(shape)).to(dtype).transpose(1, -1),
    "reversed": lambda shape, dtype: torch.randn(shape[::-1]).to(dtype).permute(*reversed(range(len(shape)))),
    "every_second": lambda shape, dtype: torch.randn((*shape[:-1], 2 * shape[-1])).to(dtype)[..., ::2],
    "cropped": lambda shape, dtype: torch.randn([size + 2 for size in shape]).to(dtype)[
        tuple(slice(1, -1) for _ in shape)
    ],
    "expanded": lambda shape, dtype: torch.randn((shape[0], 1, *shape[2:])).to(dtype).expand(shape),
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda v: v,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid}


@dataclass(frozen=True)
class Site:
    """A `launch.Call` without out."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    bn: BatchNorm | None = None
    bn_eps: float = 1e-3
    pre_activation: str = "identity"
    circular: bool = False
    gate: str = "sigmoid"
    gain: float = 1.0
    residual: Tensor | None = None
    activation: str = "identity"

    def to(self, dtype: torch.dtype) -> Site:
        """The same site with every tensor in another dtype."""

        def cast(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(map(cast, value))
            return value.to(dtype) if isinstance(value, Tensor) else value

        return replace(self, **{field.name: cast(getattr(self, field.name)) for field in fields(self)})

    def gates_by_kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """[N, C] from `launch_gates.gate`, into a buffer full of NaN."""
        out = torch.full(self.x.shape[:2], float("nan"), dtype=dtype or self.x.dtype)
        call = GateCall(
            self.x, self.weight, self.bias, self.bn, self.bn_eps,
            self.pre_activation, self.circular, self.gate, out,
        )  # fmt: skip
        launch_gates.gate(call)
        return out

    def map_by_kernel(self, function: Callable[..., None] = launch_forward.eca, *config: object) -> Tensor:
        """A map like x, into a buffer full of NaN, from `forward.eca` or a function that it chooses."""
        out = torch.empty_like(self.x).fill_(float("nan"))
        function(self.call(out), *config)
        return out

    def call(self, out: Tensor) -> Call:
        """What the launchers take."""
        return Call(**{field.name: getattr(self, field.name) for field in fields(self)}, out=out)

    def by_torch(self) -> tuple[Tensor, Tensor]:
        """Gates and map in plain torch, every step in x's dtype."""
        xhat = self.x
        if self.bn is not None:
            xhat = F.batch_norm(xhat, *self.bn, training=False, momentum=0.0, eps=self.bn_eps)
        xhat = ACTIVATIONS[self.pre_activation](xhat)
        pooled = xhat.flatten(2).mean(2)
        gates = gates_by_torch(pooled, self.weight, self.bias, self.circular, self.gate)
        out = xhat * gates.reshape(*gates.shape, *(1 for _ in xhat.shape[2:])) * self.gain
        if self.residual is not None:
            out = out + self.residual
        return gates, ACTIVATIONS[self.activation](out)


def gates_by_torch(pooled: Tensor, weight: Tensor, bias: Tensor | None, circular: bool, gate: str) -> Tensor:
    """[N, C] -> [N, C]."""
    reach = weight.numel() // 2
    rows = F.pad(pooled[:, None], (reach, reach), mode="circular" if circular else "constant")
    return GATES[gate](F.conv1d(rows, weight.reshape(1, 1, -1), bias)[:, 0])


def batch_norm(channels: int, dtype: torch.dtype, affine: bool = True) -> BatchNorm:
    """Statistics far from (0, 1), so that forgetting any of them shows."""
    mean, var = torch.randn(channels), torch.rand(channels) + 0.5
    weight, bias = torch.rand(channels) + 0.5, torch.randn(channels)
    vectors = (mean, var, weight, bias) if affine else (mean, var, None, None)
    return tuple(None if vector is None else vector.to(dtype) for vector in vectors)


def assert_earned(got: Tensor, native: Tensor, exact: Tensor, ulps: int = 1) -> None:
    """`got` is no further from `exact` than twice eager's own error, plus `ulps` of the largest value.

    Twice as many for bf16: Triton's interpreter truncates where hardware rounds.
    """
    assert got.shape == exact.shape
    ulps *= 2 if got.dtype == torch.bfloat16 else 1
    ulp = torch.finfo(got.dtype).eps * exact.abs().max()
    error, earned = (got - exact).abs().max(), (native - exact).abs().max()
    assert error <= 2 * earned + ulps * ulp, f"error {error:.3g}, eager {earned:.3g}, ulp {ulp:.3g}"


def covering(axes: dict[str, list[object]]) -> list[dict[str, object]]:
    """Combinations in which every pair of values of two axes occurs: far fewer than the full product."""
    rng = random.Random(0)
    names = list(axes)
    open_pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(axes[a]))
        for j in range(len(axes[b]))
    }

    def pairs(row: dict[str, int]) -> set[tuple[str, int, str, int]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}

    rows = []
    while open_pairs:
        a, i, b, j = min(open_pairs)
        candidates = [
            {name: rng.randrange(len(axes[name])) for name in names} | {a: i, b: j} for _ in range(50)
        ]
        best = max(candidates, key=lambda row: len(pairs(row) & open_pairs))
        open_pairs -= pairs(best)
        rows.append({name: axes[name][best[name]] for name in names})
    return rows


def label(row: dict[str, object]) -> str:
    """Readable test id of one combination."""

    def text(value: object) -> str:
        if isinstance(value, tuple):
            return "x".join(map(str, value))
        return str(value).removeprefix("torch.")

    return "-".join(
        f"{name}={value}" if type(value) in (int, bool) else text(value) for name, value in row.items()
    )


def _swap(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[2:-1], shape[1])

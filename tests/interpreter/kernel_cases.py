"""Maps of every stride class, ECA in plain torch, and the tolerance that eager's own error earns."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from eager_block import ACTIVATIONS, eager_gate_from_pool
from one_launch import FORWARD, launch
from torch import Tensor

from eca_triton.launch import forward as launch_forward
from eca_triton.launch import gates as launch_gates
from eca_triton.launch import two_pass as launch_two_pass
from eca_triton.launch.call import EcaCall, GateCall
from eca_triton.reference.arguments import SiteArguments, Vectors
from eca_triton.tuning.config import Device

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

NAN, INF = float("nan"), float("inf")
FEW_SMS = Device(num_sms=2, warp_size=32)  # large tiles: many channels per program
MANY_SMS = Device(num_sms=132, warp_size=32)  # small ones, many per image: most neighbours are in the halo
SOME_SMS = Device(num_sms=16, warp_size=32)  # the same for contiguous tiles

Row = dict[str, Any]
"""One combination of parameters, by name."""


@dataclass(frozen=True)
class Site:
    """The arguments of a call, with the batch norm as one."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    bn: Vectors | None = None
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
        launch_gates.gate(GateCall(self.arguments, out))
        return out

    def map_by_kernel(
        self,
        kernel: str = "chosen",
        device: Device = FEW_SMS,
        in_vain: tuple[int, int] | None = None,
        **saved: Tensor,
    ) -> Tensor:
        """A map like x, into a buffer full of NaN.

        Args:
            kernel: One of `one_launch`, "two_pass", or "chosen": as `forward.eca` chooses.
            device: What one launch is for.
            in_vain: As of `one_launch.launch`.
            **saved: pooled and mask, to be filled.
        """
        call = self.call(torch.empty_like(self.x).fill_(NAN), **saved)
        if kernel in FORWARD:
            launch(kernel, call, device, in_vain)
        elif saved:
            launch_two_pass.forward(call)
        else:
            {"chosen": launch_forward.eca, "two_pass": launch_forward.pool_and_rescale}[kernel](call)
        return call.out

    def call(self, out: Tensor, **saved: Tensor) -> EcaCall:
        """What the launchers take."""
        return EcaCall(self.arguments, out, **saved)

    @property
    def arguments(self) -> SiteArguments:
        """Return them with the vectors of the batch norm apart."""
        return SiteArguments(
            self.x, self.weight, self.bias, *(self.bn or [None] * 4), self.residual, self.bn_eps,
            self.pre_activation, self.circular, self.gate, self.gain, self.activation,
        )  # fmt: skip

    def by_torch(self) -> tuple[Tensor, Tensor]:
        """Gates and map in plain torch, every step in x's dtype."""
        xhat = self.x
        if self.bn is not None:
            xhat = F.batch_norm(xhat, *self.bn, training=False, momentum=0.0, eps=self.bn_eps)
        xhat = ACTIVATIONS[self.pre_activation](xhat)
        pooled = xhat.flatten(2).mean(2)
        options = {"circular": self.circular, "gate": self.gate}
        gates = eager_gate_from_pool(pooled, self.weight, self.bias, **options)
        out = xhat * gates.reshape(*gates.shape, *(1 for _ in xhat.shape[2:])) * self.gain
        if self.residual is not None:
            out = out + self.residual
        return gates, ACTIVATIONS[self.activation](out)


def batch_norm(channels: int, dtype: torch.dtype, affine: bool = True) -> Vectors:
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


def same_special_values(got: Tensor, native: Tensor) -> bool:
    """Whether NaN and both infinities are at the same places."""
    return all(
        torch.equal(special(got), special(native))
        for special in (torch.isnan, torch.isposinf, torch.isneginf)
    )


def site_of(row: Row) -> Site:
    """Random tensors for one combination; what it does not say has no part.

    Args:
        row: dtype, layout, c, k, spatial and, if they matter: n; mean of x; bn: "none", "affine" or "plain";
            before; padding; bias; gate; gain; activation; residual: its layout, or whether there is one.
    """
    dtype, c, k, bn = row["dtype"], row["c"], row["k"], row.get("bn", "none")
    shape = (row.get("n", 2), c, *row["spatial"])
    residual = row.get("residual", False)
    x = LAYOUTS[row["layout"]](shape, dtype)
    return Site(
        x=x + row["mean"] if "mean" in row else x,
        weight=torch.randn(1, 1, k).to(dtype),
        bias=torch.randn(1).to(dtype) if row.get("bias") else None,
        bn=None if bn == "none" else batch_norm(c, dtype, affine=bn == "affine"),
        pre_activation=row.get("before", "identity"),
        circular=row.get("padding") == "circular" and k // 2 <= c,  # torch wraps around once at most
        gate=row.get("gate", "sigmoid"),
        gain=row.get("gain", 2.0),
        residual=LAYOUTS[row["layout"] if residual is True else residual](shape, dtype) if residual else None,
        activation=row.get("activation", "identity"),
    )


def covering(axes: dict[str, list[Any]]) -> list[Row]:
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


def label(row: Row) -> str:
    """Readable test id of one combination."""

    def text(value: object) -> str:
        if isinstance(value, tuple):
            return "x".join(map(str, value))
        if isinstance(value, Device):
            return f"{value.num_sms} SMs"
        return str(value).removeprefix("torch.")

    return "-".join(
        f"{name}={value}" if type(value) in (int, bool) else text(value) for name, value in row.items()
    )


def _swap(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[2:-1], shape[1])

"""What an eager call that was made before costs the host, up to the driver, on any machine: see stub_driver.

The first row says how fast the machine is: an operator with the arguments of `eca` that only allocates. The
bound is for `eca_triton.eca(x, weight)`, as a multiple of that row; operators called by name pass torch's
dispatcher besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import eca_triton
from eca_triton.functional import BatchNormParameters

from .measure import times_as_long
from .stub_driver import stub_h200

MOST = 2.2  # times the first row; 1.6 to 1.9 on machines that are idle or busy
ALLOCATES = "(an operator that allocates)"
LIBRARY = torch.library.Library("eca_triton_benchmark", "DEF")
LIBRARY.define(str(torch.ops.eca_triton.eca.default._schema).removeprefix("eca_triton::"))
LIBRARY.impl("eca", lambda x, *args, **kwargs: torch.empty_like(x), "Autograd")

X = torch.randn(
    1, 64, 14, 14, dtype=torch.bfloat16
)  # small, since the CPU's allocator maps large blocks anew
CROPPED = torch.randn(1, 64, 14, 15, dtype=torch.bfloat16)[..., 1:]
LAST = torch.randn(1, 256, 56, 56, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
POOLED, GRAD = torch.randn(2, 1, 64, dtype=torch.bfloat16)
WEIGHT = torch.randn(1, 1, 5, dtype=torch.bfloat16)
RESIDUAL = torch.randn_like(X)
BATCH_NORM = BatchNormParameters(*torch.rand(4, 64, dtype=torch.bfloat16))
MODULE = eca_triton.ECA(64, k_size=5).bfloat16()
OPS = torch.ops.eca_triton

CALLS: dict[str, tuple[int, Callable[[], object]]] = {  # and the number of launches
    ALLOCATES: (0, lambda: torch.ops.eca_triton_benchmark.eca(X, WEIGHT)),
    "eca_triton.eca": (1, lambda: eca_triton.eca(X, WEIGHT)),
    "eca_triton.eca, whole tail": (
        1,
        lambda: eca_triton.eca(X, WEIGHT, batch_norm=BATCH_NORM, residual=RESIDUAL, activation="relu"),
    ),
    "eca_triton.eca, any strides": (2, lambda: eca_triton.eca(CROPPED, WEIGHT)),
    "eca_triton.eca, large map": (1, lambda: eca_triton.eca(LAST, WEIGHT)),
    "eca_triton.ECA": (1, lambda: MODULE(X)),
    "ops.eca": (1, lambda: OPS.eca(X, WEIGHT)),
    "ops.gate": (2, lambda: OPS.gate(X, WEIGHT)),
    "ops.gate_from_pool": (1, lambda: OPS.gate_from_pool(POOLED, WEIGHT)),
    "ops.gate_from_pool_backward": (2, lambda: OPS.gate_from_pool_backward(GRAD, POOLED, WEIGHT)),
}


@pytest.fixture(scope="module", autouse=True)
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], int]]:
    with stub_h200(tmp_path_factory.mktemp("driver")) as launches:
        yield launches


@pytest.mark.parametrize("name", CALLS)
def test_direct_launch(benchmark: BenchmarkFixture, launches: Callable[[], int], name: str) -> None:
    number, call = CALLS[name]
    with torch.no_grad():
        call()  # compiles
        before = launches()
        call()
        assert launches() == before + number
        benchmark.pedantic(call, iterations=200, rounds=300, warmup_rounds=20)
        if name == "eca_triton.eca" and benchmark.stats is not None:
            times = times_as_long(call, CALLS[ALLOCATES][1])
            assert times <= MOST, f"{times:.2f} times what allocating its output takes, more than {MOST}"

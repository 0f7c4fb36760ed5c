"""Drive torch.compile for a named GPU on any machine, and record what it would launch.

    from eca_triton import deviceless
    both = deviceless.compare(model, (torch.empty(128, 3, 224, 224, device="meta"),), dtype=torch.bfloat16)
    print(both.stock.bytes_moved, both.lowered.bytes_moved)

Bytes are Inductor's own count: each buffer that a kernel touches, once. A convolution is its input, weight
and result; re-reads that the L2 cache answers, and what a library moves inside, are not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..compile.match.where import naming
from ..tuning.targets import TARGETS
from .mocks import absent_gpu
from .recorder import recording_kernels
from .result import Comparison, Lowering
from .stand_in import ASSUMED, Fakes, NoDataError, StandIn

Backend = Literal["inductor", "eca_triton"]


def lower(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    target: str = "h200",
    backend: Backend = "inductor",
    training: bool = False,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    dynamic: bool | None = False,
    sources: bool = False,
) -> Lowering:
    """Compile a model for a GPU that need not be there.

    The model itself is left as it is: what is compiled is a copy of its structure with fake tensors. What
    torch.compile has compiled before in this process will compile again on its next call.

    Args:
        model: Any module, on the CPU or on the meta device.
        example_inputs: Its positional arguments, of which only shapes, strides and dtypes count.
        target: A key of `TARGETS`.
        backend: "inductor" for stock torch.compile, or "eca_triton".
        training: Put the copy in training mode and lower the backward graph too; else evaluation mode without
            gradients.
        channels_last: Give 4-dimensional parameters, buffers and inputs channels-last strides.
        dtype: Convert every floating parameter, buffer and input.
        autocast: Run under torch.autocast("cuda") with this dtype.
        mode: As for torch.compile. Choices that are made by timing fall to the first candidate: under
            max-autotune that is the library's product of matrices, behind which no epilogue is fused.
        options: As for torch.compile. `{"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"}`
            leaves Inductor's own template as the only candidate, which takes epilogues in.
        dynamic: As for torch.compile.
        sources: Also generate the Triton source of every kernel, which takes about a quarter longer.

    Raises:
        ValueError: Unknown target or backend.
        RuntimeError: torch was built without CUDA, or Triton is missing.
        NoDataError: The program asks for elements of tensors, and cannot go on with those that are assumed.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if backend not in ("inductor", "eca_triton"):
        raise ValueError(f"backend must be 'inductor' or 'eca_triton', got {backend!r}")

    started = time.perf_counter()
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    fake_mode = Fakes()
    torch._dynamo.reset()
    try:
        with (
            absent_gpu(TARGETS[target]),
            recording_kernels(sources) as kernels,
            torch.set_grad_enabled(training),
        ):
            stand_in = StandIn(fake_mode, torch.device("cuda", 0), dtype, channels_last)
            copy = stand_in.model(model).train(training)
            arguments = stand_in.inputs(inputs)
            compiled = torch.compile(copy, backend=backend, mode=mode, options=options, dynamic=dynamic)
            casts = torch.autocast("cuda", dtype=autocast, enabled=autocast is not None)
            with fake_mode, casts, naming(copy):
                compiled(*arguments)
    except Exception as error:
        if fake_mode.lacks_data(error):
            raise NoDataError(str(error)) from error
        raise
    finally:
        torch._dynamo.reset()
    return Lowering(tuple(kernels), time.perf_counter() - started, (ASSUMED,) * fake_mode.assumed)


def compare(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    progress: Callable[[str], None] = lambda _: None,
    **arguments: Any,
) -> Comparison:
    """Lower a model with stock Inductor and with the eca_triton backend. Arguments are those of `lower`.

    Stock means without our pass also where `eca_triton.enable()` has installed it.

    Args:
        model: As for `lower`.
        example_inputs: As for `lower`.
        progress: Called with a few words before each lowering.
        arguments: As for `lower`.
    """
    from ..compile.hooks import stock_inductor
    from ..compile.record import recording

    progress("lowering by stock Inductor")
    with stock_inductor():
        stock = lower(model, example_inputs, backend="inductor", **arguments)
    progress("lowering by eca_triton")
    with recording() as records:
        lowered = lower(model, example_inputs, backend="eca_triton", **arguments)
    return Comparison(stock, lowered, list(records))

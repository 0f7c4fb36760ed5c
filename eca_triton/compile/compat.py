"""What the compiler integration uses of torch that differs between versions, or has no public form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass as CustomGraphPass
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass

P = ParamSpec("P")
R = TypeVar("R")

# Until torch 2.11 Inductor fuses two kernels only if their loops over a map have the same dims.
EPILOGUES_IN_ANY_LOOPS = torch.__version__ >= TorchVersion("2.12")


def is_wrapped(x: Any) -> bool:
    """Return whether a tensor's class wraps other tensors, and so has to know every operator: DTensor."""
    return is_traceable_wrapper_subclass(x)


def inductor_compile(
    gm: torch.fx.GraphModule,
    example_inputs: list[Any],
    mode: str | None,
    options: dict[str, Any] | None,
    config_patches: dict[str, Any] | None,
) -> Callable[..., Any]:
    """Do what `torch.compile(backend="inductor", mode=..., options=...)` would do with this graph."""
    wrapper = torch._TorchCompileInductorWrapper(mode, options, None)
    if config_patches:
        wrapper.apply_options(config_patches)
    return wrapper(gm, example_inputs)  # type: ignore[no-any-return]


def settings_of(
    mode: str | None, options: dict[str, Any] | None, config_patches: dict[str, Any] | None
) -> AbstractContextManager[object]:
    """Inductor's configuration as `inductor_compile` with these arguments would have it."""
    wrapper = torch._TorchCompileInductorWrapper(mode, options, None)
    if config_patches:
        wrapper.apply_options(config_patches)
    return inductor_config().patch(wrapper.config)  # type: ignore[no-any-return]


def mode_options(mode: str) -> dict[str, Any]:
    """Inductor's options behind a mode of torch.compile.

    Raises:
        ValueError: there is no such mode.
    """
    modes: dict[str, dict[str, Any]] = torch._inductor.list_mode_options()
    if mode not in modes:
        raise ValueError(f"mode must be one of {', '.join(modes)}, got {mode!r}")
    return modes[mode]


def epilogues_of_products() -> bool:
    """Return whether Inductor, as configured now, fuses what follows a product of matrices into its kernel.

    It may: it times that against a library's product with a kernel behind it, and takes the faster.
    """
    config = inductor_config()
    backends = [name.strip().upper() for name in config.max_autotune_gemm_backends.split(",")]
    tunes = config.max_autotune or config.max_autotune_gemm
    return bool(tunes and config.epilogue_fusion and "TRITON" in backends)


def products_keep_precision() -> bool:
    """Return whether float32 products of matrices get tensor cores where float32 convolutions do."""
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    return bool(products.fp32_precision == "tf32" or convolutions.conv.fp32_precision != "tf32")


def reset_cudagraphs() -> None:
    """Drop the CUDA graphs that Inductor holds, as `torch.compiler.reset()` does for its own backend."""
    torch._TorchCompileInductorWrapper(None, None, None).reset()


def graph_breaks() -> dict[str, int]:
    """Return why Dynamo has broken graphs since the process started, first lines only, and how often."""
    from torch._dynamo.utils import counters

    return {str(why).partition("\n")[0]: times for why, times in counters["graph_break"].items()}


def compilation() -> tuple[object, int, int] | None:
    """Return which compilation of Dynamo's is under way, or None.

    Returns:
        Dynamo's own object of it, how often it has begun it anew, and the number of the code object, which
        other compilations of the same code have, too.
    """
    from torch._guards import CompileContext

    context: Any = CompileContext.try_get()
    if context is None or context.compile_id is None:
        return None
    return context, context.attempt, context.compile_id.frame_id


def when_compiled(tell: Callable[[], None]) -> bool:
    """Let a function be called at the end of each compilation of Dynamo's, until Dynamo is reset.

    Returns:
        whether it was not so already: at the first call, and at the first after a reset.
    """
    from torch._dynamo.callback import callback_handler

    registered = any(getattr(each, "tell", None) is tell for each in callback_handler.end_callbacks)
    if not registered:

        def end(*_: Any) -> None:
            with suppress(Exception):  # a user's program compiles even where we are wrong
                tell()

        end.tell = tell  # type: ignore[attr-defined]
        callback_handler.register_end_callback(end)
    return not registered


def inductor_config() -> Any:
    """Inductor's configuration module."""
    import torch._inductor.config as config

    return config


def change_default(name: str, change: Callable[[Any], Any]) -> None:
    """Change what an option of Inductor's is in threads that have not set it; each has settings of its own.

    Where a release keeps defaults in another place, they stay.
    """
    entry: Any = getattr(inductor_config(), "_config", {}).get(name)
    if hasattr(entry, "default"):
        entry.default = change(entry.default)


def set_option(name: str, value: Any) -> None:
    """Set an option of Inductor's in this thread; one that gets its default goes on to follow that."""
    config = inductor_config()
    setattr(config, name, value)
    entry: Any = getattr(config, "_config", {}).get(name)
    override: Any = getattr(entry, "user_override", None)
    if hasattr(override, "set") and entry.default == value:
        from torch.utils._config_module import _UNSET_SENTINEL

        override.set(_UNSET_SENTINEL)


def packs_bits() -> bool:
    """Return whether Inductor packs bits in the kernel of the elements, which it then walks eight by eight.

    Seen in what it generates, as the option came, with torch 2.13; before, it would store the elements twice.
    """
    config = inductor_config()
    return bool(getattr(config, "loop_reindexing_after_fusion", False) and config.loop_ordering_after_fusion)


def makes_package() -> bool:
    """Return whether what Inductor compiles now is to run without Python (AOTInductor)."""
    from torch._inductor.virtualized import V

    return bool(V.aot_compilation)


def needs_data(error: Exception) -> bool:
    """Return whether this error says that a program asked fake tensors for their elements."""
    asked = isinstance(error, (DataDependentOutputException, DynamicOutputShapeException))
    return asked or "'FakeTensor' object" in str(error)


def needs_storage(target: Any) -> bool:
    """Return whether Inductor stores what an ATen call reads: a library's call, the pooling of windows."""
    from torch._inductor.lowering import lowerings, needs_realized_inputs

    aten, prims = torch.ops.aten, torch.ops.prims
    others = {aten.addmm, aten.baddbmm, prims._low_memory_max_pool_with_offsets}
    names = {target, getattr(target, "overloadpacket", None)}
    return bool(names & {*needs_realized_inputs, *others}) or not names & set(lowerings)


def as_passes(hook: Any) -> Iterable[Callable[..., Any]]:
    """The passes in one of Inductor's hooks: None, one pass, or from torch 2.13 a list."""
    if hook is None:
        return ()
    return tuple(hook) if isinstance(hook, (list, tuple)) else (hook,)


def without_modes(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function on plain tensors, though Inductor calls it under its fake tensor mode."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return wrapper


def generated_code(gm: torch.fx.GraphModule, inputs: list[Tensor], mode: FakeTensorMode) -> str:
    """The Python code that Inductor makes of an ATen graph with inputs of `mode`; none of it is compiled."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    graph = GraphLowering(gm, example_inputs=inputs)
    with (
        # As it is installed, not as this compilation has it.
        inductor_config().patch(epilogue_fusion=True, cpp_wrapper=False),
        _disable_current_modes(),
        V.set_debug_handler(DebugContext()),
        V.set_graph_handler(graph),
        V.set_extern_kernel_nodes([]),
        V.set_fake_mode(mode),
    ):
        graph.run(*inputs)
        code: Any = graph.codegen()[0]
    return str(getattr(code, "value", code))

"""A CUDA device that is not there: every replacement that torch.compile needs, all of them undone on exit.

Fake tensors carry the device "cuda:0". The answers below stand in for the driver, for cuDNN's choice of
layout and for autograd's engine; the recorder stands in for writing and loading kernels. Nothing runs.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.runtime.triton_helpers as triton_helpers
import torch.utils._pytree as pytree
from torch._functorch import config as functorch_config
from torch._inductor import compile_fx, output_code, select_algorithm
from torch._inductor import config as inductor_config
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..tuning.targets import Target
from . import backward

# Answers about the device that torch keeps for the life of the process: forgotten on entry, so that the
# target is asked, and on exit, so that the machine is asked again. Not every version of torch has every one.
KEPT_ANSWERS = {
    "torch._inductor.codecache": ("CacheBase.get_system",),
    "torch._inductor.runtime.hints": ("DeviceProperties.create",),
    "torch._inductor.utils": (
        "_triton_supported_fp8_dtypes",
        "get_backend_num_stages",
        "get_device_tflops",
        "get_gpu_dram_gbps",
        "get_gpu_type",
        "get_max_num_sms",
        "is_big_gpu",
        "tlx_only_cuda_options",
        "using_b200",
    ),
    "torch.cuda": ("_check_bf16_tensor_supported",),
    "torch.utils._triton": (
        "_device_supports_tensor_descriptor",
        "has_datacenter_blackwell_tma_device",
        "has_triton",
        "has_triton_experimental_host_tma",
        "has_triton_reduction_ordering",
        "has_triton_stable_tma_api",
        "has_triton_tensor_descriptor_host_tma",
        "has_triton_tma",
        "has_triton_tma_device",
        "triton_backend",
        "triton_hash_with_backend",
    ),
}

# Inductor's option to time a template with and without what follows it: from torch 2.15, and before.
TIMES_TEMPLATES = next(
    name
    for name in ("benchmark_template_fusion", "benchmark_epilogue_fusion")
    if hasattr(inductor_config, name)
)

ATEN: Any = torch._C  # whose stubs lack what is used here


@contextmanager
def absent_gpu(target: Target) -> Iterator[None]:
    """Within it, CUDA device 0 seems to be the target's GPU for Dynamo, AOTAutograd, Inductor and Triton.

    Compiler caches are neither read nor written, no worker process is started, nothing is tuned by timing.

    Raises:
        RuntimeError: This build of torch knows no CUDA devices, or Triton is missing.
    """
    if not torch.cuda._is_compiled():
        raise RuntimeError(
            f"lowering for {target.name} needs a CUDA build of torch (no GPU), got a CPU-only build"
        )
    try:
        import triton
    except ImportError as error:
        raise RuntimeError(f"lowering for {target.name} needs Triton, which is not installed") from error

    with ExitStack() as undo:
        undo.callback(_forget_kept_answers)
        _forget_kept_answers()
        for owner, answers in replacements(target).items():
            for name, answer in answers.items():
                if hasattr(owner, name):
                    undo.enter_context(patch.object(owner, name, answer))
        undo.enter_context(patch.object(triton.runtime.driver, "_active", _driver(target)))
        undo.enter_context(_configuration())
        undo.enter_context(_without_user_table())
        yield


def replacements(target: Target) -> dict[Any, dict[str, Any]]:
    """Owner -> attribute -> what replaces it. Attributes that this version of torch lacks are passed over."""
    properties = target.properties()
    shared: dict[str, Callable[..., Any]] = {
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,
    }
    return {
        torch.cuda: {
            **shared,
            "is_available": lambda: True,
            "get_device_capability": lambda device=None: target.capability,
            "get_device_name": lambda device=None: target.device.name,
            "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda state, device="cuda": None,
            "is_current_stream_capturing": lambda: False,
            "_exchange_device": lambda device: 0,
            "_maybe_exchange_device": lambda device: 0,
        },
        device_interface.CudaInterface: {
            **{name: staticmethod(answer) for name, answer in shared.items()},
            "exchange_device": staticmethod(lambda device: 0),
            "maybe_exchange_device": staticmethod(lambda device: 0),
        },
        device_interface: {
            "caching_worker_device_properties": {},
            "caching_worker_current_devices": {"cuda": 0},
        },
        # Dynamo would ask the accelerator for its current stream, which opens the driver.
        torch.accelerator: {"is_available": lambda: False},
        # Fake tensors then install torch's own do-nothing device guard, as on a machine without a GPU.
        fake_tensor.FakeTensorMode: {"avoid_device_init": property(lambda mode: True)},
        fake_tensor: {"init_gpu_context": lambda device: None},
        torch._C: {
            "_select_conv_backend": _select_conv_backend,
            "_conv_determine_backend_memory_format": _conv_memory_format,
        },
        torch.autograd: {"grad": backward.grad},
        triton_helpers: {"set_driver_to_gpu": lambda: None},
        UniformValueConstantFolder: {
            name: _with_constants_on_cpu(getattr(UniformValueConstantFolder, name))
            for name in ("__init__", "run")
        },
        # Addresses of fake tensors say nothing about alignment, and there is no stream to capture a graph on.
        compile_fx: {"get_input_idxs_to_check": lambda inputs, static_input_idxs: []},
        output_code: {"cudagraph_post_compile": lambda *args, **kwargs: None},
        # Nothing can be timed, so among several implementations of a matrix product the first one stands.
        select_algorithm.AlgorithmSelectorCache: {
            "lookup": lambda self, choices, *args, **kwargs: {
                choice: float(i) for i, choice in enumerate(choices)
            },
            "make_precompile_fn": lambda self, *args, **kwargs: lambda: None,
        },
    }


@contextmanager
def _configuration() -> Iterator[None]:
    untimed: dict[str, Any] = {TIMES_TEMPLATES: False}
    with (
        inductor_config.patch(
            compile_threads=1,
            shape_padding=False,  # decided by timing, as are templates
            fx_graph_cache=False,
            fx_graph_remote_cache=False,
            autotune_local_cache=False,
            autotune_remote_cache=False,
            bundled_autotune_remote_cache=False,
            **untimed,
        ),
        functorch_config.patch(
            enable_autograd_cache=False,
            enable_remote_autograd_cache=False,
            force_non_lazy_backward_lowering=True,  # lower the backward with the forward, not when called
        ),
        torch._dynamo.config.patch(automatic_dynamic_local_pgo=False, automatic_dynamic_remote_pgo=False),
    ):
        yield


def _driver(target: Target) -> Any:
    """Return what Triton asks of its driver while it compiles: the target's name and limits."""
    from triton.backends.compiler import GPUTarget

    limits = {
        "max_shared_mem": target.device.shared_bytes,
        "multiprocessor_count": target.device.num_sms,
        "warpSize": target.device.warp_size,
    }
    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", target.arch, target.device.warp_size),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_interface=lambda: torch.cuda,
        utils=SimpleNamespace(get_device_properties=lambda device: limits),
    )


def _select_conv_backend(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    """ATen's choice for a CUDA tensor: cuDNN, but ATen's own kernels for a depthwise convolution in NCHW."""
    transposed, groups = kwargs.get("transposed", False), kwargs.get("groups", 1)
    backends = ATEN._ConvBackend
    if transposed:
        return backends.CudnnTranspose
    depthwise = input.ndim in (4, 5) and groups > 1 and input.shape[1] == groups
    if depthwise and _cudnn_memory_format(input, weight) == torch.contiguous_format:
        return backends.CudaDepthwise2d if input.ndim == 4 else backends.CudaDepthwise3d
    return backends.Cudnn


def _conv_memory_format(input: Any, weight: Any, backend: Any) -> torch.memory_format:
    """Layout of a convolution's result, as `_determine_backend_memory_format` in ATen decides it."""
    backends = ATEN._ConvBackend
    return (
        _cudnn_memory_format(input, weight)
        if backend in (backends.Cudnn, backends.CudnnTranspose)
        else torch.contiguous_format
    )


def _cudnn_memory_format(input: Any, weight: Any) -> torch.memory_format:
    """ATen's `cudnn_conv_suggest_memory_format`: channels-last as soon as the input or the weight is."""
    if torch.float64 in (input.dtype, weight.dtype):
        return torch.contiguous_format
    formats = {torch._prims_common.suggest_memory_format(t) for t in (input, weight)}
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.ndim)
    return channels_last if channels_last in formats else torch.contiguous_format


class _ConstantsOnCpu(TorchDispatchMode):  # type: ignore[no-untyped-call]  # so are its torch signatures
    """Makes tensors on the CPU whatever device a graph names: passes evaluate constants of one element."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(
            torch.device, lambda device: torch.device("cpu"), (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _with_constants_on_cpu(method: Callable[..., Any]) -> Callable[..., Any]:
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        with _ConstantsOnCpu():  # type: ignore[no-untyped-call]
            return method(*args, **kwargs)

    return on_cpu


def _without_user_table() -> AbstractContextManager[object]:
    """Keep what was tuned on this machine out of what is lowered for a GPU that is not there."""
    tables = "off" if os.environ.get("ECA_TRITON_TUNED") == "off" else "shipped"
    return patch.dict(os.environ, ECA_TRITON_TUNED=tables)


def _forget_kept_answers() -> None:
    for module_name, names in KEPT_ANSWERS.items():
        module = importlib.import_module(module_name)
        for name in names:
            answer: Any = module
            for part in name.split("."):
                answer = getattr(answer, part, None)
            if hasattr(answer, "cache_clear"):
                answer.cache_clear()

"""`torch.compile(model, backend="eca_triton")`: lower ECA sites, then Inductor as the caller set it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .compat import inductor_compile, inductor_config, reset_cudagraphs, settings_of
from .passes import POST_GRAD_HOOK, CacheKeyPass, SiteRecord, lower_graph, plan_graph, with_pass
from .plan import Settings


def eca_triton(
    gm: fx.GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    config_patches: Mapping[str, Any] | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """The backend; `torch.compile` calls it.

    Args:
        gm: Dynamo's graph; changed in place.
        example_inputs: its inputs.
        mode: as for backend="inductor": "default", "reduce-overhead", "max-autotune", ...
        options: Inductor's options, and ours: "eca.force" (bool) lowers on any device and size;
            "eca.device" (str) plans as though the maps were on that device type.
        config_patches: Inductor options that torch itself adds.

    Raises:
        ValueError: an option under "eca." that does not exist.
    """
    theirs = dict(options or {})
    ours = {key: theirs.pop(key) for key in list(theirs) if key.startswith("eca.")}
    unknown = ours.keys() - {"eca.force", "eca.device"}
    if unknown:
        raise ValueError(f"unknown options {sorted(unknown)}; ours are eca.force and eca.device")
    settings = Settings.from_environment(**{key.removeprefix("eca."): value for key, value in ours.items()})
    patches = dict(config_patches or {})
    with settings_of(mode, theirs, patches):
        lower_graph(gm, settings)
    hook = patches.get(POST_GRAD_HOOK, theirs.get(POST_GRAD_HOOK, getattr(inductor_config(), POST_GRAD_HOOK)))
    patches[POST_GRAD_HOOK] = with_pass(hook, CacheKeyPass(settings.force))
    return inductor_compile(gm, example_inputs, mode, theirs, patches)


eca_triton.reset = reset_cudagraphs  # type: ignore[attr-defined]  # torch.compiler.reset() calls it


def inspect(model: torch.nn.Module, inputs: Sequence[Any], *, device_type: str = "cuda") -> list[SiteRecord]:
    """The sites of a model as they would be planned on a device: Dynamo only, nothing is lowered.

    Args:
        model: any module; on the meta device this takes no memory.
        inputs: its positional arguments, on the model's device.
        device_type: plan as though the maps were on a device of this type.

    Returns:
        list[SiteRecord] in graph order, rejected candidates after the sites of each graph.
    """
    records: list[SiteRecord] = []
    settings = Settings.from_environment(device=device_type)

    def collect(gm: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        for module in gm.modules():
            if isinstance(module, fx.GraphModule):
                records.extend(record for _, record in plan_graph(module, settings))
        return gm.forward

    torch._dynamo.reset()
    try:
        torch.compile(model, backend=collect, dynamic=False)(*inputs)
    finally:
        torch._dynamo.reset()
    return records

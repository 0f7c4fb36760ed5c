"""`torch.compile(model, backend="eca_triton")`: lower ECA sites, then Inductor as the caller set it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .chain import POST_GRAD_HOOK
from .compat import graph_breaks, inductor_compile, inductor_config, needs_data, reset_cudagraphs, settings_of
from .hooks import with_pass
from .match.where import module_paths, naming, root_path
from .passes import CacheKeyPass, lower_graph, plan_graph
from .reasons import NotLoweredError
from .record import SiteRecord
from .settings import Settings, SettingsError

log = logging.getLogger("eca_triton")
OPTIONS = {"eca.plan", "eca.strict", "eca.force", "eca.device"}


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
        options: Inductor's options, and ours: "eca.plan" (one of `PLANS`; "auto" by default) allows one plan
            alone, or with "off" none; "eca.strict" (bool) raises where a site stays with Inductor for another
            reason than cost; "eca.force" (bool) lowers on any device and size; "eca.device" (str) plans as
            though the maps were on that device type. Where plan and strict are not given, the environment
            counts: see `Settings.from_environment`.
        config_patches: Inductor options that torch itself adds.

    Raises:
        SettingsError: an option under "eca." that does not exist, or a value that it cannot have.
        NotLoweredError: with "eca.strict". torch.compile wraps both in its BackendCompilerFailed.
    """
    theirs = {name: value for name, value in (options or {}).items() if not name.startswith("eca.")}
    patches = dict(config_patches or {})
    try:
        key = _key(options or {})
        hook = getattr(inductor_config(), POST_GRAD_HOOK)
        keyed = {
            POST_GRAD_HOOK: with_pass(patches.get(POST_GRAD_HOOK, theirs.get(POST_GRAD_HOOK, hook)), key)
        }
        with settings_of(mode, theirs, patches):
            lower_graph(gm, key.settings)
        patches |= keyed
    except (SettingsError, NotLoweredError):
        raise
    except Exception:  # a user's program compiles even where we are wrong
        log.debug("the graph is left alone", exc_info=True)
    return inductor_compile(gm, example_inputs, mode, theirs, patches)


def _key(options: Mapping[str, Any]) -> CacheKeyPass:
    """The pass that has our options.

    Raises:
        SettingsError: there is no such option, or it cannot have that value.
    """
    ours = {name: value for name, value in options.items() if name.startswith("eca.")}
    unknown = ours.keys() - OPTIONS
    if unknown:
        raise SettingsError(f"unknown options {sorted(unknown)}; ours are {', '.join(sorted(OPTIONS))}")
    return CacheKeyPass(**{name.removeprefix("eca."): value for name, value in ours.items()})


eca_triton.reset = reset_cudagraphs  # type: ignore[attr-defined]  # torch.compiler.reset() calls it


def inspect(model: torch.nn.Module, inputs: Sequence[Any], *, device_type: str = "cuda") -> list[SiteRecord]:
    """The sites of a model as they would be planned on a device: `trace`, without what else it saw."""
    return trace(model, inputs, device_type=device_type).records


@dataclass(frozen=True)
class Trace:
    """Graphs that Dynamo made of a model.

    Attributes:
        records: In graph order, rejected candidates after the sites of each graph.
        modules: Paths of the modules that a graph has a call of.
        weights: Paths of the parameters that graphs slid over channels. A graph that is called by several
            layers, which Dynamo compiles once if they are alike, has the weights of all of them.
        graph_breaks: Why Dynamo split the model into several graphs.
    """

    records: list[SiteRecord]
    modules: frozenset[str]
    weights: frozenset[str]
    graph_breaks: tuple[str, ...]


def trace(
    model: torch.nn.Module,
    inputs: Sequence[Any],
    *,
    device_type: str = "cuda",
    lacks_data: Callable[[Exception], bool] = needs_data,
) -> Trace:
    """Find and plan the sites of a model: Dynamo only, nothing is lowered.

    Args:
        model: any module; on the meta device this takes no memory.
        inputs: its positional arguments, on the model's device.
        device_type: plan as though the maps were on a device of this type.
        lacks_data: whether an error ends the program only because its tensors have no elements.
    """
    records: list[SiteRecord] = []
    modules: set[str] = set()
    weights: set[int] = set()
    settings = Settings.from_environment(device=device_type)

    def collect(gm: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        sites = []
        for module in gm.modules():
            if isinstance(module, fx.GraphModule):
                planned = plan_graph(module, settings)
                records.extend(record for _, record in planned)
                sites += [site for site, _ in planned if site is not None]
                calls = [node for node in module.graph.nodes if node.op.startswith("call_")]
                root = root_path(module.graph)
                modules.update(path for node in calls for path in module_paths(node, root))
        inputs = gm.graph.find_nodes(op="placeholder")
        places = [inputs.index(site.weight) for site in sites if site.weight in inputs]

        def run(*args: Any) -> Any:
            weights.update(id(args[place]) for place in places)
            return gm.forward(*args)

        return run

    torch._dynamo.reset()
    before = graph_breaks()
    end: tuple[str, ...] = ()
    try:
        with naming(model):
            torch.compile(model, backend=collect, dynamic=False)(*inputs)
    except Exception as error:
        if not lacks_data(error):
            raise
        first_line, *_ = str(error).splitlines() or [repr(error)]
        end = (f"what comes then was not looked at, for want of data: {first_line}",)
    finally:
        torch._dynamo.reset()
    breaks = (*(why for why, times in graph_breaks().items() if times > before.get(why, 0)), *end)
    passed = {path for path, weight in model.named_parameters() if id(weight) in weights}
    return Trace(records, frozenset(modules), frozenset(passed), breaks)

"""`explain`: look at a model from all sides, none of which changes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..tuning.targets import TARGETS, target_like
from ..version import __version__
from .lookalikes import lookalikes, unmatched, unrecorded
from .report import Report
from .result import Subject
from .twin import NoTwinError, without_attention

if TYPE_CHECKING:
    from ..compile.backend import Trace
    from ..deviceless import Lowering


def explain(
    model: nn.Module,
    *inputs: Any,
    target: str | None = None,
    training: bool = False,
    mode: str = "default",
    measure: bool | None = None,
    name: str | None = None,
    progress: Callable[[str], None] | None = None,
    decided: Callable[[Report], None] | None = None,
) -> Report:
    """Say what becomes of every ECA-like site of a model on a GPU, and what that is predicted to be worth.

    No GPU is needed, and the model is not changed: a copy of its structure, without data, is compiled.

    Args:
        model: Module on the CPU, the meta device or a GPU, in the dtype and layout that it will run in.
        inputs: Its example inputs, on the same device.
        target: GPU to lower the whole network for (a key of `eca_triton.deviceless.TARGETS`), stock, with our
            pass and without ECA. None: the target that is most like this machine's GPU, and without a GPU no
            lowering: the report then has sites only, which is quick. "none": never a lowering.
        training: Look at a training step, with the copy in training mode, instead of inference.
        mode: As for torch.compile. Where Inductor would time its implementations of a matrix product, as with
            "max-autotune", the figures are those of Triton's, for all three networks.
        measure: Also time the three networks on the GPU that the model is on. None: where it is on one, and
            `target` is not "none".
        name: What to call the model; its class's name by default.
        progress: Called with a few words before each part of the work that takes seconds.
        decided: Called with a report of the sites alone as soon as they are known, where a lowering follows.

    Raises:
        ValueError: Unknown target or mode, or `measure` for a model that is not on a GPU.

    Examples:
        >>> report = eca_triton.explain(model, torch.randn(8, 3, 224, 224), target="h200")
        >>> print(report)
        >>> report.save_html("report.html")
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    on_gpu = any(tensor.is_cuda for tensor in (*model.parameters(), *_tensors(inputs)))
    if measure and not on_gpu:
        raise ValueError("measure=True needs model and inputs on a GPU, got neither")
    chosen = choose_target(target, _tensors(inputs))
    progress = progress or (lambda _: None)
    from ..compile.compat import inductor_config

    subject = _subject(model, inputs, name or type(model).__name__, training, mode, chosen)
    options = choose_options(mode)

    def sites_alone() -> Report:
        progress("tracing")
        with inductor_config().patch(options):
            traced = look(model, inputs, training=training)
        return _of_trace(replace(subject, target=None), model, traced)

    if chosen is None:
        return sites_alone()

    from ..compile.compat import graph_breaks
    from ..compile.hooks import stock_inductor
    from ..deviceless import NoDataError, compare, lower
    from ..deviceless.mocks import absent_gpu

    seen: Trace | None = None
    if decided is not None:
        progress("tracing")
        with inductor_config().patch(options), absent_gpu(TARGETS[chosen]):
            seen = look(model, inputs, training=training)
        decided(_of_trace(subject, model, seen))
    before = graph_breaks()
    with inductor_config().patch(options):
        try:
            comparison = compare(model, inputs, target=chosen, training=training, progress=progress)
        except NoDataError:  # the rest of the network is not known
            return sites_alone()
        breaks = tuple(why for why, times in graph_breaks().items() if times > before.get(why, 0))
        breaks += comparison.lowered.assumed
        plain: Lowering | None = None
        no_plain, twin = "", None
        try:
            if breaks:  # layers that are alike share a graph, and a record, so sites are not all known
                raise NoTwinError(f"the graph breaks ({breaks[0]})")
            twin = without_attention(model, comparison.records)
            progress("lowering without ECA")
            with stock_inductor():
                plain = lower(twin, inputs, target=chosen, training=training)
        except NoTwinError as reason:
            no_plain = str(reason)
        # Only where something looks like ECA beyond the records is it worth tracing once more to say why.
        found = unrecorded(lookalikes(model), comparison.records)
        if found and seen is None:
            seen = look(model, inputs, training=training)
    measured = None
    if measure or (measure is None and on_gpu and target != "none"):
        from .measure import measure_networks

        measured = measure_networks(model, twin, inputs, training=training, mode=mode)
    return Report(
        subject=subject,
        sites=tuple(comparison.records),
        comparison=comparison,
        plain=plain,
        no_plain=no_plain,
        unmatched=() if not found or seen is None else unmatched(found, seen),
        graph_breaks=breaks,
        measured=measured,
    )


def _of_trace(subject: Subject, model: nn.Module, traced: Trace) -> Report:
    """The report of the sites alone."""
    missing = unmatched(unrecorded(lookalikes(model), traced.records), traced)
    return Report(subject, tuple(traced.records), unmatched=missing, graph_breaks=traced.graph_breaks)


def look(model: nn.Module, inputs: tuple[Any, ...], *, training: bool) -> Trace:
    """Return what Dynamo sees of a model as it would be on a GPU."""
    from ..compile.backend import trace
    from ..deviceless.stand_in import ASSUMED, Fakes, StandIn

    # As on a GPU, and unlike on the meta device, a convolution of channels-last maps makes such maps.
    fakes = Fakes()
    stand_in = StandIn(fakes, torch.device("cpu"), dtype=None, channels_last=False)
    copy, arguments = stand_in.model(model).train(training), stand_in.inputs(inputs)
    with torch.set_grad_enabled(training), fakes:
        traced = trace(copy, arguments, device_type="cuda", lacks_data=fakes.lacks_data)
    return replace(traced, graph_breaks=(*traced.graph_breaks, *(ASSUMED,) * fakes.assumed))


def choose_options(mode: str) -> dict[str, Any]:
    """Inductor's options for a lowering that stands for a mode of torch.compile.

    Raises:
        ValueError: There is no such mode.
    """
    from ..compile.compat import mode_options

    options = dict(mode_options(mode))
    options.pop("triton.cudagraphs", None)  # the same kernels, replayed
    if options.get("max_autotune"):
        options["max_autotune_gemm_backends"] = "TRITON"
    return options


def choose_target(target: str | None, inputs: list[Tensor]) -> str | None:
    """The key of the target that is meant, None for no lowering.

    Raises:
        ValueError: There is no such target.
    """
    if target == "none":
        return None
    if target is not None:
        if target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, none, got {target!r}")
        return target
    if not torch.cuda.is_available():
        return None
    device = next((tensor.device for tensor in inputs if tensor.is_cuda), torch.device("cuda"))
    return target_like(torch.cuda.get_device_properties(device)).name


def _subject(
    model: nn.Module, inputs: tuple[Any, ...], name: str, training: bool, mode: str, target: str | None
) -> Subject:
    tensors = _tensors(inputs)
    dtypes = dict.fromkeys(_short(p.dtype) for p in model.parameters() if p.is_floating_point())
    return Subject(
        model=name,
        inputs=tuple(_form(tensor) for tensor in tensors),
        dtype=" + ".join(dtypes) or "none",
        batch=tensors[0].shape[0] if tensors and tensors[0].dim() else None,
        training=training,
        mode=mode,
        target=target,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {"eca_triton": __version__, "torch": torch.__version__}
    with suppress(metadata.PackageNotFoundError):
        found["triton"] = metadata.version("triton")
    return found


def _form(tensor: Tensor) -> str:
    sizes = " x ".join(str(size) for size in tensor.shape) or "number"
    channels_last = (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return f"{sizes} {_short(tensor.dtype)}" + " channels-last" * channels_last


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]

"""Models named on the command line: `timm:NAME`, or `FILE.py:FACTORY` for one's own."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ModelNotFoundError(Exception):
    """The named model cannot be had; the message says what to change."""


@dataclass(frozen=True)
class Request:
    """Which model to look at and how it is run.

    Attributes:
        name: `timm:NAME` or `FILE.py:FACTORY`, where `FACTORY()` returns `(model, example_inputs)`.
        batch: Images of one step, for timm models only.
        size: Height and width of an image, for timm models only; None for the model's own.
        dtype: Key in `DTYPES`, or None to leave the model as it comes.
        channels_last: Whether weights and maps are stored channels-last.
        training: Whether to look at a training step instead of inference.
        device: Where the model is to be; None: where it comes, which for timm models is the meta device.
    """

    name: str
    batch: int | None = None
    size: int | None = None
    dtype: str | None = None
    channels_last: bool = False
    training: bool = False
    device: str | None = None


def load(request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    """Build the model and its example inputs as the request describes them.

    timm models have no weights at all, but on a device that is asked for: there they have random ones.

    Raises:
        ModelNotFoundError: If there is no such model, file or factory, or timm is missing.
    """
    scheme, _, name = request.name.partition(":")
    if scheme == "timm":
        model, inputs = _timm_model(name, request)
    else:
        model, inputs = _own_model(request)
    if request.device is not None:
        model = model.to(request.device)
        inputs = _each_tensor(inputs, lambda x: x.to(request.device))
    if request.dtype is not None:
        dtype = DTYPES[request.dtype]
        model = model.to(dtype)
        inputs = _each_tensor(inputs, lambda x: x.to(dtype) if x.is_floating_point() else x)
    if request.channels_last:
        model = model.to(memory_format=torch.channels_last)
        inputs = _each_tensor(inputs, _channels_last)
    return model.train(request.training), inputs


def _timm_model(name: str, request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    try:
        import timm
    except ImportError as error:
        raise ModelNotFoundError("timm is not installed; pip install 'eca_triton[timm]'") from error
    if not timm.is_model(name.split(".")[0]):
        raise ModelNotFoundError(f"timm has no model {name!r}{_suggestion(name, timm.list_models())}")
    with torch.device(request.device or "meta"):
        model: Any = timm.create_model(name, pretrained=False)
    channels, height, width = model.pretrained_cfg["input_size"]
    height, width = (request.size, request.size) if request.size else (height, width)
    size = (request.batch or 1, channels, height, width)
    return model, (torch.randn(size, device=request.device or "meta"),)


def _own_model(request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    file, _, factory_name = request.name.rpartition(":")
    if not file.endswith(".py"):
        raise ModelNotFoundError(f"a model is timm:NAME or FILE.py:FACTORY, got {request.name!r}")
    if request.batch is not None or request.size is not None:
        raise ModelNotFoundError(
            "--batch and --size are for timm models; a factory chooses its own example inputs"
        )
    path = Path(file)
    if not path.is_file():
        raise ModelNotFoundError(f"no such file: {file}")
    factory = getattr(_run_file(path), factory_name, None)
    if not callable(factory):
        raise ModelNotFoundError(f"{file} has no function {factory_name!r}")
    made = factory()
    if not (isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ModelNotFoundError(
            f"{factory_name}() must return (model, example_inputs), got {type(made).__name__}"
        )
    model, inputs = made
    return model, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _run_file(path: Path) -> Any:
    """The file as a module; its own directory can be imported from, as when Python runs it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelNotFoundError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.to(memory_format=formats[x.dim()]) if x.dim() in formats else x


def _each_tensor(inputs: tuple[Any, ...], change: Any) -> tuple[Any, ...]:
    return tuple(change(x) if isinstance(x, Tensor) else x for x in inputs)

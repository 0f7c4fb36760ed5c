"""Models named on the command line: `timm:NAME`, `eca_triton:NAME`, or `FILE.py:FACTORY` for one's own."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..util.near_names import near_names
from .own_code import functions_of, told

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ModelNotFoundError(Exception):
    """The named model cannot be had; the message says what to change."""


@dataclass(frozen=True)
class Request:
    """Name of a model to look at, and how to run it.

    Attributes:
        name: `timm:NAME`, `eca_triton:NAME` of `eca_triton.models.names()`, or `FILE.py:FACTORY`, where
            `FACTORY()` returns `(model, example_inputs)`: inputs by position, or a dict of them by keyword.
        batch: Images of one step, for timm's and our models only.
        size: Height and width of an image, for timm's and our models only; None for the model's own.
        dtype: Key in `DTYPES`, or None to leave the model as it comes.
        channels_last: Whether weights and maps are stored channels-last.
        training: Whether to look at a training step instead of inference.
        device: Where the model is to be; None: where it comes, the meta device for timm's and our models.
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

    timm's and our models have no weights at all, but on a device that is asked for: there they are random.

    Raises:
        ModelNotFoundError: If there is no such model, file or factory, or timm is missing.
        OwnCodeError: If the file or the factory ended with an error.
    """
    scheme, _, name = request.name.partition(":")
    if scheme in SCHEMES:
        model, inputs = _library_model(scheme, name, request)
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
    if scheme not in SCHEMES and model.training and not request.training:
        said = "is in training mode, and is looked at in inference; --training looks at a step"
        print(f"eca_triton: {request.name} {said}", file=sys.stderr)
    return model.train(request.training), inputs


def _library_model(scheme: str, name: str, request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    device = torch.device(request.device or "meta")
    model, (channels, height, width) = SCHEMES[scheme](name, device)
    height, width = (request.size, request.size) if request.size else (height, width)
    return model, (torch.randn(request.batch or 1, channels, height, width, device=device),)


def _timm_model(name: str, device: torch.device) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model and the size of its image."""
    try:
        import timm
    except ImportError as error:
        raise ModelNotFoundError("timm is not installed; pip install 'eca_triton[timm]'") from error
    if not timm.is_model(name.split(".")[0]):
        raise ModelNotFoundError(f"timm has no model {name!r}{near_names(name, timm.list_models())}")
    with device:
        model: Any = timm.create_model(name, pretrained=False)
    return model, model.pretrained_cfg["input_size"]


def _our_model(name: str, device: torch.device) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model and the size of its image."""
    try:
        from .. import models
    except ImportError as error:
        raise ModelNotFoundError(str(error)) from error
    if name not in models.names():
        raise ModelNotFoundError(f"eca_triton has no model {name!r}{near_names(name, models.names())}")
    with device:
        return models.create(name), (3, 224, 224)


SCHEMES = {"timm": _timm_model, "eca_triton": _our_model}


def _own_model(request: Request) -> tuple[nn.Module, tuple[Any, ...]]:
    file, _, factory_name = request.name.rpartition(":")
    if request.name.endswith(".py"):
        file, factory_name = request.name, ""
    if not file.endswith(".py"):
        wanted = "a model is timm:NAME, eca_triton:NAME or FILE.py:FACTORY"
        raise ModelNotFoundError(f"{wanted}, got {request.name!r}{_meant(request.name)}")
    path = Path(file)
    if not path.is_file():
        raise ModelNotFoundError(f"no such file: {file}")
    if not factory_name:
        raise ModelNotFoundError(f"{file}: which function makes the model? {file}:FACTORY{_its(path)}")
    if request.batch is not None or request.size is not None:
        raise ModelNotFoundError(
            "--batch and --size are for timm:NAME and eca_triton:NAME; a factory chooses its own inputs"
        )
    try:
        module = _run_file(path)
    except Exception as error:
        raise told(path, error, "run") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        near = near_names(factory_name, functions_of(path))
        raise ModelNotFoundError(f"{file} has no function {factory_name!r}{near or _its(path)}")
    if needed := _needed(factory):
        raise ModelNotFoundError(
            f"{factory_name} takes arguments ({', '.join(needed)}), and a factory is called without: "
            f"add a function that returns {factory_name}(...), and name that one"
        )
    try:
        made = factory()
    except Exception as error:
        raise told(path, error, f"asked for {factory_name}()") from error
    return _model_and_inputs(factory_name, made)


def _meant(name: str) -> str:
    """What a name without a scheme may have meant: a network of timm's, or of ours."""
    for scheme in SCHEMES:
        with suppress(ModelNotFoundError):
            SCHEMES[scheme](name, torch.device("meta"))
            return f"; did you mean {scheme}:{name}?"
    return ""


def _its(path: Path) -> str:
    functions = functions_of(path)
    return f"; its functions are {', '.join(functions)}" if functions else "; it defines no function"


def _needed(factory: Any) -> list[str]:
    """Names of the arguments that a factory cannot be called without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [each.name for each in parameters if each.default is each.empty and each.kind not in optional]


def _model_and_inputs(factory: str, made: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """The pair that a factory returned, the inputs by position.

    Raises:
        ModelNotFoundError: It is no such pair; the message says what is.
    """
    wanted = f"{factory}() must return (model, example_inputs)"
    if isinstance(made, nn.Module):
        raise ModelNotFoundError(f"{wanted}, got the model alone")
    if not (isinstance(made, (tuple, list)) and len(made) == 2):
        raise ModelNotFoundError(f"{wanted}, got {type(made).__name__}")
    model, inputs = made
    if not isinstance(model, nn.Module):
        swapped = isinstance(inputs, nn.Module)
        got = "them the other way round" if swapped else f"a {type(model).__name__} in place of the model"
        raise ModelNotFoundError(f"{wanted}, got {got}")
    if isinstance(inputs, dict):
        inputs = _by_position(factory, model, inputs)
    elif not isinstance(inputs, (tuple, list)):
        inputs = (inputs,)
    for leaf in pytree.tree_leaves(list(inputs)):
        if type(leaf).__module__ == "numpy":
            raise ModelNotFoundError(
                f"{factory}() returned NumPy arrays as inputs: make tensors of them, torch.from_numpy(x)"
            )
    return model, tuple(inputs)


def _by_position(factory: str, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """Keyword inputs in the order of `forward`; a dict that is none of these is an input by itself.

    Raises:
        ModelNotFoundError: `forward` takes one of them by keyword alone.
    """
    signature = inspect.signature(model.forward)
    if not set(inputs) <= set(signature.parameters):
        return (inputs,)
    try:
        bound = signature.bind(**inputs)
    except TypeError as error:
        raise ModelNotFoundError(f"{factory}(): forward cannot take these inputs: {error}") from error
    bound.apply_defaults()
    if bound.kwargs:
        raise ModelNotFoundError(
            f"{factory}(): forward takes {', '.join(bound.kwargs)} by keyword alone: "
            "wrap the model in a module whose forward takes them by position"
        )
    return bound.args


def _run_file(path: Path) -> Any:
    """The file as a module; its own directory can be imported from, as when Python runs it."""
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    sys.meta_path.insert(0, _Unshadowed(path))
    name = _free_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelNotFoundError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _free_name(path: Path) -> str:
    """Name the module of a file: by its stem, unless another module is called so, imported yet or not."""
    name = re.sub(r"\W", "_", path.stem)
    while name in sys.stdlib_module_names or _is_taken(name, path):
        name = f"_{name}"
    return name


def _is_taken(name: str, path: Path) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # it is loaded, and from nowhere
        return True
    return spec is not None and spec.origin != str(path)


class _Unshadowed(MetaPathFinder):
    """Finds the standard library, and what is called like a user's file, where users' files are not.

    Libraries import such modules at any time. All others are found as when Python runs the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module, if it is such a one."""
        if path is not None or name not in {self.path.stem, *sys.stdlib_module_names}:
            return None
        users = {self.path.parent, Path.cwd()}
        return PathFinder.find_spec(name, [each for each in sys.path if Path(each).resolve() not in users])


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.to(memory_format=formats[x.dim()]) if x.dim() in formats else x


def _each_tensor(inputs: tuple[Any, ...], change: Any) -> tuple[Any, ...]:
    return tuple(pytree.tree_map_only(Tensor, change, list(inputs)))

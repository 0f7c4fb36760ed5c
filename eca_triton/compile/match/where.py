"""Where in the user's program a node of a Dynamo graph comes from: modules and source lines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import fx, nn

from .graph import tensor_users
from .site import Site

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
TORCH = str(Path(torch.__file__).parent)


_paths: ContextVar[dict[str, str]] = ContextVar("eca_triton_module_paths")


@contextmanager
def naming(model: nn.Module) -> Iterator[None]:
    """Within it, nodes get paths in this model also where Dynamo compiles a module inside by itself."""
    paths = {str(id(module)): path for path, module in model.named_modules()}
    token = _paths.set(paths)
    try:
        yield
    finally:
        _paths.reset(token)


def module_paths(node: fx.Node, root: str) -> list[str]:
    """Paths of the modules around a node, outermost first, as in `named_modules()`.

    root: The `root_path` of its graph.
    """
    inner = [_plain(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return [root] * bool(root) + [f"{root}.{path}".strip(".") for path in inner]


def root_path(graph: fx.Graph) -> str:
    """Path of the module whose forward the graph is: not "" where the model's own is broken up.

    Known inside `naming` only, from the identity of any module that the graph calls.
    """
    known = _paths.get({})
    for node in graph.nodes if known else ():
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            whole, part = known.get(str(key).partition("@")[0]), _plain(path)
            if whole is not None and (not part or f".{whole}".endswith(f".{part}")):
                return whole.removesuffix(part).strip(".")
    return ""


def _plain(path: str) -> str:
    """Dynamo's "L['self'].layer1[0].se" as `named_modules()` has it: "layer1.0.se"."""
    path = re.sub(r"^L\['\w+'\]|\._modules|\._orig_mod", "", path)
    return re.sub(r"\[['\"]?([^\]'\"]+)['\"]?\]", r".\1", path).strip(".")


def source_line(node: fx.Node) -> str:
    """The innermost call that is not torch's own, as "file.py:18", or "" where Dynamo noted none."""
    frames = [match.groups() for match in FRAME.finditer(node.meta.get("stack_trace") or "")]
    theirs = [(file, line) for file, line in frames if not file.startswith(TORCH)]
    if not theirs:
        return ""
    file, line = theirs[-1]
    here = os.getcwd() + os.sep
    return f"{file.removeprefix(here)}:{line}"


def owner(site: Site, root: str) -> str | None:
    """Path of the module that is the site and nothing else: map in, rescaled map out. None without one."""
    if site.shared:  # a gate comes out, too
        return None
    around = set.intersection(*(set(module_paths(node, root)) for node in (*site.chain, site.mul)))
    others = [node for node in (*tensor_users(site.mul), site.x) if node.op.startswith("call_")]
    alone = around.difference({""}, *(module_paths(node, root) for node in others))
    return min(alone, key=len, default=None)

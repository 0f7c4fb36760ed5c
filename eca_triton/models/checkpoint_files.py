"""State dicts as people save them: read without running code, unwrapped, and under our names."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
import torch
from timm.models import clean_state_dict
from torch import Tensor

from .identify import attention_tensors

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"
"""A file of torch.save or safetensors, or what such a file holds."""

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")
"""Under which training scripts keep the state dict; averaged weights first, as in timm."""


def read_state_dict(source: Source) -> dict[str, Tensor]:
    """The tensors of a checkpoint, under the names of our networks.

    A state dict inside a training script's dict is taken out of it; `module.` and `_orig_mod.` are taken from
    the front of names; the official `layer1.0.eca` becomes timm's `layer1.0.se`.

    Raises:
        OSError: the file cannot be read.
        TypeError: source is neither a path nor a mapping.
        ValueError: it is no checkpoint, it needs more than tensors unpickled, or its ECA has even taps.
    """
    content = _read(Path(source)) if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(content, Mapping):
        raise TypeError(
            f"a checkpoint is a path, or a mapping from names to tensors, got {type(content).__name__}"
        )
    wrapped = (content[each] for each in WRAPPERS if isinstance(content.get(each), Mapping))
    content = next(wrapped, content)
    others = [
        name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others or not content:
        listed = ", ".join(map(repr, others[:3])) or "nothing"
        raise ValueError(
            f"a state dict holds named tensors alone, this mapping {listed}, and no state dict under"
            f" {', '.join(WRAPPERS)}; pass the one inside it"
        )
    cleaned: dict[str, Tensor] = clean_state_dict(dict(content))
    state = {re.sub(r"^(layer\d\.\d+)\.eca\.", r"\1.se.", name): value for name, value in cleaned.items()}
    for each in attention_tensors(state):
        if each.value.dim() == 3 and each.value.shape[-1] % 2 == 0:
            raise ValueError(
                f"{each.name}: the checkpoint has {list(each.value.shape)}, an even number of taps, which has"
                " no middle; train with an odd k_size"
            )
    return state


def _read(path: Path) -> Any:
    """Return what the file holds, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # timm's training script saves its arguments too: a Namespace, which does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what is no checkpoint fails in many ways, KeyError among them
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds {refused[1]}, not only tensors, and unpickling such a file can run any code."
                " Ask for a file of model.state_dict() alone. Never set weights_only=False for a file that"
                " you do not trust; convert one that you trust, once:"
                " torch.save(torch.load(OLD, weights_only=False)['state_dict'], NEW)"
            ) from error
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise ValueError(
            f"{path} is no checkpoint of torch.save, or of safetensors with that ending, or it is damaged"
            f" ({reason}); download it again, or save model.state_dict() with torch.save"
        ) from error

"""One of two processes that share a batch: `batch_norm_eca` with their group, against the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from batch_norm_call import arguments, plain
from torch import Tensor

import eca_triton  # noqa: F401  registers torch.ops.eca_triton

SPLITS = {"equal": (2, 2), "unequal": (1, 3)}


def share(rank: int, split: tuple[int, int], tensor: Tensor) -> Tensor:
    """This process's images."""
    return tensor.split(split)[rank].detach().clone()


def differences(rank: int, split: tuple[int, int], compiled: bool) -> list[float]:
    """Largest differences from the whole batch: results, gradients of maps and, summed, of parameters."""
    whole = arguments()
    for name in ("x", "residual"):
        whole[name] = torch.cat([whole[name], 2 * whole[name][:1] + 1]).detach().requires_grad_()
    expected = plain(whole, activation="relu")
    dy = torch.randn(expected.shape, dtype=expected.dtype)
    dist.broadcast(dy, 0)
    wanted = torch.autograd.grad(expected, list(whole.values()), dy)

    own = {
        name: (share(rank, split, tensor) if tensor.ndim == 4 else tensor.detach()).requires_grad_()
        for name, tensor in whole.items()
    }
    group = dist.group.WORLD.group_name

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.eca_triton.batch_norm_eca(*tensors, activation="relu", group=group)

    if compiled:
        run = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=False)
    out, mean, var = run(*own.values())
    gradients = torch.autograd.grad(out, list(own.values()), share(rank, split, dy))
    flat = whole["x"].detach().movedim(1, 0).flatten(1)
    pairs = [(out, share(rank, split, expected)), (mean, flat.mean(1)), (var, flat.var(1))]
    for name, got, want in zip(whole, gradients, wanted, strict=True):
        if name in ("x", "residual"):
            want = share(rank, split, want)
        else:
            dist.all_reduce(got)
        pairs.append((got, want))
    return [(got - want).abs().max().item() for got, want in pairs]


def second_derivative() -> str:
    """What asking for one says."""
    tensors = arguments()
    out, _, _ = torch.ops.eca_triton.batch_norm_eca(*tensors.values(), group=dist.group.WORLD.group_name)
    with pytest.raises(NotImplementedError) as error:
        torch.autograd.grad(out.sum(), list(tensors.values()), create_graph=True)
    return str(error.value)


def process(rank: int, folder: Path) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, float | str] = {}
    for name, split in SPLITS.items():
        for compiled in (False, True):
            torch.manual_seed(0)
            found[f"{name}, {'compiled' if compiled else 'eager'}"] = max(differences(rank, split, compiled))
    found["second derivative"] = second_derivative()
    (folder / str(rank)).write_text(json.dumps(found))
    dist.destroy_process_group()

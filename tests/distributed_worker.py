"""One of two processes that train the same small network together: `torchrun --nproc-per-node 2 <this> FILE`.

Every way in WAYS starts from the same weights and sees the same batches, half of each in each process. Rank 0
writes what became of it into FILE, beside a run of one eager process with whole batches. `test_distributed`
starts this and reads FILE.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import EcaModule
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.distributed.fsdp import fully_shard
from torch.nn.modules._functions import SyncBatchNorm as synchronized_batch_norm  # noqa: N813 (a function)
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from eca_triton.compile.passes import lower_graph
from eca_triton.compile.settings import Settings

# A 3x3 convolution of so many channels fills a bucket of DDP, whose least size is 1 MB.
CHANNELS, BUCKET_MB = 192, 1
STEPS, BATCH, CLASSES = 3, 8, 4

plans: list[list[str]] = []


class Block(nn.Module):
    """conv, batch norm, ECA, shortcut, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn, self.eca = nn.BatchNorm2d(CHANNELS), EcaModule(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.eca(self.bn(self.conv(x))) + x)


class Network(nn.Module):
    """Two ECA sites; the same weights in every instance."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, CHANNELS, 3, padding=1), Block(), Block()
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class SyncBatchNormOnCPU(nn.BatchNorm2d):
    """nn.SyncBatchNorm's own autograd function; the module itself refuses the CPU, and so does DDP for it."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches_tracked.add_(1)
        options = self.running_mean, self.running_var, self.eps, self.momentum
        return synchronized_batch_norm.apply(x, self.weight, self.bias, *options, dist.group.WORLD, 2)


def synchronized(model: Network) -> Network:
    """Batch statistics of both processes together."""
    for block in (model.first, model.second):
        block.bn.__class__ = SyncBatchNormOnCPU
    return model


def frozen(model: Network) -> Network:
    """Batch norm keeps its statistics, so that nothing but gradients depends on other images."""
    for block in (model.first, model.second):
        block.bn.eval()
    return model


def give_the_cpu_the_kernels_of_synchronized_batch_norm() -> torch.library.Library:
    """The five operators under SyncBatchNorm have kernels for GPUs alone; these are their formulas."""

    def spread(vector: Tensor) -> Tensor:
        return vector[:, None, None]

    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + eps).rsqrt()

    def gather(x, mean, invstd, running_mean, running_var, momentum, eps, counts):
        total, share = counts.sum(), (counts / counts.sum())[:, None]
        joint = (share * mean).sum(0)
        var = (share * (invstd**-2 - eps + (mean - joint) ** 2)).sum(0)
        running_mean.lerp_(joint, momentum)
        running_var.lerp_(var * total / (total - 1), momentum)
        return joint, (var + eps).rsqrt()

    def normalize(x, weight, bias, mean, invstd, eps):
        return (x - spread(mean)) * spread(invstd * weight) + spread(bias)

    def reduce(grad, x, mean, invstd, weight, *wanted):
        sum_grad, sum_product = grad.sum((0, 2, 3)), (grad * (x - spread(mean))).sum((0, 2, 3))
        return sum_grad, sum_product, sum_product * invstd, sum_grad.clone()

    def backward(grad, x, mean, invstd, weight, sum_grad, sum_product, counts):
        total = counts.sum()
        along = (x - spread(mean)) * spread(invstd**2 * sum_product / total)
        return (grad - spread(sum_grad / total) - along) * spread(invstd * weight)

    library = torch.library.Library("aten", "IMPL")
    for name, kernel in {
        "batch_norm_stats": stats,
        "batch_norm_gather_stats_with_counts": gather,
        "batch_norm_elemt": normalize,
        "batch_norm_backward_reduce": reduce,
        "batch_norm_backward_elemt": backward,
    }.items():
        library.impl(name, kernel, "CPU")
    return library


def compiled(model: nn.Module) -> nn.Module:
    """The model, which compiles itself with sites planned as for a GPU; `plans` gets a list per graph."""

    def backend(gm: fx.GraphModule, inputs: list[Tensor]) -> Callable:
        records = lower_graph(gm, Settings(device="cuda"))
        plans.append([record.decision.plan for record in records])
        return lookup_backend("aot_eager")(gm, inputs)

    model.compile(backend=backend, dynamic=False)
    return model


def parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, bucket_cap_mb=BUCKET_MB)


def sharded(model: Network) -> Network:
    fully_shard(model.first)
    fully_shard(model.second)
    return fully_shard(model)


def with_compiled_blocks(model: Network) -> Network:
    compiled(model.first)
    compiled(model.second)
    return model


@dataclass
class Way:
    """What a user does with the model, its batch norms, and the parts in which each batch comes."""

    wrap: Callable[[Network], nn.Module]
    norm: Callable[[Network], Network] = frozen
    parts: int = 1


WAYS = {
    "DDP of compiled": Way(lambda model: parallel(compiled(model))),
    "compiled DDP": Way(lambda model: compiled(parallel(model))),
    "compiled DDP, accumulating": Way(lambda model: compiled(parallel(model)), parts=2),
}
SYNCHRONIZED = {
    "DDP of compiled, SyncBatchNorm": Way(lambda model: parallel(compiled(model)), synchronized),
    "compiled DDP, SyncBatchNorm": Way(lambda model: compiled(parallel(model)), synchronized),
    "FSDP2 of compiled, SyncBatchNorm": Way(lambda model: sharded(with_compiled_blocks(model)), synchronized),
    "compiled FSDP2, SyncBatchNorm": Way(lambda model: compiled(sharded(model)), synchronized),
}
if not torch.__version__.startswith("2.12."):  # whose Dynamo fails on SyncBatchNorm's group, for any backend
    WAYS |= SYNCHRONIZED


def train(model: nn.Module, rank: int = 0, world: int = 1, parts: int = 1) -> tuple[list[float], dict]:
    """Train on every world-th image from `rank` on; the losses of joint batches, our ops in the last step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(STEPS):
        images = torch.randn(BATCH, 3, 6, 6, generator=generator)[rank::world]
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)[rank::world]
        total = torch.zeros(())
        last = profile(activities=[ProfilerActivity.CPU]) if step == STEPS - 1 else nullcontext()
        with last:
            for part in range(parts):
                with model.no_sync() if part < parts - 1 else nullcontext():
                    loss = F.cross_entropy(model(images[part::parts]), labels[part::parts]) / parts
                    loss.backward()
                total += loss.detach() / world
        if world > 1:
            dist.all_reduce(total)
        losses.append(total.item())
        optimizer.step()
        optimizer.zero_grad()
    calls = Counter(event.name for event in last.events() if event.name.startswith("eca_triton::"))
    return losses, calls


def main(file: Path) -> None:
    """Train in every way; the first process also alone, and it writes all that into the file."""
    # A collective that the other process never enters fails, so that nothing hangs.
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world = dist.get_rank(), dist.get_world_size()
    kernels = give_the_cpu_the_kernels_of_synchronized_batch_norm()
    found: dict[str, Any] = {}
    for name, way in WAYS.items():
        torch._dynamo.reset()
        plans.clear()
        losses, calls = train(way.wrap(way.norm(Network())), rank, world, way.parts)
        # Batch norm of one process with the whole batch is what SyncBatchNorm is for two.
        alone = frozen(Network()) if way.norm is frozen else Network()
        joint, _ = train(alone) if rank == 0 else ([], {})
        found[name] = {"losses": losses, "joint": joint, "calls": calls, "plans": list(plans)}
    del kernels
    if rank == 0:
        file.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

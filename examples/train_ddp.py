"""Train an ECA network in two processes with DDP, compiled and lowered, and compare with one process.

Runs on the CPU (gloo), where lowering is forced; on GPUs, use "nccl" and a device for each process. Each
process takes half of every batch; DDP averages the gradients, so the weights are those of one process with
whole batches. Prints the losses of both, and exits with 1 where they part. How-to: docs/training.md.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import eca_triton

PROCESSES, STEPS, BATCH, CLASSES = 2, 4, 8, 5
TOLERANCE = 1e-4  # of a loss: sums in another order, over four steps


class Block(nn.Module):
    """Convolution, group norm, ECA, shortcut, ReLU. Group norm needs no statistics of other processes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm, self.attention = nn.GroupNorm(8, channels), eca_triton.ECA(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.attention(self.norm(self.conv(x))) + x)


class Network(nn.Module):
    """Two blocks; the same weights in every process."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(32), Block(32))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def batches() -> list[tuple[Tensor, Tensor]]:
    """Images and labels of all processes together."""
    torch.manual_seed(1)
    return [(torch.randn(BATCH, 3, 32, 32), torch.randint(CLASSES, (BATCH,))) for _ in range(STEPS)]


def train(step_of: nn.Module, part: slice) -> list[float]:
    """Train on a part of each batch; the losses."""
    optimizer = torch.optim.SGD(step_of.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for images, labels in batches():
        loss = F.cross_entropy(step_of(images[part]), labels[part])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def process(rank: int, port: int) -> None:
    """One of the processes; the first prints."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=300))
    torch.set_num_threads(1)
    try:
        options = {"eca.force": True}  # on a CPU; a GPU needs no word
        model = torch.compile(DistributedDataParallel(Network()), backend="eca_triton", options=options)
        share = BATCH // PROCESSES
        mine = torch.tensor(train(model, slice(rank * share, (rank + 1) * share)))
        dist.all_reduce(mine)
        if rank == 0:
            compare((mine / PROCESSES).tolist(), train(Network(), slice(None)))
            print(f"{eca_triton.last_report().lowered} channel attentions lowered in each process")
    finally:
        dist.destroy_process_group()


def compare(ours: list[float], alone: list[float]) -> None:
    """Print the losses; end the process with 1 where they part."""
    print(f"step  {PROCESSES} processes, lowered  one, eager")
    for step, (loss, wanted) in enumerate(zip(ours, alone, strict=True)):
        print(f"{step:4}  {loss:20.5f}  {wanted:10.5f}", flush=True)
    if max(abs(loss - wanted) for loss, wanted in zip(ours, alone, strict=True)) > TOLERANCE:
        sys.exit("the losses part")


def main() -> None:
    """Start the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (port,), PROCESSES)


if __name__ == "__main__":
    main()

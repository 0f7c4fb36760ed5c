"""Times on the GPU that the model is on: correctness first, then the networks in turn."""

from __future__ import annotations

import copy
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..compile.hooks import stock_inductor
from .predict import Band

ROUNDS = 20
STEPS = 5  # timed as one, so that the host is ahead of the GPU
BACKENDS = {"stock": "inductor", "ours": "eca_triton", "plain": "inductor"}

Step = Callable[[], Any]
Clock = Callable[[Step], float]
"""Microseconds of one call."""
Compile = Callable[[nn.Module, str], Callable[..., Any]]


@dataclass(frozen=True)
class Measurement:
    """Times on a GPU.

    Attributes:
        device: Its name.
        step_us: By network ("stock", "ours", "plain"), quartiles over the rounds. Empty if `problem`.
        rounds: How often each was timed.
        problem: Why there are no times, or "".
    """

    device: str
    step_us: Mapping[str, Band]
    rounds: int
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, under the names of the attributes."""
        return {**vars(self), "step_us": {name: list(band) for name, band in self.step_us.items()}}

    def write(self, out: TextIO) -> None:
        """One line for each network, or the problem."""
        if self.problem:
            out.write(f"not measured on {self.device}: {self.problem}\n")
        for name, band in self.step_us.items():
            quartiles = f"quartiles {band.low:,.1f} to {band.high:,.1f} of {self.rounds} rounds"
            out.write(f"measured on {self.device}: {name} {band.likely:,.1f} us ({quartiles})\n")


def measure_networks(
    model: nn.Module,
    twin: nn.Module | None,
    inputs: tuple[Any, ...],
    *,
    training: bool,
    mode: str = "default",
    clock: Clock | None = None,
    compiled: Compile | None = None,
    rounds: int = ROUNDS,
) -> Measurement:
    """Time a step of the network, stock and with our pass, and of the one without ECA, in turn.

    Copies are run, so that running statistics and gradients of the model stay as they are.

    Args:
        model: On the GPU, with its weights.
        twin: The same without ECA, if it can be had.
        inputs: On the same GPU.
        training: Forward and backward, in training mode, or forward in evaluation mode without gradients.
        mode: Of torch.compile, for all of them.
        clock: Takes the time of a call; by default CUDA events around `STEPS` calls.
        compiled: Compiles a module with a backend; by default torch.compile.
        rounds: How often each network is timed.
    """
    make = compiled or (
        lambda module, backend: torch.compile(module, backend=backend, mode=mode, dynamic=False)
    )
    networks = {"stock": model, "ours": model} | ({} if twin is None else {"plain": twin})
    copies = {name: copy.deepcopy(network).train(training) for name, network in networks.items()}
    steps = {
        name: _step(make(module, BACKENDS[name]), module, inputs, training) for name, module in copies.items()
    }
    device = _device_name(inputs)
    with stock_inductor():  # which compiles at first calls; our own backend brings its pass along
        # Cloned: a CUDA graph's results are overwritten by the next that is replayed.
        first = {name: pytree.tree_map_only(Tensor, torch.clone, step()) for name, step in steps.items()}
    problem = disagreement(_exact(model, inputs, training), first["stock"], first["ours"])
    if problem:
        return Measurement(device, {}, rounds, problem)
    times = in_turn(steps, clock or cuda_clock, rounds)
    return Measurement(device, {name: quartiles(each) for name, each in times.items()}, rounds)


def disagreement(exact: Any, stock: Any, ours: Any) -> str:
    """Name a result or gradient of ours more than twice as far from the exact one as stock's, or ""."""
    for what, true, theirs, mine in zip(("results", "gradients"), exact, stock, ours, strict=True):
        off_stock, off_ours, size = _norm(theirs, true), _norm(mine, true), _norm(true)
        unit = max((torch.finfo(tensor.dtype).eps for tensor in mine), default=0.0) * size
        if not off_ours <= 2 * off_stock + unit:
            scale = size or 1.0
            return (
                f"our {what} are off by {off_ours / scale:.2g}, stock Inductor's by {off_stock / scale:.2g}"
            )
    return ""


def in_turn(steps: Mapping[str, Step], clock: Clock, rounds: int) -> dict[str, list[float]]:
    """Times of each step, taken round by round in a changing order: a clock's drift meets all alike."""
    order = deque(steps)
    for name in order:
        for _ in range(3):
            steps[name]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in order:
            times[name].append(clock(steps[name]))
        order.rotate()
    return times


def quartiles(times: list[float]) -> Band:
    """First quartile, median, third quartile."""
    return Band(*statistics.quantiles(times, n=4, method="inclusive"))


def cuda_clock(step: Step) -> float:
    """Microseconds of a call between two CUDA events, the mean of `STEPS` calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(STEPS):
        step()
    end.record()
    torch.cuda.synchronize()
    return float(1e3 * start.elapsed_time(end) / STEPS)


def _step(network: Callable[..., Any], module: nn.Module, inputs: tuple[Any, ...], training: bool) -> Step:
    """A call that returns the network's results and the gradients of its parameters."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]

    def infer() -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad():
            return _floats(network(*inputs)), []

    def train() -> tuple[list[Tensor], list[Tensor]]:
        results = _floats(network(*inputs))
        total = sum(result.float().sum() for result in results if result.requires_grad)
        gradients = torch.autograd.grad(cast(Tensor, total), weights, allow_unused=True)
        return results, [gradient for gradient in gradients if gradient is not None]

    return train if training else infer


def _exact(model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Any:
    """Eager results in a finer dtype: float32 for the 16-bit types, float64 for the others."""
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    finer = torch.float32 if dtypes & {torch.float16, torch.bfloat16} else torch.float64
    module = copy.deepcopy(model).to(finer).train(training)
    same = pytree.tree_map_only(Tensor, lambda x: x.to(finer) if x.is_floating_point() else x, inputs)
    return _step(module, module, same, training)()


def _floats(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _norm(tensors: list[Tensor], less: list[Tensor] | None = None) -> float:
    """Euclidean norm of all the numbers together, or of their differences."""
    minus = [torch.zeros_like(tensor) for tensor in tensors] if less is None else less
    pairs = zip(tensors, minus, strict=True)
    squares = [float((a.detach().double() - b.detach().double()).square().sum()) for a, b in pairs]
    return math.sqrt(sum(squares))


def _device_name(inputs: tuple[Any, ...]) -> str:
    devices = [leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    on_gpu = [device for device in devices if device.type == "cuda"]
    return torch.cuda.get_device_name(on_gpu[0]) if on_gpu else "cpu"

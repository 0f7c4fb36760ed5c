"""How long calls take on a GPU: replays of CUDA graphs, in turn, each from memory and not from L2."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

COLD = 4  # times the L2 that inputs, or what is read before a replay, must exceed
MAX_SETS = 256  # of inputs; small maps would take thousands
LEAST_CALLS = 10  # of one replay: starting it, and reading the clock, must not show

Call = Callable[[int], Any]
"""What to time, called with the number of a set of inputs; its results are kept alive for a while."""
Calls = Mapping[str, Call]
Timer = Callable[[Calls, int, int], dict[str, list[float]]]
"""(calls, sets, repeats) -> by name, `repeats` times microseconds of one call."""


def input_sets(input_bytes: int, l2_bytes: int) -> int:
    """Sets of inputs that together are more than `COLD` times the L2; at least 2, at most `MAX_SETS`."""
    return min(max(2, COLD * l2_bytes // input_bytes + 1), MAX_SETS)


def calls_per_replay(sets: int) -> int:
    """Every set equally often; just once where the sets may be too small to evict each other."""
    return sets if sets == MAX_SETS else -(-LEAST_CALLS // sets) * sets


def time_in_turn(calls: Calls, sets: int, repeats: int) -> dict[str, list[float]]:
    """Microseconds per call, on the current CUDA device.

    Each is captured as one graph of `calls_per_replay` calls on changing inputs, each with an output of its
    own. Then the graphs are replayed in turn, so that the clock's drift meets all of them alike, and in
    another order each time. Before every replay more than `COLD` times the L2 is read, outside the timing.
    """
    count = calls_per_replay(sets)
    graphs = {name: _captured(call, sets, count) for name, call in calls.items()}
    for graph in graphs.values():
        graph.replay()
    order = deque(graphs)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in graphs}
    for _ in range(repeats):
        for name in order:
            start, end = _event(), _event()
            _evict()
            start.record()
            graphs[name].replay()
            end.record()
            events[name].append((start, end))
        order.rotate()
    torch.cuda.synchronize()
    return {
        name: [1e3 * start.elapsed_time(end) / count for start, end in pairs]
        for name, pairs in events.items()
    }


def _captured(call: Call, sets: int, count: int) -> torch.cuda.CUDAGraph:
    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Outside the graph, on its stream: workspaces are allocated, and a backward's forward is run, whose
        # stream is the backward's too.
        for index in range(max(3, sets)):
            call(index % sets)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    outputs: deque[Any] = deque(maxlen=sets)  # alive, so that the next call has another buffer
    with torch.cuda.graph(graph, stream=stream):
        for index in range(count):
            outputs.append(call(index % sets))
    return graph


@cache
def _stream() -> torch.cuda.Stream:
    """One for every capture: libraries keep a workspace per stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _evict() -> None:
    """Fills the L2 with clean lines: nothing is left to find, and nothing to write back.

    Several times, so that the host has handed over the graph before the clock starts.
    """
    for _ in range(3):
        _other_memory(torch.cuda.current_device()).sum()


@cache
def _other_memory(device: int) -> Tensor:
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.zeros(COLD * l2_bytes // 4 + 1, dtype=torch.float32, device=f"cuda:{device}")

"""Compiled code is cached and never outlives our sources; other people's passes run beside ours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass

import eca_triton
from eca_triton.compile.chain import Chain
from eca_triton.compile.record import recording

# Compiles a network by each door, with a package hash that ends in argv[1]; prints what the cache answered
# and how many sites were lowered. Each door has a map of its own width: neither finds the code of the other.
STEP = """
import json, sys
import torch, torch._inductor.config
import eca_triton
from eca_triton.compile import passes
from eca_triton.compile.chain import Chain
from eca_triton.compile.record import recording
from torch._dynamo.utils import counters

torch._inductor.config.cpp_cache_precompile_headers = False  # they cost a fresh cache ten seconds
own_hash = passes.package_hash()
passes.package_hash = lambda: own_hash + sys.argv[1]

def network(x, weight):
    gate = torch.conv1d(x.mean((2, 3)).unsqueeze(1), weight, padding=1).sigmoid()
    return x * gate.view(x.size(0), -1, 1, 1)

def compiled(channels, **door):
    torch._dynamo.reset()
    counters.clear()
    with recording() as records:
        torch.compile(network, dynamic=False, **door)(torch.ones(3, channels, 6, 5), torch.ones(1, 1, 3))
    found = {kind: counters["aot_autograd"][f"autograd_cache_{kind}"] for kind in ("hit", "miss", "bypass")}
    return found | {"lowered": sum(record.lowered for record in records)}

answers = {"backend": compiled(8, backend="eca_triton")}
eca_triton.enable()
print(json.dumps(answers | {"enable": compiled(16)}))
"""


def step(suffix: str, cache: Path) -> dict[str, dict[str, int]]:
    """Run STEP in a fresh process."""
    environment = os.environ | {
        "ECA_TRITON_FORCE": "1",
        "PYTHONPATH": str(ROOT),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-c", STEP, suffix]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_warm_start_hits_the_cache_and_an_upgrade_misses(tmp_path: Path) -> None:
    each = {"hit": 0, "miss": 1, "bypass": 0, "lowered": 1}
    compiled = {"backend": each, "enable": each}
    assert step("", tmp_path) == compiled
    for door, warm in step("", tmp_path).items():
        assert (warm["hit"], warm["miss"], warm["bypass"]) == (1, 0, 0), door
    assert step(" of the next version", tmp_path) == compiled


class Counting(CustomGraphPass):
    """A pass of somebody else that counts its graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.graphs += 1

    def uuid(self) -> bytes:
        return b"counting"


def test_a_pass_without_a_uuid_keeps_the_graph_out_of_the_cache() -> None:
    """None is Inductor's sign for that: a key would find the graph when the unknown pass is another one."""
    known, unknown = Counting(), Counting()
    unknown.uuid = lambda: None  # type: ignore[method-assign]
    assert Chain(known, known).uuid() == (b"counting", b"counting")
    assert Chain(known, unknown).uuid() is None
    assert Chain(known, lambda graph: None).uuid() is None


HOOKS = ("pre_grad_custom_pass", "post_grad_custom_post_pass")


@pytest.fixture
def no_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Passes run in every compilation, and the hooks are afterwards as they were."""
    monkeypatch.setenv("ECA_TRITON_FORCE", "1")
    hooks = {hook: getattr(config, hook) for hook in HOOKS}
    with config.patch(hooks | {"force_disable_caches": True, "cpp_cache_precompile_headers": False}):
        yield


def rescale(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    gate = torch.conv1d(x.mean((2, 3)).unsqueeze(1), weight, padding=1).sigmoid()
    return x * gate.view(x.size(0), -1, 1, 1)


def compile_once(**door: object) -> int:
    """Compile a network; return the number of lowered sites."""
    torch._dynamo.reset()
    with recording() as records:
        torch.compile(rescale, **door)(torch.ones(3, 8, 6, 5), torch.ones(1, 1, 3))
    return sum(record.lowered for record in records)


@pytest.mark.usefixtures("no_caches")
def test_other_passes_run_beside_enable_and_are_alone_after_disable() -> None:
    before, after = Counting(), Counting()
    config.pre_grad_custom_pass, config.post_grad_custom_post_pass = before, after
    eca_triton.enable()
    assert compile_once() == 1
    assert (before.graphs, after.graphs) == (1, 1)

    eca_triton.disable()
    assert (config.pre_grad_custom_pass, config.post_grad_custom_post_pass) == (before, after)
    assert compile_once() == 0
    assert (before.graphs, after.graphs) == (2, 2)


@pytest.mark.usefixtures("no_caches")
def test_other_passes_run_beside_the_backend() -> None:
    before, after = Counting(), Counting()
    config.pre_grad_custom_pass, config.post_grad_custom_post_pass = before, after
    assert compile_once(backend="eca_triton") == 1
    assert (before.graphs, after.graphs) == (1, 1)
    assert (config.pre_grad_custom_pass, config.post_grad_custom_post_pass) == (before, after)


@pytest.mark.usefixtures("no_caches")
def test_enable_twice_installs_one_pass_and_disable_restores_the_default() -> None:
    original = [getattr(config, hook) for hook in HOOKS]
    eca_triton.enable()
    once = [type(getattr(config, hook)) for hook in HOOKS]
    eca_triton.enable()
    assert [type(getattr(config, hook)) for hook in HOOKS] == once
    eca_triton.disable()
    assert [getattr(config, hook) for hook in HOOKS] == original
    eca_triton.disable()
    assert [getattr(config, hook) for hook in HOOKS] == original


@pytest.mark.usefixtures("no_caches")
def test_enabled_restores_the_hooks_when_the_block_raises() -> None:
    theirs = Counting()
    config.pre_grad_custom_pass = theirs
    with pytest.raises(ZeroDivisionError), eca_triton.enabled():
        1 / (config.pre_grad_custom_pass is theirs)
    assert config.pre_grad_custom_pass is theirs


@pytest.mark.usefixtures("no_caches")
def test_options_lower_one_compilation_only() -> None:
    assert compile_once(options=eca_triton.inductor_options()) == 1
    assert compile_once() == 0

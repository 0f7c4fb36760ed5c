"""What is found in a Dynamo graph and what is left alone: every spelling once, no near miss ever."""

import logging
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from harness import Inside, Lowering, leaf
from near_misses import NEAR_MISSES
from spellings import SPELLINGS
from styles import STYLES, Dropped
from torch import Tensor, nn

from eca_triton.compile import passes
from eca_triton.compile.match import recognize
from eca_triton.compile.reasons import UNEXPECTED, NoMatchError

MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
MODES_AND_SHAPES = pytest.mark.parametrize(
    ("training", "dynamic"), [(False, False), (True, True)], ids=["eval-static", "train-dynamic"]
)


def lower(network: nn.Module, x: Tensor, *, training: bool, dynamic: bool) -> tuple[Lowering, object]:
    """Compile and run the network once; return the lowering and the result."""
    lowering = Lowering()
    with torch.set_grad_enabled(training):
        compiled = lowering.compile(network.train(training), dynamic=dynamic)
        torch.manual_seed(1)
        result = compiled(leaf(x) if training and x.is_floating_point() else x.clone())
    return lowering, result


@MODES_AND_SHAPES
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_site_and_leaves_no_convolution(
    name: str, training: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    spelling = SPELLINGS[name]
    lowering, _ = lower(Inside(spelling.build()), spelling.example(), training=training, dynamic=dynamic)

    assert len(lowering.sites) == 1, lowering.rejected
    assert lowering.rejected == []
    assert lowering.sites[0].k == spelling.k
    assert len(lowering.own_calls()) == 1
    assert lowering.calls(torch.conv1d, torch.conv2d, torch._C._nn.pad) == []
    assert lowering.calls(torch.sigmoid, F.hardsigmoid, F.adaptive_avg_pool2d, F.avg_pool2d) == []


@MODES
@pytest.mark.parametrize("name", STYLES)
def test_every_style_keeps_its_number_of_sites(name: str, training: bool) -> None:
    torch.manual_seed(0)
    style = STYLES[name]
    lowering, _ = lower(style.build(), style.example(), training=training, dynamic=False)

    assert len(lowering.sites) == style.sites, lowering.rejected
    assert len(lowering.own_calls()) == style.sites
    assert lowering.calls(torch.conv1d) == []


@pytest.mark.parametrize(
    ("name", "training", "dynamic"),
    [
        pytest.param(name, mode == "train", mode == "train", id=f"{name}-{mode}")
        for name, near_miss in NEAR_MISSES.items()
        for mode in ("eval", "train")
        if near_miss.only in (None, mode)
    ],
)
def test_every_near_miss_is_left_alone(name: str, training: bool, dynamic: bool) -> None:
    """In eval mode with static shapes, in training with dynamic ones."""
    torch.manual_seed(0)
    near_miss = NEAR_MISSES[name]
    network, x = Inside(near_miss.build()), near_miss.example()
    with torch.set_grad_enabled(training):
        network.train(training)
        torch.manual_seed(1)
        expected = network(x.clone())
    lowering, result = lower(network, x, training=training, dynamic=dynamic)

    assert lowering.sites == [], near_miss.reason
    assert UNEXPECTED not in {record.decision.reason for record in lowering.rejected}
    assert lowering.own_calls() == []
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def test_dropout_is_the_identity_in_eval_mode_alone() -> None:
    x = torch.randn(3, 8, 6, 5)
    for training in (False, True):
        network = Dropped()
        lowering, result = lower(network, x, training=training, dynamic=False)
        assert [record.lowered for record in lowering.records] == [not training]
        torch.manual_seed(1)
        torch.testing.assert_close(result, network(x))


@pytest.mark.parametrize(
    "error", [KeyError("a bug"), NoMatchError("ECA104")], ids=["KeyError", "NoMatchError"]
)
@pytest.mark.parametrize(
    ("module", "function"),
    [(recognize, "_match"), (recognize, "is_dynamic"), (recognize, "source_line"), (passes, "facts_of"),
     (passes, "hints"), (passes, "owner"), (passes, "source_line"), (passes, "rewrite"), (passes, "collect")],
)  # fmt: skip
def test_an_error_of_ours_leaves_the_program_as_it_was(
    module: object,
    function: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "eca_triton")

    def fail(*_: object) -> None:
        raise error

    network, x = SPELLINGS["official"].build(), SPELLINGS["official"].example()
    if function == "source_line" and module is recognize:  # which is asked about near misses
        network = NEAR_MISSES["max-pool"].build()
    monkeypatch.setattr(module, function, fail)
    lowering, result = lower(network, x, training=False, dynamic=False)
    if function != "_match" or not isinstance(error, NoMatchError):
        assert [record.decision.reason for record in lowering.records] == [UNEXPECTED]
        assert error in [told.exc_info[1] for told in caplog.records if told.exc_info]
    assert lowering.own_calls() == []
    torch.testing.assert_close(result, network(x), rtol=0, atol=0)


PROGRAM_WITH_A_BUG = """
import torch
from timm.layers import EcaModule
import {module} as module

def fail(*_, **__):
    raise KeyError("a bug of ours")

module.{function} = fail
with torch.no_grad():
    torch.compile(EcaModule(8), backend="eca_triton")(torch.randn(2, 8, 6, 5))
"""


@pytest.mark.parametrize(("module", "function"), [("match.recognize", "_match"), ("passes", "facts_of")])
def test_torch_logs_print_the_traceback(module: str, function: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM_WITH_A_BUG.format(module=f"eca_triton.compile.{module}", function=function),
        ],
        env=os.environ | {"TORCH_LOGS": "+eca_triton", "ECA_TRITON_FORCE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "Traceback" in done.stderr
    assert "KeyError: 'a bug of ours'" in done.stderr


@pytest.mark.parametrize("fails", ["first", "second"])
def test_a_rewrite_that_fails_half_way_leaves_no_trace(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other site is lowered; what belongs to this one is in the graph as it came, names included."""
    network, x = STYLES["ResNetTail-twice"].build().eval(), STYLES["ResNetTail-twice"].example()
    right, sites = passes.rewrite, []

    def half_way(site: object, plan: object) -> None:
        right(site, plan)
        sites.append(site.name)
        if site.name.startswith({"first": "0", "second": "1"}[fails]):
            raise KeyError("a bug")

    def names(lowering: Lowering, half: str) -> list[str]:
        """The calls that one of the two blocks made."""
        nodes = [node for node in lowering.nodes() if node.op.startswith("call_")]
        return [
            f"{node.name}: {node.target}{node.args}"
            for node in nodes
            if f".{half}." in str(node.meta["nn_module_stack"])
            or f"[{half}]" in str(node.meta["nn_module_stack"])
        ]

    with torch.no_grad():
        whole = Lowering(plan="off")
        whole.compile(network)(x)
        monkeypatch.setattr(passes, "rewrite", half_way)
        lowering = Lowering(device="cuda")
        result = lowering.compile(network)(x)
        torch.testing.assert_close(result, network(x))
    failed, other = {"first": (0, 1), "second": (1, 0)}[fails]
    assert [record.lowered for record in lowering.records] == [index == other for index in range(2)]
    assert lowering.records[failed].decision.reason == UNEXPECTED
    assert len(lowering.own_calls()) == 1
    assert len(names(whole, str(failed))) > 5
    assert names(lowering, str(failed)) == names(whole, str(failed))

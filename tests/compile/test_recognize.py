"""What is left alone in a Dynamo graph: every near miss, and what an error of ours would have lost.

That every spelling and style is found is in test_numerics, which runs them as well.
"""

import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from harness import Inside, Lowering, leaf
from near_misses import NEAR_MISSES
from spellings import SPELLINGS, conv1d
from styles import STYLES, Network
from torch import Tensor, nn

from eca_triton.compile import passes
from eca_triton.compile.match import recognize
from eca_triton.compile.reasons import UNEXPECTED, NoMatchError


def lower(network: nn.Module, x: Tensor, *, training: bool, dynamic: bool) -> tuple[Lowering, object]:
    """Compile and run the network once; return the lowering and the result."""
    lowering = Lowering()
    with torch.set_grad_enabled(training):
        compiled = lowering.compile(network.train(training), dynamic=dynamic)
        torch.manual_seed(1)
        result = compiled(leaf(x) if training and x.is_floating_point() else x.clone())
    return lowering, result


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(name, mode == "train", id=f"{name}-{mode}")
        for name, near_miss in NEAR_MISSES.items()
        for mode in ("eval", "train")
        if near_miss.only in (None, mode)
    ],
)
def test_every_near_miss_is_left_alone(name: str, training: bool) -> None:
    """In eval mode with static shapes, in training with dynamic ones."""
    torch.manual_seed(0)
    near_miss = NEAR_MISSES[name]
    network, x = Inside(near_miss.build()), near_miss.example()
    with torch.set_grad_enabled(training):
        network.train(training)
        torch.manual_seed(1)
        expected = network(x.clone())
    lowering, result = lower(network, x, training=training, dynamic=training)

    assert lowering.sites == [], near_miss.reason
    assert UNEXPECTED not in {record.decision.reason for record in lowering.rejected}
    assert lowering.own_calls() == []
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def dropped(net: Network, x: Tensor) -> Tensor:
    """Dropout, which is the identity in eval mode, on the pooled vector and the gate."""
    x = 2 * x
    gate = net.behind(net.taps(net.before(x.mean((2, 3)).unsqueeze(1)))).sigmoid()
    return x * net.at_last(gate).transpose(1, 2).unsqueeze(-1)


def test_dropout_is_the_identity_in_eval_mode_alone() -> None:
    x = torch.randn(3, 8, 6, 5)
    for training in (False, True):
        network = Network(
            dropped,
            taps=conv1d,
            before=lambda: nn.Dropout(0.2),
            behind=lambda: nn.Dropout1d(0.1),
            at_last=lambda: nn.AlphaDropout(0.3),
        )
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
        assert lowering.reasons == [UNEXPECTED]
        assert error in [told.exc_info[1] for told in caplog.records if told.exc_info]
    assert lowering.own_calls() == []
    torch.testing.assert_close(result, network(x), rtol=0, atol=0)


PROGRAM_WITH_BUGS = """
import sys, torch
from timm.layers import EcaModule
from unittest.mock import patch
from eca_triton.compile import backend, passes
from eca_triton.compile.match import recognize

backend.inductor_compile = lambda gm, *_: gm.forward
for module, function in ((recognize, "_match"), (passes, "facts_of")):
    torch._dynamo.reset()
    with patch.object(module, function, side_effect=KeyError(f"a bug of {function}")), torch.no_grad():
        torch.compile(EcaModule(8), backend="eca_triton")(torch.randn(2, 8, 6, 5))
"""


def test_torch_logs_print_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM_WITH_BUGS],
        env=os.environ | {"TORCH_LOGS": "+eca_triton", "ECA_TRITON_FORCE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    for function in ("_match", "facts_of"):
        assert re.search(rf"Traceback(?:(?!Traceback).)*KeyError: 'a bug of {function}'", done.stderr, re.S)


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

    def names(lowering: Lowering, half: int) -> list[str]:
        """The calls that one of the two blocks made."""
        calls = [node for node in lowering.nodes() if node.op.startswith("call_")]
        inside = re.compile(rf"\.{half}\.|\[{half}\]")
        return [
            f"{node.name}: {node.target}{node.args}"
            for node in calls
            if inside.search(str(node.meta["nn_module_stack"]))
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
    assert len(names(whole, failed)) > 5
    assert names(lowering, failed) == names(whole, failed)

"""The doors that set Inductor's hooks: for one thread or all, and beside the passes of others."""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from harness import OLDEST
from spellings import SPELLINGS
from torch import fx
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor.compile_fx import compile_fx

import eca_triton
from eca_triton.compile.chain import POST_GRAD_HOOK, PRE_GRAD_HOOK, Chain
from eca_triton.compile.compat import inductor_config
from eca_triton.compile.hooks import our_pass, with_pass, without_pass
from eca_triton.compile.passes import LoweringPass
from eca_triton.compile.record import recording

HOOKS = PRE_GRAD_HOOK, POST_GRAD_HOOK
CONFIG = inductor_config()


def theirs(graph: fx.Graph) -> None:
    """Somebody else's pass."""


def others(graph: fx.Graph) -> None:
    """And another one's."""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    eca_triton.disable()
    assert [getattr(CONFIG, hook) for hook in HOOKS] == [None, None]


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def inductor_without_code(gm: fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
    """Inductor, which runs the graphs that its passes make instead of generating code for them."""

    def run(gm: fx.GraphModule, *_: Any, **__: Any) -> Callable:
        return make_boxed_func(gm.forward)

    return compile_fx(gm, inputs, inner_compile=run)


def ours() -> list[bool]:
    """Whether a pass of ours is in each hook, as this thread sees them."""
    return [our_pass(getattr(CONFIG, hook)) is not None for hook in HOOKS]


def test_enable_and_disable_reach_every_thread() -> None:
    eca_triton.enable()
    assert ours() == in_a_thread(ours) == [True, True]
    eca_triton.enable(plan="gate")  # takes the place of the first
    assert in_a_thread(lambda: our_pass(getattr(CONFIG, PRE_GRAD_HOOK)).plan) == "gate"
    eca_triton.disable()
    assert ours() == in_a_thread(ours) == [False, False]
    eca_triton.enable()
    in_a_thread(eca_triton.disable)
    assert in_a_thread(ours) == [False, False]


class Worker:
    """A thread that runs on between the calls that it makes."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.do(ours)  # from here on the options are its own

    def do(self, function: Callable[[], Any]) -> Any:
        return self.pool.submit(function).result()


def plan_here() -> str | None:
    """The plan of each hook's pass, as this thread sees it."""
    plan, keyed = (getattr(our_pass(getattr(CONFIG, hook)), "plan", None) for hook in HOOKS)
    assert plan == keyed
    return plan


def test_enable_and_disable_reach_threads_that_run_already() -> None:
    first, second = Worker(), Worker()

    def plans() -> list[str | None]:
        return [plan_here(), first.do(plan_here), second.do(plan_here)]

    doers: list[Callable[[Callable[[], None]], Any]] = [lambda function: function(), first.do, second.do]
    for enables, again, disables in itertools.product(doers, repeat=3):
        enables(functools.partial(eca_triton.enable, plan="gate"))
        assert plans() == ["gate"] * 3
        again(functools.partial(eca_triton.enable, plan="block"))
        assert plans() == ["block"] * 3
        disables(eca_triton.disable)
        assert plans() == [None] * 3


@pytest.mark.skipif(OLDEST, reason="torch 2.11 has one configuration for all threads")
def test_a_running_thread_compiles_as_was_said_last() -> None:
    worker, spelling = Worker(), SPELLINGS["official"]
    network, x = spelling.build().eval(), spelling.example()

    def lowered() -> list[bool]:
        torch._dynamo.reset()
        with recording() as records, torch.no_grad():
            compiled = torch.compile(network, backend=inductor_without_code)
            torch.testing.assert_close(compiled(x), network(x))
        return [record.lowered for record in records]

    assert worker.do(lowered) == []
    eca_triton.enable(force=True)
    assert worker.do(lowered) == [True]
    eca_triton.disable()
    assert worker.do(lowered) == []
    worker.do(functools.partial(eca_triton.enable, force=True))
    assert lowered() == [True]


@pytest.mark.skipif(OLDEST, reason="torch 2.11 has one configuration for all threads")
def test_passes_of_a_running_thread_stay_when_another_one_disables() -> None:
    worker = Worker()
    worker.do(lambda: setattr(CONFIG, PRE_GRAD_HOOK, theirs))
    eca_triton.enable()
    assert worker.do(lambda: CONFIG.pre_grad_custom_pass) is theirs  # whoever sets the hook keeps it
    worker.do(eca_triton.enable)
    assert worker.do(plan_here) is None
    assert worker.do(ours) == [True, True]
    eca_triton.disable()
    assert worker.do(ours) == [False, False]
    assert next(iter(worker.do(lambda: CONFIG.pre_grad_custom_pass.passes))) is theirs


def test_a_model_that_another_thread_calls_first_is_lowered() -> None:
    spelling = SPELLINGS["official"]
    network, x = spelling.build().eval(), spelling.example()
    eca_triton.enable(force=True)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=inductor_without_code)

    def call() -> tuple[torch.Tensor, list[bool]]:
        with recording() as records, torch.no_grad():
            return compiled(x), [record.lowered for record in records]

    result, lowered = in_a_thread(call)
    assert lowered == [True]
    torch.testing.assert_close(result, network(x))


def test_enabled_is_for_its_block_and_its_thread() -> None:
    """Old releases of Inductor have one configuration for all threads."""
    with CONFIG.patch(max_autotune=True):
        shared = in_a_thread(lambda: CONFIG.max_autotune)
    with eca_triton.enabled():
        assert ours() == [True, True]
        assert in_a_thread(ours) == [shared, shared]
    assert ours() == [False, False]


def test_what_others_install_inside_enabled_stays() -> None:
    with eca_triton.enabled():
        CONFIG.pre_grad_custom_pass = Chain(theirs, CONFIG.pre_grad_custom_pass)
    assert CONFIG.pre_grad_custom_pass is theirs
    with eca_triton.enabled(plan="gate"), eca_triton.enabled(plan="block"):
        assert our_pass(CONFIG.pre_grad_custom_pass).plan == "block"
    assert CONFIG.pre_grad_custom_pass is theirs
    CONFIG.pre_grad_custom_pass = None


def fail_inside(plan: str) -> None:
    with eca_triton.enabled(plan=plan):
        CONFIG.pre_grad_custom_pass = Chain(CONFIG.pre_grad_custom_pass, theirs)
        raise KeyError


def test_enabled_inside_enable_gives_back_its_settings() -> None:
    eca_triton.enable(plan="gate")
    with pytest.raises(KeyError):
        fail_inside("block")
    assert CONFIG.pre_grad_custom_pass.passes[0] is theirs
    assert our_pass(CONFIG.pre_grad_custom_pass).plan == "gate"
    eca_triton.disable()
    assert CONFIG.pre_grad_custom_pass is theirs
    CONFIG.pre_grad_custom_pass = None


def passes_in(hook: Any) -> list[Any]:
    """The passes of a hook in their order, whatever holds them."""
    inside = hook if isinstance(hook, (list, tuple)) else getattr(hook, "passes", None)
    return [hook] if inside is None else [found for each in inside for found in passes_in(each)]


@pytest.mark.parametrize("kind", [list, tuple, lambda passes: Chain(*passes)], ids=["list", "tuple", "chain"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_our_pass_is_found_and_taken_out_wherever_it_is(kind: Callable, place: int) -> None:
    passes = [theirs, others]
    passes.insert(place, LoweringPass())
    for hook in (kind(passes), kind([kind(passes)]), with_pass(kind(passes), LoweringPass())):
        assert our_pass(hook) is not None
        rest = without_pass(hook)
        assert our_pass(rest) is None
        assert passes_in(rest) == [theirs, others]
        assert without_pass(rest) is rest

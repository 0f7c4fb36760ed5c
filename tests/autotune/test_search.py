"""A search: candidates are pruned, timed and verified, and only what is right and faster is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from autotune_machine import H200, SHAPE, Bench, by_reference, faster, meta, plain, task

from eca_triton.autotune.examples import Example
from eca_triton.autotune.search import FINALISTS, SAMPLES, SCREENING, Task, name_of, search, tasks_of
from eca_triton.autotune.verify import disagreement
from eca_triton.launch.call import Call
from eca_triton.ops.outputs import mask_order_for
from eca_triton.ops.schema import ECA, ECA_BACKWARD, ECA_FORWARD, GATE, RESCALED_PROJECTION
from eca_triton.tuning.candidates import candidates
from eca_triton.tuning.config import Choice


def site(operator: object, activation: str, channels_last: bool) -> Example:
    """Of a site with batch norm before and a residual after."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = meta(*SHAPE).to(memory_format=memory_format)
    vectors = [meta(SHAPE[1]) for _ in range(4)]
    options = {"activation": activation, "mask_order": mask_order_for(x, x, activation)}
    if operator is ECA:
        del options["mask_order"]
    args = [x, meta(1, 1, 3), None, *vectors, x]
    if operator is ECA_BACKWARD:
        masked = options["mask_order"] != "none"
        bits = meta(SHAPE[0], x[0].numel() // 8).to(torch.uint8) if masked else None
        pooled = meta(*SHAPE[:2], dtype=torch.float32)
        args = [x, *args[:7], None if masked else x, pooled, bits]
        options |= {"wants_residual": activation != "identity", "wants_bn": True}
    return Example.of(operator, args, options)


def convolution(channels_last: bool = True, summand: bool = True) -> Example:
    """Of a 1x1 convolution that is rescaled: a map of `SHAPE` from 24 channels, in the other layout none."""
    n, c, *spatial = SHAPE
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, terms = meta(n, 24, *spatial).to(memory_format=memory_format), meta(n, c, dtype=torch.float32)
    args = [x, meta(c, 24, 1, 1), terms, terms if summand else None]
    return Example.of(RESCALED_PROJECTION, args, {})


def gates(activation: str = "identity") -> Example:
    """Of a site whose map is rescaled elsewhere, with batch norm before."""
    vectors = [meta(SHAPE[1]) for _ in range(4)]
    return Example.of(GATE, [meta(*SHAPE), meta(1, 1, 3), None, *vectors], {"pre_activation": activation})


def test_the_fastest_wins_by_samples_that_were_taken_in_turn() -> None:
    each = task()
    heuristic, second, *_ = candidates(each.problem)
    bench = Bench(time_us=faster(second))
    outcome = search(each, bench.machine())
    assert outcome.choice == second
    assert (outcome.time_us, outcome.heuristic_us, outcome.gain) == (50.0, 100.0, 0.5)
    assert outcome.timed == len(candidates(each.problem))
    *screened, (finalists, samples) = bench.timed
    assert [names for names, _ in screened] == [(name_of(c),) for c in candidates(each.problem)]
    assert {count for _, count in screened} == {SCREENING}
    assert samples == SAMPLES
    assert finalists[0] == name_of(second)
    assert name_of(heuristic) in finalists
    assert len(finalists) <= FINALISTS + 1


def test_inputs_are_more_than_the_l2_holds() -> None:
    each, bench = task(), Bench(l2_bytes=2 * 64 * 64 * 2 * 2)  # as much as x and out
    search(each, bench.machine())
    assert bench.cold == {5}


def test_what_the_compiled_code_speaks_against_is_never_launched() -> None:
    each = task()
    _, second, *_ = candidates(each.problem)
    bench = Bench(faster(second), objection=lambda choice: "spills" if choice == second else "")
    outcome = search(each, bench.machine())
    assert outcome.dropped == {second: "spills"}
    assert outcome.choice != second
    assert all(name_of(second) not in names for names, _ in bench.timed)


def test_the_heuristic_is_timed_whatever_the_compiled_code_says() -> None:
    each = task()
    heuristic, second, *_ = candidates(each.problem)
    outcome = search(each, Bench(objection=lambda c: "spills" if c in (heuristic, second) else "").machine())
    assert outcome.heuristic_us == 100.0
    assert not outcome.dropped, "what is said against both may be about another launch of the call"


def test_a_candidate_that_cannot_be_launched_is_left_out() -> None:
    each = task()
    _, second, third, *_ = candidates(each.problem)

    def launch(call, choice):
        if choice == second:
            raise ValueError("out of resource\nand more")
        by_reference(call, choice)

    outcome = search(each, Bench(faster(third), launch=launch).machine())
    assert outcome.dropped == {second: "ValueError: out of resource"}
    assert outcome.choice == third


EXAMPLES = {
    **{
        f"{operator._opname}, {activation}, {'channels_last' if last else 'contiguous'}": site(
            operator, activation, last
        )
        for operator in (ECA, ECA_FORWARD, ECA_BACKWARD)
        for activation in ("identity", "relu", "silu", "hardswish")
        for last in (False, True)
    },
    "product": convolution(summand=False),
    "product and summand": convolution(),
    "gates": gates(),
    "gates behind an activation": gates("silu"),
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_a_winner_with_any_wrong_output_is_not_taken(example: Example) -> None:
    each = task(example)
    _, second, *_ = candidates(each.problem)
    assert search(each, Bench(faster(second)).machine()).choice == second, "if it is right, it is taken"
    for index in range(len(each.example.call(torch.device("meta")).outputs)):

        def spoil(call: Call, index: int = index) -> None:
            by_reference(call)
            name, out = list(call.outputs.items())[index]
            last = out.view(-1)[-1:] if name == "mask" else out[-1:, -1:]
            last.add_(255 if name == "mask" else 1 + out.abs().max())

        assert why_wrong(each, spoil).startswith("images 0 to 1: ")


def why_wrong(each: Task, launch: Callable[[Call], None]) -> str:
    """What is said of the second candidate, the fastest, which launches this."""
    _, second, *_ = candidates(each.problem)

    def launch_one(call: Call, choice: Choice) -> None:
        if choice != second or call.a.x.is_meta:
            by_reference(call, choice)
        else:
            launch(call)

    outcome = search(each, Bench(faster(second), launch=launch_one).machine())
    assert outcome.choice != second
    said, _, why = outcome.dropped[second].partition(": ")
    assert said == "wrong result"
    return why


@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_gates_are_verified_so_that_one_position_too_few_shows(activation: str) -> None:
    def without_the_last_of_64(call: Call) -> None:
        by_reference(replace(call, a=call.a._replace(x=call.a.x.flatten(2)[..., :-1])))

    each = task(gates(activation))
    assert each.key.kernel == "pool"
    assert why_wrong(each, without_the_last_of_64).startswith("images 0 to 1: out is off by ")


@pytest.mark.parametrize(
    ("operator", "name"),
    [(ECA_FORWARD, "pooled"), *((ECA_BACKWARD, name) for name in ("d_gate", "p_sum", "p_dot_x"))],
    ids=lambda value: value if isinstance(value, str) else value._opname,
)
def test_sums_of_16_bit_maps_are_verified_to_more_digits_than_the_maps_have(
    operator: object, name: str
) -> None:
    def nearly(call: Call) -> None:
        by_reference(call)
        call.outputs[name].mul_(1 + 1e-4)

    assert f"{name} is off by " in why_wrong(task(site(operator, "relu", False)), nearly)


def test_memory_that_a_launch_leaves_as_it_was_counts_as_wrong() -> None:
    assert "out is off by nan" in why_wrong(task(), lambda call: None)


def test_images_are_verified_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eca_triton.autotune.verify.CHUNK", torch.Size(SHAPE[1:]).numel())  # the larger map
    each = task(convolution())
    assert each.key.kernel == "product"
    call = each.example.call(torch.device("cpu"))
    by_reference(call)

    def last_is_wrong() -> None:
        by_reference(call)
        call.out[1, 0, 0, 0] = 100.0

    assert disagreement(call, last_is_wrong).startswith("images 1 to 1: out is off by ")


def test_a_product_of_contiguous_maps_is_none_of_our_kernels() -> None:
    contiguous = convolution(channels_last=False)
    assert tasks_of({contiguous: 1}, H200) == []
    assert contiguous.channels_last() == convolution()


def test_where_no_candidate_is_right_there_is_no_entry_and_the_heuristic_is_to_blame() -> None:
    outcome = search(task(), Bench(launch=lambda call, choice: None).machine())
    assert (outcome.choice, outcome.entry) == (None, None)
    assert outcome.problem.startswith("wrong result")


@pytest.mark.parametrize(("time_us", "written"), [(97.0, True), (98.5, False), (100.0, False)])
def test_a_gain_within_noise_is_not_written(time_us: float, written: bool) -> None:
    each = task()
    outcome = search(each, Bench(faster(candidates(each.problem)[1], time_us)).machine())
    assert (outcome.entry is not None) == written


def test_calls_of_one_key_are_one_task() -> None:
    big, same, other = (plain((n, *SHAPE[1:])) for n in (4, 5, 2048))
    tasks = tasks_of({big: 2, same: 1, other: 1}, H200)
    assert [(each.example, each.sites) for each in tasks] == [(big, 3), (other, 1)]

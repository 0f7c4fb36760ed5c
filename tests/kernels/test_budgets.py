"""The kernels cost what tests/kernels/budgets.json says, or less; `make budgets` writes it anew."""

from __future__ import annotations

import json

import pytest
from aot import COMPILER, VERSION
from budgets import CASES, FILE, cost
from versions import versions_of_triton

pytestmark = COMPILER

TABLE = json.loads(FILE.read_text())
TOLERANCE = 1.05  # upward only: ptxas of a patch release may allocate a few registers more

# sm_90, plain ECA, contiguous bf16: what the table may never be regenerated past.
INSTRUCTIONS_PER_ELEMENT = {"56x56": 13, "28x28": 13, "14x14": 17, "7x7": 28}
# The same of training: a backward reads two maps and writes one or two.
TRAINING = {
    "56x56 forward": 18,
    "14x14 forward": 21,
    "56x56 backward": 24,
    "56x56 backward tail": 31,
    "28x28 backward tail": 24,
    "14x14 backward tail": 29,
    "7x7 backward": 46,
    "7x7 backward tail": 51,
}
REGISTERS = 128
# Where a compiler makes more of the same source: registers, instructions per element.
DEARER = {
    ("3.7", "7x7"): (REGISTERS, 30),
    ("3.7", "56x56 backward"): (REGISTERS, 25),
    ("3.7", "14x14 backward tail"): (150, 29),
    ("3.9", "7x7"): (REGISTERS, 30),
    ("3.9", "14x14 forward"): (139, 22),
    ("3.9", "7x7 backward tail"): (REGISTERS, 52),
}


@pytest.mark.slow
@pytest.mark.parametrize(("target", "site"), CASES)
def test_no_kernel_costs_more_than_its_budget(target: str, site: str) -> None:
    assert VERSION in TABLE, f"no budgets for Triton {VERSION}: make budgets"
    got, budget = cost(site, target), TABLE[VERSION][target][site]
    assert got["kernel"] == budget["kernel"]
    assert got["spilled_bytes"] == 0
    for name in ("registers", "shared_bytes", "instructions_per_element"):
        if budget[name] is not None:
            assert got[name] is not None, f"{name}: the code loops now"
            assert got[name] <= TOLERANCE * budget[name], name
    assert TOLERANCE * got["vector_share"] >= budget["vector_share"]


def test_every_triton_that_is_tested_has_all_budgets() -> None:
    assert {*TABLE} >= versions_of_triton()
    for version, targets in TABLE.items():
        assert {(target, site) for target, rows in targets.items() for site in rows} == {*CASES}, version


@pytest.mark.parametrize("version", TABLE)
@pytest.mark.parametrize(("site", "limit"), (INSTRUCTIONS_PER_ELEMENT | TRAINING).items())
def test_the_budgets_keep_the_promise(version: str, site: str, limit: int) -> None:
    row = TABLE[version]["sm_90"][site]
    assert row["kernel"] == ("tile_backward" if "backward" in site else "tile")
    registers, instructions = DEARER.get((version, site), (REGISTERS, limit))
    assert row["registers"] <= registers
    assert row["instructions_per_element"] <= instructions


@pytest.mark.parametrize("version", TABLE)
def test_nothing_in_the_table_spills(version: str) -> None:
    assert {row["spilled_bytes"] for rows in TABLE[version].values() for row in rows.values()} == {0}

"""What a tuned config is filed under: all that a choice depends on, in a text that can be read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tuned import H200, backward, forward, key_of, one_of_two, problem, product

from eca_triton.tuning.choice import choose
from eca_triton.tuning.config import Choice, Device
from eca_triton.tuning.families.product import product_config
from eca_triton.tuning.key import Key
from eca_triton.tuning.layout import common_layout
from eca_triton.tuning.problem import Problem

KEYS = {
    "forward/bfloat16/contiguous/c256/hw3136/k5/maps2/9.0/many": forward(128, 256, 3136),
    "forward/bfloat16/channels_last/c256/hw3136/k5/maps3/9.0/part": forward(1, 256, 3136, last=True, maps=3),
    "forward/bfloat16/contiguous/c2048/hw49/k7/maps3+bits+front/9.0/few": forward(
        128, 2048, 49, maps=3, taps=7, bits=True, front=True
    ),
    "forward/float16/contiguous/c64/hw64/k5/maps2+wide4/9.0/part": forward(
        8, 64, 64, dtype=torch.float16, itemsize=4
    ),
    "backward/bfloat16/contiguous/c256/hw3136/k5/maps3/9.0/many": backward(128, 256, 3136),
    "backward/bfloat16/contiguous/c256/hw3136/k5/maps5+bits+stored/9.0/many": backward(
        128, 256, 3136, maps=5, bits=True, stored=True
    ),
    "backward/bfloat16/contiguous/c256/hw3136/k5/maps4+recomputed/9.0/many": backward(
        128, 256, 3136, maps=4, recomputed=True
    ),
    "product/bfloat16/channels_last/c256/hw3136/i64/maps2+summand/9.0/many": product(128, 256, 3136, 64),
    "product/float16/channels_last/c512/hw784/i128/maps2+wide4/9.0/part": product(
        1, 512, 784, 128, dtype=torch.float16, itemsize=4, summand=False
    ),
    "pool/bfloat16/channels_last/c171/hw784/maps1/9.0/few": one_of_two("pool", 128, 171, 784, last=True),
    "pool/float16/contiguous/c64/hw49/maps1+front/9.0/part": one_of_two(
        "pool", 8, 64, 49, dtype=torch.float16, front=True
    ),
    "rescale/bfloat16/contiguous/c64/hw49/k5/maps3+front/9.0/part": one_of_two(
        "rescale", 8, 64, 49, maps=3, front=True
    ),
    "affine/bfloat16/contiguous/c64/hw49/maps2+bits/9.0/part": one_of_two("affine", 8, 64, 49, bits=True),
    "moments/bfloat16/channels_last/c171/hw784/maps4+recomputed+stored/9.0/few": one_of_two(
        "moments", 128, 171, 784, last=True, maps=4, recomputed=True, stored=True
    ),
    "affine_backward/bfloat16/contiguous/c64/hw49/maps3+wide4/9.0/part": one_of_two(
        "affine_backward", 8, 64, 49, itemsize=4
    ),
}


@pytest.mark.parametrize("text", KEYS)
def test_a_key_names_all_that_its_problem_depends_on_and_can_be_read_back(text: str) -> None:
    key = key_of(KEYS[text])
    assert str(key) == text
    assert Key.parse(H200.name, text) == key


OF_A_SITE = [
    {"direction": "backward"}, {"dtype": torch.float16}, {"taps": 3}, {"itemsize": 4}, {"bits": True},
    {"front": True}, {"recomputed": True}, {"stored": True},
    {"device": replace(H200, name="NVIDIA H100 NVL")}, {"device": replace(H200, capability="10.0")},
]  # fmt: skip
OF_A_PRODUCT = [{"reduced": 128}, {"summand": False}, {"itemsize": 4}, {"dtype": torch.float16}]


@pytest.mark.parametrize(
    ("problem", "changes"),
    [(forward(128, 256, 3136), OF_A_SITE), (product(128, 256, 3136, 64), OF_A_PRODUCT)],
    ids=["sites", "products"],
)
def test_no_two_kinds_of_problems_share_a_key(problem: Problem, changes: list[dict[str, object]]) -> None:
    assert len({key_of(problem), *(key_of(replace(problem, **change)) for change in changes)}) == 1 + len(
        changes
    )


def test_batches_of_one_occupancy_share_a_key() -> None:
    """A map of 256 x 56 x 56 is 1.6 MB; an H200's registers hold 8.6 MB of one at a time."""
    by_batch = {n: key_of(forward(n, 256, 3136)).occupancy for n in (1, 5, 6, 21, 22, 256)}
    assert by_batch == {1: "part", 5: "part", 6: "few", 21: "few", 22: "many", 256: "many"}
    full = {hw: key_of(forward(132, 256, hw)).occupancy for hw in (127, 128, 512, 513)}  # one SM has an image
    assert full == {127: "part", 128: "few", 512: "few", 513: "many"}


def test_what_no_table_can_know_has_no_key() -> None:
    assert Key.of(forward(1, 64, 64, device=Device(num_sms=132, warp_size=32))) is None
    cropped = common_layout((2, 8, 5, 4), (200, 25, 5, 1))
    assert Key.of(problem(cropped)) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "forward", "sideways/bfloat16/contiguous/c256/hw3136/k5/maps2/9.0/many",
        "forward/bfloat16/contiguous/c256/hw3136/k5/maps2/9.0/many\n",
        "forward/bfloat16/../c256/hw3136/k5/maps2/9.0/many",
        "forward/bfloat16/contiguous/c-1/hw3136/k5/maps2/9.0/many",
        "forward/bfloat16/contiguous/c99999999999/hw3136/k5/maps2/9.0/many",
        "forward/bfloat16/contiguous/c\u0663/hw3136/k5/maps2/9.0/many",
        "forward/bfloat16/contiguous/c256/hw3136/i5/maps2/9.0/many",
        "product/bfloat16/channels_last/c256/hw3136/k64/maps2/9.0/many",
        "product/bfloat16/channels_last/c256/hw3136/maps2/9.0/many",
        "pool/bfloat16/channels_last/c256/hw3136/k5/maps1/9.0/many",
        "rescale/bfloat16/channels_last/c256/hw3136/maps2/9.0/many",
    ],
)  # fmt: skip
def test_other_texts_are_no_keys(text: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        Key.parse(H200.name, text)


def test_a_product_asks_its_heuristic_for_the_sizes_of_its_result() -> None:
    each = product(128, 512, 784, 128)
    assert choose(each) == Choice("product", product_config(each))


def test_the_device_of_a_gpu_has_its_name_its_capability_and_its_shared_memory() -> None:
    from eca_triton.tuning.targets import TARGETS

    assert TARGETS["h200"].device == H200

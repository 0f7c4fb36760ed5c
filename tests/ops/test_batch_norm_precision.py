"""fp32 training with batch norm is as exact as its elements: adding images up costs no rounding that shows.

`precision.py` says what is measured: the root mean square over seeds and channels, which rests on no single
rounding, of any CPU's.
"""

from __future__ import annotations

import pytest
import torch
from precision import by_op, error, example, gradients


@pytest.mark.parametrize("shape", [(32, 64, 7, 7), (256, 16, 3, 3)], ids=["some images", "many images"])
def test_gradients_of_gain_and_shift_err_by_less_than_a_rounding_of_every_element(
    shape: tuple[int, ...],
) -> None:
    found = error(shape, seeds=24)
    assert max(found.values()) <= 0.8, found


def test_what_cancels_between_images_is_lost_in_no_partial_sum() -> None:
    """Images come twice, with opposite gradients, but for the first: what is left is its gradient alone."""
    tensors, dy = example((1024, 4, 2, 2), seed=0)
    x, residual = (tensor[:512].repeat(2, 1, 1, 1) for tensor in (tensors[0], tensors[4]))
    tensors[0], tensors[4] = x, residual
    opposite = torch.cat((dy[:512], -dy[:512])) * 1e3
    opposite[0] = opposite[512] = 0.0
    alone = torch.zeros_like(dy)
    alone[0] = dy[0]
    got, expected = (gradients(by_op, tensors, each) for each in (opposite + alone, alone))
    for name in ("bn_weight", "bn_bias"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)

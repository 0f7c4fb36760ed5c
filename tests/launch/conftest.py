"""What tests of launches share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from recording_driver import Launch, recorded_launches


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    """What operators launch without gradients, on stream 0."""
    with recorded_launches([0]) as launches, torch.no_grad():
        yield launches

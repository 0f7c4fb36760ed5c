"""A trained network, for all tests of checkpoints."""

import pytest
import torch
from official_checkpoints import TAPS, trained
from torch import nn

from eca_triton.models import eca_resnet18


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    return trained(eca_resnet18(k_size=TAPS, num_classes=10))

"""A test for your own CI: attentions are lowered on a GPU, and compiling changes no result.

Copy it, and put your model where `network` makes one: `pytest test_attention.py`. No GPU is needed; the
second test compiles for this CPU. How-to: docs/ci.md.
"""

from __future__ import annotations

import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

import eca_triton


def network() -> nn.Module:
    """A small ECA-ResNet: the model under test."""
    torch.manual_seed(0)
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, block_args={"attn_layer": "eca"})


def images(batch: int, size: int = 64) -> Tensor:
    """As the model gets them: dtype, layout and size decide which plan pays."""
    return torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_every_attention_is_lowered(training: bool) -> None:
    eca_triton.assert_lowered(network().train(training), images(32, 224), training=training)


@torch.no_grad()
def test_the_compiled_model_computes_what_eager_mode_does() -> None:
    model = network().eval()
    compiled = torch.compile(model, backend="eca_triton", options={"eca.force": True})  # also on a CPU
    x = images(2)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    report = eca_triton.last_report()
    assert report.lowered == len(report.sites) == 4, report

"""ECA and ECABlock: constructors, checkpoints of others, and what every module can do."""

import copy
import pickle

import pytest
import torch
from eager_block import eager_eca
from torch import nn

from eca_triton.compile.match.recognize import recognize
from eca_triton.functional import adaptive_kernel_size
from eca_triton.module import ECA, ECABlock


class OfficialLayer(nn.Module):
    """As in the code of the paper's authors, BangguWu/ECANet."""

    def __init__(self, channel, k_size=3):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=k_size, padding=(k_size - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


@pytest.mark.parametrize(
    ("module", "k"),
    [
        (ECA(), 3),
        (ECA(64), 3),
        (ECA(256), 5),
        (ECA(2048), 7),
        (ECA(256, 3), 3),
        (ECA(k_size=9), 9),
        (ECA(256, gamma=1, b=0), 9),
        (ECABlock(256), 5),
        (ECABlock(256, 1, 0), 9),
    ],
)
def test_number_of_taps(module, k):
    assert {name: p.shape for name, p in module.state_dict().items()} == {"conv.weight": (1, 1, k)}


@pytest.mark.parametrize("k", [0, 2, -1])
def test_even_numbers_of_taps_are_refused(k):
    with pytest.raises(ValueError, match=f"k_size must be odd and positive, got {k}"):
        ECA(64, k_size=k)


@pytest.mark.parametrize("shape", [(2, 19, 6), (2, 64, 5, 7), (1, 2, 2, 3, 4)], ids=str)
def test_forward_is_the_eager_block(shape):
    module, x = ECA(64), torch.randn(shape)
    torch.testing.assert_close(module(x), eager_eca(x, module.conv.weight))


def test_checkpoints_of_the_official_code_load_as_they_are():
    official, x = OfficialLayer(256, 5), torch.randn(2, 256, 4, 4)
    module = ECA(256)
    module.load_state_dict(official.state_dict())
    torch.testing.assert_close(module(x), official(x))
    official.load_state_dict(module.state_dict())


@pytest.mark.parametrize("channels", [64, 512])
def test_checkpoints_of_timm_load_as_they_are(channels):
    timm = pytest.importorskip("timm")
    theirs, x = timm.layers.EcaModule(channels), torch.randn(2, channels, 4, 4)
    module = ECA(channels)
    module.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(module(x), theirs(x))
    assert adaptive_kernel_size(channels) == theirs.conv.kernel_size[0]


def test_copies_pickles_and_moves_as_any_module():
    module, x = ECABlock(64), torch.randn(2, 64, 3, 3)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(copied(x), module(x), rtol=0, atol=0)
    assert module.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert "channels=64" in repr(module)
    assert "kernel_size=(3,)" in repr(module)


def test_compiles_whole_with_gradients():
    torch._dynamo.reset()
    module, x = ECA(64), torch.randn(2, 64, 3, 3, requires_grad=True)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(x).cos().sum(), (x, module.conv.weight))
    wanted = torch.autograd.grad(module(x).cos().sum(), (x, module.conv.weight))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_compiler_recognises_it_like_any_other_spelling(dynamic):
    torch._dynamo.reset()
    found = []

    def backend(gm, _):
        sites, _ = recognize(gm, root="")
        found.extend(sites)
        return gm

    torch.compile(ECA(64), backend=backend, fullgraph=True, dynamic=dynamic)(torch.randn(2, 64, 3, 3))
    assert [site.k for site in found] == [3]

"""Sites in a compiled inference graph, for an H200 that is not there: one launch, one read of the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deviceless_models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eca_triton.compile import compat
from eca_triton.compile.inductor import lowering, trial
from eca_triton.compile.record import recording
from eca_triton.deviceless import Lowering, lower

STAGES = {"56x56": (256, 56), "28x28": (512, 28), "14x14": (1024, 14), "7x7": (2048, 7)}
ARGUMENTS: dict[str, Any] = {"dtype": torch.bfloat16, "channels_last": True, "backend": "eca_triton"}
SCRATCH = 0.05  # of S: the partial sums of a map that fits no registers


def templates(result: Lowering) -> list[str]:
    return [kernel.name for kernel in result.kernels if "eca" in kernel.name and kernel.kind == "triton"]


def large(result: Lowering, s: int) -> list[str]:
    """What each kernel that touches a whole map is for: a copy would be one more."""
    return [kernel.name for kernel in result.kernels if kernel.bytes_moved > 0.9 * s]


@pytest.mark.parametrize("stage", STAGES)
def test_the_tail_of_every_stage_is_one_kernel_without_copies(stage: str) -> None:
    channels, side = STAGES[stage]
    model, inputs, s = deviceless_models.tail(128, channels, side)
    result = lower(model, inputs, **ARGUMENTS, options={"eca.plan": "block"})
    assert len(large(result, s)) == 2  # the convolution, and all that follows
    weights = 2 * channels * (channels // 4)
    assert result.bytes_moved - weights == pytest.approx(4.25 * s, abs=SCRATCH * s)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_in_every_mode(mode: str) -> None:
    """Under max-autotune the convolution is a matrix product, of which the map is a view."""
    model, inputs, s = deviceless_models.tail(kind=deviceless_models.Activated)
    assert lower(model, inputs, **ARGUMENTS, mode=mode).bytes_moved == pytest.approx(
        4.25 * s, abs=SCRATCH * s
    )


class Dynamic(deviceless_models.Tail):
    """The tail for any number of images of one size."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        if x.shape[1:] != (256, 14, 14):
            raise ValueError
        return super().forward(x, residual)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_a_dynamic_batch(channels_last: bool) -> None:
    with torch.device("meta"):
        inputs = torch.empty(128, 256, 14, 14), torch.empty(128, 1024, 14, 14)
        model = Dynamic(1024)
    result = lower(model, inputs, **ARGUMENTS | {"channels_last": channels_last}, dynamic=True)
    s = inputs[1].numel() * 2
    # Inductor leaves convolutions contiguous there. Until torch 2.11 indices by row and column, which do not
    # fit its vectors of four elements, would be the price: the gate, and native code.
    gate = not channels_last and not compat.EPILOGUES_IN_ANY_LOOPS
    assert result.bytes_moved - 2 * 1024 * 256 == pytest.approx((4.25 + gate) * s, abs=SCRATCH * s)


def test_any_image_size_keeps_the_gate() -> None:
    model, inputs, s = deviceless_models.tail(kind=deviceless_models.Activated)
    result = lower(model, inputs, **ARGUMENTS, dynamic=True)
    assert result.bytes_moved == pytest.approx(5.25 * s, abs=SCRATCH * s)


class NormFree(nn.Module):
    """A pre-activation block's end: two results, and a drop path scale per image."""

    def __init__(self) -> None:
        super().__init__()
        self.eca = deviceless_models.Eca()

    def forward(self, x: Tensor, residual: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        out = self.eca(x) * 2.0 * 0.2 * keep + residual
        return out, F.silu(out)


def test_gains_drop_path_residual_and_a_second_result_are_in_the_kernel() -> None:
    with torch.device("meta"):
        x = torch.empty(128, 1536, 14, 14)
        result = lower(NormFree(), (x, x.clone(), torch.empty(128, 1, 1, 1)), **ARGUMENTS)
    assert len(templates(result)) == len(result.kernels) == 1
    assert result.bytes_moved == pytest.approx(4 * x.numel() * 2, rel=0.001)


@pytest.mark.parametrize("shape", [(64, 256, 1000), (4, 64, 8, 14, 14)], ids=["sequence", "volume"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_sequences_and_volumes(shape: tuple[int, ...], last: bool) -> None:
    if not last and not compat.EPILOGUES_IN_ANY_LOOPS and shape[-1] % 8:
        pytest.skip("until torch 2.11 contiguous rows must end on a vector")

    class Map(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            dims = tuple(range(2, x.dim()))
            gate = F.conv1d(x.mean(dims)[:, None], weight, padding=2).sigmoid()[:, 0]
            return F.relu(x * gate[(...,) + (None,) * len(dims)])

    x = torch.empty(shape, device="meta")
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    result = lower(Map(), (x, torch.empty(1, 1, 5, device="meta")), **ARGUMENTS | {"channels_last": False})
    assert result.bytes_moved == pytest.approx(2 * x.numel() * 2, rel=SCRATCH)


class Last(deviceless_models.Activated):
    """The end of a network: nobody but the final pooling reads the map."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return super().forward(x, residual).mean((2, 3))


def test_a_result_that_is_only_pooled_is_not_stored() -> None:
    with torch.device("meta"):
        inputs = torch.empty(128, 512, 7, 7), torch.empty(128, 2048, 7, 7)
        result = lower(Last(2048), inputs, **ARGUMENTS)
    s = inputs[1].numel() * 2
    # Convolution; gate; map and residual into the mean.
    assert result.bytes_moved - 2 * 2048 * 512 == pytest.approx(4.25 * s, rel=0.05)


class Joined(deviceless_models.Activated):
    """The result goes beside another map."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.cat([super().forward(x, residual), residual + 1], 1)


def test_a_concatenation_needs_no_copy() -> None:
    with torch.device("meta"):
        inputs = torch.empty(128, 256, 14, 14), torch.empty(128, 1024, 14, 14)
        model = Joined(1024)
    s = inputs[1].numel() * 2
    stock = lower(model, inputs, **ARGUMENTS | {"backend": "inductor"})
    ours = lower(model, inputs, **ARGUMENTS)
    assert ours.bytes_moved == pytest.approx(stock.bytes_moved - s, rel=0.01)


def test_a_kernel_never_writes_over_a_map_that_it_reads() -> None:
    """Other programs read rows beside their own, and after a long wait all of an image again."""

    class Itself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(64, 256, 1, bias=False)
            self.eca = deviceless_models.Eca()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.eca(y) + y

    for side in (14, 56):
        with torch.device("meta"):
            result = lower(Itself(), (torch.empty(128, 64, side, side),), **ARGUMENTS, sources=True)
        (kernel,) = [kernel for kernel in result.kernels if kernel.name.startswith("triton_tem")]
        assert kernel.source is not None
        assert "in_out_ptr" not in kernel.source
        assert not {buffer.name for buffer in kernel.reads} & {buffer.name for buffer in kernel.writes[:1]}


def keeps_the_gate() -> bool:
    model, inputs, s = deviceless_models.tail(kind=deviceless_models.Activated)
    result = lower(model, inputs, **ARGUMENTS)
    return result.bytes_moved == pytest.approx(5.25 * s, rel=0.01)


@pytest.fixture
def _untried() -> Any:
    trial.templates_work.cache_clear()
    yield
    trial.templates_work.cache_clear()


@pytest.mark.usefixtures("_untried")
def test_without_epilogue_fusion_the_gate_is_kept() -> None:
    with torch._inductor.config.patch(epilogue_fusion=False):
        assert keeps_the_gate()
    assert not keeps_the_gate()  # what one compilation was told does not count for the next


def test_an_error_in_a_template_costs_a_read_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise AttributeError("not in this release")

    assert not keeps_the_gate()  # by now templates are known to work
    monkeypatch.setattr(lowering, "template", broken)
    assert keeps_the_gate()
    model, inputs, _ = deviceless_models.tail()
    with pytest.raises(Exception, match=r"ECA199 .*not in this release"):  # unless an error was asked for
        lower(model, inputs, **ARGUMENTS, options={"eca.strict": True, "eca.plan": "block"})


@pytest.mark.usefixtures("_untried")
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(lambda *_: 1 / 0, id="an error"),
        pytest.param(lambda *_: "async_compile.triton('triton_tem_fused_0'" * 2, id="two kernels"),
        pytest.param(lambda *_: "async_compile.triton('triton_poi_fused_0'", id="no template"),
        pytest.param(
            lambda *_: (
                "async_compile.triton('triton_tem_fused_0'\n    xindex = 1\n    x2 = 3\n    xindex = 2"
            ),
            id="an index of another store",
        ),
    ],
)
def test_an_inductor_that_has_changed_gets_the_gate(
    code: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "generated_code", code)
    with recording() as records:
        assert keeps_the_gate()
    assert [record.decision.plan for record in records] == ["gate"]

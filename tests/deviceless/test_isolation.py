"""Lowering for an absent GPU leaves no trace: in torch, in the model, in the caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import deviceless_models
import pytest
import torch
import torch._dynamo.device_interface as device_interface
import triton
from torch import Tensor, nn
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensorMode

from eca_triton.deviceless import TARGETS, lower
from eca_triton.deviceless.mocks import replacements


def state() -> dict[str, object]:
    """Everything that is replaced while a model is lowered."""
    seen: dict[str, object] = {
        f"{owner.__name__}.{name}": vars(owner).get(name, "inherited")
        for owner, answers in replacements(TARGETS["h200"]).items()
        for name in answers
    }
    seen["compile_to_module"] = GraphLowering.compile_to_module
    seen["driver"] = triton.runtime.driver._active
    seen["kept properties"] = DeviceProperties.create.cache_info().currsize
    seen["inductor"] = torch._inductor.config.get_config_copy()
    seen["functorch"] = torch._functorch.config.get_config_copy()
    seen["dynamo"] = torch._dynamo.config.get_config_copy()
    seen["grad"] = torch.is_grad_enabled()
    return seen


@pytest.fixture
def unchanged() -> Iterator[None]:
    DeviceProperties.create.cache_clear()
    before = state()
    yield
    assert state() == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_everything_is_restored(training: bool) -> None:
    model, inputs, _ = deviceless_models.tail(batch=2)
    lower(model, inputs, training=training)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_no_setting_is_used_that_torch_will_remove() -> None:
    model, inputs, _ = deviceless_models.tail(batch=2)
    lower(model, inputs)


@pytest.mark.usefixtures("unchanged")
def test_everything_is_restored_after_an_error() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x  # 3 x 5 by 3 x 5

    with pytest.raises(Exception, match="reduction dim"):
        lower(Wrong(), torch.empty(3, 5))


@pytest.mark.usefixtures("unchanged")
def test_an_unknown_target_or_backend_is_named_before_anything_happens() -> None:
    model, inputs, _ = deviceless_models.tail(batch=2)
    with pytest.raises(ValueError, match="target must be one of h200, h100, a100, got 'h300'"):
        lower(model, inputs, target="h300")
    with pytest.raises(ValueError, match="got 'eager'"):
        lower(model, inputs, backend="eager")


def test_a_build_of_torch_without_cuda_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, _ = deviceless_models.tail(batch=2)
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: False)
    with pytest.raises(RuntimeError, match="needs a CUDA build of torch"):
        lower(model, inputs)


def test_the_cpu_is_compiled_for_as_before() -> None:
    model = deviceless_models.Stem().eval()
    x = torch.randn(2, 3, 16, 16)
    lower(model, x)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_the_model_and_its_inputs_are_left_alone(training: bool) -> None:
    model = deviceless_models.Tail(16).train(not training)
    before = {name: (value, value.clone(), value._version) for name, value in model.state_dict().items()}
    x, residual = torch.randn(2, 4, 7, 7), torch.randn(2, 16, 7, 7)
    lower(model, (x, residual), training=training, dtype=torch.float16, channels_last=True)
    assert model.training is not training
    for name, value in model.state_dict().items():
        held, copy, version = before[name]
        assert value.data_ptr() == held.data_ptr()
        assert value._version == version
        assert torch.equal(value, copy)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(isinstance(p, torch._subclasses.FakeTensor) for p in model.parameters())
    assert x.dtype == torch.float32


def test_no_storage_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep copy of a real parameter goes through Tensor.__deepcopy__; none may."""
    model = deviceless_models.Tail(16)
    model.scale = torch.ones(1)  # a tensor that is neither a parameter nor a buffer

    def refuse(tensor: Tensor, memo: object) -> Tensor:
        raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} was copied")

    monkeypatch.setattr(Tensor, "__deepcopy__", refuse)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    lower(model, (torch.empty(2, 4, 7, 7), torch.empty(2, 16, 7, 7)))


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(64, 64, bias=False)
            self.two = nn.Linear(64, 64, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    one, two = lower(Tied(), torch.empty(32, 64)).kernels
    assert {b.name for b in one.reads} & {b.name for b in two.reads}


@pytest.mark.parametrize("backend", ["inductor", "eca_triton"])
def test_no_file_is_written_to_the_caches(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    model, inputs, _ = deviceless_models.tail(batch=2)
    lower(model, inputs, backend=backend, training=True, sources=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_two_runs_agree() -> None:
    model, inputs, _ = deviceless_models.tail(batch=8)
    first, second = (lower(model, inputs, training=True) for _ in range(2))
    assert first.kernels == second.kernels


def test_an_outer_fake_mode_is_not_needed_nor_disturbed() -> None:
    model, inputs, _ = deviceless_models.tail(batch=2)
    with FakeTensorMode():
        inside = lower(model, inputs)
    assert inside.kernels == lower(model, inputs).kernels


def test_the_device_interface_answers_for_this_machine_again() -> None:
    model, inputs, _ = deviceless_models.tail(batch=2)
    lower(model, inputs)
    assert device_interface.CudaInterface.is_available() is torch.cuda.is_available()
    assert torch.cuda.is_available() is (torch.cuda.device_count() > 0)

"""`explain` and `assert_lowered` on a small network: what they find, and that they change nothing."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from reports import Attention, HiddenAttention, Network
from torch import Tensor, nn

import eca_triton
from eca_triton.compile.reasons import REASONS
from eca_triton.report import Report
from eca_triton.report.fixes import FIXES
from eca_triton.report.gather import choose_target, look
from eca_triton.report.lookalikes import NAMES, OTHER_LAYER, UNREACHED, lookalikes
from eca_triton.report.result import SCHEMA
from eca_triton.report.twin import NoTwinError, without_attention
from eca_triton.tuning.targets import TARGETS

BATCH, SIDE = 8, 32
IMAGES = torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def report() -> Report:
    """The network lowered for an H200, three times in all."""
    return eca_triton.explain(Network().bfloat16(), IMAGES, target="h200")


@pytest.fixture(scope="module")
def sites_only() -> Report:
    return eca_triton.explain(Network().bfloat16(), IMAGES, target="none")


def test_a_target_adds_figures_and_changes_no_site(report: Report, sites_only: Report) -> None:
    assert report.sites == sites_only.sites
    assert report.unmatched == sites_only.unmatched
    assert sites_only.predictions() == {}
    assert sites_only.as_dict()["predicted"] is None


def test_sites_have_their_module_and_their_line(sites_only: Report) -> None:
    site, near_miss = sites_only.sites
    assert (site.name, site.owner, site.decision.plan) == ("attention", "attention", "block")
    assert site.map_bytes == BATCH * 64 * SIDE * SIDE * 2
    lines = [line(Attention, "return x * gate"), line(Attention, "self.before_gate(self.conv")]
    assert [site.source, near_miss.source] == lines
    assert (near_miss.decision.reason, near_miss.decision.detail) == ("ECA104", "gelu")


def line(kind: type, text: str) -> str:
    """The first line of a class that holds the text, as "file:line"."""
    source, first = inspect.getsourcelines(kind)
    found = next(index for index, each in enumerate(source) if text in each)
    return f"tests/report/reports.py:{first + found}"


def test_a_module_that_is_never_called_is_listed(sites_only: Report) -> None:
    assert [(module.name, module.reason) for module in sites_only.unmatched] == [("unused_eca", UNREACHED)]


def test_a_graph_break_is_named_and_paths_are_whole_behind_it() -> None:
    """Dynamo then compiles each layer by itself, under a path that starts there, and like ones once."""
    model = nn.Sequential(nn.Conv2d(3, 64, 1), Attention(), HiddenAttention(), Attention())
    seen = eca_triton.explain(model, torch.zeros(8, 3, 16, 16), target="none")
    assert [(record.name, record.owner) for record in seen.sites] == [("1", "1")]
    assert [(module.name, module.reason) for module in seen.unmatched] == [("2", UNREACHED)]
    assert "torch.compiler.disable" in seen.unmatched[0].detail
    assert "torch.compiler.disable" in str(seen)


class AsksForData(nn.Module):
    """Two blocks, between which Python asks a tensor for its elements, as `asks` does."""

    def __init__(self, asks: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.second, self.asks = Attention(), Attention(), asks

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(2 * x) + x)
        return torch.relu(self.second(y + 1 if self.asks(y) else y) + x)


# What the program asks; whether the rest can be followed without an answer, taken for 1.
QUESTIONS: dict[str, tuple[Callable[[Tensor], object], bool]] = {
    "item": (lambda y: y.sum().item() > 0, True),
    "bool": (lambda y: bool(y.mean() > 0), True),
    "truth of a tensor": (lambda y: (y.mean() > 0) and True, True),
    "float": (lambda y: float(y.amax()) > 0.5, True),
    "tolist": (lambda y: y.mean((1, 2, 3)).tolist()[0] > 0, True),
    "equal": (lambda y: torch.equal(y, y + 1), True),
    "nonzero": (lambda y: len(torch.nonzero(y)) > 3, True),
    "masked select": (lambda y: y.masked_select(y > 0).sum().item() > 3, True),
    "unique": (lambda y: len(torch.unique(y)) > 3, False),
    "bytes": (lambda y: bytes(y[0, 0, 0, :2].detach().contiguous().numpy().tobytes()), False),
    # Taken for 1, it is no size that anything can be made of.
    "size": (lambda y: y.view(y.shape[0], -1, 16 - int((y > 1e9).sum().item())), False),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_model_that_asks_for_data_is_followed_as_far_as_it_goes(name: str) -> None:
    asks, followed = QUESTIONS[name]
    model, x = AsksForData(asks), torch.ones(8, 64, 16, 16)
    seen = eca_triton.explain(model, x, target="none")
    assert [record.name for record in seen.sites] == ["first", "second"][: 1 + followed]
    assert [module.name for module in seen.unmatched] == ([] if followed else ["second"])
    assert ("are taken for 1" if followed else "for want of data") in str(seen)
    eca_triton.assert_lowered(model, x, at_least=0)


def test_an_error_of_the_program_itself_is_raised() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), Attention(), nn.Linear(3, 3))
    for target in ("none", "h200"):
        with pytest.raises(RuntimeError, match="same reduction dim"):
            eca_triton.explain(model, torch.zeros(8, 3, 16, 16), target=target)


def test_a_network_whose_end_needs_data_is_reported_without_counts() -> None:
    for name in ("unique", "size"):
        seen = eca_triton.explain(AsksForData(QUESTIONS[name][0]), torch.ones(8, 64, 16, 16), target="h200")
        assert (seen.comparison, len(seen.sites)) == (None, 1)
    counted = eca_triton.explain(AsksForData(QUESTIONS["item"][0]), torch.ones(8, 64, 16, 16), target="h200")
    assert counted.comparison.stock.kernels
    assert "are taken for 1" in str(counted)


def test_a_module_that_also_gives_its_gate_away_is_not_left_out_of_a_twin() -> None:
    class GivesGate(Attention):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            gate = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1)
            return x * gate, gate

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = GivesGate()

        def forward(self, x: Tensor) -> Tensor:
            y, gate = self.attention(2 * x)
            return y + gate

    seen = eca_triton.explain(Around(), torch.zeros(8, 64, 16, 16), target="h200")
    assert [record.owner for record in seen.sites] == [None]
    assert (seen.plain, bool(seen.no_plain)) == (None, True)


def test_a_module_that_is_traced_and_no_eca_says_so() -> None:
    class EcaMlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.linear(x.mean((2, 3))).sigmoid()[:, :, None, None]

    seen = eca_triton.explain(nn.Sequential(EcaMlp()), torch.zeros(2, 8, 4, 4), target="none")
    assert [(module.name, module.kind, module.reason) for module in seen.unmatched] == [
        ("0", "EcaMlp", OTHER_LAYER)
    ]


@pytest.mark.parametrize(
    "name", ["EcaModule", "CecaModule", "ECA", "ECABlock", "eca_layer", "C3ECA", "EfficientChannelAttention"]
)
def test_names_that_look_like_eca(name: str) -> None:
    assert NAMES.search(name)


@pytest.mark.parametrize("name", ["Decay", "RECALL", "Mecanum", "Attention", "SEModule"])
def test_names_that_do_not(name: str) -> None:
    assert not NAMES.search(name)


def test_only_the_innermost_of_nested_lookalikes_counts() -> None:
    class ECABottleneck(nn.Sequential):
        pass

    assert list(lookalikes(ECABottleneck(nn.Conv2d(3, 8, 1), Attention()))) == ["1"]


def test_the_model_is_left_as_it_was() -> None:
    model = Network().bfloat16().train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    eca_triton.explain(model, IMAGES, target="none")
    twin = without_attention(model, look(model, (IMAGES,), training=False).records[:1])
    assert isinstance(twin.attention, nn.Identity)
    assert isinstance(model.attention, Attention)
    assert twin.conv.weight is model.conv.weight  # no copy of the data
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_flops_are_those_of_the_convolutions(report: Report) -> None:
    convolutions = 2 * BATCH * 64 * SIDE**2 * (3 * 9 + 64)
    assert {name: lowering.flops // convolutions for name, lowering in report.lowerings().items()} == {
        "stock": 1, "ours": 1, "plain": 1,
    }  # fmt: skip


def test_the_network_without_eca_is_the_cheapest(report: Report) -> None:
    bytes_moved = {name: prediction.bytes_moved for name, prediction in report.predictions().items()}
    assert bytes_moved["plain"] < bytes_moved["ours"] < bytes_moved["stock"]


def test_a_mode_of_torch_compile_is_planned_and_counted_as_such() -> None:
    """Where Inductor tunes products, its own takes the site into its kernel; else ours does."""
    convolutions = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 1, bias=False)
    model = nn.Sequential(*convolutions, Attention(), nn.ReLU()).bfloat16()
    images = IMAGES.to(memory_format=torch.channels_last)
    seen = {
        mode: eca_triton.explain(model, images, target="h200", mode=mode)
        for mode in ("default", "max-autotune")
    }
    plans = {mode: each.sites[0].decision.plan for mode, each in seen.items()}
    assert plans == {"default": "convblock", "max-autotune": "convfold"}
    moved = {mode: each.totals["bytes_after"] for mode, each in seen.items()}
    assert moved["max-autotune"] == pytest.approx(moved["default"], rel=0.01)
    by_hand = 2 * BATCH * SIDE**2 * (16 * 3 * 9 + 64 * 16)
    assert all(
        each.flops == pytest.approx(by_hand, rel=0.01)
        for report in seen.values()
        for each in report.lowerings().values()
    )
    assert (seen["max-autotune"].subject.mode, seen["max-autotune"].as_dict()["mode"]) == (
        "max-autotune",
    ) * 2
    assert "max-autotune where Triton's matrix products win" in str(seen["max-autotune"])
    alone = eca_triton.explain(model, images, target="none", mode="max-autotune")
    assert alone.sites == seen["max-autotune"].sites


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of default, .*, got 'fast'"):
        eca_triton.explain(Network(), IMAGES, mode="fast")


def test_a_site_among_other_code_has_no_twin() -> None:
    class Inline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.conv = nn.Conv2d(3, 8, 1), nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.scale(x)
            return x * self.conv(x.mean((2, 3))[:, None]).sigmoid().view(x.shape[0], -1, 1, 1)

    model = nn.Sequential(Inline())
    records = look(model, (torch.zeros(2, 3, 8, 8),), training=False).records
    with pytest.raises(NoTwinError, match="0 holds a site among other code"):
        without_attention(model, records)


def test_a_gate_that_another_module_applies_is_no_module_to_take_out() -> None:
    """The identity in its place would multiply the map by itself."""

    class Gate(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.mean((2, 3))[:, None]).sigmoid().view(*x.shape[:2], 1, 1)

    class Applied(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x * self[0](x)

    records = look(nn.Sequential(Applied(Gate())), (torch.zeros(2, 8, 4, 4),), training=False).records
    assert [(record.name, record.owner) for record in records] == [("0.0", "0")]


def test_the_dictionary_is_plain_and_versioned(report: Report) -> None:
    answer = json.loads(json.dumps(report.as_dict()))
    assert list(answer) == [
        "schema", "model", "inputs", "dtype", "batch", "training", "mode", "target", "versions", "sites",
        "totals", "predicted", "measured", "unmatched", "graph_breaks",
    ]  # fmt: skip
    assert (answer["schema"], answer["target"], answer["measured"]) == (SCHEMA, "h200", None)
    assert (answer["inputs"], answer["batch"]) == (["8 x 3 x 32 x 32 bfloat16"], BATCH)
    low, likely, high = answer["predicted"]["ours"]["images_per_s"]
    assert low < likely < high
    assert answer["predicted"]["speedup"][0] > 1
    assert answer["predicted"]["no_plain"] is None


def test_printed_it_says_what_was_not_measured_and_what_to_paste(report: Report) -> None:
    text = str(report)
    assert "no GPU measured this" in text
    assert "ECA104: an operation between" in text
    assert "unused_eca (Attention)" in text
    assert 'torch.compile(model, backend="eca_triton")' in text
    assert repr(report) == "<Report of Network: 1 of 2 sites lowered>"


def test_a_report_can_be_kept(report: Report) -> None:
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


def test_without_a_gpu_no_target_means_sites_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_target(None, []) is choose_target("none", []) is None
    assert choose_target("a100", []) == "a100"
    with pytest.raises(ValueError, match="target must be one of h200, h100, a100, none, got 'tpu'"):
        choose_target("tpu", [])


def test_with_a_gpu_no_target_means_the_one_that_is_most_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    a100 = TARGETS["a100"].properties()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: a100)
    assert choose_target(None, []) == "a100"
    assert choose_target("none", []) is None


def test_what_is_on_no_gpu_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="measure=True needs model and inputs on a GPU"):
        eca_triton.explain(Network(), IMAGES, measure=True)


def test_every_reason_has_a_fix() -> None:
    assert FIXES.keys() == {code for code in REASONS if code < "ECA3"}  # those are about one plan of several


class TestAssertLowered:
    """For users' own CI."""

    def test_it_passes_if_enough_sites_are_lowered(self) -> None:
        eca_triton.assert_lowered(Network().bfloat16(), IMAGES, at_least=1)
        eca_triton.assert_lowered(Attention(), torch.zeros(8, 64, 32, 32))

    def test_its_message_is_the_table_of_the_others(self) -> None:
        with pytest.raises(AssertionError) as failure:
            eca_triton.assert_lowered(Network().bfloat16(), IMAGES)
        message = str(failure.value)
        assert message.startswith("1 of 3 ECA sites lowered, expected at least 3\n")
        assert "ECA104  an operation between convolution" in message
        assert "unused_eca" in message
        assert "tests/report/reports.py:" in message

    def test_a_model_without_eca_fails(self) -> None:
        with pytest.raises(AssertionError, match="0 of 0 ECA sites lowered, expected at least 1"):
            eca_triton.assert_lowered(nn.Linear(2, 2), torch.zeros(2, 2))

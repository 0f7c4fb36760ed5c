"""Every entry point that docs/index.md lists is tried: what it names can be called, and does what it says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
import torch
from deviceless_models import Tail, tail
from paths import ROOT
from torch import Tensor, nn

import eca_triton
from eca_triton.__main__ import main
from eca_triton.compile.record import recording


def network() -> tuple[Tail, tuple[Tensor, Tensor]]:
    """The tail of a bottleneck, with inputs that are large enough to be lowered."""
    return Tail(64).eval(), (torch.randn(8, 16, 32, 32), torch.randn(8, 64, 32, 32))


@contextmanager
def lowering() -> Iterator[None]:
    """All that is compiled inside has one site, and it is lowered."""
    torch.compiler.reset()
    anew = torch._inductor.config.patch(fx_graph_cache=False)  # what comes from the cache is not recorded
    with recording() as records, torch.no_grad(), anew:
        yield
    assert [record.lowered for record in records] == [True]


def same(compiled: Callable[..., Tensor], model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def the_backend(folder: Path) -> None:
    model, inputs = network()
    with lowering():
        options = {"eca.force": True}
        same(torch.compile(model, backend="eca_triton", options=options, dynamic=False), model, inputs)
        torch.compile(model, backend="eca_triton", mode="reduce-overhead")


def every_compilation(folder: Path) -> None:
    model, inputs = network()
    eca_triton.enable(force=True)
    with lowering():
        same(torch.compile(model), model, inputs)
    eca_triton.disable()
    with lowering(), eca_triton.enabled(force=True):
        same(torch.compile(model), model, inputs)


def one_compilation(folder: Path) -> None:
    model, inputs = network()
    with lowering():
        same(torch.compile(model, options=eca_triton.inductor_options(force=True)), model, inputs)


def the_op_and_the_module(folder: Path) -> None:
    x, weight = torch.randn(2, 8, 4, 4), torch.randn(1, 1, 3)
    gate = eca_triton.eca_gate(x, weight)
    torch.testing.assert_close(eca_triton.eca(x, weight), x * gate.view(2, 8, 1, 1))
    for module in (eca_triton.ECA(8), eca_triton.ECABlock(8)):
        torch.testing.assert_close(module(x).shape, x.shape)


OWN_MODEL = """
import torch
from deviceless_models import Tail


def network():
    with torch.device("meta"):
        return Tail(64), (torch.empty(8, 16, 32, 32), torch.empty(8, 64, 32, 32))
"""


def own_model(folder: Path) -> str:
    (folder / "own_model.py").write_text(OWN_MODEL)
    return f"{folder / 'own_model.py'}:network"


def command(*arguments: object) -> str:
    """What a command of ours prints, which ends well."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*map(str, arguments)]) == 0
    return out.getvalue()


def the_report(folder: Path) -> None:
    model, page, old = own_model(folder), folder / "report.html", folder / "old.json"
    old.write_text(command("explain", model, "--target", "h200", "--json", "--html", page))
    assert json.loads(old.read_text())["totals"]["lowered"] == 1
    assert "<!doctype html>" in page.read_text()
    assert command("explain", model, "--target", "none", "--diff", old)


def what_was_compiled(folder: Path) -> None:
    model, inputs = network()
    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, backend="eca_triton", options={"eca.force": True})(*inputs)
    assert eca_triton.last_report().lowered == 1


def the_report_in_python(folder: Path) -> None:
    model, inputs = network()
    assert eca_triton.explain(model, *inputs, target="none").lowered == 1
    eca_triton.assert_lowered(model, *inputs)


def tuning(folder: Path) -> None:
    assert "<- heuristic" in command("autotune", own_model(folder), "--dry-run")
    assert "no tuned configs" in command("tune-cache", "show")


def the_papers_networks(folder: Path) -> None:
    model = eca_triton.models.create("eca_resnet18", num_classes=10).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert eca_triton.models.resnet_fpn("resnet18", "eca")


def checkpoints(folder: Path) -> None:
    models = eca_triton.models
    file = folder / "eca_resnet18.pth"
    torch.save(models.create("eca_resnet18", num_classes=10).state_dict(), file)
    model = models.load_checkpoint(file)
    assert models.load_into(model, file) == []
    with pytest.raises(ValueError, match="does not fit"):
        models.load_into(models.create("eca_resnet34"), file)


def doctor(folder: Path) -> None:
    assert "eca_triton" in command("doctor")
    assert json.loads(command("doctor", "--json"))["ok"]


def a_gpu_that_is_not_there(folder: Path) -> None:
    model, inputs, _ = tail(8, 64, 32)
    assert "bytes" in str(eca_triton.deviceless.compare(model.eval(), inputs, target="h200"))


def exported_programs(folder: Path) -> None:
    program = torch.export.export(*network())
    lowered = eca_triton.rewrite_exported(program, device="cuda", force=True)
    assert "eca_triton" in str(lowered.graph)
    assert "eca_triton" not in str(eca_triton.decompose(lowered).graph)
    assert callable(eca_triton.aoti_compile_and_package)  # which takes half a minute, and docs/export.md runs


DOORS: dict[str, Callable[[Path], None]] = {
    'torch.compile(model, backend="eca_triton")': the_backend,
    "eca_triton.enable()": every_compilation,
    "torch.compile(model, options=eca_triton.inductor_options())": one_compilation,
    "eca_triton.eca(x, w, ...)": the_op_and_the_module,
    "python -m eca_triton explain timm:ecaresnet50d --target h200": the_report,
    "eca_triton.last_report()": what_was_compiled,
    "eca_triton.explain(model, x)": the_report_in_python,
    "python -m eca_triton autotune MODEL": tuning,
    "eca_triton.models": the_papers_networks,
    "models.load_checkpoint(file)": checkpoints,
    "python -m eca_triton doctor": doctor,
    'eca_triton.deviceless.compare(model, inputs, target="h200")': a_gpu_that_is_not_there,
    "eca_triton.rewrite_exported(program)": exported_programs,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_can_be_taken(door: str, tmp_path: Path) -> None:
    DOORS[door](tmp_path)


def test_every_row_of_the_table_of_entry_points_is_tried() -> None:
    page = (ROOT / "docs" / "index.md").read_text()
    (table,) = re.findall(r"^\| entry point \|.*\n\|---.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert [row.split("`")[1] for row in table.splitlines()] == [*DOORS]

"""Every Python block of the README and of docs/ runs, and every name of ours in them exists.

What a block needs from its reader (a model, a file, a GPU) is given to it here, and nothing else is changed.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from paths import ROOT
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import eca_triton

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """Text that is set as code."""

    language: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    """Fenced and indented blocks of a page, in its order."""
    text, found = page.read_text(), []
    fenced = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+")
    for match in fenced.finditer(text):
        found.append(Block(match[2], text[: match.start()].count("\n") + 2, textwrap.dedent(match[3])))
    rest = fenced.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in indented.finditer(rest):
        found.append(Block("", rest[: match.start()].count("\n") + 1, textwrap.dedent(match[0])))
    return sorted(found, key=lambda block: block.line)


PYTHON = {
    page.relative_to(ROOT): python
    for page in PAGES
    if (python := [block for block in blocks(page) if block.language == "python"])
}


# What blocks need, by page and number.


class OneInput(nn.Module):
    """A small network with a single input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.eca = eca_triton.ECA(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.eca(self.conv(x)).relu()


def a_model(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    names.update(torch=torch, model=OneInput(), x=torch.randn(4, 3, 16, 16))


def one_process_of_a_group(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """SyncBatchNorm refuses the CPU, so the model has no batch norm to convert."""
    dist.init_process_group("gloo", init_method=f"file://{Path('store').absolute()}", rank=0, world_size=1)
    names.update(nn=nn, DistributedDataParallel=DistributedDataParallel, model=OneInput(), device="cpu")


def a_file_that_you_made(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": names["model"].state_dict(), "whole": nn.ReLU()}, "old.pth")


def images(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """And a detector that does not enlarge them to 800 pixels."""
    small = partial(eca_triton.models.fasterrcnn_eca_resnet50_fpn, min_size=64, max_size=64)
    patch.setattr(eca_triton.models, "fasterrcnn_eca_resnet50_fpn", small)
    boxes = torch.tensor([[10.0, 10.0, 60.0, 60.0]])
    names.update(images=[torch.rand(3, 64, 64)], targets=[{"boxes": boxes, "labels": torch.tensor([1])}])


def a_checkpoint_with_the_trunks_taps(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    trunk = names["model"].backbone.body.state_dict()
    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": trunk | classifier}, "eca_resnet50_k3557.pth.tar")


def an_exporter(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """ONNX needs packages of its own; what it is given must be plain ATen."""

    def export(program: torch.export.ExportedProgram, *, dynamo: bool) -> None:
        assert dynamo
        assert "eca_triton" not in str(program.graph)

    patch.setattr(torch.onnx, "export", export)


def an_attention_of_ones_own(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    names["MyAttention"] = lambda channels, heads: nn.Identity()


def nothing(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    pass


NEEDS: dict[str, list[Callable[[dict[str, Any], pytest.MonkeyPatch], None]]] = {
    "README.md": [a_model, one_process_of_a_group],
    "docs/checkpoints.md": [nothing, a_file_that_you_made],
    "docs/detection.md": [images, a_checkpoint_with_the_trunks_taps],
    "docs/export.md": [a_model, nothing, an_exporter],
    "docs/models.md": [nothing, an_attention_of_ones_own],
    "docs/reasons.md": [a_model],
}


@pytest.fixture
def on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to write to; `.cuda()` stays on the CPU; what is compiled is run without being compiled.

    Packages are compiled, in half of the time.
    """
    monkeypatch.chdir(tmp_path)
    for each in (Tensor, nn.Module):
        monkeypatch.setattr(each, "cuda", lambda self: self)
    hasty = torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"})
    with torch.compiler.set_stance("force_eager"), hasty:
        yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("on_this_machine")
@pytest.mark.parametrize("page", PYTHON, ids=str)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    for block, need in zip(PYTHON[page], NEEDS[str(page)], strict=True):
        need(names, monkeypatch)
        code = "\n" * (block.line - 1) + block.text  # errors have the page's line
        exec(compile(code, str(ROOT / page), "exec"), names)


def test_a_docstring_opens_with_a_verb_or_a_noun() -> None:
    files = [
        file for folder in ("eca_triton", "kernels", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [
        node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)
    ]
    texts = [text for node in nodes if (text := ast.get_docstring(node))]
    assert len(texts) > 1000
    assert [text for text in texts if re.match(r"(Of|Whether|From|By|In|As|Does)\b", text)] == []


def test_python_is_marked_as_such_so_that_it_is_run() -> None:
    assert [*NEEDS] == [str(page) for page in PYTHON]
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                continue
            try:
                tree = ast.parse(block.text)
            except SyntaxError:
                continue
            calls = [
                each for each in ast.walk(tree) if isinstance(each, (ast.Call, ast.Import, ast.ImportFrom))
            ]
            assert not calls, f"{page.name}:{block.line} is Python"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_ours_that_a_page_uses_exists(page: Path) -> None:
    text = re.sub(r"(from|import) eca_triton.*", "", page.read_text())  # what is run anyway
    for name in set(re.findall(r"(?<![\w./])eca_triton\.([A-Za-z_][\w.]*\w)(?!\w*\.\w)", text)):
        first, *rest = name.split(".")
        value = getattr(torch.ops.eca_triton if first == "gate" else eca_triton, first)
        for part in rest if not hasattr(torch.ops.eca_triton, first) else []:
            value = getattr(value, part)

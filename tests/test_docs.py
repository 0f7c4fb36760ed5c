"""Every Python block of the README and of docs/ runs, and every name, command and file in them exists.

What a block needs from its reader (a model, a file, a GPU) is given to it here, and nothing else is changed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from paths import ROOT
from torch import Tensor, nn

import eca_triton
from benchmarks import __main__ as benchmarks
from eca_triton import __main__ as commands

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [path for path in sorted(ROOT.glob("*.md")) if path not in PAGES] + [
    ROOT / "benchmarks" / "README.md"
]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


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


class Classifier(nn.Sequential):
    """`OneInput` with classes behind it."""

    def __init__(self) -> None:
        super().__init__(OneInput(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def a_model(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    names.update(torch=torch, model=OneInput(), x=torch.randn(4, 3, 16, 16))


def what_is_compiled(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Compile in earnest: there is something to report."""
    a_model(names, patch)
    torch.compiler.set_stance("default")


def a_network_that_gains(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    layers = nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), eca_triton.ECA(64), nn.ReLU()
    names.update(model=nn.Sequential(*layers))
    torch.compiler.set_stance("default")


def a_training_set(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    names.update(model=Classifier(), loader=[(torch.randn(4, 3, 16, 16), torch.arange(4))])
    patch.setattr(
        torch, "autocast", lambda device_type, dtype: nullcontext()
    )  # of a GPU that may not be there


def one_process_of_a_group(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """SyncBatchNorm refuses the CPU, so the model has no batch norm to convert."""
    dist.init_process_group("gloo", init_method=f"file://{Path('store').absolute()}", rank=0, world_size=1)
    names.update(model=OneInput(), device="cpu")


def a_mesh(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    names.update(model=OneInput(), mesh=dist.init_device_mesh("cpu", (1,)))


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
    "README.md": [what_is_compiled],
    "docs/checkpoints.md": [nothing, a_file_that_you_made],
    "docs/ci.md": [a_network_that_gains, nothing],
    "docs/detection.md": [images, a_checkpoint_with_the_trunks_taps],
    "docs/export.md": [a_model, nothing, an_exporter],
    "docs/models.md": [nothing, an_attention_of_ones_own],
    "docs/reasons.md": [a_model],
    "docs/training.md": [a_training_set, one_process_of_a_group, a_mesh],
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


def test_the_readme_fits_on_a_screen_or_two() -> None:
    assert 60 <= len((ROOT / "README.md").read_text().splitlines()) <= 80


# Commands.


def commands_of(page: Path) -> Iterator[list[str]]:
    """Words of each command in the page's blocks, without comments, brackets and what a shell writes to."""
    for block in blocks(page):
        if block.language not in ("", "bash"):
            continue
        for line in re.split(r"\n| && ", re.sub(r"(^|\s)#.*", "", block.text)):
            first = line.partition(" ")[0]
            if first in KNOWN or (block.language == "bash" and first):
                words = shlex.split(re.sub(r"[\[\]](?![^']*')", "", line))
                yield words[: words.index(">")] if ">" in words else words


def a_python_program(words: list[str]) -> None:
    if words[:2] == ["-m", "eca_triton"]:
        commands._parser().parse_args(words[2:])  # argparse says what is wrong
    elif words[:2] == ["-m", "benchmarks"]:
        benchmarks.parser(words[2:]).parse_args(words[2:])
    elif words[0] != "-m" and words != ["train.py"]:  # the reader's own
        assert (ROOT / words[0]).is_file()


def a_target_of_make(words: list[str]) -> None:
    known = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= {*known}


def an_installation(words: list[str]) -> None:
    extras = re.findall(r"\[([\w,]+)\]$", words[-1])
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert words[0] in ("install", "uninstall")
    assert {extra for each in extras for extra in each.split(",")} <= {*known}


KNOWN: dict[str, Callable[[list[str]], None]] = {
    "python": a_python_program,
    "make": a_target_of_make,
    "pip": an_installation,
    "git": lambda words: None,
    "cd": lambda words: None,
}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_that_is_known(page: Path) -> None:
    for first, *words in commands_of(page):
        KNOWN[first](words)
    for inline in re.findall(r"`make ([^`]+)`", page.read_text()):
        a_target_of_make(shlex.split(inline))


def test_the_commands_of_the_readme_are_seen() -> None:
    found = [" ".join(words[:3]) for words in commands_of(ROOT / "README.md")]
    assert found[0].startswith("git clone ")  # an sdist may have an address there: .ci/dist.py
    assert found[1:] == [
        "cd eca_triton",
        "pip install -e",
        "python -m eca_triton",
        "python -m eca_triton",
        "make demo",
        "make test",
    ]


# Links.


def text_of(page: Path) -> str:
    """The page's prose: of a notebook that of its cells, of a page all but its blocks."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link to the page may have behind #: headings as code hosts write them, and its own anchors."""
    text = text_of(page)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    return slugs | {*re.findall(r'<a id="([^"]+)"', text)}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS, TUTORIAL], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    text = text_of(page)
    links = re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in links:
        if not re.match(r"https?:", link):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


# The tutorial.


def test_the_tutorial_is_committed_without_results() -> None:
    cells = json.loads(TUTORIAL.read_text())["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_cells_of_the_tutorial_run(tmp_path: Path) -> None:
    """In a process of its own: it compiles, and lowers for a GPU that is not there."""
    cells = json.loads(TUTORIAL.read_text())["cells"]
    script = tmp_path / "tutorial.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 of 2 sites lowered") == (2 if torch.version.cuda else 1)
    assert "skip ECA104" in done.stdout
    losses = [float(loss) for loss in re.findall(r"^loss (\S+)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]

"""What `docs/hooks.py` makes of pages for the site; `make docs` builds it, and checks its links."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
from paths import ROOT

from eca_triton.__main__ import _parser

PAGE = ROOT / "docs" / "command-line.md"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_the_site(hooks: ModuleType, text: str, source: str, page: str) -> str:
    return hooks.adapted(text, source, page, hooks.pages_from_outside())


@pytest.mark.parametrize(
    ("source", "page", "text", "wanted"),
    [
        ("docs/index.md", "index.md", "[a](../CONTRIBUTING.md#set-up)", "[a](contributing.md#set-up)"),
        ("docs/index.md", "index.md", "[a](../benchmarks/README.md)", "[a](benchmarks.md)"),
        ("docs/index.md", "index.md", "[a](../examples/demo.py)", "[a](examples/demo.md)"),
        ("docs/index.md", "index.md", "[a](tutorial.ipynb)", "[a](tutorial.md)"),
        ("docs/index.md", "index.md", "[a](plans.md#x), [b](#y)", "[a](plans.md#x), [b](#y)"),
        ("CONTRIBUTING.md", "contributing.md", "[a](docs/plans.md)", "[a](plans.md)"),
        ("benchmarks/README.md", "benchmarks.md", "[a](../docs/tax.md)", "[a](tax.md)"),
        ("examples/demo.py", "examples/demo.md", "[a](../docs/tax.md)", "[a](../tax.md)"),
        ("docs/results.md", "results.md", "[the folder](../benchmarks/results)", "the folder"),
        ("docs/index.md", "index.md", "[a](../nowhere.md)", "[a](../nowhere.md)"),
        ("docs/index.md", "index.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
    ],
)
def test_a_link_leads_to_the_page_of_a_file_and_what_has_none_is_words(
    hooks: ModuleType, source: str, page: str, text: str, wanted: str
) -> None:
    assert on_the_site(hooks, text, source, page) == wanted


def test_code_is_left_alone(hooks: ModuleType) -> None:
    text = "```python\nf[0](../CONTRIBUTING.md)\n```\n"
    assert on_the_site(hooks, text, "docs/index.md", "index.md") == text


def test_a_figure_of_two_colours_goes_by_the_sites_own(hooks: ModuleType) -> None:
    text = (
        '<picture><source media="(prefers-color-scheme: dark)" srcset="figures/a-dark.svg">'
        '<img src="figures/a-light.svg" alt="words"></picture>'
    )
    wanted = "![words](figures/a-light.svg#only-light)![words](figures/a-dark.svg#only-dark)"
    assert on_the_site(hooks, text, "docs/tax.md", "tax.md") == wanted


def test_every_figure_of_the_pages_is_of_a_form_that_is_seen(hooks: ModuleType) -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert "<picture>" not in hooks.PICTURE.sub("", path.read_text()), path.name


def commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Each command of a parser, as one writes it."""
    yield parser.prog
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands(command)


def test_the_page_of_commands_has_the_help_of_each(hooks: ModuleType) -> None:
    shown = hooks.HELP.findall(PAGE.read_text())
    assert {*commands(_parser())} <= {*shown}
    assert len(shown) == len({*shown})


def test_help_is_what_the_command_prints(hooks: ModuleType) -> None:
    assert hooks.help_of("python -m eca_triton doctor").startswith("usage: python -m eca_triton doctor")
    with pytest.raises(RuntimeError, match=r"no-command --help: (.|\n)*invalid choice"):
        hooks.help_of("python -m eca_triton no-command")


def test_an_example_is_shown_with_its_words_and_its_source(hooks: ModuleType) -> None:
    page = hooks.example(ROOT / "examples" / "demo.py")
    assert page.startswith("# examples/demo.py\n\nThe main job on a real photograph")
    assert re.search(r'```python\n"""The main job.*\n```\n$', page, re.DOTALL)


def test_a_cell_is_shown_with_what_it_printed(hooks: ModuleType) -> None:
    words = {"cell_type": "markdown", "source": "# Words"}
    outputs = [{"name": "stderr", "text": "b\n"}, {"name": "stdout", "text": "a\n"}]
    outputs += [{"data": {"text/plain": "3", "text/html": "<b>3</b>"}}]
    code = {"cell_type": "code", "source": "print('a')\n1 + 2", "outputs": outputs}
    assert hooks.cell_text(words) == "# Words"
    assert hooks.cell_text(code) == "```python\nprint('a')\n1 + 2\n```\n\n```text\na\n3\n```"
    assert hooks.cell_text(code | {"outputs": []}) == "```python\nprint('a')\n1 + 2\n```"

"""What the site adds to MkDocs: pages from outside docs/, the tutorial's results, and the commands' own help.

Pages are written for a code host, too: they link to `../CONTRIBUTING.md`, `tutorial.ipynb` or
`../examples/demo.py`, and show a figure of two colours as a <picture>. These get the site's form here.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *)(```+).*?^\1\2$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s:#]+)(#[^()\s]*)?\)")
PICTURE = re.compile(
    r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">'
    r'<img src="([^"]+)" alt="([^"]*)"></picture>'
)
HELP = re.compile(r"^<!-- help: (.+) -->$", re.MULTILINE)


def pages_from_outside() -> dict[str, str]:
    """Return the site's pages that are not Markdown in docs/: path from the root -> page."""
    at_the_top = {path.name: f"{path.stem.lower()}.md" for path in ROOT.glob("*.md") if path.stem != "README"}
    examples = {f"examples/{path.name}": f"examples/{path.stem}.md" for path in ROOT.glob("examples/*.py")}
    notebooks = {f"docs/{path.name}": f"{path.stem}.md" for path in ROOT.glob("docs/*.ipynb")}
    return at_the_top | examples | notebooks | {"benchmarks/README.md": "benchmarks.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside; a notebook stays beside its page, to be downloaded."""
    from mkdocs.structure.files import File

    for source, page in pages_from_outside().items():
        path = ROOT / source
        make = {".py": example, ".ipynb": notebook}.get(path.suffix, Path.read_text)
        files.append(File.generated(config, page, content=make(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give links, figures and help their form on the site."""
    outside = pages_from_outside()
    source = {page: source for source, page in outside.items()}.get(page.file.src_uri)
    markdown = HELP.sub(lambda match: f"```text\n{help_of(match[1])}```", markdown)
    return adapted(markdown, source or f"docs/{page.file.src_uri}", page.file.src_uri, outside)


def adapted(markdown: str, source: str, page: str, outside: Mapping[str, str]) -> str:
    """Return a page's text with links and figures as the site has them; code blocks stay.

    Args:
        markdown: the text.
        source: the page's path from the root, which its links start from.
        page: its path on the site.
        outside: the pages of `pages_from_outside`.
    """

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in outside or (path.startswith("docs/") and not path.endswith(".ipynb")):
            home = outside.get(path, path.removeprefix("docs/"))
            return f"[{text}]({posixpath.relpath(home, posixpath.dirname(page) or '.')}{anchor})"
        return text if (ROOT / path).exists() else match[0]  # MkDocs says which page links to nothing

    def figure(match: re.Match[str]) -> str:
        dark, light, words = match.groups()
        return f"![{words}]({light}#only-light)![{words}]({dark}#only-dark)"

    parts, end = [], 0
    for fence in [*FENCE.finditer(markdown), None]:
        text = markdown[end : fence.start() if fence else None]
        parts.append(LINK.sub(link, PICTURE.sub(figure, text)))
        if fence:
            parts.append(fence[0])
            end = fence.end()
    return "".join(parts)


def help_of(command: str) -> str:
    """Return what `python -m MODULE COMMAND --help` prints, at 80 columns."""
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *command.split()[1:], "--help"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} --help: {done.stderr}")
    return done.stdout


def example(path: Path) -> str:
    """Return the page of an example: its docstring, and its source."""
    source = path.read_text()
    words = ast.get_docstring(ast.parse(source)) or ""
    return f"# examples/{path.name}\n\n{words}\n\n```python\n{source}```\n"


def notebook(path: Path) -> str:
    """Run a notebook and return it as Markdown, with what its cells printed.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    document = nbformat.read(path, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    through_files = Config(
        {"KernelManager": {"transport": "ipc"}}
    )  # by default through ports, for all to read
    NotebookClient(document, timeout=600, kernel_name="python3", config=through_files).execute()
    parts = [cell_text(cell) for cell in document.cells]
    parts.insert(1, f'<a href="{path.name}" download>Download this page as a notebook.</a>')
    return "\n\n".join(parts) + "\n"


def cell_text(cell: Mapping[str, Any]) -> str:
    """Return a cell as Markdown."""
    if cell["cell_type"] == "markdown":
        return str(cell["source"])
    outputs = [each for each in cell["outputs"] if each.get("name") != "stderr"]  # libraries' warnings
    printed = [each.get("text") or each.get("data", {}).get("text/plain", "") for each in outputs]
    result = "".join(text if text.endswith("\n") else f"{text}\n" for text in printed if text)
    answer = f"\n\n```text\n{result}```" if result else ""
    return f"```python\n{cell['source']}\n```{answer}"

"""Build the sdist and the wheel into dist/, and have them checked: `python .ci/dist.py [ADDRESS]`.

ADDRESS is that of the repository, https://HOST/OWNER/NAME. With it, the package's metadata name it, and the
links of README, which are relative in the repository, lead there from PyPI; a release needs it.
Builds a copy of the files that git knows; needs the extra `dist`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".svg", ".png")
PLACEHOLDER = "ADDRESS-OF-THIS-REPOSITORY"  # what README says where none is known
PAGES = {  # of a repository, by the name that PyPI shows
    "Source": "",
    "Documentation": "/blob/main/docs/index.md",
    "Changelog": "/blob/main/CHANGELOG.md",
    "Issues": "/issues",
}


def absolute(markdown: str, address: str) -> str:
    """A text of the repository's root with links, and an address to clone, that are right from anywhere."""

    def at(path: str) -> str:
        return f"{address}/{'raw' if path.endswith(PICTURES) else 'blob'}/main/{path}"

    markdown = re.sub(r"\]\((?!https?:|#)([^()\s]+)\)", lambda match: f"]({at(match[1])})", markdown)
    markdown = markdown.replace(PLACEHOLDER, address)
    return re.sub(
        r'\b(src|srcset)="(?!https?:)([^"]+)"', lambda match: f'{match[1]}="{at(match[2])}"', markdown
    )


def with_urls(pyproject: str, address: str) -> str:
    """The project's file with the addresses of its pages."""
    lines = [f'{name} = "{address}{page}"' for name, page in PAGES.items()]
    return pyproject.replace(
        "[project.entry-points", "\n".join(["[project.urls]", *lines, "", "[project.entry-points"]), 1
    )


def copy_to(folder: Path, address: str) -> None:
    """The files that git knows, with the address in them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    if address:
        for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
            path = folder / name
            path.write_text(change(path.read_text(), address))


def main(address: str = "") -> None:
    """Build and check."""
    out = ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    run = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        copy_to(Path(folder), address.rstrip("/"))
        subprocess.run([*run, "build", "--no-isolation", "--outdir", str(out), folder], check=True)
        archives = sorted(map(str, out.iterdir()))
        subprocess.run([*run, "twine", "check", "--strict", *archives], check=True)
        wheel = next(name for name in archives if name.endswith(".whl"))
        # Kernels stand at the top of the checkout and in the package, once in the wheel.
        subprocess.run([*run, "check_wheel_contents", wheel], check=True)
        # AuthorEmail: contributors have none in common. Without an address there are no URLs.
        skipped = ["AuthorEmail"] if address else ["AuthorEmail", "Url"]
        subprocess.run([*run, "pyroma", "--min=10", f"--skip-tests={','.join(skipped)}", folder], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

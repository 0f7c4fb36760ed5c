"""Print the constraints of any torch that is tested.

    python tests/versions.py 2.12.1

constraints.txt has the newest that CI runs, constraints-oldest.txt the oldest; others have the packages of
constraints.txt but for what TORCH says. docs/versions.md tells which tests ran on which.
"""

from __future__ import annotations

import re
import sys

from paths import ROOT

FILES = (ROOT / "constraints-oldest.txt", ROOT / "constraints.txt")
TORCH: dict[str, dict[str, str]] = {  # version: packages that go with it
    "2.12.1": {"torchvision": "0.27.1", "triton": "3.7.1", "setuptools": "81.0.0"},
    "2.13.0": {"torchvision": "0.28.0", "triton": "3.7.1"},
    "2.14.1": {"torchvision": "0.29.1", "triton": "3.8.0"},
}


def pin(text: str, package: str) -> str:
    """The version of a package in the text of a constraints file."""
    (found,) = re.findall(rf"^{package}==(\S+)$", text, re.MULTILINE)
    return str(found)


def constraints(torch: str) -> str:
    """The text of a constraints file for a version of torch.

    Raises:
        ValueError: it is none of those that are tested.
    """
    texts = {pin(path.read_text(), "torch"): path.read_text() for path in FILES}
    if torch in texts:
        return texts[torch]
    if torch not in TORCH:
        raise ValueError(f"torch must be one of {', '.join(sorted({*texts, *TORCH}))}, got {torch!r}")
    text = FILES[-1].read_text()
    for package, version in {"torch": torch, **TORCH[torch]}.items():
        text = text.replace(f"\n{package}=={pin(text, package)}\n", f"\n{package}=={version}\n")
    return text


def versions_of_triton() -> set[str]:
    """Minor versions of Triton, as in 3.9, of every torch that is tested."""
    pins = {pin(path.read_text(), "triton") for path in FILES} | {each["triton"] for each in TORCH.values()}
    return {version.rpartition(".")[0] for version in pins}


if __name__ == "__main__":
    try:
        print(constraints(*sys.argv[1:]), end="")
    except (TypeError, ValueError) as error:
        raise SystemExit(f"versions.py VERSION: {error}") from error

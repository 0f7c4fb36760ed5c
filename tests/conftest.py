"""What every test shares."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Test processes share the cores: torch would start a thread per core in each, and Inductor a pool of workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# C++ that Inductor generates for this CPU is scalar: with vectors each kernel compiles five times as long.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
# What a developer tuned on this machine changes no test.
os.environ["ECA_TRITON_TUNED"] = "off"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="draw the order of the tests by this seed")


def pytest_report_header(config: pytest.Config) -> list[str]:
    seed = config.getoption("shuffle")
    return [] if seed is None else [f"shuffled: --shuffle {seed}"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Draw the order of files, and of tests in each: a file's own fixtures are made once."""
    seed = config.getoption("shuffle")
    if seed is not None:
        random.Random(seed).shuffle(items)
        files: dict[Path, int] = {}
        for item in items:
            files.setdefault(item.path, len(files))
        items.sort(key=lambda item: files[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each test the same start in any order: its fixtures draw random numbers after this."""
    import torch

    torch.manual_seed(0)
    # Where tracing fails, torch 2.11 leaves its hook on the assignment of buffers, which Dynamo cannot trace.
    torch.nn.modules.module._global_buffer_registration_hooks.clear()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Skipped tests by reason: each once, though many files give it."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, tests in reasons.most_common():
        terminalreporter.write_line(f"{tests} skipped: {reason}")


@pytest.fixture
def table_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tuned tables are read again: the user's from caches/ in this folder, shipped ones from shipped/."""
    from eca_triton.tuning import store

    monkeypatch.delenv("ECA_TRITON_TUNED")
    monkeypatch.setenv("ECA_TRITON_CACHE_DIR", str(tmp_path / "caches"))
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
    store._warned.clear()
    store.reload()
    yield tmp_path
    monkeypatch.undo()
    store.reload()

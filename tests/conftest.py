"""What every test shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test processes share the cores: torch would start a thread per core in each, and Inductor a pool of workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# What a developer tuned on this machine changes no test.
os.environ["ECA_TRITON_TUNED"] = "off"


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

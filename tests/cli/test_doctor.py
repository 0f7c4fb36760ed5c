"""`python -m eca_triton doctor`: the state of a machine, an exit code, and one JSON object on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tuned import forward, table

import eca_triton
from eca_triton.__main__ import main
from eca_triton.cli import doctor
from eca_triton.tuning import store


def examined(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    """The JSON object of a run that exits with `code`."""
    assert main(["doctor", "--json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_versions_gpus_backend_and_environment_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    answer = examined(capsys)
    assert answer["ok"] is True
    assert answer["versions"]["eca_triton"] == eca_triton.__version__
    assert answer["versions"]["torch"] == torch.__version__
    assert len(answer["gpus"]) == torch.cuda.device_count()
    assert answer["backend_visible"] is True
    assert list(answer["environment"]) == list(doctor.VARIABLES)
    assert answer["problems"] == []


def test_the_table_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert 'backend="eca_triton"  visible' in out


def test_a_backend_that_is_not_found_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_backend_visible", lambda: False)
    answer = examined(capsys, code=1)
    assert answer["ok"] is False
    assert "does not find" in answer["problems"][0]


def test_a_torch_that_is_too_old_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    assert "torch 2.10.1+cpu is older than 2.11" in examined(capsys, code=1)["problems"]


def test_packages_that_are_missing_are_null(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda package: None)
    assert set(examined(capsys)["versions"].values()) >= {None}


def test_the_tables_of_tuned_configs_are_shown_also_a_broken_one(
    capsys: pytest.CaptureFixture[str], table_folder: Path
) -> None:
    path = store.save(table(forward(128, 256, 3136)))
    answer = examined(capsys)
    assert answer["tables"] == {str(path): 1}
    assert main(["doctor"]) == 0
    assert f"{path}  tuned configs: 1" in capsys.readouterr().out
    path.write_text("nonsense")
    answer = examined(capsys)
    assert answer["tables"] == {str(path): 0}
    assert any(note.startswith(f"{path} is ignored: not JSON") for note in answer["notes"])


@pytest.mark.parametrize("name", doctor.VARIABLES)
def test_a_variable_that_changes_what_runs_is_noted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    answer = examined(capsys)
    assert answer["environment"][name] == "1"
    assert any(note.startswith(f"{name}=1") for note in answer["notes"])

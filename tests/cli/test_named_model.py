"""`FILE.py:FACTORY`: the file may have any name, and nothing in it ends a command as though all were well."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_model import OWN_MODEL
from paths import ROOT

from eca_triton.__main__ import main
from eca_triton.cli import named_model

LIBRARY = "library_that_is_installed"
NOT_A_MODULE = ("model", "my-model", "a.b")


@pytest.fixture(autouse=True)
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed modules; what a test loads is forgotten after it."""
    before = dict(sys.modules)
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / f"{LIBRARY}.py").write_text("IS_THE_LIBRARY = True")
    (folder / "twice.py").write_text("IS_THE_LIBRARY = True")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield folder
    for name, module in [*sys.modules.items()]:
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
    sys.modules.update(before)


def own(folder: Path, name: str, head: str = "", body: str = OWN_MODEL) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(f"{head}\n{body}")
    return file


@pytest.mark.parametrize(
    "name",
    [
        *("types", "torch", "eca_triton", "json", "_signal", "__main__", "colorsys", "html", LIBRARY),
        *NOT_A_MODULE,
    ],
)
@pytest.mark.parametrize("here", [False, True], ids=["elsewhere", "in the current directory"])
def test_a_file_may_have_any_name_and_hides_no_module_of_that_name(
    name: str, here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unloaded in ("colorsys", "html"):
        monkeypatch.delitem(sys.modules, unloaded, raising=False)
    file = own(tmp_path / "own", name, head=f"import {LIBRARY}\nassert {LIBRARY}.IS_THE_LIBRARY")
    if here:
        monkeypatch.chdir(file.parent)
        monkeypatch.setattr(sys, "path", ["", *sys.path])
    loaded = dict(sys.modules)
    model, _ = named_model.load(named_model.Request(f"{file}:network"))
    module = sys.modules[type(model[1]).__module__]
    assert Path(module.__file__) == file
    assert {each: sys.modules[each] for each in loaded} == loaded
    if name not in NOT_A_MODULE:
        assert importlib.import_module(name) is not module
        assert Path(getattr(sys.modules[name], "__file__", "builtin")) != file
        assert not hasattr(sys.modules[name], "not_a_pair")


def test_a_file_imports_what_stands_beside_it_as_when_python_runs_it(tmp_path: Path) -> None:
    file = own(tmp_path / "own", "model", head="import beside, twice\nassert beside.OURS and twice.OURS")
    own(file.parent, "beside", body="import model\nOURS = bool(model)")
    own(file.parent, "twice", body="OURS = True")
    named_model.load(named_model.Request(f"{file}:network"))


def test_a_file_that_is_loaded_again_is_run_again(tmp_path: Path) -> None:
    file = own(tmp_path / "own", "model")
    named_model.load(named_model.Request(f"{file}:network"))
    own(tmp_path / "own", "model", body="import torch\ndef other(): return torch.nn.ReLU(), torch.ones(1)")
    model, _ = named_model.load(named_model.Request(f"{file}:other"))
    assert type(model).__name__ == "ReLU"


def test_a_file_in_the_current_directory_hides_no_library_from_the_command(tmp_path: Path) -> None:
    file = own(tmp_path / "own", "networkx")  # torch.compile imports it
    own(file.parent, "html", body="raise RuntimeError('not the library')")
    done = subprocess.run(
        [sys.executable, "-m", "eca_triton", "explain", "networkx.py:network", "--target", "none", "--json"],
        cwd=file.parent,
        env={"PYTHONPATH": str(ROOT), "ECA_TRITON_TUNED": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["totals"]["sites"] == 2


EXITS = """
import sys
from torch import nn, ones
if "{where}" == "file":
    sys.exit({code})

class Ending(nn.Module):
    def forward(self, x):
        sys.exit({code})

def network():
    if "{where}" == "factory":
        raise SystemExit({code})
    return Ending(), ones(1, 8, 4, 4)
"""


@pytest.mark.parametrize("code", ["0", "'a message'"])
@pytest.mark.parametrize("where", ["file", "factory", "forward"])
@pytest.mark.parametrize(
    "command", [["explain", "--target", "none"], ["autotune", "--dry-run"]], ids=" ".join
)
def test_a_model_that_ends_the_program_is_a_failure_of_the_command(
    command: list[str], where: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = own(tmp_path / "own", "model", body=EXITS.format(where=where, code=code))
    assert main([*command, f"{file}:network"]) == 1
    out, message = capsys.readouterr()
    assert out == ""
    assert "eca_triton: " in message
    assert "SystemExit(" in message

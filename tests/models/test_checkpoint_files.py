"""What is no checkpoint, or more than one: no code of a file runs, and the error says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eca_triton.models import load_checkpoint


class Harm:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_no_code_of_a_file_runs(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "harm.pth"
    content = {"state_dict": Harm(tmp_path / "harmed")}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"holds \S+, not only tensors[\s\S]*Never set weights_only=False"):
        load_checkpoint(file)
    assert not (tmp_path / "harmed").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "harmed").exists()  # the file would have done it


def test_whole_pickled_networks_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"holds torch\.nn\.modules\.linear\.Linear.*Ask for a file of"):
        load_checkpoint(tmp_path / "linear.pth")


@pytest.mark.parametrize("name", ["page.pth", "page.safetensors"])
@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"hello world", b""], ids=["html", "text", "empty"])
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{re.escape(name)} is no checkpoint of torch\.save.*download it again"
    ):
        load_checkpoint(tmp_path / name)


def test_a_half_downloaded_file(source: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "half.pth"
    torch.save(source.state_dict(), file)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="or it is damaged"):
        load_checkpoint(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"net": {"conv1.weight": torch.ones(1)}, "epoch": 1},
            r"this mapping 'net', 'epoch', and no state dict",
        ),
        ({}, "this mapping nothing"),
        ({0: torch.ones(1)}, "this mapping 0, and no state dict under state_dict_ema"),
        ({"state_dict": {}}, "this mapping nothing"),
        ({"weight": torch.ones(1)}, "no network here has these tensors: weight"),
    ],
    ids=["unknown wrapper", "empty", "numbers for names", "empty state dict", "another network"],
)
def test_mappings_that_are_no_checkpoints(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(content)


def test_what_is_neither_path_nor_mapping(source: nn.Module, tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pth")
    for wrong in (source, None, tmp_path / "list.pth"):
        with pytest.raises(TypeError, match=r"a path, or a mapping .* got (ResNet|NoneType|list)"):
            load_checkpoint(wrong)

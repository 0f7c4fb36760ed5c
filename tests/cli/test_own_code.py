"""What is wrong with a user's own file is told by the user's lines, and by what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_model import OWN_MODEL
from paths import ROOT

from eca_triton.__main__ import main
from eca_triton.cli.named_model import Request, load

HEAD = "import torch\nfrom torch import nn\n\n"
MODEL = "nn.Conv2d(3, 4, 1), torch.ones(1, 3, 4, 4)"


def told(
    body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int = 2, factory: str = ":build"
) -> str:
    """The message of a run on such a file, which has no frame of ours."""
    file = tmp_path / "mine.py"
    file.write_text(HEAD + body)
    assert main(["explain", f"{file}{factory}", "--target", "none"]) == code
    out, message = capsys.readouterr()
    assert out == ""
    assert message.startswith("eca_triton: ")
    assert "Traceback" not in message
    assert str(ROOT / "eca_triton") not in message
    return message


def test_a_missing_import_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = told("import nowhere_at_all\n", tmp_path, capsys, code=1)
    assert "mine.py, line 4 (import nowhere_at_all)" in message
    assert "ModuleNotFoundError: No module named 'nowhere_at_all'" in message
    assert "install nowhere_at_all" in message


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = told("def build(:\n    pass\n", tmp_path, capsys, code=1)
    assert "mine.py, line 4 (def build(:)" in message
    assert "SyntaxError" in message


def test_an_error_of_the_factory_is_told_with_the_line_that_led_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"def part():\n    return nn.Linear('a', 3)\n\ndef build():\n    return part(), {MODEL}\n"
    message = told(body, tmp_path, capsys, code=1)
    assert "mine.py, line 5 (return nn.Linear('a', 3))" in message
    assert "asked for build()" in message
    assert "TypeError" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_model_on_a_gpu_that_is_not_there_may_stay_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = told("def build():\n    return nn.Linear(3, 4).cuda(), torch.ones(3)\n", tmp_path, capsys, 1)
    assert "mine.py, line 5 " in message
    assert "leave the model on the CPU: no GPU is needed here" in message


def test_an_error_of_forward_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = (
        "class Net(nn.Module):\n    def forward(self, x):\n        return x @ torch.ones(7, 7)\n\n"
        "def build():\n    return Net(), torch.ones(3, 4)\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(HEAD + body)
    assert main(["explain", f"{file}:build", "--target", "none"]) == 1
    message = capsys.readouterr().err
    assert "mine.py" in message
    assert "line 6" in message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"def build(width):\n    return {MODEL}\n", "build takes arguments (width)"),
        ("def build():\n    return torch.ones(3), nn.ReLU()\n", "got them the other way round"),
        ("def build():\n    return nn.ReLU()\n", "got the model alone"),
        ("def build():\n    return 3, torch.ones(3)\n", "got a int in place of the model"),
        ("def build():\n    return nn.ReLU(), torch.ones(3).numpy()\n", "torch.from_numpy(x)"),
        ("def build():\n    return nn.ReLU(), [{'a': torch.ones(3).numpy()}]\n", "torch.from_numpy(x)"),
        (f"def biuld():\n    return {MODEL}\n", "has no function 'build'; did you mean biuld?"),
        (f"def network():\n    return {MODEL}\n", "has no function 'build'; its functions are network"),
        ("net = nn.ReLU()\n", "has no function 'build'; it defines no function"),
    ],
)
def test_what_a_factory_must_be_is_said(
    body: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in told(body, tmp_path, capsys)


def test_a_file_without_a_factory_lists_its_functions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"def small():\n    return {MODEL}\n\ndef large():\n    return {MODEL}\n"
    message = told(body, tmp_path, capsys, factory="")
    assert "which function makes the model?" in message
    assert "its functions are small, large" in message


@pytest.mark.parametrize(
    ("forward", "inputs", "wanted"),
    [
        ("x, scale=None", "{'x': torch.ones(2)}", (True, False)),
        ("x, scale=None", "{'scale': torch.ones(2), 'x': torch.ones(2)}", (True, True)),
        ("batch", "{'image': torch.ones(2)}", (True,)),
        ("x", "torch.ones(2)", (True,)),
    ],
)
def test_inputs_may_come_by_keyword(
    forward: str, inputs: str, wanted: tuple[bool, ...], tmp_path: Path
) -> None:
    body = (
        f"class Net(nn.Module):\n    def forward(self, {forward}):\n        return 1\n\n"
        f"def build():\n    return Net(), {inputs}\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(HEAD + body)
    _, found = load(Request(f"{file}:build", dtype="fp16"))
    assert tuple(each is not None for each in found) == wanted
    leaves = [leaf for each in found for leaf in (each.values() if isinstance(each, dict) else [each])]
    assert all(leaf is None or leaf.dtype == torch.float16 for leaf in leaves), "cast wherever they are"


def test_a_keyword_only_input_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = (
        "class Net(nn.Module):\n    def forward(self, *, x):\n        return x\n\n"
        "def build():\n    return Net(), {'x': torch.ones(2)}\n"
    )
    assert "forward takes x by keyword alone" in told(body, tmp_path, capsys)


def test_a_model_in_training_mode_is_said_to_be_looked_at_in_inference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own_model.py"
    file.write_text(OWN_MODEL)
    said = "is in training mode, and is looked at in inference; --training looks at a step"
    assert main(["explain", f"{file}:network", "--target", "none"]) == 0
    out, message = capsys.readouterr()
    assert said in message
    assert "network: inference, 8 x 3 x 34 x 34 float32; mode default" in out
    assert main(["explain", f"{file}:network", "--target", "none", "--training"]) == 0
    out, message = capsys.readouterr()
    assert said not in message
    assert "network: a training step, " in out


@pytest.mark.slow
def test_the_command_itself_shows_no_frame_of_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + "import nowhere_at_all\n")
    done = subprocess.run(
        [sys.executable, "-m", "eca_triton", "explain", "mine.py:build"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "mine.py, line 4 (import nowhere_at_all)" in done.stderr
    assert "Traceback" not in done.stderr

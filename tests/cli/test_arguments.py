"""Names on the command line: as one writes them, and what a wrong one may have meant."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from eca_triton import __main__
from eca_triton.__main__ import main
from eca_triton.cli.arguments import dtype_name


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("bf16", "bf16"),
        ("bfloat16", "bf16"),
        ("torch.float16", "fp16"),
        ("Float32", "fp32"),
        ("FP16", "fp16"),
    ],
)
def test_a_dtype_has_several_names(written: str, meant: str) -> None:
    assert dtype_name(written) == meant
    options = __main__._parser().parse_args(["explain", "timm:resnet18", "--dtype", written])
    assert options.dtype == meant


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explian", "timm:resnet18"], "did you mean explain?"),
        (["explain", "timm:resnet18", "--taget", "h200"], "did you mean --target?"),
        (["explain", "timm:resnet18", "--dtype", "bf61"], "did you mean bf16"),
        (["autotune", "timm:resnet18", "--dryrun"], "did you mean --dry-run?"),
        (["tune-cache", "sow"], "did you mean show?"),
        (["tune-cache", "show", "--jsno"], "did you mean --json?"),
        (["doctor", "--josn"], "did you mean --json?"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_told_with_near_ones(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_target_may_be_in_capitals_and_a_wrong_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__._parser().parse_args(["explain", "timm:resnet18", "--target", "H100"]).target == "h100"
    assert main(["explain", "timm:resnet18", "--target", "h2000"]) == 2
    assert "did you mean h200" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("timm") is None, reason="needs timm")
def test_a_name_without_its_library_is_told_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "ecaresnet26t"]) == 2
    assert "did you mean timm:ecaresnet26t?" in capsys.readouterr().err
    assert main(["explain", "eca_resnet50"]) == 2
    assert "did you mean eca_triton:eca_resnet50?" in capsys.readouterr().err
    assert main(["explain", "nothing_like_it"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_told_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in (tmp_path, tmp_path / "nowhere" / "page.html"):
        assert main(["explain", "timm:no_such_model", "--html", str(page)]) == 2
        assert f"--html {page} cannot be written" in capsys.readouterr().err


def test_without_triton_a_target_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "find_spec", lambda name: None)
    assert main(["explain", "timm:resnet18", "--target", "h200"]) == 2
    assert "pip install triton" in capsys.readouterr().err


def test_the_table_is_printed_whatever_happens_to_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from own_model import OWN_MODEL

    from eca_triton.report import Report

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Report, "save_html", fail)
    file = tmp_path / "own_model.py"
    file.write_text(OWN_MODEL)
    page = tmp_path / "page.html"
    assert main(["explain", f"{file}:network", "--target", "none", "--html", str(page)]) == 2
    out, message = capsys.readouterr()
    assert "1 of 2 sites lowered" in out
    assert "no space left" in message
    assert not page.exists()

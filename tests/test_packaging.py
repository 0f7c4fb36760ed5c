"""The wheel holds every module once, kernels/ as eca_triton.kernels; so does one made from the sdist."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

import eca_triton

pytest.importorskip("build", reason="needs the package build (extra `test`)")
pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="what git knows is packed: needs a checkout"
)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it, of a copy of the tracked and new files."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, copy / name
        if not (source.exists() or source.is_symlink()):
            continue  # deleted, not yet committed
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def python_files(directory: str) -> set[str]:
    """Modules below a directory of the checkout, as they are named in the package."""
    found = (ROOT / directory).rglob("*.py")
    return {
        str(path.relative_to(ROOT)) for path in found if "kernels" not in path.parts or directory == "kernels"
    }


def test_the_wheel_holds_each_module_once(archives: tuple[Path, Path]) -> None:
    names = [name for name in zipfile.ZipFile(archives[1]).namelist() if name.endswith(".py")]
    expected = python_files("eca_triton") | {f"eca_triton/{name}" for name in python_files("kernels")}
    assert sorted(names) == sorted(expected)


def test_the_wheel_holds_the_templates_of_the_report(archives: tuple[Path, Path]) -> None:
    page = ROOT / "eca_triton" / "report" / "page"
    assert {f"eca_triton/report/page/{path.name}" for path in page.iterdir()} <= set(
        zipfile.ZipFile(archives[1]).namelist()
    )


def test_the_wheel_is_typed_and_licensed(archives: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(archives[1]).namelist()
    assert "eca_triton/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_names_the_backend_and_the_version(archives: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(archives[1])
    info = f"eca_triton-{eca_triton.__version__}.dist-info"
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "[torch_dynamo_backends]\neca_triton = eca_triton.compile.backend:eca_triton" in entry_points
    assert f"\nVersion: {eca_triton.__version__}\n" in wheel.read(f"{info}/METADATA").decode()


def test_the_sdist_holds_the_kernels_once(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        names = sdist.getnames()
    assert sum(name.endswith("kernels/__init__.py") for name in names) == 1


def test_the_wheel_works_where_it_is_installed(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """Away from the checkout: device code imports, torch.compile finds the backend by its entry point."""
    zipfile.ZipFile(archives[1]).extractall(tmp_path)
    code = """
        import eca_triton.launch.forward, eca_triton.kernels, torch._dynamo
        assert "eca_triton" in torch._dynamo.list_backends(exclude_tags=())
        print(eca_triton.kernels.__file__)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "eca_triton" / "kernels" / "__init__.py")

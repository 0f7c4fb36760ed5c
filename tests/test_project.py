"""What others depend on: the page of public names, the workflows, the hooks, what a release is made of."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import textwrap
from types import ModuleType
from typing import Any

import pytest
import torch
from paths import ROOT

import eca_triton
from eca_triton.__main__ import _parser
from eca_triton.cli import doctor
from eca_triton.compile.backend import OPTIONS

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which timm brings")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


@pytest.fixture(scope="module")
def dist() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dist", ROOT / ".ci" / "dist.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_public_names_has_all_of_them_and_no_others() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    table = page[page.index("## Names of `eca_triton`") : page.index("[Functions]")]
    names = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    assert sorted(names) == sorted(eca_triton.__all__)
    commands = next(action for action in _parser()._actions if action.dest == "command" or action.choices)
    assert all(f"`{command}`" in page for command in commands.choices or ())
    ours = {name for name in doctor.VARIABLES if name.startswith("ECA_TRITON_")}
    assert set(re.findall(r"`(ECA_TRITON_\w+)`", page)) == ours
    assert set(re.findall(r"`(eca\.\w+)`", page)) == OPTIONS


def test_what_the_page_names_besides_is_there() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    modules = re.findall(r"^- `eca_triton\.(\w+)`: (.*?) and ", page, re.MULTILINE | re.DOTALL)
    assert [module for module, _ in modules] == ["models", "deviceless", "report"]
    for module, names in modules:
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(getattr(eca_triton, module), name)
    operators = re.search(r"^\| operators `torch\.ops\.eca_triton\.\*`: (.*?) \|", page, re.MULTILINE)
    assert operators is not None
    for name in re.findall(r"`(\w+)`", operators[1]):
        assert hasattr(torch.ops.eca_triton, name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_there_with_few_rights(path: Any) -> None:
    text, workflow = path.read_text(), yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "github.ref" in workflow["concurrency"]["group"]
    assert not re.search(r"/(home|root|tmp|opt)/", text), "a path of one machine"
    made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    matrix = [each for job in workflow["jobs"].values() for each in _targets(job)]
    assert {*re.findall(r"run: make ([\w-]+)", text), *matrix} <= {*made}
    for job in workflow["jobs"].values():
        assert set(job.get("permissions", {})) <= {"pages", "id-token"}
        assert ("uses" in job) or job["runs-on"] == "ubuntu-latest"
        used = [step["uses"] for step in job.get("steps", ()) if "uses" in step]
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", each) for each in used)


def _targets(job: dict[str, Any]) -> list[str]:
    targets: list[str] = job.get("strategy", {}).get("matrix", {}).get("target", [])
    return targets


def test_there_is_a_workflow_for_each_part() -> None:
    assert [path.stem for path in WORKFLOWS] == ["dist", "docs", "release", "tests"]
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert "needs: dist" in release
    assert "password" not in release


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_what_is_needed(path: Any) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    asked = [field["attributes"]["label"] for field in form["body"]]
    assert ("What `python -m eca_triton doctor --json` prints" in asked) == (path.stem != "feature")


def test_hooks_have_the_versions_that_ci_has() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"python"}
    for each in (needed for hook in hooks for needed in hook["additional_dependencies"]):
        name, _, version = each.partition("==")
        assert version == pins[name]


@pytest.mark.skipif(
    (ROOT / "PKG-INFO").exists(), reason="README of an sdist may have absolute links: needs a checkout"
)
def test_links_are_absolute_where_the_long_description_is_shown(dist: ModuleType) -> None:
    shown = dist.absolute((ROOT / "README.md").read_text(), "https://host/owner/name")
    assert not re.findall(r"\]\((?!https?:|#)", shown)
    assert not re.findall(r'\b(?:src|srcset)="(?!https?:)', shown)
    assert "https://host/owner/name/raw/main/docs/figures/tax-bytes-light.svg" in shown
    assert "(https://host/owner/name/blob/main/docs/index.md)" in shown
    assert "git clone https://host/owner/name eca_triton" in shown
    project = dist.with_urls((ROOT / "pyproject.toml").read_text(), "https://host/owner/name")
    assert '[project.urls]\nSource = "https://host/owner/name"\n' in project


def test_triton_is_nobodys_to_force() -> None:
    """torch brings its own, by another name for ROCm and XPU."""
    text = (ROOT / "pyproject.toml").read_text()
    needed = text[text.index("\ndependencies") : text.index("[project.optional")]
    assert re.findall(r'^    "(\w+)', needed, re.MULTILINE) == ["torch", "einops"]


def test_without_triton_compilation_and_commands_go_on() -> None:
    program = """
        import sys, io
        sys.modules["triton"] = None  # every import of it fails
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *_: None if name.startswith("triton") else found(name, *_)
        import torch, eca_triton
        block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), eca_triton.ECA(8)).eval()
        x = torch.randn(2, 3, 4, 4)
        with torch.no_grad():
            same = torch.allclose(torch.compile(block, backend="eca_triton")(x), block(x), atol=1e-5)
        from eca_triton.cli import doctor
        import eca_triton.__main__ as command
        doctor.find_spec = command.find_spec = importlib.util.find_spec
        out = io.StringIO()
        doctor.write(doctor.examine(), out)
        code = command.main(["explain", "timm:ecaresnet26t", "--target", "h200"])
        print(same, "no Triton" in out.getvalue(), code)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "True", "2"], done.stderr
    assert "--target needs Triton" in done.stderr

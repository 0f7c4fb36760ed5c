"""`import eca_triton` is light and silent; imports inside the package flow one way."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "eca_triton"
PUBLIC = (
    "BatchNormParameters",
    "eca",
    "eca_gate",
    "ECA",
    "ECABlock",
    "NotLoweredError",
    "adaptive_kernel_size",
    "enable",
    "disable",
    "enabled",
    "inductor_options",
    "last_report",
    "explain",
    "assert_lowered",
    "aoti_compile_and_package",
    "decompose",
    "decomposition_table",
    "rewrite_exported",
)


def run(code: str, *options: str) -> str:
    """Standard output of the code in a fresh interpreter at the root; anything on standard error fails."""
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_import_is_silent_and_loads_neither_triton_nor_the_compiler() -> None:
    loaded = run(
        """
        import sys, torch
        before = set(sys.modules)
        import eca_triton
        new = set(sys.modules) - before
        print(*sorted(name for name in new if name.split(".")[0] in ("torch", "triton")))
        """,
        "-W",
        "error::DeprecationWarning:eca_triton",
    )
    assert not {"triton", "torch._dynamo", "torch._inductor"} & set(loaded.split())


def test_import_beyond_torch_costs_a_few_files_and_calls(tmp_path: Path) -> None:
    """Counted, since a time depends on the machine and on what else it does; `make bench` shows the time."""
    code = f"""
        import sys, torch
        sys.pycache_prefix, sys.dont_write_bytecode = {str(tmp_path)!r}, False
        files, calls, before = [], 0, set(sys.modules)

        def note(frame, event, argument):
            global calls
            calls += event == "call"

        sys.addaudithook(lambda event, arguments: files.append(arguments[0]) if event == "open" else None)
        sys.setprofile(note)
        import eca_triton
        sys.setprofile(None)
        print(calls, len(files), *(set(sys.modules) - before))
        """
    run(code)  # writes the bytecode that an installer leaves
    calls, files, *modules = run(code).split()
    ours = {name.split(".")[1] for name in modules if name.startswith("eca_triton.")}
    assert ours == {"activations", "launch", "ops", "reference", "util", "version"}
    assert {name.split(".")[0] for name in modules} == {"eca_triton", "einops"}
    assert len(modules) <= 32
    assert int(files) <= 35, "bytecode, and torch 2.15 reads the sources that register ops"
    assert int(calls) <= 15_000


@pytest.mark.parametrize("program", ["eca_triton", "benchmarks"])
def test_help_imports_no_torch(program: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", program, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "positional arguments" in done.stdout
    assert "argparse" in modules
    assert not {"torch", "triton", "einops"} & modules


def test_ops_and_modules_work_without_triton() -> None:
    assert (
        run(
            """
        import sys
        sys.modules["triton"] = None  # every import of it fails
        import torch, eca_triton
        x = torch.randn(2, 8, 5, 5, requires_grad=True)
        module = eca_triton.ECA(channels=8)
        module(x).sum().backward()
        with torch.no_grad():
            same = torch.equal(module(x), torch.ops.eca_triton.eca(x, module.conv.weight))
        print(same and x.grad is not None)
        """
        )
        == "True"
    )


def test_public_names_are_all_there_and_no_others() -> None:
    import eca_triton

    assert set(eca_triton.__all__) == {*PUBLIC, "__version__"}
    assert all(callable(getattr(eca_triton, name)) for name in PUBLIC)
    assert set(PUBLIC) <= set(dir(eca_triton))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        eca_triton.nonsense  # noqa: B018 (the access itself is what is tested)


@pytest.mark.parametrize(
    "name",
    ["compile", "deviceless.compare", "models.create", "report.explain", "tuning.store.reload"],
)
def test_a_package_is_there_without_an_import_of_its_own_and_not_before_it_is_used(name: str) -> None:
    package = name.split(".")[0]
    code = f"""
        import sys, eca_triton
        print("eca_triton.{package}" in sys.modules, eca_triton.{name}.__name__)
        """
    assert run(code) == f"False {'eca_triton.compile' if name == 'compile' else name.split('.')[-1]}"


@pytest.mark.parametrize("first", ["eca_triton", "torch._dynamo"])
def test_torch_compile_finds_the_backend_by_name(first: str) -> None:
    second = {"eca_triton": "torch._dynamo", "torch._dynamo": "eca_triton"}[first]
    code = f"""
        import {first}
        import torch._dynamo
        torch._dynamo.list_backends()  # asks for entry points, once and for all
        import {second}
        print("eca_triton" in torch._dynamo.list_backends(exclude_tags=()))
        """
    assert run(code) == "True"


@pytest.mark.parametrize("name", ["_len_torch_dispatch_stack", "_is_torch_function_mode_enabled"])
def test_a_torch_without_its_private_names_computes_the_same(name: str) -> None:
    code = f"""
        import torch
        delattr(torch._C, {name!r})
        import eca_triton
        x = torch.ones(1, 4, 2, 2)
        print(eca_triton.eca(x, torch.zeros(1, 1, 3)).mean().item())
        """
    assert run(code) == "0.5"


# Which parts of the package a part may import, besides itself.
ALLOWED = {
    "activations": set(),
    "version": set(),
    "util": set(),
    "kernels": set(),
    "reference": {"activations"},
    "tuning": {"version"},
    "launch": {"activations", "kernels", "reference", "tuning", "util"},
    "ops": {"activations", "launch", "reference", "util"},
    "functional": {"activations", "ops", "reference", "util"},
    "module": {"functional"},
    "models": {"functional", "module", "util"},
    "compile": {"activations", "launch", "ops", "reference", "tuning", "__init__"},
    "deviceless": {"compile", "tuning", "__init__"},
    "autotune": {
        "activations", "compile", "deviceless", "launch", "ops", "reference", "tuning", "util",
    },
    "report": {"activations", "compile", "deviceless", "tuning", "util", "version"},
    "cli": {"models", "tuning", "util", "version"},
    "__main__": {"autotune", "cli", "ops", "report", "tuning", "util"},
    "__init__": {
        "compile", "deviceless", "functional", "models", "module", "ops", "report", "tuning", "version",
    },
}  # fmt: skip


def part_of(file: Path) -> str:
    """First name below the package: "ops" for ops/schema.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path, root: Path = ROOT) -> set[str]:
    """Modules that a file imports anywhere in its text, by statement (also for types) or by a module's name.

    Of `from a import b` both are named, for b may be a module.
    """
    names = set()
    package = ".".join(file.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names |= {node.value.split(":")[0]} if node.value.startswith("eca_triton.") else set()
    return names


def imported_parts(file: Path) -> set[str]:
    """Parts of the package that a file imports."""
    parts = {name.split(".")[1] for name in imported(file) if name.startswith("eca_triton.")}
    here = {path.stem for path in PACKAGE.iterdir()}
    return {part if part in here else "__init__" for part in parts}


FILES = sorted(file for file in PACKAGE.rglob("*.py")) + sorted((PACKAGE / "kernels").glob("*.py"))


@pytest.mark.parametrize("file", sorted(set(FILES)), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_flow_one_way(file: Path) -> None:
    part = part_of(file)
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    assert imported_parts(file) - {part} <= ALLOWED[part]


def test_no_import_is_a_part_of_a_circle() -> None:
    """Of parts nor of modules, with imports in functions and for types; `__init__` names its parts lazily."""
    TopologicalSorter({part: parts - {"__init__"} for part, parts in ALLOWED.items()}).prepare()
    folders = (PACKAGE, ROOT / "kernels", ROOT / "benchmarks")
    files = {name_of(file): file for folder in folders for file in folder.rglob("*.py")}
    arrows = {name: (imported(file) & files.keys()) - {name} for name, file in files.items()}
    for name, others in arrows.items():  # `from package import module` asks for the module
        arrows[name] = others - {other.rpartition(".")[0] for other in others}
    TopologicalSorter({name: others - {"eca_triton"} for name, others in arrows.items()}).prepare()


@pytest.mark.parametrize(
    ("room", "behind", "asked"),
    [
        ("match", {"plan", "emit", "inductor"}, set()),
        # Whether Inductor takes what would be emitted.
        ("plan", {"emit", "inductor"}, {"eca_triton.compile.inductor", "eca_triton.compile.inductor.trial"}),
    ],
)
def test_a_compilation_goes_from_matching_to_planning_to_emission(
    room: str, behind: set[str], asked: set[str]
) -> None:
    folder = PACKAGE / "compile"
    later = {name_of(file) for each in behind for file in (folder / each).glob("*.py")}
    assert set().union(*map(imported, (folder / room).glob("*.py"))) & later <= asked


def name_of(file: Path) -> str:
    """The name by which it is imported."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_only_device_code_and_its_launchers_import_triton_at_module_level() -> None:
    importing = {
        part_of(file)
        for file in FILES
        for node in ast.parse(file.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "triton" in {name.split(".")[0] for name in _names(node)}
    }
    assert importing <= {"kernels", "launch"}


def _names(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return set() if node.level else {node.module or ""}


def test_the_bare_name_kernels_cannot_be_imported() -> None:
    assert (
        run(
            """
        try:
            import kernels
        except ImportError as error:
            print("eca_triton.kernels" in str(error))
        """
        )
        == "True"
    )

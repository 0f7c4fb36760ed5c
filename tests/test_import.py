"""`import eca_triton` is light, silent and needs torch alone; imports inside the package flow one way."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
    assert ours == {
        "activations", "call", "direct", "ops", "private", "reference", "reference_training", "tuning",
    }  # fmt: skip
    assert {name.split(".")[0] for name in modules} == {"eca_triton", "einops"}
    assert len(modules) <= 40
    assert int(files) <= 45, "bytecode, and torch 2.15 reads the sources that register ops"
    assert int(calls) <= 25_000


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
        loaded = {package!r} != "tuning" and "eca_triton.{package}" in sys.modules
        print(loaded, eca_triton.{name}.__name__)
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
    "reference": {"activations"},
    "reference_training": {"activations", "reference"},
    "tuning": {"__init__"},
    "kernels": set(),
    "call": {"tuning"},
    "private": set(),
    "targets": set(),
    "direct": {"private"},
    "launch": {"activations", "call", "direct", "kernels", "tuning"},
    "ops": {"activations", "reference", "reference_training", "call", "launch", "direct", "private"},
    "functional": {"activations", "ops", "private"},
    "decompositions": {"ops", "reference", "reference_training"},
    "export": {"compile", "decompositions", "ops"},
    "module": {"functional"},
    "compile": {"activations", "decompositions", "ops", "targets", "tuning", "__init__"},
    "deviceless": {"compile", "targets", "__init__"},
    "tables": set(),
    "near_names": set(),
    "models": {"functional", "module", "near_names"},
    "named_model": {"models", "near_names"},
    "doctor": {"tables", "tuning", "__init__"},
    "tune_cache": {"tables", "tuning"},
    "timing": set(),
    "autotune": {
        "activations", "call", "compile", "deviceless", "direct", "launch", "ops", "reference",
        "reference_training", "tables", "targets", "timing", "tuning",
    },
    "report": {"activations", "compile", "deviceless", "tables", "targets", "__init__"},
    "__main__": {"autotune", "doctor", "named_model", "report", "targets", "tune_cache"},
    "__init__": {
        "compile", "decompositions", "deviceless", "export", "functional", "models", "module", "ops",
        "report", "tuning",
    },
}  # fmt: skip


def part_of(file: Path) -> str:
    """First name below the package: "ops" for ops/schema.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(file: Path) -> set[str]:
    """Parts of the package that a file imports anywhere in its text, by statement or by a module's name."""
    names = set()
    package = ["eca_triton", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= (
                {f"{module}.{alias.name}" for alias in node.names} if module == "eca_triton" else {module}
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names |= {node.value.split(":")[0]} if node.value.startswith("eca_triton.") else set()
    parts = {name.split(".")[1] for name in names if name.startswith("eca_triton.")}
    here = {path.stem for path in PACKAGE.iterdir()}
    return {part if part in here else "__init__" for part in parts} | (
        {"__init__"} if "eca_triton" in names else set()
    )


FILES = sorted(file for file in PACKAGE.rglob("*.py")) + sorted((PACKAGE / "kernels").glob("*.py"))


@pytest.mark.parametrize("file", sorted(set(FILES)), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_flow_one_way(file: Path) -> None:
    part = part_of(file)
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    assert imported_parts(file) - {part} <= ALLOWED[part]


def test_the_flow_has_no_cycle_below_the_package() -> None:
    """`__init__` names its parts lazily; every other arrow points down."""
    graph = {part: parts - {"__init__"} for part, parts in ALLOWED.items() if part != "__init__"}
    while graph:
        leaves = {part for part, parts in graph.items() if not parts & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {part: parts for part, parts in graph.items() if part not in leaves}


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

"""Run the tests that concern some files, in both parts of `both_parts.py`.

    python tests/which.py FILE ... [-- pytest's options]

A test file concerns itself, a file beside it the tests that name it, any other file what `CONCERNS` has for
the beginnings of its path.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import both_parts
from paths import ROOT, TESTS

INTERPRETED = TESTS / "interpreter"
OPS = ("ops", "test_functional.py", "test_module.py", "test_unknown_names.py")
CONCERNS: dict[str, tuple[str, ...]] = {
    "": ("test_import.py", "test_mutants.py"),
    ".github/": ("test_project.py",),
    ".ci/": ("test_project.py",),
    "README.md": ("test_docs.py",),
    "CONTRIBUTING.md": ("test_docs.py",),
    "docs/": ("test_docs.py", "test_site.py"),
    "docs/index.md": ("test_doors.py",),
    "mkdocs.yml": ("test_site.py",),
    "examples/": ("test_examples.py", "test_train_digits.py", "test_docs.py"),
    "benchmarks/": ("benchmarks",),
    "kernels/": ("kernels", "interpreter", "ptx"),
    "eca_triton/": ("test_doors.py",),
    "eca_triton/activations.py": ("test_reference.py", *OPS, "compile/test_plan.py"),
    "eca_triton/functional.py": ("test_functional.py", "test_module.py", "compile/test_export.py"),
    "eca_triton/module.py": ("test_module.py", "compile/test_export.py"),
    "eca_triton/reference/": ("test_reference.py", *OPS, "autotune/test_search.py"),
    "eca_triton/ops/": (*OPS, "launch/*replay*.py"),
    "eca_triton/launch/": ("launch", "interpreter", "ptx"),
    "eca_triton/tuning/": (
        "tuning", "autotune/test_candidates.py", "launch/test_tuned_launch.py", "kernels/test_l2_*.py",
        "interpreter/test_allowed_configs.py",
    ),
    "eca_triton/autotune/": ("autotune", "cli/test_autotune.py", "interpreter/test_autotune.py"),
    "eca_triton/compile/": ("compile/test_backend.py", "compile/test_hooks.py", "compile/test_faults.py"),
    "eca_triton/compile/export.py": ("compile/test_export.py", "compile/test_aoti.py"),
    "eca_triton/compile/match/": (
        "compile/test_recognize.py", "compile/test_gate_function.py", "compile/test_mutation.py",
        "compile/test_sizes.py", "compile/test_memory.py", "compile/test_numerics.py",
        "compile/test_frozen_batch_norm.py", "fuzz",
    ),
    "eca_triton/compile/plan/": (
        "compile/test_plan.py", "compile/test_cost.py", "compile/test_convfold.py",
        "compile/test_batch_norm_plan.py", "compile/test_memory.py", "deviceless/test_decision.py",
        "test_unknown_names.py",
    ),
    "eca_triton/compile/emit/": (
        "compile/test_convfold.py", "compile/test_batch_norm_plan.py", "compile/test_memory.py",
        "compile/test_numerics.py", "compile/test_training.py", "compile/test_mutation.py",
    ),
    "eca_triton/compile/inductor/": (
        "deviceless/test_block.py", "deviceless/test_convfold.py", "deviceless/test_tail.py",
        "kernels/test_aot_templates.py", "interpreter/test_templates.py",
    ),
    "eca_triton/deviceless/": ("deviceless",),
    "eca_triton/report/": ("report", "cli/test_explain.py"),
    "eca_triton/cli/": ("cli",),
    "eca_triton/__main__.py": ("cli",),
    "eca_triton/models/": ("models",),
    "eca_triton/util/": ("report", "launch"),
}  # fmt: skip
"""Tests below this folder, by the beginning of a file's path."""


def concerning(file: str) -> set[Path]:
    """Return the test files and folders that concern a file, given by its path from the root.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = ROOT / file
    if not path.exists():
        raise FileNotFoundError(f"no such file: {file}")
    if path.is_relative_to(TESTS):
        named = re.compile(rf"\b{path.stem}\b")
        tests = [path] if path.name.startswith("test_") else TESTS.rglob("test_*.py")
        return {test for test in tests if test == path or named.search(test.read_text())}
    names = [name for start, names in CONCERNS.items() if file.startswith(start) for name in names]
    return {found for name in names for found in TESTS.glob(name)}


def parts_of(tests: Iterable[Path]) -> dict[str, both_parts.Part]:
    """Divide tests into the parts of `both_parts`; those of the interpreter run under it alone."""
    interpreted = {test for test in tests if test.is_relative_to(INTERPRETED)}
    (plain, (_, no_variables)), (other, (_, variables)) = both_parts.PARTS.items()
    parts = {plain: (sorted({*tests} - interpreted), no_variables), other: (sorted(interpreted), variables)}
    return {name: part for name, part in parts.items() if part[0]}


def main(arguments: list[str]) -> int:
    """Run the tests and return the exit code."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    files, options = arguments[:at], arguments[at + 1 :]
    if not files:
        print(__doc__)
        return 2
    return both_parts.main(options, parts_of(set().union(*map(concerning, files))))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

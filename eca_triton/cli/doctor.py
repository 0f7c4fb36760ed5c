"""What `python -m eca_triton doctor` looks at: versions, GPUs, the backend's name, environment variables."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TextIO

import torch

from ..tuning import store
from ..util.tables import write_table
from ..version import __version__

PACKAGES = ("triton", "einops", "timm", "rich")
VARIABLES = (
    "ECA_TRITON_FORCE", "ECA_TRITON_DISABLE", "ECA_TRITON_PLAN", "ECA_TRITON_STRICT", "ECA_TRITON_VERBOSE",
    "ECA_TRITON_TUNED", "ECA_TRITON_CACHE_DIR", "TRITON_INTERPRET",
)  # fmt: skip
OLDEST_TORCH = (2, 11)


@dataclass(frozen=True)
class Examination:
    """State of this machine, and what keeps `torch.compile(model, backend="eca_triton")` from its kernels.

    Attributes:
        versions: Version of each package, None where it is not installed.
        gpus: One line per visible CUDA device.
        backend_visible: Whether torch.compile finds the backend by its name.
        tables: Configs in each file of tuned ones that is read, of any GPU.
        environment: Variables that change what is lowered and where it runs, None where unset.
        problems: What is broken; without any, `doctor` exits with 0.
        notes: What is as it should be but worth knowing.
    """

    versions: dict[str, str | None]
    gpus: list[str]
    backend_visible: bool
    tables: dict[str, int]
    environment: dict[str, str | None]
    problems: list[str]
    notes: list[str]

    def as_dict(self) -> dict[str, object]:
        """The object that `--json` prints."""
        return {"ok": not self.problems, **asdict(self)}


def examine() -> Examination:
    """Look at this process's machine and environment; changes nothing."""
    versions: dict[str, str | None] = {
        "eca_triton": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    examination = Examination(
        versions=versions | {package: _version(package) for package in PACKAGES},
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
        backend_visible=_backend_visible(),
        tables={},
        environment={name: os.environ.get(name) for name in VARIABLES},
        problems=[],
        notes=[],
    )
    for path in store.paths():
        table, problem = store.examine(path)
        examination.tables[str(path)] = len(table)
        if problem:
            examination.notes.append(f"{path} {problem}")
    _judge(examination)
    return examination


def write(examination: Examination, out: TextIO) -> None:
    """Write the examination as a table, then the problems and the notes."""
    rows = [(name, version or "not installed") for name, version in examination.versions.items()]
    rows += [(f"GPU {index}", gpu) for index, gpu in enumerate(examination.gpus)] or [("GPU", "none")]
    rows += [('backend="eca_triton"', "visible" if examination.backend_visible else "not found")]
    rows += [(path, f"tuned configs: {number}") for path, number in examination.tables.items()]
    rows += [(name, "unset" if value is None else value) for name, value in examination.environment.items()]
    write_table(("what", "state"), rows, out)
    for problem in examination.problems:
        out.write(f"problem: {problem}\n")
    for note in examination.notes:
        out.write(f"note: {note}\n")


def _judge(seen: Examination) -> None:
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < OLDEST_TORCH:
        seen.problems.append(f"torch {torch.__version__} is older than {'.'.join(map(str, OLDEST_TORCH))}")
    if not seen.backend_visible:
        seen.problems.append(
            'torch.compile does not find backend="eca_triton": install the package (pip install -e .), '
            "or import eca_triton.compile.backend first"
        )
    if seen.gpus and seen.versions["triton"] is None:
        seen.problems.append(
            "there is a GPU but no Triton, so sites are left to Inductor: install the one that belongs to "
            "your torch (triton; pytorch-triton-rocm, pytorch-triton-xpu)"
        )
    if not seen.gpus and seen.versions["triton"] is None:
        seen.notes.append(
            "no Triton: `explain --target` needs it; it comes with torch, or by pip install triton"
        )
    if not seen.gpus:
        seen.notes.append("no CUDA device: compiled models run as stock Inductor compiles them")
    if seen.environment["ECA_TRITON_DISABLE"] == "1":
        seen.notes.append("ECA_TRITON_DISABLE=1: nothing is lowered")
    if seen.environment["ECA_TRITON_FORCE"] == "1":
        seen.notes.append("ECA_TRITON_FORCE=1: every site is lowered, on any device")
    if plan := seen.environment["ECA_TRITON_PLAN"]:
        seen.notes.append(f"ECA_TRITON_PLAN={plan}: the plan of every site")
    if seen.environment["ECA_TRITON_STRICT"] == "1":
        seen.notes.append("ECA_TRITON_STRICT=1: a compilation raises where a site is left alone")
    if seen.environment["ECA_TRITON_VERBOSE"] == "1":
        seen.notes.append("ECA_TRITON_VERBOSE=1: a line is printed after each compilation")
    tuned, folder = seen.environment["ECA_TRITON_TUNED"], seen.environment["ECA_TRITON_CACHE_DIR"]
    if tuned and store.mode() == "off":
        seen.notes.append(f"ECA_TRITON_TUNED={tuned}: no tuned configs are read")
    if folder:
        seen.notes.append(f"ECA_TRITON_CACHE_DIR={folder}: your tuned configs are there")
    if seen.environment["TRITON_INTERPRET"] == "1":
        seen.notes.append(
            "TRITON_INTERPRET=1: kernels run in Triton's interpreter, thousands of times slower"
        )


def _version(package: str) -> str | None:
    if find_spec(package) is None:
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _gpu(index: int) -> str:
    from ..tuning.config import Device

    properties = torch.cuda.get_device_properties(index)
    amd = Device.of(properties).vendor == "amd"
    architecture = properties.gcnArchName if amd else f"sm_{properties.major}{properties.minor}"
    return (
        f"{properties.name}, {architecture}, "
        f"{properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB"
    )


def _backend_visible() -> bool:
    import torch._dynamo

    return "eca_triton" in torch._dynamo.list_backends(exclude_tags=())

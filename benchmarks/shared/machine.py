"""What a time depends on: the GPU, its driver, the versions of what compiles for it, our code and tables."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from eca_triton import __version__
from eca_triton.tuning.store import fingerprint


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions and, for a CUDA device, its sizes."""
    found: dict[str, Any] = {
        "gpu": "none",
        "driver": "none",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "python": platform.python_version(),
        "cpu": _cpu(),
        "eca_triton": __version__,
        "commit": _commit(),
        "tuned": fingerprint()[:16] or "none",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "driver": _driver(),
            "sms": properties.multi_processor_count,
            "warp_size": properties.warp_size,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        }
    return found


def folder_name(gpu: str, date: str) -> str:
    """("NVIDIA H200", "2026-11-22 09:00 UTC") -> "nvidia-h200-2026-11-22"; no GPU: "cpu-2026-11-22"."""
    gpu = "cpu" if gpu == "none" else gpu
    return f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}-{date.split()[0]}"


def _commit() -> str:
    """Return the checkout's commit, with a plus sign if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _cpu() -> str:
    """Its model, where Linux says; the architecture elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.split("\n")[0].strip() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"

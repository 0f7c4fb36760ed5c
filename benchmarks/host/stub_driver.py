"""An H200 whose driver accepts every launch and runs none: any machine can time the host's part of a call.

Triton compiles the real kernels for sm_90, and its own launcher packs their real arguments; only the CUDA
driver below it is a stub of C functions that return success. Tensors of the CPU stand for the device's.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from eca_triton.ops import implementation
from eca_triton.tuning.config import Device

H200 = Device(num_sms=132, warp_size=32)


def stub_source() -> str:
    """C code of the stub: functions whose results count, and the others that Triton's launcher may call."""
    from triton.backends import nvidia

    own = Path(__file__).with_name("stub_libcuda.c").read_text()
    called = re.findall(r"\b(cu[A-Z]\w+)\(", Path(nvidia.__file__).with_name("driver.c").read_text())
    others = sorted({name for name in called if f" {name}(" not in own})
    return own + "".join(f"Result {name}(void) {{ return 0; }}\n" for name in others)


@contextmanager
def stub_h200(folder: Path) -> Iterator[Callable[[], int]]:
    """Within it the ops launch kernels for tensors of the CPU; yields the number of launches so far.

    The library stays loaded under the name of CUDA's own, so nothing in this process may use a GPU.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, as Triton does to launch kernels")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA, whose driver would be loaded already; see the cuda rows")
    library = folder / "libcuda.so.1"
    source = folder / "stub_libcuda.c"
    source.write_text(stub_source())
    name = f"-Wl,-soname,{library.name}"
    subprocess.run([compiler, "-shared", "-fPIC", name, "-o", library, source], check=True)
    launches = ctypes.c_uint.in_dll(ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL), "launches")

    import triton
    from triton.backends.compiler import GPUTarget

    from eca_triton.launch import devices

    def have_kernels(x: torch.Tensor) -> bool:
        return True  # and, unlike a mock, keeps no x

    with (
        mock.patch.dict(
            "os.environ", TRITON_LIBCUDA_PATH=str(folder), TRITON_CACHE_DIR=str(folder / "cache")
        ),
        mock.patch.object(triton.runtime.driver, "_active", None),
        mock.patch.object(devices, "device_of", return_value=H200),
        mock.patch.object(implementation, "have_kernels", have_kernels),
    ):
        from triton.backends.nvidia.driver import CudaDriver

        driver = CudaDriver()
        driver.get_current_target = lambda: GPUTarget("cuda", 90, 32)
        driver.get_current_device = lambda: 0
        driver.get_current_stream = lambda device: 0
        triton.runtime.driver.set_active(driver)
        yield lambda: launches.value

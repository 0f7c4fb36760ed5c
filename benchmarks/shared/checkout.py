"""The checkout as though it were installed: torch.compile finds our backend by the package's metadata."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from eca_triton import __version__

from .context import ROOT

GROUP, NAME, VALUE = "torch_dynamo_backends", "eca_triton", "eca_triton.compile.backend:eca_triton"


@contextmanager
def found_by_torch() -> Iterator[None]:
    """Within it, this process and those that it starts find package and backend, installed or not."""
    paths = [str(ROOT)]
    with TemporaryDirectory(prefix="eca_triton-") as folder:
        if NAME not in metadata.entry_points(group=GROUP).names:
            info = Path(folder, f"eca_triton-{__version__}.dist-info")
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: eca_triton\nVersion: {__version__}\n"
            )
            (info / "entry_points.txt").write_text(f"[{GROUP}]\n{NAME} = {VALUE}\n")
            paths.append(folder)
        before, search = os.environ.get("PYTHONPATH"), list(sys.path)
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([before] if before else [])])
        sys.path += paths
        try:
            yield
        finally:
            sys.path[:] = search
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

"""The networks and lowerings of the compiler's tests are used here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "compile"))

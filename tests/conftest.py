"""What every test shares."""

import os

# Test processes share the cores: torch would start a thread per core in each, and Inductor a pool of workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# What a developer tuned on this machine changes no test.
os.environ["ECA_TRITON_TUNED"] = "off"

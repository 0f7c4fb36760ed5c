"""An interpreter of the PTX that Triton makes of our kernels: a GPU's machine code, nearly, on any machine.

program.py reads PTX; lanes.py has the values of a warp's 32 threads; meanings.py what instructions compute;
memory.py what notices a wrong access; machine.py runs a launch; launches.py runs what the package launches.
docs/evidence.md says what it can show, and what it cannot.
"""

"""Device code of eca_triton: Triton kernels and the functions they share, nothing else."""

if __name__ == "kernels":  # the bare name belongs to another package on PyPI
    raise ImportError("import eca_triton.kernels; the directory kernels/ is not a package of its own")

# Measures everything that counts on the GPU at hand, within ten minutes:
#   docker build -t eca_triton . && docker run --rm --gpus all -v "$PWD/results:/results" eca_triton
# The image brings torch with its CUDA libraries and Triton, in the system's Python. g++ is for what Inductor compiles for
# the host, python3-dev has the header that Triton's launchers include.
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
RUN apt-get update && apt-get install -y --no-install-recommends g++ make python3-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /eca_triton
COPY . .
# torch stays the image's own. pip would not install beside the system's packages unasked.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN pip install --no-cache-dir einops timm rich pytest hypothesis && pip install --no-cache-dir --no-deps -e .
# What was measured is kept, whatever failed; the status is that of the first failure.
CMD ["sh", "-c", "python -m pytest -q tests/test_gpu*.py; tests=$?; make evidence PYTHON=python; measured=$?; cp -r benchmarks/results/. /results/ && exit $((tests ? tests : measured))"]

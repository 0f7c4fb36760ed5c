# Measures everything that counts on the GPU at hand, within ten minutes:
#   docker build -t eca_triton . && docker run --rm --gpus all -v "$PWD/results:/results" eca_triton
# The image brings torch with its CUDA libraries and Triton; g++ is for what Inductor compiles for the host.
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /eca_triton
COPY . .
# torch stays the image's own.
RUN pip install --no-cache-dir einops timm rich pytest hypothesis && pip install --no-cache-dir --no-deps -e .
CMD ["sh", "-c", "python -m pytest -q tests/test_gpu*.py && make evidence PYTHON=python && cp -r benchmarks/results/. /results/"]

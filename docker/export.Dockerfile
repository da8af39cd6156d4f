# Exports and verifies on a CPU: docker run -v "$PWD:/data" IMAGE export /data/model.pth -o /data/model.onnx
# Linted; not built where this was written (no container engine).
FROM python:3.11-slim-bookworm
WORKDIR /src
COPY . .
# torch first and alone. Plain, it brings gigabytes of CUDA: name PyTorch's index of CPU builds here (--index-url ...).
ARG TORCH_OPTIONS=""
RUN pip install --no-cache-dir ${TORCH_OPTIONS} torch==2.13.0 \
    && pip install --no-cache-dir --constraint constraints.txt '.[export,ort,report]' \
    && useradd --create-home vimdeploy
USER vimdeploy
WORKDIR /data
ENTRYPOINT ["vimdeploy"]

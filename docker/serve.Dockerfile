# Serves an exported model on a CPU: docker run -p 127.0.0.1:8000:8000 -v "$PWD:/data:ro" IMAGE /data/model.onnx
# Linted; not built where this was written (no container engine).
FROM python:3.11-slim-bookworm
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt '.[ort,serve]' && useradd --create-home vimdeploy
USER vimdeploy
WORKDIR /data
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=3)"]
ENTRYPOINT ["vimdeploy", "serve", "--host", "0.0.0.0"]

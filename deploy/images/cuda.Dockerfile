# Eardrum on NVIDIA GPUs, on one base. From the root of the repository, with the engines on PyTorch:
#   docker build -f deploy/images/cuda.Dockerfile -t eardrum:cuda .
# Without PyTorch, 4 GB: CTranslate2 and onnxruntime with CUDA's libraries from NVIDIA's wheels:
#   docker build -f deploy/images/cuda.Dockerfile -t eardrum:cuda-lean \
#     --build-arg BASE=python:3.11-slim-bookworm --build-arg EXTRAS=cuda12,onnx,zeroconf,otel .
# No GPU has run either of them yet.
ARG BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime

FROM ${BASE} AS build
ARG EXTRAS=cuda12,onnx,openai-whisper,transformers,zeroconf,otel,telegram
# The last onnxruntime-gpu for CUDA 12; later ones need CUDA 13 and would run on the CPU.
ARG ONNXRUNTIME=onnxruntime-gpu==1.24.4
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore INHERIT=1
WORKDIR /source
COPY deploy/images/install.sh /
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip sh /install.sh libraries "${EXTRAS}"
# Both packages have the same files: the one for the CPU is removed, the other takes its place.
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m pip --python /opt/eardrum/bin/python3 uninstall --yes onnxruntime \
    && python3 -m pip --python /opt/eardrum/bin/python3 install --no-deps "${ONNXRUNTIME}"
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/var/cache/pip sh /install.sh package

FROM ${BASE}
LABEL org.opencontainers.image.title="Eardrum for NVIDIA GPUs" \
      org.opencontainers.image.description="Speech to text, and one port for every local model" \
      org.opencontainers.image.licenses="MIT"
RUN --mount=type=bind,source=deploy/images,target=/images sh /images/install.sh system
COPY --from=build /opt/eardrum /opt/eardrum
COPY deploy/images/healthcheck.py /opt/healthcheck.py
ENV PATH=/opt/eardrum/bin:$PATH \
    HOME=/models \
    HF_HOME=/models \
    EARDRUM_HOST=0.0.0.0 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /models
VOLUME ["/models", "/tmp"]
EXPOSE 8100 10300
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["python3", "-I", "/opt/healthcheck.py"]
ENTRYPOINT ["tini", "--", "eardrum"]
CMD ["serve"]

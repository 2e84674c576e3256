# Eardrum with NVIDIA NeMo (Parakeet and Canary from .nemo files, Canary-Qwen). From the root of the repository:
#   docker build -f deploy/images/nemo.Dockerfile -t eardrum:nemo .
# NeMo pins a hundred packages, so it has an image of its own, without the engine transformers. No GPU has run it yet.
ARG BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime

FROM ${BASE} AS build
ARG EXTRAS=onnx,zeroconf,otel
ARG NEMO="nemo_toolkit[asr,speechlm2]>=3.0,<4"
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore INHERIT=1 CONSTRAINTS=/dev/null
WORKDIR /source
# Some of NeMo's dependencies come as source.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/images/install.sh /
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip PACKAGES="${NEMO}" sh /install.sh libraries "${EXTRAS}"
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/var/cache/pip sh /install.sh package

FROM ${BASE}
LABEL org.opencontainers.image.title="Eardrum with NeMo" \
      org.opencontainers.image.description="Speech to text, and one port for every local model" \
      org.opencontainers.image.licenses="MIT"
RUN --mount=type=bind,source=deploy/images,target=/images sh /images/install.sh system libsndfile1
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

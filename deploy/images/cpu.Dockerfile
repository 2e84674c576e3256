# Eardrum on CPUs. From the root of the repository:
#   docker build -f deploy/images/cpu.Dockerfile -t eardrum:cpu .
# Builders without heredocs and `COPY --link` (buildah 1.28) read it too.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=onnx,ggml,zeroconf,otel,telegram
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY deploy/images/install.sh /
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip sh /install.sh libraries "${EXTRAS}"
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/var/cache/pip sh /install.sh package

FROM ${BASE}
LABEL org.opencontainers.image.title="Eardrum" \
      org.opencontainers.image.description="Speech to text, and one port for every local model" \
      org.opencontainers.image.licenses="MIT"
RUN --mount=type=bind,source=deploy/images,target=/images sh /images/install.sh system
COPY --from=build /opt/eardrum /opt/eardrum
COPY deploy/images/healthcheck.py /opt/healthcheck.py
# Uploads are in /tmp while they are decoded: a volume on disk, unless `--tmpfs /tmp` puts it into memory.
ENV PATH=/opt/eardrum/bin:$PATH \
    HOME=/models \
    HF_HOME=/models \
    EARDRUM_HOST=0.0.0.0 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /models
VOLUME ["/models", "/tmp"]
EXPOSE 8100 10300
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["python3", "-I", "/opt/healthcheck.py"]
ENTRYPOINT ["tini", "--", "eardrum"]
CMD ["serve"]

# Eardrum with whisper.cpp's whisper-server for AMD Strix Halo (gfx1151), by ROCm (HIP) and by Vulkan. From the root of the repository:
#   docker build -f deploy/images/rocm.Dockerfile -t eardrum:rocm .
# A config that starts `whisper-server --inference-path /v1/audio/transcriptions` runs in it as it does under llama-swap;
# `whisper-server` is the Vulkan build, `whisper-server-hip` the one for ROCm. No GPU has run it yet.
ARG BASE=ubuntu:24.04

FROM ${BASE} AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

# AMD's packages for one family of GPUs. An empty ROCM builds and installs nothing of ROCm.
FROM base AS rocm
ARG ROCM=7.14
ARG GFX=gfx1151
ARG ROCM_REPOSITORY=https://repo.amd.com/rocm/packages-multi-arch
ARG ROCM_DISTRIBUTION=ubuntu2404
RUN if [ -n "${ROCM}" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends curl gpg \
        && curl --fail --silent --show-error --location --output rocm.asc "${ROCM_REPOSITORY}/gpg/rocm.gpg" \
        && gpg --dearmor --output /usr/share/keyrings/rocm.gpg rocm.asc \
        && rm rocm.asc \
        && echo "deb [arch=amd64 signed-by=/usr/share/keyrings/rocm.gpg] ${ROCM_REPOSITORY}/${ROCM_DISTRIBUTION} stable main" \
            >/etc/apt/sources.list.d/rocm.list \
        && apt-get update \
        && apt-get install --yes --no-install-recommends "amdrocm-runtime${ROCM}" "amdrocm-blas${ROCM}-${GFX}" \
        && ln -s "core-${ROCM}" /opt/rocm/current \
        && rm -rf /var/lib/apt/lists/*; \
    fi

FROM rocm AS whisper
ARG ROCM=7.14
ARG GFX=gfx1151
# Without a network: WHISPER_CPP=file:///context/build/whisper.cpp.tar.gz, with the archive in build/ of the repository.
ARG WHISPER_CPP=https://github.com/ggml-org/whisper.cpp/archive/refs/tags/v1.9.3.tar.gz
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential cmake curl glslc libvulkan-dev spirv-headers \
        ${ROCM:+"amdrocm-core-dev${ROCM}-${GFX}"} \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /whisper
RUN --mount=type=bind,target=/context \
    curl --fail --silent --show-error --location --output whisper.tar.gz "${WHISPER_CPP}" \
    && tar --extract --gzip --strip-components=1 --file whisper.tar.gz
# The libraries lie beside the programs and are found there ($ORIGIN): nothing depends on LD_LIBRARY_PATH.
RUN cmake -B vulkan -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_VULKAN=ON -DWHISPER_BUILD_TESTS=OFF \
        -DCMAKE_INSTALL_RPATH="\$ORIGIN" -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    && cmake --build vulkan --parallel "$(nproc)" --target whisper-server \
    && install --directory /opt/whisper/vulkan \
    && cp --no-dereference vulkan/bin/whisper-server /opt/whisper/vulkan/ \
    && find vulkan -name 'lib*.so*' -exec cp --no-dereference '{}' /opt/whisper/vulkan/ ';'
RUN if [ -n "${ROCM}" ]; then \
        export PATH="/opt/rocm/current/bin:/opt/rocm/current/lib/llvm/bin:${PATH}" \
        && cmake -B hip -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_HIP=ON -DGPU_TARGETS="${GFX}" -DWHISPER_BUILD_TESTS=OFF \
            -DCMAKE_PREFIX_PATH=/opt/rocm/current -DCMAKE_HIP_COMPILER=/opt/rocm/current/lib/llvm/bin/clang++ \
            -DCMAKE_INSTALL_RPATH="\$ORIGIN" -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
        && cmake --build hip --parallel "$(nproc)" --target whisper-server \
        && install --directory /opt/whisper/hip \
        && cp --no-dereference hip/bin/whisper-server /opt/whisper/hip/ \
        && find hip -name 'lib*.so*' -exec cp --no-dereference '{}' /opt/whisper/hip/ ';'; \
    fi

FROM base AS build
ARG EXTRAS=onnx,zeroconf,otel
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY deploy/images/install.sh /
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip sh /install.sh libraries "${EXTRAS}"
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/var/cache/pip sh /install.sh package

FROM rocm
LABEL org.opencontainers.image.title="Eardrum for AMD Strix Halo" \
      org.opencontainers.image.description="Speech to text, and one port for every local model, with whisper-server by ROCm and Vulkan" \
      org.opencontainers.image.licenses="MIT"
# --convert of whisper-server needs ffmpeg.
RUN --mount=type=bind,source=deploy/images,target=/images \
    sh /images/install.sh system ffmpeg libgomp1 libvulkan1 mesa-vulkan-drivers
COPY --from=whisper /opt/whisper /opt/whisper
COPY --from=build /opt/eardrum /opt/eardrum
COPY deploy/images/healthcheck.py /opt/healthcheck.py
# The folders of ROCm are searched by whisper-server-hip alone: an empty folder is no error.
ENV PATH=/opt/eardrum/bin:$PATH \
    LD_LIBRARY_PATH=/opt/rocm/current/lib:/opt/rocm/current/lib/rocm_sysdeps/lib \
    HOME=/models \
    HF_HOME=/models \
    EARDRUM_HOST=0.0.0.0 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1
RUN ln -s /opt/whisper/vulkan/whisper-server /usr/local/bin/whisper-server \
    && ln -s /opt/whisper/hip/whisper-server /usr/local/bin/whisper-server-hip \
    && libraries="$(ldd /opt/whisper/*/whisper-server)" \
    && case "${libraries}" in *"not found"*) echo "${libraries}"; exit 1 ;; esac
USER 10001:10001
WORKDIR /models
VOLUME ["/models", "/tmp"]
EXPOSE 8100 10300
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["python3", "-I", "/opt/healthcheck.py"]
ENTRYPOINT ["tini", "--", "eardrum"]
CMD ["serve"]

# Two targets. `volume` is small: handler.py installs the packages once, on a network volume.
# `baked`, the last and therefore the default, contains packages and model. See docs/deploying.md.

# PyTorch contains its own CUDA libraries: `base` or `runtime` instead of `cudnn-devel` works too,
# and is several gigabytes smaller.
ARG BASE=nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04
# Source of the model in `baked`: `published` or `demo`.
ARG WEIGHTS=published

# Without the libraries for video, devices and encoders of the distribution's package: 472 MB, and
# most of the time that ffmpeg takes to start.
FROM ${BASE} AS ffmpeg
COPY scripts/build-ffmpeg /build-ffmpeg
RUN /build-ffmpeg /ffmpeg

FROM ${BASE} AS system
ARG PYTHON=3.12
WORKDIR /app
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates python${PYTHON} python${PYTHON}-venv \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/bin/python${PYTHON} /usr/local/bin/python
COPY --from=ffmpeg /ffmpeg /usr/local/bin/ffmpeg
COPY requirements/uv.txt requirements/uv.txt
RUN python -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps \
        --require-hashes --requirement requirements/uv.txt \
    && ln -s /opt/uv/bin/uv /usr/local/bin/uv
# This ffmpeg treats denormal numbers as zero.
ENV PYTHONUNBUFFERED=1 \
    PARAKEET_RESAMPLING_PRECISION=single

FROM system AS volume
ARG PYTHON=3.12
# GPU kernels are compiled at the first start on each card type, and cached on the volume.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        gcc libc6-dev python${PYTHON}-dev \
    && rm -rf /var/lib/apt/lists/*
COPY handler.py pyproject.toml README.md ./
COPY requirements requirements
COPY src src
# As root: a network volume belongs to root.
CMD ["python", "handler.py"]

FROM system AS environment
ARG UV_NO_CACHE=1
ARG UV_CACHE_DIR=/var/cache/uv
COPY requirements/runtime.txt requirements/runtime.txt
# Without `--no-build`, source packages would be built by packages without hashes.
RUN uv venv --python /usr/local/bin/python .venv \
    && uv pip sync --python .venv/bin/python --compile-bytecode --require-hashes --no-build \
        requirements/runtime.txt

FROM environment AS downloaded
ARG MODEL=nvidia/parakeet-tdt-0.6b-v3
ARG REVISION=541d1f99c6b0c3cd0b11a95167540bb8edefd82b
RUN .venv/bin/hf download "${MODEL}" --revision "${REVISION}" --local-dir /download \
        --include config.json --include model.safetensors --include tokenizer.json \
        --include preprocessor_config.json --include processor_config.json \
    && rm -r /download/.cache

# In the precision for GPUs: half the size, and no conversion at the first start of a worker.
FROM downloaded AS published
COPY src src
RUN PYTHONPATH=src .venv/bin/python -m parakeet_worker.entrypoints.cli convert \
        --model /download --precision bf16 /model/prepacked.safetensors

FROM scratch AS demo
COPY src/parakeet_worker/checkpoints/demo.nemo /model/

FROM ${WEIGHTS} AS weights

# GPU kernels for every card, so that `baked` neither contains a compiler nor compiles at its start.
# This stage needs no GPU.
FROM environment AS compiled
ARG PYTHON=3.12
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        gcc libc6-dev python${PYTHON}-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=weights /model /model
COPY src src
RUN PYTHONPATH=src .venv/bin/python -m parakeet_worker.entrypoints.cli compile-kernels \
        --model /model /opt/kernels

FROM environment AS baked
COPY --from=weights /model /opt/model
COPY --from=compiled /opt/kernels /opt/kernels
COPY handler.py pyproject.toml README.md ./
COPY src src
COPY requirements/build.txt requirements/build.txt
RUN uv pip install --no-cache --python .venv/bin/python --no-deps \
        --build-constraints requirements/build.txt --editable . \
    && .venv/bin/python -m compileall -q src \
    && useradd --create-home --uid 10001 worker
ARG MODEL=nvidia/parakeet-tdt-0.6b-v3
ENV PATH=/app/.venv/bin:${PATH} \
    PARAKEET_MODEL=/opt/model \
    PARAKEET_KERNEL_CACHE=/opt/kernels \
    PARAKEET_MODEL_NAME=${MODEL}
USER worker
CMD ["python", "handler.py"]

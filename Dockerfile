# syntax=docker/dockerfile:1
# CPU:  docker build -t ecanet .
# CUDA: docker build -t ecanet:cuda --build-arg TORCH=cu130 .
#
# Your data and the study are volumes, and files in them belong to you:
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/images:/data:ro" -v "$PWD/study:/study" \
#     ecanet compare /data --out /study
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
RUN pip install --no-cache-dir build
COPY pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY ecanet ecanet
RUN python -m build --wheel --outdir /dist

FROM python:${PYTHON}-slim
# Which build of torch: cpu, or cu130 and the like. The latter bring CUDA's libraries.
ARG TORCH=cpu
ARG EXTRAS=detection,explain,export,tensorboard,video
LABEL org.opencontainers.image.title="ecanet" \
    org.opencontainers.image.description="Does an attention module help my CNN, on my data, and what does it cost?" \
    org.opencontainers.image.licenses="MIT"
# A compiler for the fused kernels, which are built at first use.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /dist /dist
# grad-cam names the build of OpenCV that needs libGL: the headless one takes its place.
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend "${TORCH}" "$(echo /dist/*.whl)[${EXTRAS}]" \
    && uv pip uninstall --system opencv-python \
    && uv pip install --system --no-cache --reinstall --no-deps opencv-python-headless \
    && rm -rf /dist
# A home that any user can write to: --user takes any id.
RUN useradd --uid 1000 --home-dir /home/ecanet ecanet \
    && mkdir -p /home/ecanet /data /study \
    && chown ecanet /home/ecanet /study \
    && chmod 1777 /home/ecanet
ENV HOME=/home/ecanet PYTHONUNBUFFERED=1
USER ecanet
WORKDIR /study
VOLUME ["/data", "/study"]
ENTRYPOINT ["ecanet"]
CMD ["--help"]

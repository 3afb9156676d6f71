# The operator's image. A MigrationJob's worker runs from it too.
# BASE needs Python 3.11 or newer with venv; any Debian-like base will do.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
RUN python3 -m venv /opt/build
COPY pyproject.toml README.md LICENSE /src/
COPY core /src/core
COPY operator /src/operator
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/pip wheel --no-deps --wheel-dir /wheel /src

FROM ${BASE}
LABEL org.opencontainers.image.title="shipkeeper" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN python3 -m venv /opt/shipkeeper
ENV PATH=/opt/shipkeeper/bin:$PATH
# Dependencies change less often than the code, so they have a layer of their own.
COPY hack/requirements/operator.txt /opt/shipkeeper/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-virtualenv -r /opt/shipkeeper/requirements.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-deps --no-cache-dir /wheel/*.whl
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
CMD ["shipkeeper-operator"]

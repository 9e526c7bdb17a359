# `koala serve` for one target, whose name is EXTRA: cpu, cuda, rtx or tensorrt.
#
#   docker build --tag koala-trt:cpu .
#   docker build --tag koala-trt:rtx --build-arg EXTRA=rtx .
#   docker run --read-only --tmpfs /tmp --tmpfs /cache --volume ./bundle:/bundle:ro --publish 127.0.0.1:8000:8000 koala-trt:cpu
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG EXTRA=cpu
WORKDIR /source
COPY . .
# The environment gets no pip of its own: the base's installs into it.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/koala \
    && pip --python /opt/koala/bin/python install --constraint constraints.txt \
        "koala-trt[serve,${EXTRA}] @ file://$(echo /wheels/*.whl)"

FROM python:${PYTHON}
COPY --from=build /opt/koala /opt/koala
# A number, so that Kubernetes can tell that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache koala \
    && install --directory --mode 1777 /cache
USER 10001:10001
# ONNX Runtime reports to its makers unless it is told not to. The driver's libraries come from the host; these are the
# ones that a GPU target needs.
ENV PATH=/opt/koala/bin:$PATH \
    KOALA_CACHE_DIR=/cache \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=1m \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener as b; b(ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["koala"]
CMD ["serve", "/bundle", "--host", "0.0.0.0"]

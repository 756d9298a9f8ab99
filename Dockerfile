# syntax=docker/dockerfile:1

# Everything is installed by hash in the first stage; the second gets the finished environment and no build tool.
FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /build

# Before the sources: a change of code does not install the dependencies again.
COPY requirements/build.txt requirements/run.txt requirements/
RUN python -m venv /opt/agent-sse \
    && /opt/agent-sse/bin/python -m pip install --require-hashes -r requirements/run.txt \
    && python -m pip install --require-hashes -r requirements/build.txt

# README.* is a pattern: the metadata use it when it is there.
COPY pyproject.toml LICENSE README.* ./
COPY src src
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/agent-sse/bin/python -m pip install --no-deps dist/*.whl \
    && /opt/agent-sse/bin/python -m pip check \
    && /opt/agent-sse/bin/python -m pip uninstall --yes pip


FROM python:3.13-slim

# A fixed uid, so that volumes and security policies can name it. The state directory is used only without Redis.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/agent-sse --shell /usr/sbin/nologin agent-sse \
    && install -d -o agent-sse -g agent-sse -m 0700 /var/lib/agent-sse

COPY --from=build /opt/agent-sse /opt/agent-sse

ENV PATH=/opt/agent-sse/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    AGENT_SSE_STATE_DIR=/var/lib/agent-sse
WORKDIR /var/lib/agent-sse
USER 10001:10001
EXPOSE 8000
# Streams are ended and clients told to resume within about a second.
STOPSIGNAL SIGTERM

# Alive, not ready: restarting this container would not bring Redis back. The empty ProxyHandler keeps a proxy of the
# environment out of the way.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('AGENT_SSE_PORT', '8000') + '/healthz', timeout=3)"]

CMD ["agent-sse", "serve", "--host", "0.0.0.0"]

# Both demo services; the command says which. docker-compose.yml builds and runs it.
# Another package index: --build-arg PIP_INDEX_URL=...
FROM python:3.12-slim-bookworm AS build
ARG PIP_INDEX_URL
WORKDIR /build
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check 'pip>=25.1'
COPY pyproject.toml README.md LICENSE ./
COPY rmq_txn ./rmq_txn
# The native library is one pinned file, its SHA-256 is checked.
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check . --group demo \
    && /opt/venv/bin/rmq-txn native install

FROM python:3.12-slim-bookworm
RUN groupadd --gid 10001 demo && useradd --uid 10001 --gid demo --create-home --shell /usr/sbin/nologin demo \
    && install -d -o demo -g demo /var/lib/demo
COPY --from=build /opt/venv /opt/venv
COPY demo_chassis /app/demo_chassis
COPY demo_account_service /app/demo_account_service
COPY demo_points_service /app/demo_points_service
# The native client writes its own log below /tmp (ROCKETMQ_CLIENT_LOG_DIR).
USER 10001:10001
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
STOPSIGNAL SIGTERM
EXPOSE 8001 8002
CMD ["python", "-m", "demo_account_service"]

"""nchan, the nginx module: one worker, publishing and subscribing by HTTP, with or without Redis behind it."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import debian
from benchmarks.programs import Failure, Process, children
from benchmarks.redis_server import RedisServer

MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/lib/nginx/modules")
PACKAGES = ("nginx-light", "libnginx-mod-nchan")
HEARTBEAT = '{"type":"heartbeat","timestamp":1700000000.123}'  # as long as this project's
BUFFER = 200  # messages a channel keeps: more than the storm's replay

CONFIG = """\
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    nchan_shared_memory_size 1024m;
    {upstream}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/pub/(.+)$ {{
            nchan_publisher http;
            nchan_channel_id $1;
            {common}
        }}
        location ~ ^/sub/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
            nchan_eventsource_ping_interval {ping};
            nchan_eventsource_ping_event "";
            nchan_eventsource_ping_data '{heartbeat}';
            {common}
        }}
        location ~ ^/old/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message oldest;
            {common}
        }}
    }}
}}
"""


def find_nginx() -> str | None:
    """Return nginx' binary, which is not on every user's PATH."""
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def find_module() -> Path | None:
    """Return nchan's module file, installed if need and means be; None where there is none."""

    def look() -> Path | None:
        if find_nginx() is None:
            return None
        return next((path for folder in MODULES if (path := Path(folder) / "ngx_nchan_module.so").exists()), None)

    found = look()
    if found is None and debian.install(*PACKAGES):
        found = look()
    return found


def start(stack: ExitStack, folder: Path, port: int, redis: RedisServer | None, heartbeat: float) -> list[int]:
    """Start nginx with a configuration of its own in ``folder``; return its worker's process id."""
    module = find_module()
    binary = find_nginx()
    if module is None or binary is None:
        raise Failure(f"nchan is not installed (Debian, Ubuntu: apt-get install {' '.join(PACKAGES)})")
    common = [f"nchan_message_buffer_length {BUFFER};", "nchan_message_timeout 60m;"]
    upstream = ""
    if redis is not None:
        upstream = f"upstream redis {{ nchan_redis_server {redis.url}; }}"
        common.append("nchan_redis_pass redis;")
    config = folder / "nginx.conf"
    config.write_text(
        CONFIG.format(
            module=module, folder=folder, port=port, upstream=upstream, common=" ".join(common),
            ping=max(1, round(heartbeat)), heartbeat=HEARTBEAT,
        )
    )  # fmt: skip
    process = stack.enter_context(Process([binary, "-c", str(config), "-p", str(folder)], folder / "nginx.log"))
    process.wait_for_port(port)
    deadline = time.monotonic() + 10
    while not (workers := children(process.pid)):
        if time.monotonic() > deadline:
            raise Failure(f"nginx has no worker:\n{process.last_words()}")
        time.sleep(0.02)
    return workers

"""A receiver of agent-sse's webhook, standard library only: ``WEBHOOK_SECRET=whsec_… python webhook_receiver.py``."""

import base64
import hmac
import json
import os
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))
seen: deque[str] = deque(maxlen=10_000)  # a delivery may come twice; with several processes, keep this where all see it


def genuine(headers, body: bytes) -> bool:
    name, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    mac = b"v1," + base64.b64encode(hmac.digest(KEY, f"{name}.{at}.".encode() + body, "sha256"))
    signatures = headers.get("webhook-signature", "").encode().split()  # several while a secret is being changed
    return any(hmac.compare_digest(mac, one) for one in signatures) and abs(time.time() - int(at)) < 300  # no old copy


class Receiver(BaseHTTPRequestHandler):  # noqa: D101
    def do_POST(self) -> None:  # noqa: D102
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 1_000_000))
        right = genuine(self.headers, body)
        self.send_response(204 if right else 401)  # soon: what takes long comes after the answer
        self.end_headers()
        if right and self.headers["webhook-id"] not in seen:
            seen.append(self.headers["webhook-id"])
            print("somebody is needed:", json.dumps(json.loads(body)["data"]), flush=True)


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8010"))), Receiver).serve_forever()

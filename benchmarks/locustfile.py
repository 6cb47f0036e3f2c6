"""Clients of a running server, for locust:

    locust -f benchmarks/locustfile.py --headless -u 32 -r 8 -t 60s --host http://127.0.0.1:8000

Every client asks a random one of the server's models for a streamed answer, and tells the time to its first token as a
row of its own. KEY is the API key, TOKENS the length of an answer.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

from locust import HttpUser, between, task


class Client(HttpUser):
    """One client that waits for its answer, and a moment, before it asks again."""

    wait_time = between(0, 0.2)

    def on_start(self) -> None:
        """Learns which models there are."""
        self.client.headers["Authorization"] = f"Bearer {os.environ.get('KEY', 'none')}"
        self.models = [one["id"] for one in self.client.get("/v1/models").json()["data"]]

    @task
    def complete(self) -> None:
        """One streamed answer, which has to have all its tokens."""
        num = int(os.environ.get("TOKENS", "16"))
        body: dict[str, Any] = {"model": random.choice(self.models), "prompt": "Once upon a time", "stream": True}
        body |= {"max_tokens": num, "ignore_eos": True, "stream_options": {"include_usage": True}}
        started, usage = time.monotonic(), None
        with self.client.post("/v1/completions", json=body, stream=True, catch_response=True) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data: {"):
                    part = json.loads(line[6:])
                    if usage is None and started:
                        self._first(started)
                        started = 0.0
                    usage = part.get("usage") or usage
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
            elif usage is None or usage["completion_tokens"] != num:
                answer.failure(f"not all tokens came: {usage}")

    def _first(self, started: float) -> None:
        taken = 1000 * (time.monotonic() - started)
        self.environment.events.request.fire(
            request_type="SSE", name="first token", response_time=taken, response_length=0, exception=None, context={}
        )

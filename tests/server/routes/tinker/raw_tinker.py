"""The Tinker API over plain HTTP, as its SDK asks for it, without the SDK."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx
import numpy as np
from tiny_serve import LONGEST_WAIT

from polyvera.server.routes.tinker.wire_messages import FLOAT32, INT64, WIRE

BINARY = "application/x-protobuf"
ADAM = {"learning_rate": 0.05, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, "grad_clip_norm": 0.0}
ROWS = [[5, 6, 7, 8, 9], [9, 8, 7]]


def tensor(values, dtype=np.float32):
    array = np.asarray(values, dtype)
    number = FLOAT32 if dtype == np.float32 else INT64
    return WIRE["Tensor"](dense=array.tobytes(), dtype=number, shape=array.shape)


def datum(tokens, targets, **inputs):
    made = WIRE["Datum"]()
    half = len(tokens) // 2
    for part in (tokens[:half], tokens[half:]):  # a prompt may come in parts
        made.model_input.add().encoded_text.tokens = np.asarray(part, np.int32).tobytes()
    made.loss_fn_inputs["target_tokens"].CopyFrom(tensor(targets, np.int64))
    for name, values in inputs.items():
        made.loss_fn_inputs[name].CopyFrom(tensor(values))
    return made


def pass_body(run, seq, data, loss_fn="cross_entropy", forward_only=False, **config):
    made = WIRE["ForwardBackwardRequest"](model_id=run, seq_id=seq, data=data, loss_fn=loss_fn)
    made.forward_only = forward_only
    for name, value in config.items():
        made.loss_fn_config[name] = value
        made.loss_fn_config_v2[name].number = value
    return made.SerializeToString()


def supervised(rows=ROWS):
    return [datum(row[:-1], row[1:], weights=[1.0] * (len(row) - 1)) for row in rows]


class RawTinker:
    """One tenant's client."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"X-API-Key": f"tml-{key}"}
        self.http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=LONGEST_WAIT)

    def post(self, path: str, /, **body: Any) -> dict[str, Any]:
        found = self.http.post(path, json=body)
        assert found.is_success, found.text
        return found.json()

    def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        found = self.http.get(path, params=query)
        assert found.is_success, found.text
        return found.json()

    def session(self) -> str:
        return self.post("/create_session", tags=[], sdk_version="0.38.0", type="create_session")["session_id"]

    def run(self, session: str | None = None, number: int = 0, rank: int = 4, **more: Any) -> str:
        asked = {"session_id": session or self.session(), "model_seq_id": number, "base_model": "tiny"}
        made = self.post("/create_model", **asked, lora_config={"rank": rank}, type="create_model", **more)
        return self.result(made)["model_id"]

    def result(self, made: dict[str, Any]) -> Any:
        """JSON, or the bytes of a message."""
        asked = {"request_id": made["request_id"]}
        while (found := self.http.post("/retrieve_future", json=asked)).status_code == 408:
            assert found.json()["type"] == "try_again"
        assert found.is_success, found.text
        return found.content if found.headers["content-type"] == BINARY else found.json()

    def send(self, body: bytes) -> httpx.Response:
        return self.http.post("/forward_backward", content=body, headers={"content-type": BINARY})

    def passed(self, *args: Any, **more: Any) -> Any:
        """Its message, or its error."""
        found = self.result(self.send(pass_body(*args, **more)).json())
        if isinstance(found, dict):
            return found
        message = WIRE["ForwardBackwardOutput"]()
        message.ParseFromString(found)
        return message

    def step(self, run: str, seq: int, **adam: Any) -> dict[str, Any]:
        return self.result(self.post("/optim_step", model_id=run, seq_id=seq, adam_params=ADAM | adam))


def logprobs_of(message):
    [record] = message.loss_fn_outputs
    found = record.fields["logprobs"]
    offsets = np.frombuffer(found.offsets, np.int64) // 4
    values = np.frombuffer(found.data, np.float32)
    return [values[a:b].reshape(-1, *found.trailing_shape) for a, b in pairwise(offsets)]

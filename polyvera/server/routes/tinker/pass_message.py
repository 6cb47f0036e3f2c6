"""read_pass: a forward or forward-backward call as the SDK sends it, bounded before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from polyvera.errors import DataError, ServeError
from polyvera.jobs.pass_rows import PassRow, rows_to_bytes
from polyvera.jobs.training_run import FORWARD, FORWARD_BACKWARD
from polyvera.server.routes.tinker.wire_messages import FLOAT32, INT32, INT64, WIRE, num_parts

DATA = 3  # the number of the field of the rows
MAX_PARTS, MAX_TARGETS, MAX_WIDTH, MAX_NAME_CHARS = 1 << 17, 1 << 22, 64, 64
TARGETS, WEIGHTS = "target_tokens", "weights"
DTYPES: dict[int, Any] = {FLOAT32: np.float32, INT64: np.int64, INT32: np.int32}


@dataclass(frozen=True, slots=True)
class AskedPass:
    """run, seq: whose call, and which; None is the next. error: why it fails, with no rows."""

    run: str
    seq: int | None
    kind: str
    request: dict[str, Any]
    rows: bytes | None
    error: str | None = None


def read_pass(data: bytes) -> AskedPass:
    """Raises ServeError for what cannot be read at all; what is wrong with its rows fails the call alone."""
    message = WIRE["ForwardBackwardRequest"]()
    try:
        if num_parts(data, DATA, MAX_PARTS) > MAX_PARTS:
            raise ServeError(f"the body has more than {MAX_PARTS:,} parts: send fewer rows at a time")
        message.ParseFromString(data)
        run, loss = _text(message.model_id), _text(message.loss_fn)
    except (DecodeError, IndexError, KeyError, ValueError) as error:
        raise ServeError(f"the body is not a ForwardBackwardRequest: {str(error)[:200]}") from None
    asked = AskedPass(run, message.seq_id or None, FORWARD if message.forward_only else FORWARD_BACKWARD, {}, None)
    try:
        rows = _rows(message.data)
        request = {"loss_fn": loss[:MAX_NAME_CHARS], "loss_fn_config": _config(message)}
    except (DataError, ValueError) as error:
        return AskedPass(asked.run, asked.seq, asked.kind, {}, None, str(error)[:1000])
    return AskedPass(asked.run, asked.seq, asked.kind, request, rows_to_bytes(rows))


def _text(value: str | bytes) -> str:
    """Raises ValueError for what is not UTF-8, which comes as bytes."""
    if isinstance(value, bytes):
        raise ValueError("a text is not UTF-8")
    return value


def _config(message: Any) -> dict[str, float]:
    given = dict(message.loss_fn_config)
    for name, value in message.loss_fn_config_v2.items():
        if not value.HasField("number"):
            raise DataError(f"loss_fn_config: {name[:MAX_NAME_CHARS]} must be a number")
        given[name] = value.number
    return {_text(name)[:MAX_NAME_CHARS]: float(value) for name, value in given.items()}


def _rows(data: Sequence[Any]) -> list[PassRow]:
    if not data:
        raise DataError("data is empty: a pass has at least one datum")
    rows, names, left = [], None, MAX_TARGETS
    for number, datum in enumerate(data):
        try:
            row = _row(datum, left)
        except (DataError, ValueError) as error:
            raise DataError(f"data[{number}]: {error}") from None
        names = names or {*row.inputs}
        if {*row.inputs} != names:
            raise DataError(f"data[{number}] has the inputs {_said(row.inputs)}, and those before it {_said(names)}")
        left -= len(row.targets)
        rows.append(row)
    return rows


def _row(datum: Any, left: int) -> PassRow:
    tokens = _tokens(datum.model_input)
    if datum.spans or datum.input_spans:
        raise DataError(
            "stable_reinforce and its provenance spans are not known here: choose importance_sampling, ppo, cispo, "
            "gspo or dro, and leave the spans out"
        )
    found = {_text(name): _array(tensor, name, len(tokens), left) for name, tensor in datum.loss_fn_inputs.items()}
    if TARGETS not in found:
        raise DataError(f"loss_fn_inputs must have {TARGETS}, and has {_said(found)}")
    targets = found.pop(TARGETS)
    if targets.dtype.kind != "i":
        raise DataError(f"{TARGETS} must be integers")
    for name, values in found.items():
        if values.shape != targets.shape:
            raise DataError(f"{name} has shape {values.shape}, and {TARGETS} has {targets.shape}")
    return PassRow(tokens, targets.ravel(), {name[:MAX_NAME_CHARS]: values.ravel() for name, values in found.items()})


def _tokens(chunks: Sequence[Any]) -> Any:
    if not all(chunk.HasField("encoded_text") for chunk in chunks):
        raise DataError("model_input must be text: this server trains on no images and no sounds")
    tokens = np.frombuffer(b"".join(chunk.encoded_text.tokens for chunk in chunks), "<i4")
    if not len(tokens):
        raise DataError("model_input has no tokens")
    return tokens


def _array(tensor: Any, name: str, length: int, left: int) -> Any:
    """(length,) or (length, K). Raises DataError for another shape before anything of that size is made."""
    shape, dtype = tuple(tensor.shape), DTYPES.get(tensor.dtype)
    if dtype is None:
        raise DataError(f"{name[:MAX_NAME_CHARS]} must be float32 or int64")
    if len(shape) not in (1, 2) or shape[0] != length or not 1 <= prod(shape[1:]) <= MAX_WIDTH:
        raise DataError(
            f"{name[:MAX_NAME_CHARS]} has shape {shape[:4]}, and model_input has {length:,} tokens: it must be "
            f"({length},) or ({length}, K) with K up to {MAX_WIDTH}"
        )
    if prod(shape) > left:
        raise DataError(f"the rows have more than {MAX_TARGETS:,} targets: send fewer at a time")
    values = (
        _dense(tensor.sparse_csr, shape, dtype) if tensor.HasField("sparse_csr") else np.frombuffer(tensor.dense, dtype)
    )
    return values.reshape(shape) if len(shape) == 1 or shape[1] > 1 else values.reshape(shape[0])


def _dense(sparse: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """What is listed, and 0 elsewhere."""
    found = np.zeros(shape, dtype)
    rows, columns = (np.frombuffer(part, np.int64) for part in (sparse.crow_indices, sparse.col_indices))
    values = np.frombuffer(sparse.values, dtype)
    is_whole = len(shape) == 2 and len(rows) == shape[0] + 1 and len(columns) == len(values)
    if not is_whole or rows[0] != 0 or rows[-1] != len(values) or (np.diff(rows) < 0).any():
        raise DataError("a sparse tensor is damaged: its indices do not fit its shape")
    if len(columns) and not 0 <= columns.min() <= columns.max() < shape[1]:
        raise DataError("a sparse tensor is damaged: it has a column outside its shape")
    found[np.repeat(np.arange(shape[0]), np.diff(rows)), columns] = values
    return found


def _said(names: Any) -> str:
    return ", ".join(sorted(name[:MAX_NAME_CHARS] for name in names)[:8]) or "none"

"""What the SDK takes as protobuf alone: the answers to passes and to samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyvera.engine.generation.request import Answer
from polyvera.jobs.pass_rows import logprobs_from_bytes
from polyvera.server.routes.tinker.wire_messages import FLOAT32, STOP_REASONS, WIRE

FILL_TOKEN, FILL_LOGPROB = 0, -99999.0  # where there are fewer alternatives than asked for


def pass_answer(loss: float, logprobs: bytes) -> bytes:
    """A ForwardBackwardOutput. loss: the sum over all rows."""
    rows = logprobs_from_bytes(logprobs)
    message = WIRE["ForwardBackwardOutput"](loss_fn_output_type="ArrayRecord")
    widths = {row.shape[1:] for row in rows}
    if len(widths) == 1:
        _add_record(message, rows)
    else:  # rows of another shape are a record of their own each
        for row in rows:
            _add_record(message, [row])
    message.metrics["loss:sum"] = loss
    return bytes(message.SerializeToString())


def sample_answer(answers: Sequence[Answer], num_top: int, num_prompt_top: int | None, num_reused: int) -> bytes:
    """A SampleResponse. num_top: alternatives of each token. num_prompt_top: of the prompt's, None for no scores."""
    message = WIRE["SampleResponse"](prompt_cache_hit_tokens=num_reused)
    for answer in answers:
        sequence = message.sequences.add(stop_reason=STOP_REASONS[answer.finish_reason or "length"])
        sequence.tokens = np.asarray(answer.ids, np.int32).tobytes()
        sequence.logprobs = np.asarray([token.logprob for token in answer.tokens], np.float32).tobytes()
        if num_top:
            _fill_top(sequence.topk_sampled_logprobs, [token.top for token in answer.tokens], num_top)
    if num_prompt_top is not None:
        scored = answers[0].prompt
        message.prompt_logprobs = np.asarray([np.nan, *(token.logprob for token in scored)], np.float32).tobytes()
        if num_prompt_top:
            _fill_top(message.topk_prompt_logprobs, [(), *(token.top for token in scored)], num_prompt_top)
    return bytes(message.SerializeToString())


def _add_record(message: Any, rows: Sequence[Any]) -> None:
    record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(rows))
    tensor = record.fields["logprobs"]
    parts = [np.ascontiguousarray(row, np.float32) for row in rows]
    tensor.data, tensor.dtype = b"".join(part.tobytes() for part in parts), FLOAT32
    tensor.offsets = np.cumsum([0, *(part.nbytes for part in parts)], dtype=np.int64).tobytes()
    tensor.trailing_shape.extend(rows[0].shape[1:])


def _fill_top(message: Any, tops: Sequence[tuple[tuple[int, float], ...]], k: int) -> None:
    ids, values = np.full((len(tops), k), FILL_TOKEN, np.int32), np.full((len(tops), k), FILL_LOGPROB, np.float32)
    for i, top in enumerate(tops):
        for j, (token, logprob) in enumerate(top[:k]):
            ids[i, j], values[i, j] = token, logprob
    message.token_ids, message.logprobs, message.k, message.length = ids.tobytes(), values.tobytes(), k, len(tops)

"""What is wrong with a pass is said, before anything of its size is made."""

import numpy as np
import pytest
from raw_tinker import datum, pass_body, supervised, tensor

from polyvera.errors import ServeError
from polyvera.jobs.pass_rows import rows_from_bytes
from polyvera.server.routes.tinker import pass_message
from polyvera.server.routes.tinker.pass_message import read_pass
from polyvera.server.routes.tinker.wire_messages import WIRE


def test_rows_come_whole():
    asked = read_pass(pass_body("run", 7, supervised(), "dro", beta=0.5))
    assert (asked.run, asked.seq, asked.kind) == ("run", 7, "forward_backward") and asked.error is None
    assert asked.request == {"loss_fn": "dro", "loss_fn_config": {"beta": 0.5}}
    first, second = rows_from_bytes(asked.rows)
    assert first.tokens.tolist() == [5, 6, 7, 8] and second.targets.tolist() == [8, 7]
    assert read_pass(pass_body("run", 0, supervised(), forward_only=True)).kind == "forward"


def test_several_targets_for_a_position_may_be_sparse():
    made = datum([1, 2], [[3, 4], [5, 6]])
    sparse = WIRE["Tensor"](dtype=1, shape=[2, 2])
    sparse.sparse_csr.values = np.asarray([0.5, 0.25], np.float32).tobytes()
    sparse.sparse_csr.crow_indices = np.asarray([0, 1, 2]).tobytes()
    sparse.sparse_csr.col_indices = np.asarray([1, 0]).tobytes()
    made.loss_fn_inputs["weights"].CopyFrom(sparse)
    [row] = rows_from_bytes(read_pass(pass_body("r", 1, [made])).rows)
    assert row.targets.tolist() == [3, 4, 5, 6] and row.inputs["weights"].tolist() == [0, 0.5, 0.25, 0]
    made.loss_fn_inputs["weights"].sparse_csr.col_indices = np.asarray([1, 9]).tobytes()
    assert "damaged" in read_pass(pass_body("r", 1, [made])).error
    made.loss_fn_inputs["weights"].sparse_csr.crow_indices = np.asarray([0, 2]).tobytes()
    assert "damaged" in read_pass(pass_body("r", 1, [made])).error


def image():
    made = WIRE["Datum"]()
    made.model_input.add().image = b"x"
    return made


def shaped(shape):
    made = datum([1, 2], [3, 4])
    made.loss_fn_inputs["weights"].CopyFrom(WIRE["Tensor"](dense=b"", dtype=1, shape=shape))
    return made


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "data is empty"),
        ([image()], "no images"),
        ([datum([], [])], "no tokens"),
        ([datum([1, 2], [3])], r"target_tokens has shape \(1,\)"),
        ([datum([1, 2], [3, 4], weights=[[1, 2], [3, 4]])], "weights has shape"),
        ([shaped([2, 10**9])], "K up to 64"),
        ([shaped([2])], "reshape"),
        ([shaped([-2])], "weights has shape"),
        ([*supervised(), datum([1], [2], advantages=[1.0])], r"data\[2\] has the inputs advantages"),
        ([WIRE["Datum"](input_spans=[b"x"], model_input=supervised()[0].model_input)], "spans"),
        ([WIRE["Datum"](model_input=supervised()[0].model_input)], "must have target_tokens"),
    ],
)
def test_bad_rows_fail_the_call_alone(data, words):
    asked = read_pass(pass_body("run", 7, data))
    assert asked.seq == 7 and asked.rows is None
    with pytest.raises(ValueError, match=words):
        raise ValueError(asked.error)


def test_what_cannot_be_read_is_refused(monkeypatch):
    for body in (b"\xff\xff", b"nonsense", b"\x0a\x02\xff\xfe"):
        with pytest.raises(ServeError, match="not a ForwardBackwardRequest"):
            read_pass(body)
    with pytest.raises(ServeError, match="parts: send fewer"):
        read_pass(b"\x1a\x00" * (pass_message.MAX_PARTS + 1))
    monkeypatch.setattr(pass_message, "MAX_TARGETS", 5)
    assert "more than 5 targets" in read_pass(pass_body("r", 1, supervised())).error


def test_texts_are_no_parameters():
    body = WIRE["ForwardBackwardRequest"](model_id="r", seq_id=1, data=supervised(), loss_fn="custom")
    body.loss_fn_config_v2["loss_id"].text = "x"
    assert "loss_id must be a number" in read_pass(body.SerializeToString()).error
    assert tensor([1.0]).dtype == 1

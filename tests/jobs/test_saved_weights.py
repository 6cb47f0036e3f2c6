"""Weights are their tenant's alone, have one name each, a size that counts, and an end."""

from dataclasses import replace

import pytest
from some_runs import opened, run_of

from polyvera.errors import ConflictError, QuotaError, UnknownObjectError
from polyvera.jobs.sampler_table import sampler_id
from polyvera.jobs.saved_weights import SAMPLER, TRAINING, SavedWeights, path_of


def weights(run, name="one", seq=1, **more):
    path = path_of(run, TRAINING, name)
    one = SavedWeights(path, "acme", run, seq, TRAINING, name, f"weights/{name}", None, 60, "x", 4, {"a": "b"}, 5)
    return replace(one, **more)


def test_weights_are_their_tenants_alone(tmp_path):
    tuning = opened(tmp_path)
    made = weights(run_of(tuning))
    tuning.weights.add(made, 100)
    assert tuning.weights.get("acme", made.path) == made and made.checkpoint == "weights/one"
    assert tuning.weights.list("acme", None, 9, 0) == ([made], 1)
    assert tuning.weights.list("globex", made.run, 9, 0) == ([], 0)
    for reach in (tuning.weights.get, lambda *who: tuning.weights.expire(*who, 5)):
        with pytest.raises(UnknownObjectError, match="there are no weights"):
            reach("globex", made.path)


def test_a_name_is_taken_once_and_replaced_where_that_is_asked(tmp_path):
    tuning = opened(tmp_path)
    made = weights(run_of(tuning))
    tuning.weights.add(made, 100)
    tuning.weights.add(made, 100)  # the same call, made again
    later = replace(made, seq=2, file="weights/other")
    with pytest.raises(ConflictError, match="saved already"):
        tuning.weights.add(later, 100)
    tuning.weights.add(later, 100, replace=True)
    assert tuning.weights.former(made.path).file == "weights/other" and tuning.weights.former("x") is None
    with pytest.raises(QuotaError, match="60 bytes of your 100"):
        tuning.weights.add(weights(made.run, "two", 3), 100)
    tuning.weights.expire("acme", made.path, 5)
    tuning.weights.add(weights(made.run, "two", 3), 100)
    tuning.weights.add(weights(made.run, "one", 4), 120)  # its name is free again


def test_what_has_expired_and_what_nobody_named_is_unwanted(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    for seq in range(1, 4):
        tuning.weights.add(weights(run, f"u{seq}", seq, is_named=False), 10**6)
    kept = weights(run, "kept", 9)
    tuning.weights.add(kept, 10**6)
    assert [one.name for one in tuning.weights.unwanted(2)] == ["u1"]
    assert tuning.weights.list("acme", run, 9, 0) == ([kept], 1)
    tuning.weights.expire("acme", kept.path, 5)
    assert {one.name for one in tuning.weights.unwanted(3)} == {"kept"}
    with pytest.raises(UnknownObjectError):
        tuning.weights.get("acme", kept.path)
    tuning.weights.remove(kept.path)
    tuning.runs.end("acme", run)
    assert {one.name for one in tuning.weights.unwanted(3)} == {"u1", "u2", "u3"}


def test_what_is_saved_to_sample_with_opens_its_session(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    id = sampler_id(run.partition(":")[0], 0)
    made = weights(run, kind=SAMPLER, adapter="ft/acme/x@1")
    tuning.weights.add(made, 100, id)
    assert tuning.samplers.get("acme", id).adapter == "ft/acme/x@1"


def test_the_last_of_each_kind_under_a_name(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    made = [weights(run, name, seq) for seq, name in enumerate(("one", "two"), 1)]
    sampled = weights(run, "three", 3, path=path_of(run, SAMPLER, "three"), kind=SAMPLER)
    unnamed = weights(run, "u4", 4, is_named=False)
    for one in (*made, sampled, unnamed):
        tuning.weights.add(one, 10**6)
    assert {one.kind: one for one in tuning.weights.last("acme", run)} == {TRAINING: made[1], SAMPLER: sampled}
    assert tuning.weights.last("globex", run) == []

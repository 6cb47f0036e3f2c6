"""`basis` from the command line: a made basis has a name in the store, and `train` takes it."""

import json

import pytest
from command_line import polyvera

pytestmark = pytest.mark.usefixtures("tenants")
ASK = ("--model", "base", "--max-steps", "2", "--batch-size", "2", "--rank", "4")


def test_a_basis_is_made_and_trained_on() -> None:
    done = polyvera("basis", "activations", "train/ann.jsonl", *ASK, "--name", "pca", "--store", "shop", "--json")
    made = json.loads(done.stdout)
    assert made["name"] == "pca" and made["rank"] == 4
    words = ("--data", "train/ann.jsonl", *ASK, "--basis", "pca", "--lr", "0.1", "--store", "shop", "--name", "ann")
    assert "published ann@1" in polyvera("train", *words).output
    assert made["sha256"] in polyvera("show", "ann", "--store", "shop").output.replace("\n", "")
    assert "0 problems" in polyvera("verify", "--store", "shop").output


def test_a_kind_that_there_is_not_is_an_error() -> None:
    failed = polyvera("basis", "gradient", "train/ann.jsonl", *ASK, fails=True)
    assert "kind='gradient' must be one of: activations" in failed.output

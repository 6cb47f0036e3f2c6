"""`basis` from the command line: a made basis has a name in the store, and `train` takes it."""

import json
from pathlib import Path

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


def test_made_bases_are_listed_and_removed() -> None:
    for name in ("pca", "other"):
        seed = ("--seed", "1") if name == "other" else ()
        polyvera("basis", "orthogonal", "train/ann.jsonl", *ASK, *seed, "--name", name, "--store", "shop")
    words = ("--data", "train/ann.jsonl", *ASK, "--basis", "pca", "--lr", "0.1", "--store", "shop", "--name", "ann")
    polyvera("train", *words)
    rows = json.loads(polyvera("ls", "--bases", "--store", "shop", "--json").stdout)
    assert sorted((row["name"], row["rank"], row["kind"]) for row in rows) == [
        ("other", 4, "orthogonal"),
        ("pca", 4, "orthogonal"),
    ]
    assert "2 in shop" in polyvera("ls", "--bases", "--store", "shop").output
    assert "adapters name it: ann@1" in polyvera("rm", "pca", "--basis", "--store", "shop", fails=True).output
    [file] = Path("shop/bases").glob(f"{next(row['sha256'] for row in rows if row['name'] == 'other')}*")
    file.write_bytes(file.read_bytes()[:-4])
    rows = json.loads(polyvera("ls", "--bases", "--store", "shop", "--json").stdout)
    assert sorted((row["name"], row["kind"]) for row in rows) == [("other", "damaged"), ("pca", "orthogonal")]
    assert "removed from shop" in polyvera("rm", "other", "--basis", "--store", "shop").output
    polyvera("rm", "ann@1", "--store", "shop")
    polyvera("rm", "pca", "--basis", "--store", "shop")
    assert json.loads(polyvera("ls", "--bases", "--store", "shop", "--json").stdout) == []
    assert "0 problems" in polyvera("verify", "--store", "shop").output


@pytest.mark.parametrize(
    "words", [("ls", "--bases", "--all"), ("ls", "acme", "--bases"), ("rm", "pca", "--basis", "--with-aliases")]
)
def test_flags_without_effect_on_bases_are_refused(words: tuple[str, ...]) -> None:
    assert polyvera(*words, fails=True).output.count("error:") == 1


def test_experiments_take_a_made_basis_and_a_store_for_it_alone() -> None:
    polyvera("basis", "orthogonal", "train/ann.jsonl", *ASK, "--name", "pca", "--store", "shop")
    ask = ("train/ann.jsonl", "--test", "test/ann.jsonl", "--model", "base", "--max-steps", "2", "--lr", "0.05")
    size = ("--seeds", "1", "--refine", "0", "--size", "8", "--family", "vera", "--reference", "lora:2")
    found = polyvera("dimension", *ask, *size, "--basis", "pca", "--store", "shop", "--output", "out").output
    assert "d90, vera" in found
    refused = polyvera("dimension", *ask, *size, "--store", "shop", "--output", "out2", fails=True).output
    assert "or --basis, which is read from it" in " ".join(refused.split())

"""An encoder-decoder is trained, scored and asked with the rows and commands that a causal language model takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from task_rows import task_rows, write_rows
from tiny_fleet import apart
from tiny_folder import save_tiny_seq2seq

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, load
from polyvera.adapter.merge import merge
from polyvera.data.encoding import encode
from polyvera.data.tables import read
from polyvera.errors import DataError, PromptError
from polyvera.evaluate.evaluate import evaluate
from polyvera.evaluate.generate import generate
from polyvera.model.answer import meaning_of
from polyvera.model.load import load_base
from polyvera.model.message import Message
from polyvera.model.task import LM, SEQ2SEQ
from polyvera.store.peft.reader import import_peft
from polyvera.store.peft.writer import export_peft
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

RUN: dict[str, Any] = {"rank": 4, "batch_size": 3, "max_steps": 12, "targets": "all-linear", "lr": 0.05}
PROMPTS = ["w3", "w4 w9 w9 w9", "w5 w9", "w6 w7 w8"]
families = pytest.mark.parametrize("family", ["t5", "bart"])


def adapters(family: str, folder: Path, num: int = 2) -> list[Adapter]:
    """Of rows without a word of the model's kind."""
    data = write_rows(folder / "rows.jsonl", task_rows(SEQ2SEQ, 12))
    base = save_tiny_seq2seq(folder / "base", family)
    recipe = Recipe(model=str(base), data=str(data), **RUN)
    found = [train(recipe.replaced(run_seed=seed), progress=False).adapter for seed in range(num)]
    return [adapter for adapter in found if adapter is not None]


@families
def test_rows_of_one_batch_are_answered_as_alone(family: str, tmp_path: Path) -> None:
    several = adapters(family, tmp_path)
    base = load_base(str(tmp_path / "base"), task=LM)
    slots = [0, *load(base.model, several), 0]
    for settings in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        together = generate(base.model, base.tokenizer, PROMPTS, slots=slots, max_new_tokens=6, **settings)
        alone = [
            text
            for prompt, slot in zip(PROMPTS, slots, strict=True)
            for text in generate(base.model, base.tokenizer, [prompt], slots=slot, max_new_tokens=6, **settings)
        ]
        assert together == alone and len({*together}) > 1
    assert meaning_of(several[0]).task == SEQ2SEQ


@families
def test_it_learns_what_it_is_then_asked(family: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"w{i % 4}", "completion": f"w{i % 4 + 10} w{i % 4 + 20}"} for i in range(16)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    base = save_tiny_seq2seq(tmp_path / "base", family)
    choices = {"method": "lora", "rank": 8, "targets": "all-linear", "lr": 0.02, "max_steps": 150, "batch_size": 4}
    run = train(Recipe(model=str(base), data=str(data), test=str(data), **choices), progress=False)
    assert run.scores["exact_match"] == 1.0 and run.adapter is not None
    merged = load_base(str(base), task=LM)
    load(merged.model, run.adapter)
    assert generate(merge(merged.model), merged.tokenizer, ["w2"], max_new_tokens=4) == ["w12 w22"]


@families
def test_a_fleet_of_other_lengths_gives_what_each_gives_alone(family: str, tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"rows/t{k}.jsonl", task_rows(SEQ2SEQ, 7 + k, 4 * k)) for k in range(3)]
    choices = {**RUN, "model": str(save_tiny_seq2seq(tmp_path / "base", family)), "accumulate": 2}
    whole = train_fleet(Recipe(**choices, data=str(tmp_path / "rows"), fleet=True, slots=2, batch_tokens=30))
    for outcome, file in zip(sorted(whole.outcomes, key=lambda one: one.name), files, strict=True):
        assert outcome.problem == ""
        assert apart(outcome, train(Recipe(**choices, data=str(file)), progress=False)) < 1e-4


@families
def test_it_leaves_and_comes_back_by_peft(family: str, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSeq2SeqLM

    [adapter] = adapters(family, tmp_path, 1)
    base = load_base(str(tmp_path / "base"), task=LM)
    folder = export_peft(adapter, tmp_path / "peft", model=base.model)
    ids = torch.tensor([[8, 9, 10, 11]])
    given = {"input_ids": ids, "decoder_input_ids": ids}
    with torch.no_grad():
        expected = AutoPeftModelForSeq2SeqLM.from_pretrained(folder).eval()(**given).logits
        again = import_peft(folder, base.model)
        assert meaning_of(again).task == SEQ2SEQ
        load(base.model, again)
        torch.testing.assert_close(base.model(**given).logits, expected, atol=1e-5, rtol=1e-5)
        eject(base.model)
        assert not torch.allclose(base.model(**given).logits, expected, atol=1e-4)


def test_scores_are_those_of_the_answers(tmp_path: Path) -> None:
    [adapter] = adapters("t5", tmp_path, 1)
    base = load_base(str(tmp_path / "base"), task=LM)
    table = read(tmp_path / "rows.jsonl")
    [slot] = load(base.model, adapter)
    found = evaluate(base.model, base.tokenizer, table, slot, batch_size=5)
    labels = [encode(table.suited(base.model), base.tokenizer, None)[i]["labels"] for i in range(len(table))]
    own = torch.tensor(labels[0])[None]
    ids = torch.tensor(base.tokenizer(table.examples[0].prompt)["input_ids"])[None]
    with torch.no_grad():
        expected = base.model(input_ids=ids, labels=own).loss
    assert found.counts[0].loss / found.counts[0].tokens == pytest.approx(float(expected), rel=1e-4)
    assert sum(count.tokens for count in found.counts) == sum(map(len, labels))


def test_what_it_cannot_read_is_refused(tmp_path: Path) -> None:
    base = load_base(str(save_tiny_seq2seq(tmp_path / "base")), task=LM)
    chat = write_rows(
        tmp_path / "chat.jsonl",
        [{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}],
    )
    for data in (chat, write_rows(tmp_path / "text.jsonl", [{"text": "w1 w2"}])):
        with pytest.raises(DataError, match="is an encoder-decoder, which takes prompt \\+ completion"):
            train(Recipe(model=str(tmp_path / "base"), data=str(data), max_steps=1), base=base, progress=False)
    with pytest.raises(PromptError, match="reads plain prompts"):
        generate(base.model, base.tokenizer, [(Message("user", "w1"),)])

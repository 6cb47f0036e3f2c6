from pathlib import Path

import pytest
import torch
from tiny_folder import save_tiny_encoder

from polyvera.data.batching import Collator
from polyvera.data.encoding import encode
from polyvera.data.row_form import Example
from polyvera.data.tables import Table
from polyvera.data.text_vectors import text_vectors
from polyvera.evaluate.embedded import embedded_answers
from polyvera.model.config import pad_token
from polyvera.model.inference import evaluating
from polyvera.model.load import load_base
from polyvera.model.task import PAIRS, SIMILARITY


@pytest.mark.parametrize("task", [PAIRS, SIMILARITY])
def test_answers_are_those_of_each_text_alone(task: str, tmp_path: Path) -> None:
    base = load_base(str(save_tiny_encoder(tmp_path)), task=task)
    examples = tuple(Example(i, f"w{i} w{i + 1}", "", pair=f"w{3 * i % 7}" + " w9" * (i % 3)) for i in range(5))
    rows = encode(Table("mine", task, examples), base.tokenizer, 64)
    collate = Collator(pad_token(base.model, base.tokenizer))
    found = embedded_answers(base.model, rows, [0] * 5, collate, 2)

    def vector(text: str) -> torch.Tensor:
        return text_vectors(base.model, {"input_ids": torch.tensor([base.tokenizer(text).input_ids])})[0]

    with evaluating(base.model):
        first, second = (
            [vector(str(text)) for text in texts] for texts in zip(*((e.prompt, e.pair) for e in examples))
        )
    cosines = torch.stack(first) @ torch.stack(second).T
    if task == SIMILARITY:
        assert found == pytest.approx(cosines.diagonal().tolist(), abs=1e-5)
    else:
        assert found == [1 + sum(float(c) > float(row[i]) + 1e-6 for c in row) for i, row in enumerate(cosines)]

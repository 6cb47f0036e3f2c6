from pathlib import Path

import pytest
import torch
from tiny_folder import save_tiny_encoder
from torch.nn import functional as F

from polyvera.data.batching import Collator
from polyvera.data.text_vectors import text_vectors
from polyvera.model.inference import evaluating
from polyvera.model.load import load_base
from polyvera.model.task import PAIRS

ROWS = [[7, 8, 9], [10], [11, 12]]


@pytest.mark.parametrize("num", [1, 3])
def test_a_vector_is_the_mean_of_a_texts_own_tokens(num: int, tmp_path: Path) -> None:
    model = load_base(str(save_tiny_encoder(tmp_path)), task=PAIRS).model
    batch = Collator(1)([{"input_ids": row} for row in ROWS[:num]])
    with evaluating(model):
        found = text_vectors(model, batch)
        for own, row in zip(found, ROWS, strict=False):
            hidden = model.base_model(input_ids=torch.tensor([row]))[0][0]
            torch.testing.assert_close(own, F.normalize(hidden.mean(0), dim=0), atol=1e-5, rtol=1e-4)
        del batch["attention_mask"]
        assert text_vectors(model, batch).shape == found.shape

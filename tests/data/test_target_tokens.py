"""Logits at the target tokens are those of the whole batch, and no others are made."""

import pytest
import torch
from tiny_models import make_classifier, make_model

from polyvera.data.encoding import IGNORED
from polyvera.data.target_tokens import TargetTokens, target_logits
from polyvera.model.task import WHOLE_ROW

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
LABELS = torch.tensor([[IGNORED, IGNORED, 7, 8], [9, IGNORED, IGNORED, IGNORED], [IGNORED, 14, IGNORED, 16]])


def test_targets_know_their_rows_and_where_they_are_predicted() -> None:
    targets = TargetTokens.of(LABELS).to(torch.device("cpu"))
    assert targets.labels.tolist() == [7, 8, 14, 16]  # nothing stands before a row's first token
    assert targets.rows.tolist() == [0, 0, 2, 2]
    assert targets.positions is not None and targets.positions.tolist() == [1, 2, 8, 10]
    assert targets.summed(torch.tensor([1.0, 2.0, 4.0, 8.0]), 3).tolist() == [3.0, 0.0, 12.0]


def test_the_output_layer_sees_targets_alone() -> None:
    model = make_model()
    seen = []
    model.lm_head.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    targets = TargetTokens.of(LABELS)
    with torch.inference_mode():
        found = target_logits(model, {"input_ids": IDS}, targets)
        whole = model(input_ids=IDS).logits.flatten(0, 1)[targets.positions]
    assert seen[0] == (4, model.config.vocab_size)
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_class_has_the_logits_of_its_row(num_labels: int) -> None:
    model = make_classifier(num_labels)
    with torch.inference_mode():
        found = target_logits(model, {"input_ids": IDS}, TargetTokens.of(torch.tensor([1, 0, 1]), WHOLE_ROW))
        torch.testing.assert_close(found, model(input_ids=IDS).logits)

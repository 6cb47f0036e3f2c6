"""How vectors come about: as the model's folder says, or the normalised mean."""

import json
from pathlib import Path

import pytest
import torch
from tiny_encoder import make_bert
from tiny_serve import LONGEST_WAIT, make_tokenizer

from polyvera.engine.embedding.embedder import Embedder
from polyvera.errors import ServeError
from polyvera.model.pooling import MODES, Pooling, pooling_of

HIDDEN = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [-9.0, 99.0]], [[0.0, 2.0], [5.0, 6.0], [7.0, 1.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def write(folder: Path, config: object, *more: str) -> str:
    """A folder as sentence-transformers writes it."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [{"idx": i, "path": f"{i}_{k}", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", [[2.0, 2.0], [4.0, 3.0]]), ("cls", [[3.0, 4.0], [0.0, 2.0]]), ("max", [[3.0, 4.0], [7.0, 6.0]])],
)
def test_what_fills_up_a_row_counts_for_nothing(mode: str, expected: list[list[float]]) -> None:
    plain = torch.tensor(expected)
    assert torch.equal(Pooling(mode, is_normalized=False)(HIDDEN, MASK), plain)
    found = Pooling(mode)(HIDDEN.bfloat16(), MASK)
    torch.testing.assert_close(found, plain / plain.norm(dim=1, keepdim=True))
    assert found.dtype == torch.float32 and set(MODES) == {"mean", "cls", "max"}


def test_the_folder_decides(tmp_path: Path) -> None:
    assert pooling_of(None) == pooling_of("") == pooling_of(str(tmp_path)) == Pooling("mean", True)
    cls = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    assert pooling_of(write(tmp_path / "a", cls)) == Pooling("cls", False)
    assert pooling_of(write(tmp_path / "b", {"pooling_mode": "max"}, "Normalize")) == Pooling("max", True)
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    assert pooling_of(write(tmp_path / "c", both)).refusal.startswith("its pooling is cls and mean; here it is one of")
    assert "lasttoken" in pooling_of(write(tmp_path / "d", {"pooling_mode_lasttoken": True})).refusal
    assert "pass through sentence-transformers' Dense" in pooling_of(write(tmp_path / "e", cls, "Dense")).refusal


@pytest.mark.parametrize(
    ("file", "text"), [("modules.json", "{"), ("modules.json", "[3]"), ("1_Pooling/config.json", "[")]
)
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str, text: str) -> None:
    folder = write(tmp_path / "a", {"pooling_mode_cls_token": True})
    (tmp_path / "a" / file).write_text(text)
    with pytest.raises(ServeError, match=r"modules\.json|config\.json"):
        pooling_of(folder)
    (tmp_path / "a" / file).unlink()
    if file != "modules.json":
        with pytest.raises(ServeError, match="correct or"):
            pooling_of(folder)


def test_an_encoder_pools_as_its_folder_says(tmp_path: Path) -> None:
    model = make_bert()
    row = [5, 6, 7, 8]
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([row])).last_hidden_state[0]
    model.config._name_or_path = model.name_or_path = write(tmp_path / "a", {"pooling_mode_cls_token": True})
    with Embedder(model, make_tokenizer()) as encoder:
        torch.testing.assert_close(encoder.embed([row]).result(LONGEST_WAIT)[0], hidden[0])
    model.name_or_path = write(tmp_path / "b", {"pooling_mode_lasttoken": True})
    with (
        Embedder(model, make_tokenizer()) as encoder,
        pytest.raises(ServeError, match="no embeddings here: its pooling"),
    ):
        encoder.embed([row])

"""The list of models, and one of it."""

from tiny_server import Served


def test_models_have_parents(at: Served) -> None:
    found = {model.id: model for model in at.openai().models.list()}
    assert set(at.adapters) | {"tiny"} <= set(found)
    assert found["acme/one"].parent == "tiny" and not hasattr(found["tiny"], "parent")  # type: ignore[attr-defined]
    assert at.openai().models.retrieve("acme/one@1").id == "acme/one@1"

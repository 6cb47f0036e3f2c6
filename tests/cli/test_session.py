"""A base with the adapters that a verb named: it is the base that they name, and each answers from its slot."""

from dataclasses import replace

import pytest
from command_line import polyvera

from polyvera.cli.session import BASE, Rows, Session, base_name, facts, task_of
from polyvera.errors import RecipeError
from polyvera.store.registry import Registry

pytestmark = pytest.mark.usefixtures("tenants")
ROWS = Rows("test/ann.jsonl", {}, False, 3, 2)


@pytest.fixture
def adapters(tenants):
    """ann and bob, trained for a few steps."""
    words = ("--model", "base", "--rank", "4", "--max-steps", "2", "--lr", "0.5")
    for name in ("ann", "bob"):
        polyvera("train", *words, "--data", f"train/{name}.jsonl", "--name", name)
    registry = Registry("adapters")
    return [registry.get(name) for name in ("ann", "bob")]


def test_the_base_is_the_one_that_all_adapters_name(adapters):
    ann, bob = adapters
    assert base_name(adapters, None) == "base" and base_name(adapters, "other") == "other"
    assert base_name([ann, replace(bob, model="")], None) == "base"
    for several in ([ann, replace(bob, model="other")], [replace(ann, model="")]):
        with pytest.raises(RecipeError, match="--model"):
            base_name(several, None)


def test_adapters_of_other_classes_are_not_mixed(adapters):
    ann, bob = adapters
    assert task_of(adapters) == {} == task_of([])
    assert task_of([replace(ann, labels=("x", "y"))]) == {"task": "label", "labels": ("x", "y")}
    with pytest.raises(RecipeError, match="labels"):
        task_of([replace(ann, labels=("x", "y")), bob])


def test_everyone_answers_as_alone(adapters):
    both = Session.open(["ann", "bob"], "adapters", None, any_base=False)
    settings = {"base": True, "chat": False, "seed": 0, "max_new_tokens": 4}
    found = both.generate(["w1 w2", "w5 w6 w7"], **settings)
    assert [list(row) for row in found] == [["prompt", BASE, "ann", "bob"]] * 2
    for name in ("ann", "bob"):
        alone = Session.open(name, "adapters", "base", any_base=False).generate(["w1 w2", "w5 w6 w7"], **settings)
        assert [row[name] for row in alone] == [row[name] for row in found]
    scores = both.evaluate(ROWS)
    assert set(scores) == {"ann", "bob", BASE} and scores["ann"]["loss"] != scores[BASE]["loss"]
    only = Session.open("bob", "adapters", None, any_base=False).evaluate(ROWS)
    assert only["bob"] == pytest.approx(scores["bob"], rel=1e-4)


def test_nobody_to_answer_and_nothing_to_answer_are_refused():
    session = Session.open(None, "adapters", "base", any_base=False)
    with pytest.raises(RecipeError, match="--no-base"):
        session.generate(["w1"], base=False, chat=False, seed=0)
    with pytest.raises(RecipeError, match="--data"):
        session.evaluate(replace(ROWS, source=None))


def test_facts_are_all_that_the_store_knows(adapters):
    registry = Registry("adapters")
    registry.alias("ann", "prod", 1)
    known = facts(registry, "ann@prod")
    assert known["name"] == "ann@1" and known["aliases"] == "prod" and known["model"] == "base"
    assert f"{adapters[0].num_params:,} numbers" in known["trained"] and "labels" not in known
    registry.put("eve", replace(adapters[0], spec=replace(adapters[0].spec, exclude=("lm_head", "score"))))
    assert facts(registry, "eve")["exclude"] == "lm_head, score", "a list as people write it"


def test_prompts_are_put_as_in_training(adapters):
    registry = Registry("adapters")
    for name in ("ann", "bob"):
        registry.put(f"{name}-chats", replace(registry.get(name), prompt_form="chat"))
    settings = {"base": True, "seed": 0, "max_new_tokens": 4}
    plain, chats = (Session.open(name, "adapters", None, any_base=False) for name in ("ann", "ann-chats"))
    assert facts(registry, "ann")["prompts"] == "plain" and facts(registry, "ann")["learning rate"] == "0.5"
    for session, chat in ((plain, False), (chats, True)):
        own = session.generate(["w1 w2"], chat=None, **settings)
        assert own == session.generate(["w1 w2"], chat=chat, **settings)
        assert session.evaluate(replace(ROWS, chat=None)) == session.evaluate(replace(ROWS, chat=chat))
    assert plain.evaluate(ROWS)["ann"]["loss"] != chats.evaluate(replace(ROWS, chat=True))["ann-chats"]["loss"]
    mixed = Session.open(["ann", "bob-chats"], "adapters", None, any_base=False)
    with pytest.raises(RecipeError, match="say --chat or --no-chat"):
        mixed.evaluate(replace(ROWS, chat=None))
    assert mixed.evaluate(ROWS).keys() == {"ann", "bob-chats", BASE}

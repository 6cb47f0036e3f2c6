"""LLM answers as each adapter alone does, by names of a store."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_serve import Solo, make_adapter, make_llama, make_tokenizer

from polyvera import LLM, AdapterSpec, Registry, SamplingParams
from polyvera.adapter.method import METHODS
from polyvera.engine.limits import Limits
from polyvera.errors import ClosedError, NotFoundError, PromptError, SamplingError
from polyvera.model.config import end_tokens
from polyvera.model.inference import until_end
from polyvera.model.load import Base
from polyvera.model.message import Message

PARAMS = SamplingParams(max_tokens=6)
PROMPTS = ["the true thing", "in there", "true"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry, model = Registry(tmp_path_factory.mktemp("store")), make_llama()
    for seed, method in enumerate(METHODS):
        registry.put("cafe/tickets", make_adapter(model, AdapterSpec(method, rank=4), seed))
    registry.alias("cafe/tickets", "live", 2)
    return registry


@pytest.fixture(scope="module")
def llm(store: Registry) -> Iterator[LLM]:
    with LLM(Base(make_llama(), make_tokenizer()), store=store, limits=Limits(max_rows=4, max_waiting=4)) as found:
        yield found


def alone(store: Registry, prompt: str, which: str | None) -> str:
    tokenizer, model = make_tokenizer(), make_llama()
    ids = Solo(model).answers(None if which is None else store.get(which), tokenizer(prompt).input_ids, 6)
    return tokenizer.decode(until_end(ids, end_tokens(model, tokenizer)), skip_special_tokens=True)


def test_one_adapter_answers_every_prompt(llm: LLM, store: Registry) -> None:
    assert llm.generate(PROMPTS, "cafe/tickets", PARAMS) == [alone(store, p, "cafe/tickets") for p in PROMPTS]


def test_each_prompt_has_its_own_adapter(llm: LLM, store: Registry) -> None:
    which = ["cafe/tickets@1", None, "cafe/tickets@live"]
    expected = [alone(store, p, w) for p, w in zip(PROMPTS, which, strict=True)]
    assert llm.generate(PROMPTS, which, PARAMS) == expected
    refs = [None if w is None else store.resolve(w) for w in which]
    assert llm.generate(PROMPTS, adapter=refs, params=[PARAMS] * 3) == expected


def test_more_prompts_than_may_wait_are_all_answered(llm: LLM, store: Registry) -> None:
    assert llm.generate(PROMPTS * 9, params=PARAMS) == [alone(store, p, None) for p in PROMPTS] * 9


def test_one_prompt_is_a_list_of_one(llm: LLM) -> None:
    assert llm.generate(PROMPTS[0], params=PARAMS) == llm.generate(PROMPTS[:1], params=PARAMS)
    assert llm.generate([]) == []


def test_messages_go_through_the_models_template(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [{"role": "user", "content": "the true thing"}]
    with pytest.raises(PromptError, match="no chat template"):
        llm.generate(chat, params=PARAMS)
    monkeypatch.setattr(llm.base.tokenizer, "chat_template", TEMPLATE)
    bare = llm.generate(["the true thing"], params=PARAMS)
    assert llm.generate(chat, params=PARAMS) == llm.generate([chat], params=PARAMS) == bare
    assert llm.generate([(Message("user", "the true thing"),)], params=PARAMS) == bare


def test_what_cannot_be_is_refused(llm: LLM) -> None:
    with pytest.raises(NotFoundError, match="cafe/ticket"):
        llm.generate(PROMPTS, "cafe/ticket")
    with pytest.raises(SamplingError, match="2 values of adapter for 3 prompts"):
        llm.generate(PROMPTS, [None, None])
    with pytest.raises(SamplingError, match="1 values of params for 3 prompts"):
        llm.generate(PROMPTS, params=[PARAMS])
    with pytest.raises(SamplingError, match="more than the"):
        llm.generate(["true " * 300], params=PARAMS)
    assert llm.generate(PROMPTS[:1], params=PARAMS)


def test_a_folder_a_store_of_the_environment_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    monkeypatch.setenv("POLYVERA_STORE", str(tmp_path / "shelf"))
    llm = LLM(str(tmp_path / "base"), device="cpu")
    assert repr(llm) == f"LLM({str(tmp_path / 'base')!r}, store={str(tmp_path / 'shelf')!r})"
    assert len(llm.generate("true", params=PARAMS)) == 1
    llm.close()
    llm.close()
    with pytest.raises(ClosedError):
        llm.generate("true", params=PARAMS)


def test_a_text_is_asked_in_the_form_that_the_adapter_was_trained_on(
    llm: LLM, store: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.base.tokenizer, "chat_template", "in {{ messages[0]['content'] }}")
    store.put("cafe/chats", replace(store.get("cafe/tickets"), prompt_form="chat"))
    text, asked = "there true", "in there true"
    assert llm.generate(text, "cafe/chats", PARAMS) == [alone(store, asked, "cafe/chats")]
    assert llm.generate(text, "cafe/tickets", PARAMS) == [alone(store, text, "cafe/tickets")]
    assert llm.generate(text, params=PARAMS) == [alone(store, text, None)]

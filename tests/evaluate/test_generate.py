from typing import Any

import pytest
import torch
from tiny_models import make_classifier, make_model, make_tokenizer

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import extract, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import DataError, SlotError, SpecError
from polyvera.evaluate.generate import generate
from polyvera.model.message import Message

PROMPTS = ["w1", "w2 w3 w4 w5", "w6 w7", "w8 w9 w10", "w11 w12 w13 w14 w15 w16", "w17"]


def adapter(method: str, seed: int) -> Adapter:
    model, spec = make_model(), AdapterSpec(method, rank=4, targets="all-linear")
    bank = inject(model, spec)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5 * torch.randn_like(parameter)
    return extract(bank, 1, model)


def answers(model: Any, prompts: list[str] = PROMPTS, **choices: Any) -> list[str]:
    return generate(model, make_tokenizer(), prompts, max_new_tokens=6, **choices)


def test_a_batch_answers_as_each_prompt_alone() -> None:
    model = make_model()
    together = answers(model, batch_size=4)
    assert together == [answers(model, [prompt])[0] for prompt in PROMPTS]
    assert len(set(together)) > 1


def test_an_answer_is_what_transformers_gives() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    ids = tokenizer(PROMPTS[1], return_tensors="pt")
    tokens = model.generate(**ids, max_new_tokens=6, do_sample=False)
    assert answers(model, [PROMPTS[1]]) == [tokenizer.decode(tokens[0, 4:], skip_special_tokens=True)]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_mixed_batch_answers_as_each_adapter_alone(num_beams: int) -> None:
    several = [adapter(method, seed) for seed, method in enumerate(METHODS)]
    model = make_model()
    slots = [*load(model, several), 0]
    slots = [slots[i % len(slots)] for i in range(len(PROMPTS))]
    mixed = answers(model, slots=slots, num_beams=num_beams)
    alone = [answers(model, [prompt], slots=slot, num_beams=num_beams)[0] for prompt, slot in zip(PROMPTS, slots)]
    assert mixed == alone
    assert mixed != answers(model, slots=0, num_beams=num_beams)


def test_several_answers_come_side_by_side_from_the_right_slot() -> None:
    model = make_model()
    first, second = load(model, [adapter("vera", 1), adapter("vera", 2)])
    beams = answers(model, PROMPTS[:2], slots=[first, second], num_beams=4, num_return_sequences=2)
    alone = [
        answers(model, [PROMPTS[i]], slots=s, num_beams=4, num_return_sequences=2)
        for i, s in enumerate((first, second))
    ]
    assert beams == [*alone[0], *alone[1]]
    sampled = answers(model, PROMPTS[:2], slots=[first, second], temperature=1.0, num_return_sequences=3)
    assert len(sampled) == 6


def test_a_conversation_goes_through_the_template() -> None:
    model = make_model()
    asked = generate(model, make_tokenizer(), [(Message("user", "w1"),)], max_new_tokens=4)
    assert asked == generate(model, make_tokenizer(), ["user : w1 </s> assistant :"], max_new_tokens=4)
    with pytest.raises(DataError, match="has no chat template"):
        generate(model, make_tokenizer(template=None), [(Message("user", "w1"),)])


def test_refusals() -> None:
    model = make_model()
    load(model, adapter("vera", 1))
    with pytest.raises(SlotError, match="2 slots for 6 rows"):
        answers(model, slots=[0, 1])
    with pytest.raises(SlotError, match="slot 7 holds no adapter"):
        answers(model, slots=7)
    with pytest.raises(DataError, match="prompt 1 has 60 tokens"):
        answers(model, ["w1 " * 60])
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        answers(model, [""])
    with pytest.raises(DataError, match="would be 2 equal answers"):
        answers(model, num_return_sequences=2)
    with pytest.raises(DataError, match=r"top_p=0\.9 has no effect on the likeliest token"):
        answers(model, top_p=0.9)


def test_settings_of_the_checkpoint_are_no_defaults() -> None:
    model, plain = make_model(), answers(make_model())
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 6
    own = model.generation_config
    assert answers(model) == plain
    assert model.generation_config is own


def test_the_model_is_left_in_its_mode() -> None:
    model = make_model().train()
    answers(model)
    assert model.training


def test_what_cannot_be_answered_by_text_is_refused() -> None:
    with pytest.raises(SpecError, match=r"BertForSequenceClassification answers with labels or vectors"):
        generate(make_classifier(), make_tokenizer(), ["w1"])
    with pytest.raises(DataError, match="prompt 2 is not valid Unicode at character 4"):
        generate(make_model(), make_tokenizer(), ["w1", "w1 \ud83d"])
    with pytest.raises(DataError, match="prompt 1 is not valid Unicode"):
        generate(make_model(), make_tokenizer(), [(Message("user", "\ud83d"),)])

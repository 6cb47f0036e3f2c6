"""Known fields that nothing is done with here: taken where their value changes nothing, else refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyvera.errors import SamplingError

Neutral = Mapping[str, Sequence[Any] | None]  # the values that change nothing, None for any
# What only the one who bills or stores answers would use.
ACCOUNT: Neutral = dict.fromkeys(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
COMPLETION: Neutral = {
    **ACCOUNT,
    # OpenAI's
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # without tools
    "prediction": (),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's
    "add_generation_prompt": (True,),
    "add_special_tokens": (True, False),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "cache_salt": ("",),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "include_reasoning": (True, False),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_logprobs": (),
    "request_id": None,
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": ({},),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
VECTOR: Neutral = {
    **ACCOUNT,
    "add_special_tokens": (True,),
    "dimensions": (),
    "normalize": (True,),
    "priority": (0,),
    "request_id": None,
    "truncate_prompt_tokens": (),
}
INTEGRATIONS: Neutral = {"integrations": ([],)}
MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": None,
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
}


def without_neutral(given: dict[str, Any], neutral: Neutral) -> dict[str, Any]:
    """The fields that say something. Raises SamplingError for one that asks for what is not done here."""
    for name in given.keys() & neutral.keys():
        values = neutral[name]
        if values is not None and not any(type(given[name]) is type(v) and given[name] == v for v in values):
            raise SamplingError(f"{name}: this value is not done here; leave it out", name)
    return {name: value for name, value in given.items() if name not in neutral}

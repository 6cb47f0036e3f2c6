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
    "prediction": (),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's
    "add_special_tokens": (True, False),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "cache_salt": ("",),
    "chat_template": (),
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
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
TEXT_COMPLETION: Neutral = {
    **COMPLETION,
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "parallel_tool_calls": (True, False),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
STREAM: Neutral = {"continuous_usage_stats": (False,), "include_obfuscation": (False,)}
STRUCTURES: Neutral = {
    "disable_additional_properties": (True, False),
    "disable_any_whitespace": (True, False),
    "disable_fallback": (True, False),
    "json_object": (False,),
    "whitespace_pattern": (),
}
CALL: Neutral = {"index": None}
RESPONSE: Neutral = {
    **{name: values for name, values in ACCOUNT.items() if name != "metadata"},
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([], ["reasoning.encrypted_content"]),
    "max_tool_calls": None,
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": "none"}),
    "stream_options": ({}, {"include_obfuscation": False}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
RESPONSE_TEXT: Neutral = {"verbosity": ("medium",)}
ITEM: Neutral = {"annotations": None, "id": None, "logprobs": None, "phase": None, "status": None}
ANTHROPIC: Neutral = {
    "container": (),
    "context_management": (),
    "inference_geo": None,
    "mcp_servers": ([],),
    "metadata": None,
    "service_tier": None,
    "thinking": ({"type": "disabled"},),
}
BLOCK: Neutral = {"cache_control": None, "citations": None, "caller": None}
ANTHROPIC_TOOL: Neutral = {
    "allowed_callers": None,
    "cache_control": None,
    "defer_loading": (False,),
    "eager_input_streaming": (True, False),
    "input_examples": None,
    "strict": (True, False),
}
VECTOR: Neutral = {
    **ACCOUNT,
    "add_special_tokens": (True,),
    "normalize": (True,),
    "priority": (0,),
    "request_id": None,
}
INTEGRATIONS: Neutral = {"integrations": ([],)}
UPLOAD: Neutral = {"mime_type": None}
CLASSIFY: Neutral = {**VECTOR, "dimensions": ()}
SCORE: Neutral = {**VECTOR, "encoding_format": ("float",)}
DOCUMENT: Neutral = {"id": None, "type": ("text",)}
MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": ("",),
}


def without_neutral(given: dict[str, Any], neutral: Neutral) -> dict[str, Any]:
    """The fields that say something. Raises SamplingError for one that asks for what is not done here."""
    for name in given.keys() & neutral.keys():
        values = neutral[name]
        if values is not None and not any(type(given[name]) is type(v) and given[name] == v for v in values):
            raise SamplingError(f"{name}: this value is not done here; leave it out", name)
    return {name: value for name, value in given.items() if name not in neutral}

"""Protocol: the bodies of requests, as OpenAI and vLLM define them. What is not known is refused, not ignored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from polyvera.engine.generation.request import MAX_LOGPROBS, MAX_SCHEMA_CHARS, SamplingParams
from polyvera.errors import SamplingError
from polyvera.model.prompt import Message
from polyvera.server.fields import (
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_PROMPTS,
    AdapterName,
    Count,
    LogitBias,
    ModelName,
    Prompt,
    Prompts,
    StopTexts,
    StopTokenIds,
    Text,
    TokenIds,
    several,
)
from polyvera.server.json_schema import closed
from polyvera.server.neutral_fields import COMPLETION, MESSAGE, VECTOR, Neutral, without_neutral
from polyvera.store.reference import MAX_VERSION

COMPLETION_TOKENS = 16


class RequestBody(BaseModel):
    """A JSON body. null is as good as left out. neutral: known fields, and where they change nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), strict=True)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = without_neutral({name: value for name, value in values.items() if value is not None}, cls.neutral)
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in given.keys() - known:  # the first alone: pydantic tells them all
            raise SamplingError(
                f"{name[:200]}: this server does not know it, and does not pretend to have followed it; leave it out",
                name[:200],
            )
        return given


class StreamOptions(RequestBody):
    """What a stream tells besides the text."""

    neutral = {"continuous_usage_stats": (False,), "include_obfuscation": (False,)}

    include_usage: bool = False


class JsonSchema(RequestBody):
    """A schema that the answer follows."""

    name: Annotated[str, Field(max_length=256)] = ""
    description: Annotated[str, Field(max_length=MAX_SCHEMA_CHARS)] = ""
    strict: bool = True
    schema_: dict[str, Any] = Field(alias="schema", max_length=MAX_SCHEMA_CHARS)


class ResponseFormat(RequestBody):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given with type 'json_schema', and only with it")
        return self

    @property
    def schema_text(self) -> str | None:
        """As SamplingParams takes it."""
        if self.json_schema is not None:
            given = self.json_schema
            return json.dumps(closed(given.schema_) if given.strict else given.schema_)
        return "{}" if self.type == "json_object" else None


class GenerationBody(RequestBody):
    """What completions and chats have in common. prompt_field: what errors about the prompt name."""

    neutral = COMPLETION
    prompt_field: ClassVar[str]

    model: ModelName
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - MAX_CHOICES)] | None = None
    stop: StopTexts = []
    stop_token_ids: StopTokenIds = []
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    ignore_eos: bool = False
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: LogitBias = {}
    response_format: ResponseFormat | None = None

    @property
    def num_prompts(self) -> int:
        """How many are answered, n times each."""
        return 1

    def all_params(self, max_tokens: int | None, logprobs: int | None) -> list[SamplingParams]:
        """One for each of the n choices, seeds counted up. Raises SamplingError."""
        return [self._params(max_tokens, logprobs, i) for i in range(self.n)]

    def _params(self, max_tokens: int | None, logprobs: int | None, i: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,  # vLLM's -1 is all
            min_p=self.min_p,
            seed=None if self.seed is None else self.seed + i,
            stop=tuple(self.stop),
            stop_ids=tuple(self.stop_token_ids),
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            bias=tuple(self.logit_bias.items()),
            logprobs=logprobs,
            schema=None if self.response_format is None else self.response_format.schema_text,
        )


class CompletionBody(GenerationBody):
    """/v1/completions."""

    prompt_field = "prompt"

    prompt: Prompt
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> CompletionBody:
        if self.echo and self.logprobs is not None:
            raise SamplingError(
                "echo and logprobs: the prompt's own log-probabilities are not computed here; leave one out", "echo"
            )
        if self.best_of not in (None, self.n):
            raise SamplingError("best_of: it is not done here; ask for n answers and choose", "best_of")
        return self

    @property
    def prompts(self) -> Prompts:
        """One text or list of tokens for each prompt."""
        return several(self.prompt)

    @property
    def num_prompts(self) -> int:
        """How many are answered, n times each."""
        return len(self.prompts)


class TextPart(RequestBody):
    """A part of a message. Parts of other types are not understood here."""

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type") != "text":
            raise ValueError(f"parts of type {str(values.get('type'))[:40]} are not read here; text is")
        return values


def _content_arm(value: Any) -> str | None:
    return "~text" if isinstance(value, str) else "~parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[TextPart], Field(max_length=MAX_PARTS), Tag("~parts")],
    Discriminator(
        _content_arm, custom_error_type="content_type", custom_error_message="must be a string or a list of text parts"
    ),
]


class ChatMessage(RequestBody):
    """A message of a chat."""

    neutral = MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @property
    def plain(self) -> Message:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def messages_of(several: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A conversation as training has it."""
    return tuple(one.plain for one in several)


class ChatBody(GenerationBody):
    """/v1/chat/completions."""

    prompt_field = "messages"

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise SamplingError("top_logprobs: it needs logprobs=true", "top_logprobs")
        return self


class EmbeddingBody(RequestBody):
    """/v1/embeddings."""

    neutral = VECTOR

    model: ModelName
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def prompts(self) -> Prompts:
        """One text or list of tokens for each."""
        return several(self.input)


class ClassifyBody(EmbeddingBody):
    """/v1/classify. text_pair: the second text of each input, for adapters that were trained on two."""

    text_pair: Text | Annotated[list[Text], Field(max_length=MAX_PROMPTS, fail_fast=True)] | None = None

    @property
    def pairs(self) -> list[str | None]:
        """The second text of each prompt. Raises SamplingError where their numbers differ, or an input is no text."""
        given = [self.text_pair] if isinstance(self.text_pair, str) else self.text_pair
        if given is None:
            return [None] * len(self.prompts)
        if len(given) != len(self.prompts) or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise SamplingError(
                f"text_pair: {len(given)} texts for {len(self.prompts)} inputs; give one for each, which is a text too",
                "text_pair",
            )
        return list(given)


class TokenizeBody(RequestBody):
    """/tokenize: a text, or the messages of a chat."""

    model: ModelName | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _one(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of the two")
        return self


class DetokenizeBody(RequestBody):
    """/detokenize."""

    model: ModelName | None = None
    tokens: TokenIds


class LoadBody(RequestBody):
    """/v1/load_lora_adapter."""

    lora_name: AdapterName
    lora_path: Annotated[str, Field(max_length=4096)]
    load_inplace: bool = False


class UnloadBody(RequestBody):
    """/v1/unload_lora_adapter."""

    lora_name: AdapterName
    lora_int_id: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


class AliasBody(RequestBody):
    """/v1/aliases: a word for a version, the latest where none is given."""

    name: AdapterName
    alias: Annotated[str, Field(max_length=64)]
    version: Annotated[int, Field(ge=1, le=MAX_VERSION)] | None = None

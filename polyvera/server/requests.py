"""Protocol: the bodies of requests, as OpenAI and vLLM define them. What is not known is refused, not ignored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from polyvera.engine.generation.request import SamplingParams
from polyvera.model.prompt import Message

# They can change nothing of an answer.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
COMPLETION_TOKENS = 16
TokenIds = list[Annotated[int, Field(ge=0)]]


class RequestBody(BaseModel):
    """A JSON body. null is as good as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None and name not in IGNORED}


class StreamOptions(RequestBody):
    """What a stream tells besides the text."""

    include_usage: bool = False


class JsonSchema(RequestBody):
    """A schema that the answer follows."""

    name: str = ""
    description: str = ""
    strict: bool = True
    schema_: dict[str, Any] = Field(alias="schema")


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
            return json.dumps(self.json_schema.schema_)
        return "{}" if self.type == "json_object" else None


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class GenerationBody(RequestBody):
    """What completions and chats have in common."""

    model: str = Field(max_length=512)
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_several)] = []
    stop_token_ids: TokenIds = []
    min_tokens: int = 0
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    response_format: ResponseFormat | None = None

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


Prompt = str | TokenIds | list[str] | list[TokenIds]
Prompts = list[str] | list[list[int]]


def several(given: Prompt) -> Prompts:
    """One text or list of tokens for each prompt."""
    if isinstance(given, str):
        return [given]
    return [given] if given and isinstance(given[0], int) else given  # type: ignore[return-value]


class CompletionBody(GenerationBody):
    """/v1/completions."""

    prompt: Prompt
    echo: bool = False
    logprobs: int | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _possible(self) -> CompletionBody:
        if self.echo and self.logprobs is not None:
            raise ValueError(
                "echo and logprobs: the prompt's own log-probabilities are not computed here; leave one out"
            )
        if self.best_of not in (None, self.n):
            raise ValueError("best_of: it is not done here; ask for n answers and choose")
        return self

    @property
    def prompts(self) -> Prompts:
        """One text or list of tokens for each prompt."""
        return several(self.prompt)


class TextPart(RequestBody):
    """A part of a message. Parts of other types are not understood here."""

    type: Literal["text"]
    text: str


class ChatMessage(RequestBody):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def plain(self) -> Message:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


def messages_of(several: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A conversation as training has it."""
    return tuple(one.plain for one in several)


class ChatBody(GenerationBody):
    """/v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _possible(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: it needs logprobs=true")
        return self


class EmbeddingBody(RequestBody):
    """/v1/embeddings."""

    model: str = Field(max_length=512)
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def prompts(self) -> Prompts:
        """One text or list of tokens for each."""
        return several(self.input)


class ClassifyBody(EmbeddingBody):
    """/v1/classify."""


class TokenizeBody(RequestBody):
    """/tokenize: a text, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _one(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of the two")
        return self


class DetokenizeBody(RequestBody):
    """/detokenize."""

    model: str | None = None
    tokens: TokenIds


class LoadBody(RequestBody):
    """/v1/load_lora_adapter."""

    lora_name: str = Field(max_length=256)
    lora_path: str = Field(max_length=4096)
    load_inplace: bool = False


class UnloadBody(RequestBody):
    """/v1/unload_lora_adapter."""

    lora_name: str = Field(max_length=256)
    lora_int_id: int | None = None


class AliasBody(RequestBody):
    """/v1/aliases: a word for a version, the latest where none is given."""

    name: str = Field(max_length=256)
    alias: str = Field(max_length=64)
    version: int | None = Field(None, ge=1)

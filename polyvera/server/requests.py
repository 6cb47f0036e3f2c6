"""Protocol: the bodies of requests, as OpenAI and vLLM define them. What is not known is refused, not ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from polyvera.engine.generation.request import MAX_LOGPROBS, MAX_SCHEMA_CHARS, SamplingParams
from polyvera.errors import SamplingError
from polyvera.model.message import ROLES, Message, Tools
from polyvera.model.prompt import Template
from polyvera.server.fields import (
    MAX_CHOICES,
    MAX_MESSAGES,
    AdapterName,
    Count,
    LogitBias,
    ModelName,
    Prompt,
    Prompts,
    StopTexts,
    StopTokenIds,
    Text,
    TextOrTexts,
    TokenIds,
    Truncation,
    several,
)
from polyvera.server.json_schema import closed
from polyvera.server.neutral_fields import CLASSIFY, COMPLETION, MESSAGE, STREAM, TEXT_COMPLETION, VECTOR
from polyvera.server.request_body import RequestBody
from polyvera.server.structured_outputs import StructuredOutputs
from polyvera.server.text_parts import Content
from polyvera.server.tool_bodies import MAX_TOOLS, CalledTool, CallId, ToolBody, ToolChoice, check_tools
from polyvera.store.reference import MAX_VERSION

COMPLETION_TOKENS = 16
PROMPT = "prompt"  # what the engine's errors call it
# What transformers' apply_chat_template() takes itself.
TEMPLATE_OWN = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "self",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
)
CountOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(RequestBody):
    """What a stream tells besides the text."""

    neutral = STREAM

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
    """What completions and chats have in common. client_fields: a client's names, of the prompt and what differs."""

    neutral = COMPLETION
    client_fields: ClassVar[Mapping[str, str]] = {PROMPT: PROMPT}

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
    stop: StopTexts = Field(default_factory=list)
    stop_token_ids: StopTokenIds = Field(default_factory=list)
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    ignore_eos: bool = False
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: LogitBias = Field(default_factory=dict)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def num_prompts(self) -> int:
        """How many are answered, n times each."""
        return 1

    def all_params(self, max_tokens: int | None, logprobs: int | None, **more: Any) -> list[SamplingParams]:
        """One for each of the n choices, seeds counted up. more: fields of SamplingParams. Raises SamplingError."""
        first = self._params(max_tokens, logprobs, more)
        return [first if self.seed is None else replace(first, seed=self.seed + i) for i in range(self.n)]

    def _params(self, max_tokens: int | None, logprobs: int | None, more: dict[str, Any]) -> SamplingParams:
        form, structure = self.response_format, self.structured_outputs
        if form is not None and structure is not None:
            raise SamplingError("response_format and structured_outputs: give one of the two", "structured_outputs")
        given: dict[str, Any] = {"schema": form.schema_text if form else None}
        if structure is not None:
            given = {"schema": structure.schema_text, "grammar": structure.grammar_text}
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,  # vLLM's -1 is all
            min_p=self.min_p,
            seed=self.seed,
            stop=tuple(self.stop),
            stop_ids=tuple(self.stop_token_ids),
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            bias=tuple(self.logit_bias.items()),
            logprobs=logprobs,
            **given | more,
        )


class CompletionBody(GenerationBody):
    """/v1/completions."""

    neutral = TEXT_COMPLETION

    prompt: Prompt
    max_tokens: CountOrNone | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise SamplingError("max_tokens: it must be at least 1 without echo=true", "max_tokens")
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


class ChatMessage(RequestBody):
    """A message of a chat."""

    neutral = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_call_id: CallId | None = None
    name: CallId | None = None

    @model_validator(mode="after")
    def _possible(self) -> ChatMessage:
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError("content is required")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are of role assistant alone")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id goes with role tool, and with it alone")
        return self

    @property
    def plain(self) -> Message:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        fields: list[tuple[str, Any]] = []
        if self.tool_calls:
            fields.append(("tool_calls", [call.plain for call in self.tool_calls]))
        fields += [(key, value) for key in ("tool_call_id", "name") if (value := getattr(self, key)) is not None]
        return Message(ROLES[self.role], text, tuple(fields))


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def messages_of(several: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """A conversation as training has it."""
    return tuple(one.plain for one in several)


class ChatBody(GenerationBody):
    """/v1/chat/completions."""

    client_fields: ClassVar[Mapping[str, str]] = {PROMPT: "messages"}

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] = Field(default_factory=dict)

    def template(self, tools: Tools) -> Template:
        """What the chat template is given beside the messages."""
        return Template(self.add_generation_prompt, tools, self.continue_final_message, self.chat_template_kwargs)

    @model_validator(mode="after")
    def _possible(self) -> ChatBody:
        check_tools(self.tools, self.tool_choice)
        if self.continue_final_message and (self.add_generation_prompt or self.messages[-1].role != "assistant"):
            raise SamplingError(
                "continue_final_message: the last message is the assistant's, and add_generation_prompt is false",
                "continue_final_message",
            )
        taken = next((name for name in self.chat_template_kwargs if name in TEMPLATE_OWN), None)
        if taken is not None:
            raise SamplingError(f"chat_template_kwargs: {taken} is no setting of a template", "chat_template_kwargs")
        if self.top_logprobs and not self.logprobs:
            raise SamplingError("top_logprobs: it needs logprobs=true", "top_logprobs")
        return self


class VectorBody(RequestBody):
    """What embeddings and classes have in common. truncate_prompt_tokens: of each text; -1 for the context."""

    neutral = VECTOR

    model: ModelName
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    truncate_prompt_tokens: Truncation | None = None

    @property
    def prompts(self) -> Prompts:
        """One text or list of tokens for each."""
        return several(self.input)


class EmbeddingBody(VectorBody):
    """/v1/embeddings."""

    dimensions: Count | None = None


class ClassifyBody(VectorBody):
    """/v1/classify. text_pair: the second text of each input, for adapters that were trained on two."""

    text_pair: TextOrTexts | None = None

    neutral = CLASSIFY


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

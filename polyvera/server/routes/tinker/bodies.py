"""The JSON bodies of the Tinker API, each field bounded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, model_validator

from polyvera.engine.generation.request import MAX_LOGPROBS, MAX_STOPS, SamplingParams
from polyvera.server.fields import LIST, MAX_CHOICES, NUMBER, TEXT, ModelName, StopText, StopTokenIds, TokenIds
from polyvera.server.neutral_fields import Neutral
from polyvera.server.request_body import RequestBody

TYPE: Neutral = {"type": None}
SESSION: Neutral = {**TYPE, "project_id": None}
LOAD: Neutral = {**TYPE, "weights_access_token": ()}
FUTURE: Neutral = {"allow_metadata_only": (True, False)}
FINISH: Neutral = {"reason": None, "detail": None}
SAMPLE: Neutral = {
    **TYPE,
    "prompt_alt_tokens_k": (0,),
    "record_stability_info": (False,),
    "target_prompt_logprobs": (),
    "prompt_logprobs_last_n": (),
    "base_model": (),
    "model_path": (),
}
Id = Annotated[str, Field(min_length=1, max_length=160)]
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
Sequence64 = Annotated[int, Field(ge=0, le=2**63 - 1)]
WeightsName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}$")]
Path = Annotated[str, Field(max_length=400)]
Lifetime = Annotated[int, Field(ge=1, le=3650 * 24 * 3600)]


def _is_scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | None) or (isinstance(value, str) and len(value) > 2048):
        raise ValueError("must be a string of at most 2048 characters, a number, true, false or null")
    return value


def _stop_arm(value: Any) -> str | None:
    """Which arm of stop a value is of, by itself and its first item alone."""
    if not isinstance(value, list):
        return TEXT.tag if isinstance(value, str) else None
    return LIST.tag if value and isinstance(value[0], str) else NUMBER.tag


Value = Annotated[Any, AfterValidator(_is_scalar)]
Stop = Annotated[
    Annotated[StopText, TEXT]
    | Annotated[list[StopText], Field(max_length=MAX_STOPS, fail_fast=True), LIST]
    | Annotated[StopTokenIds, NUMBER],
    Discriminator(
        _stop_arm, custom_error_type="kind", custom_error_message="must be a string, a list of strings, or of tokens"
    ),
]
UserMetadata = Annotated[dict[Annotated[str, Field(max_length=64)], Value], Field(max_length=64)]
TextMetadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=2048)]], Field(max_length=64)
]
Chars = Annotated[str, Field(max_length=256)]
Tags = Annotated[list[Chars], Field(max_length=64)]


class VersionBody(RequestBody):
    """client/config, client/dynamic_config."""

    sdk_version: Annotated[str, Field(max_length=64)]


class SessionBody(RequestBody):
    """create_session."""

    neutral = SESSION

    tags: Tags = Field(default_factory=list)
    user_metadata: UserMetadata = Field(default_factory=dict)
    sdk_version: Annotated[str, Field(max_length=64)]
    display_name: Chars | None = None


class HeartbeatBody(RequestBody):
    """session_heartbeat."""

    neutral = TYPE

    session_id: Id


class LoraConfigBody(RequestBody):
    """What is trained. The kinds of layers say what may be."""

    rank: Annotated[int, Field(ge=1, le=4096)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True

    @property
    def trained(self) -> tuple[str, ...]:
        """The kinds of layers that may be trained."""
        return tuple(name for name in ("train_unembed", "train_mlp", "train_attn") if getattr(self, name))


class OptimizerConfigBody(RequestBody):
    """The optimizer of a run."""

    type: Literal["adamw"] = "adamw"


class CreateModelBody(RequestBody):
    """create_model."""

    neutral = TYPE

    session_id: Id
    model_seq_id: Number
    base_model: ModelName
    user_metadata: UserMetadata = Field(default_factory=dict)
    lora_config: LoraConfigBody
    optimizer_config: OptimizerConfigBody = OptimizerConfigBody()


class ModelBody(RequestBody):
    """get_info."""

    neutral = TYPE

    model_id: Id


class AdamBody(RequestBody):
    """One step's settings, torch.optim.AdamW's."""

    learning_rate: Annotated[float, Field(ge=0, le=1e3)] = 1e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-12  # 0 / 0 is no step of a number that has no gradient
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    grad_clip_norm: Annotated[float, Field(ge=0, le=1e9)] = 0.0


class CallBody(RequestBody):
    """What all calls of a run have. seq_id: its place among them; None is the next."""

    neutral = TYPE

    model_id: Id
    seq_id: Number | None = None


class CallPlace(BaseModel):
    """The place of a call whose body is refused for all else that it has."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), strict=True)

    model_id: Id
    seq_id: Annotated[int, Field(ge=1, le=2**31 - 1)]


class OptimStepBody(CallBody):
    """optim_step."""

    adam_params: AdamBody


class SaveWeightsBody(CallBody):
    """save_weights."""

    path: WeightsName | None = None
    ttl_seconds: Lifetime | None = None
    overwrite: bool = False
    user_metadata: TextMetadata = Field(default_factory=dict)


class SaveForSamplerBody(CallBody):
    """save_weights_for_sampler. A sampler that is in flight is a snapshot here."""

    path: WeightsName | None = None
    sampling_session_seq_id: Number | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: Lifetime | None = None
    user_metadata: TextMetadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> SaveForSamplerBody:
        if self.path is None and self.sampling_session_seq_id is None:
            raise ValueError("path or sampling_session_seq_id is required")
        return self


class LoadWeightsBody(RequestBody):
    """load_weights: into a new run of a session, or into a run."""

    neutral = LOAD

    model_id: Id | None = None
    seq_id: Number | None = None
    session_id: Id | None = None
    model_seq_id: Number | None = None
    base_model: ModelName | None = None
    user_metadata: UserMetadata = Field(default_factory=dict)
    path: Path
    optimizer: bool
    optimizer_config: OptimizerConfigBody | None = None

    @model_validator(mode="after")
    def _one(self) -> LoadWeightsBody:
        is_new = self.session_id is not None and self.model_seq_id is not None
        if is_new == (self.model_id is not None):
            raise ValueError("give model_id, or session_id and model_seq_id")
        return self


class SamplingSessionBody(RequestBody):
    """create_sampling_session."""

    neutral = TYPE

    session_id: Id
    sampling_session_seq_id: Number
    base_model: ModelName | None = None
    model_path: Path | None = None


class FutureBody(RequestBody):
    """retrieve_future, cancel_future."""

    neutral = FUTURE

    request_id: Id


class WeightsPathBody(RequestBody):
    """weights_info."""

    tinker_path: Path


class LifetimeBody(RequestBody):
    """A checkpoint's ttl."""

    ttl_seconds: Lifetime | None = None


class FinishBody(RequestBody):
    """sessions/ID/finish."""

    neutral = FINISH


class ChunkBody(RequestBody):
    """A part of a prompt."""

    type: Literal["encoded_text"]
    tokens: TokenIds


class PromptBody(RequestBody):
    """A prompt in parts."""

    chunks: Annotated[list[ChunkBody], Field(max_length=16_384, fail_fast=True)]

    @property
    def tokens(self) -> list[int]:
        """Of all parts."""
        return [token for chunk in self.chunks for token in chunk.tokens]


class SamplingBody(RequestBody):
    """How tokens are chosen. stop: texts or tokens; none at all is the model's own end, an empty list nothing."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    stop: Stop | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def stops(self) -> dict[str, Any]:
        """As SamplingParams takes them."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        texts, ids = (tuple(one for one in given if isinstance(one, kind)) for kind in (str, int))
        return {"stop": texts, "stop_ids": ids, "ignore_eos": self.stop == []}


class SampleBody(RequestBody):
    """asample."""

    neutral = SAMPLE

    sampling_session_id: Id
    seq_id: Sequence64 | None = None
    num_samples: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    prompt: PromptBody
    sampling_params: SamplingBody = SamplingBody()
    prompt_logprobs: bool = False
    topk_prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    topk_sample_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0

    @property
    def num_prompt_top(self) -> int | None:
        """Alternatives of each of the prompt's tokens, None where they are not scored."""
        return self.topk_prompt_logprobs if self.prompt_logprobs or self.topk_prompt_logprobs else None

    def all_params(self) -> list[SamplingParams]:
        """One for each sample, each with a seed of its own. Raises SamplingError."""
        given = self.sampling_params
        shared: dict[str, Any] = {
            "max_tokens": given.max_tokens,
            "temperature": given.temperature,
            "top_k": max(given.top_k, 0),
            "top_p": given.top_p,
            "logprobs": self.topk_sample_logprobs,
            **given.stops,
        }
        scores = [self.num_prompt_top, *[None] * (self.num_samples - 1)]
        seeds = [None if given.seed is None else (given.seed + i) % 2**63 for i in range(self.num_samples)]
        return [
            SamplingParams(**shared, seed=seed, prompt_logprobs=top) for seed, top in zip(seeds, scores, strict=True)
        ]

"""The protobuf messages of the Tinker API, built from one table: what a field is called, its number, what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "polyvera_tinker"
FLOAT32, INT64, INT32 = 1, 2, 3  # DType
STOP_REASONS = MappingProxyType({"stop": 0, "length": 1})
Fields = tuple[tuple[str, int, str], ...]
# A type is a scalar's, or another message's. *: repeated. @: a map from strings.
MESSAGES: Mapping[str, Fields] = MappingProxyType(
    {
        "SparseCsr": (("values", 1, "bytes"), ("crow_indices", 2, "bytes"), ("col_indices", 3, "bytes")),
        "Tensor": (
            ("dense", 1, "bytes"),
            ("sparse_csr", 2, "SparseCsr"),
            ("dtype", 3, "int32"),
            ("shape", 4, "*int64"),
        ),
        "EncodedTextChunk": (("tokens", 1, "bytes"),),
        "Chunk": (("encoded_text", 1, "EncodedTextChunk"), ("image", 2, "bytes"), ("dmel", 3, "bytes")),
        "Datum": (
            ("model_input", 1, "*Chunk"),
            ("loss_fn_inputs", 2, "@Tensor"),
            ("spans", 3, "*bytes"),
            ("input_spans", 4, "*bytes"),
        ),
        "LossConfigValue": (("number", 1, "double"), ("text", 2, "string")),
        "ForwardBackwardRequest": (
            ("model_id", 1, "string"),
            ("seq_id", 2, "int32"),
            ("data", 3, "*Datum"),
            ("loss_fn", 4, "string"),
            ("loss_fn_config", 5, "@double"),
            ("forward_only", 6, "bool"),
            ("loss_fn_config_v2", 7, "@LossConfigValue"),
        ),
        "BatchedTensor": (
            ("data", 1, "bytes"),
            ("offsets", 2, "bytes"),
            ("dtype", 3, "int32"),
            ("trailing_shape", 4, "*int64"),
        ),
        "ArrayRecord": (("type_tag", 1, "string"), ("fields", 2, "@BatchedTensor"), ("num_datums", 3, "int64")),
        "ForwardBackwardOutput": (
            ("loss_fn_output_type", 1, "string"),
            ("loss_fn_outputs", 2, "*ArrayRecord"),
            ("metrics", 3, "@double"),
        ),
        "TopkLogprobs": (
            ("token_ids", 1, "bytes"),
            ("logprobs", 2, "bytes"),
            ("k", 3, "uint32"),
            ("length", 4, "uint32"),
        ),
        "SampledSequence": (
            ("stop_reason", 1, "int32"),
            ("tokens", 2, "bytes"),
            ("logprobs", 3, "bytes"),
            ("topk_sampled_logprobs", 4, "TopkLogprobs"),
        ),
        "SampleResponse": (
            ("sequences", 1, "*SampledSequence"),
            ("prompt_logprobs", 2, "bytes"),
            ("topk_prompt_logprobs", 3, "TopkLogprobs"),
            ("prompt_cache_hit_tokens", 4, "int32"),
        ),
    }
)
FIELD = descriptor_pb2.FieldDescriptorProto


def _classes() -> Mapping[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="polyvera_tinker.proto", package=PACKAGE, syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add_field(message, *field)
    pool = descriptor_pool.DescriptorPool()  # of our own: the SDK's may be in the same process
    pool.Add(file)
    found = (pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in MESSAGES)
    return {descriptor.name: message_factory.GetMessageClass(descriptor) for descriptor in found}


def _add_field(message: Any, name: str, number: int, held: str) -> None:
    kind = held.lstrip("*@")
    if held.startswith("@"):
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, kind)
        kind = f"{message.name}.{entry.name}"
    field = message.field.add(name=name, number=number)
    field.label = FIELD.LABEL_OPTIONAL if held == kind else FIELD.LABEL_REPEATED
    if kind.partition(".")[0] in MESSAGES:
        field.type, field.type_name = FIELD.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = FIELD.Type.Value(f"TYPE_{kind.upper()}")


WIRE = MappingProxyType(_classes())


def num_parts(data: bytes, field: int, most: int) -> int:
    """How many fields a message has, and how many those of that field have, up to a bit over `most`, before it is read.

    Each part becomes an object, which may take many times its bytes. Raises ValueError for what is no message.
    """
    found = 0
    for number, begin, end in _parts(data, 0, len(data)):
        found += 1 if number != field else 1 + sum(1 for _, _ in zip(_parts(data, begin, end), range(most)))
        if found > most:
            break
    return found


def _parts(data: bytes, at: int, end: int) -> Any:
    """(number, where its content begins, where that ends) of each field."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            begin, (_, at) = at, _varint(data, at)
        elif kind == 2:
            size, begin = _varint(data, at)
            at = begin + size
        else:
            begin, at = at, at + SIZES[kind]
        if at > end:
            raise ValueError("a field is longer than its message")
        yield tag >> 3, begin, at


SIZES = MappingProxyType({1: 8, 5: 4})


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")

"""TokenBytes: what each token is on its own, in bytes, since a token may be a part of a character."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

ANCHOR = "a"
BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # a byte, as vocabularies of sentencepiece write it


@dataclass(frozen=True, slots=True)
class Spelling:
    """A token. name: its text, or as OpenAI writes it where it is none: bytes:\\xf0\\x9f. data: what it adds."""

    name: str
    data: bytes


class TokenBytes:
    """Those of one tokenizer, by the decoder that it writes texts with. Special tokens add nothing to a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) | _added_special(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        is_byte_level = self._backend.decoder is not None and b"ByteLevel" in self._backend.decoder.__getstate__()
        self._bytes = _byte_alphabet() if is_byte_level else {}
        [*_, anchor] = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
        self._anchor = int(anchor)
        self._before = self._decode([self._anchor])
        self._known: dict[tuple[int, bool], Spelling] = {}

    def of(self, token: int, *, is_first: bool = False) -> Spelling:
        """A token behind others, or as the first of its text, where some decoders drop a space."""
        key = (token, is_first)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._spelling(token, is_first)
        return found

    def _spelling(self, token: int, is_first: bool) -> Spelling:
        if token in self._special:
            return Spelling(str(self._tokenizer.convert_ids_to_tokens(token)), b"")
        data = self._data(token, is_first)
        try:
            return Spelling(data.decode(), data)
        except UnicodeDecodeError:
            return Spelling("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)

    def _data(self, token: int, is_first: bool) -> bytes:
        piece = str(self._backend.id_to_token(token) or "")
        if self._bytes:
            is_text = all(letter in self._bytes for letter in piece)
            return bytes(self._bytes[letter] for letter in piece) if is_text else piece.encode()
        byte = BYTE.fullmatch(piece)
        if byte:
            return bytes((int(byte[1], 16),))
        if is_first:
            return self._decode([token]).encode()
        return self._decode([self._anchor, token])[len(self._before) :].encode()

    def _decode(self, tokens: list[int]) -> str:
        return str(self._backend.decode(tokens, skip_special_tokens=True))


def _added_special(tokenizer: Any) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


def _byte_alphabet() -> dict[str, int]:
    """The byte of each letter in which vocabularies of GPT-2's kind are written."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}

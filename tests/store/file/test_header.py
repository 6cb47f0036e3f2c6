"""Files that are whole by their digest and still no adapters: each is refused with what was found."""

import json

import pytest
import torch
from drawn_adapters import SMALL, alike, drawn, with_given_basis
from forged_files import forged, header_of, sealed
from safetensors.torch import load, save

from polyvera.adapter.method import METHODS
from polyvera.errors import FormatError
from polyvera.store.file.codec import MAX_HEADER_BYTES, decode, encode
from polyvera.store.file.layer_pattern import MAX_SITES

SHARED = next(name for name, row in METHODS.items() if row.shares_basis)
DATA = encode(drawn(SHARED, head={"score.weight": (2, 8)}))
STACK = "layers.*.q.d"
OFFSETS = "data_offsets"


def put(where, key, value):
    """A change of the three trees of a header."""
    return lambda tree, kind, own: {"tree": tree, "kind": kind, "own": own}[where].__setitem__(key, value)


def drop(where, key):
    return lambda tree, kind, own: {"tree": tree, "kind": kind, "own": own}[where].pop(key)


def info(key, value, name=STACK):
    return lambda tree, kind, own: tree[name].__setitem__(key, value)


def site(key, value):
    return lambda tree, kind, own: kind["sites"][0].__setitem__(key, value)


def basis(key, value):
    return lambda tree, kind, own: kind["basis"].__setitem__(key, value)


def spec(key, value):
    return lambda tree, kind, own: kind["spec"].__setitem__(key, value)


def test_a_forgery_that_changes_nothing_is_read():
    assert alike(decode(forged(DATA)), decode(DATA))


CHANGES = {
    "tensor gone": (drop("tree", STACK), STACK),
    "tensor more": (put("tree", "more", {"dtype": "F32", "shape": [0], OFFSETS: [0, 0]}), "more"),
    "wrong dtype": (info("dtype", "F16"), "F16"),
    "wrong shape": (info("shape", [4, 3]), STACK),
    "negative offset": (info(OFFSETS, [-48, 0]), "-48"),
    "overlapping offset": (info(OFFSETS, [0, 48]), STACK),
    "offset past the end": (info(OFFSETS, [2**60, 2**60 + 48]), STACK),
    "offset of a text": (info(OFFSETS, "0"), STACK),
    "info of a list": (put("tree", STACK, []), STACK),
    "no metadata": (drop("tree", "__metadata__"), "plain model"),
    "metadata of a list": (put("tree", "__metadata__", []), "plain model"),
    "newer format": (put("kind", "format", 5), r"format 5, .* up to 4: upgrade"),
    "no format": (drop("kind", "format"), "None"),
    "format of a text": (put("kind", "format", "1"), "'1'"),
    "unknown key": (put("kind", "headd", {}), "unknown key 'headd'; did you mean 'head'"),
    "unknown key of its own": (put("own", "bas", "x"), "unknown key 'bas'; did you mean 'base'"),
    "no sites": (put("kind", "sites", []), "sites"),
    "sites gone": (drop("kind", "sites"), "no 'sites'"),
    "unknown dtype": (put("kind", "dtype", "float33"), "did you mean 'float32'"),
    "dtype of another file": (put("kind", "dtype", "int8"), "F32"),
    "site without width": (site("in", None), "in"),
    "site of no width": (site("out", 0), "out"),
    "site of a text": (site("in", "8"), "in"),
    "site with a wish": (site("rank", 4), "rank"),
    "no such range": (site("layers", "0-"), "layers"),
    "fewer layers": (site("layers", "0-1"), "layers"),
    "the same layer twice": (site("layers", "0,0-2"), "twice"),
    "too many layers": (site("layers", "0-999999999"), str(MAX_SITES)),
    "unknown choice": (spec("rnak", 4), "did you mean 'rank'"),
    "unknown method": (spec("method", "verra"), "did you mean"),
    "method of a list": (spec("method", []), "spec"),
    "rank of a text": (spec("rank", "4"), "rank"),
    "dropout of a text": (spec("dropout", "a"), "spec"),
    "targets of numbers": (spec("targets", [1]), "targets"),
    "pattern of a number": (spec("alpha_pattern", 3), "spec"),
    "basis gone": (drop("kind", "basis"), "basis"),
    "basis of another rank": (basis("rank", 5), "basis"),
    "basis too narrow": (basis("in_max", 7), "basis"),
    "basis too wide": (basis("in_max", 2**40), "in_max"),
    "basis of a short digest": (basis("sha256", "ab"), "sha256"),
    "basis that is not there": (basis("init", "given"), "basis.A"),
    "head of nothing": (put("kind", "head", {"score.weight": [0]}), "head"),
    "head of a text": (put("kind", "head", {"score.weight": "28"}), "head"),
    "head of digits": (put("kind", "head", {"score.weight": ["2", "8"]}), "head"),
    "scores of texts": (put("own", "scores", {"loss": "low"}), "scores.loss"),
    "score of digits": (put("own", "scores", {"loss": "1.5"}), "scores.loss"),
    "endless score": (put("own", "scores", {"loss": float("inf")}), "Infinity"),
    "digest of capitals": (put("own", "digest", "A" * 64), "digest"),
    "digest gone": (drop("own", "digest"), "no 'digest'"),
    "error of a text": (put("own", "error", "none"), "error"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_header_is_refused(case):
    change, message = CHANGES[case]
    with pytest.raises(FormatError, match=message):
        decode(forged(DATA, change))


EDITS = {
    "no JSON": (lambda text: text[:-2], "not JSON"),
    "a list": (lambda text: "[]", "list, not an object"),
    "nested deep": (lambda text: '{"a":' * 100_000, "not JSON"),
    "a long number": (lambda text: text.replace("[0, ", "[" + "9" * 5000 + ", ", 1), "not JSON"),
    "the same tensor twice": (
        lambda text: text[:-1] + f', "{STACK}": {{}}}}',
        f"'{STACK.replace('*', '.')}' comes twice",
    ),
    "the same line key twice": (lambda text: text.replace(r"\"format\":1,", r"\"format\":1,\"format\":1,"), "twice"),
    "a third line": (lambda text: text.replace(r"}\n{", r"}\n{}\n{"), "second line"),
    "one line": (lambda text: text.replace(r"}\n{", ","), "two lines"),
    "more metadata": (lambda text: text.replace('"polyvera":', '"format": "pt", "polyvera":', 1), "two lines"),
    "a digest of its own in the scores": (lambda text: text.replace("loss", "0" * 64), "just once|sha256"),
    "an escaped digest": (lambda text: text.replace("0" * 64, r"\\u0061" + "0" * 63), "checksum"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_changed_header_text_is_refused(case):
    edit, message = EDITS[case]
    with pytest.raises(FormatError, match=message):
        decode(forged(DATA, edit=edit))


def test_data_of_another_length_is_refused():
    for section in (lambda tail: tail + b"\0" * 8, lambda tail: tail[:-8]):
        with pytest.raises(FormatError, match="bytes of data"):
            decode(forged(DATA, section=section))


def test_infinities_in_a_whole_file_are_refused():
    infinity = torch.full((1,), float("inf")).numpy().tobytes()
    with pytest.raises(FormatError, match="holds NaN or infinity"):
        decode(forged(DATA, section=lambda tail: infinity + tail[4:]))


@pytest.mark.parametrize("length", [0, 1, 3, len(DATA) - 7, len(DATA), 2**32, 2**63, 2**64 - 1, MAX_HEADER_BYTES + 8])
def test_a_wrong_header_length_is_refused(length):
    with pytest.raises(FormatError):
        decode(length.to_bytes(8, "little") + DATA[8:])


def test_a_header_that_ends_off_the_grid_is_refused():
    tree = header_of(DATA)[0]
    tail = DATA[8 + int.from_bytes(DATA[:8], "little") :]
    for pad in range(1, 8):
        text = json.dumps(tree)
        text += " " * (-len(text) % 8 + pad)
        with pytest.raises(FormatError, match="multiples of 8"):
            decode(len(text).to_bytes(8, "little") + text.encode() + tail)


def test_an_overlong_header_is_refused_before_it_is_parsed():
    text = json.dumps({"a": " " * MAX_HEADER_BYTES})
    with pytest.raises(FormatError, match="states a header of"):
        decode(sealed(text, b""))


def test_a_plain_model_is_told_apart():
    with pytest.raises(FormatError, match=r"2 tensors \('lm_head.weight' is one\) without the header of an adapter"):
        decode(save({"lm_head.weight": torch.ones(2, 2), "norm.weight": torch.ones(2)}, {"format": "pt"}))


def test_a_safetensors_copy_of_the_tensors_alone_is_refused():
    with pytest.raises(FormatError, match="plain model"):
        decode(save(load(DATA)))


def test_the_header_is_as_documented():
    _, kind, own = header_of(encode(with_given_basis(drawn(SHARED)), "int8"))
    assert list(kind) == ["format", "dtype", "spec", "sites", "basis"]
    assert kind["sites"][0] == {"name": "layers.*.q", "layers": "0-2", "in": 8, "out": 8}
    assert kind["sites"][-1] == {"name": "out_proj", "in": 6, "out": 10}
    assert list(own) == ["base", "created", "scores", "error", "digest", "checksum"]
    assert len(SMALL) == 7

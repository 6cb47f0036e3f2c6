"""A form as real clients write it is read, and what is none is refused."""

import httpx
import pytest

from polyvera.errors import ServeError
from polyvera.server.multipart import MAX_PARTS, form_parts

HEAD = 'Content-Disposition: form-data; name="{}"'
TYPE = "multipart/form-data; boundary=x"


def part(name, data=b"v", head=HEAD):
    return b"--x\r\n" + head.format(name).encode() + b"\r\n\r\n" + data + b"\r\n"


@pytest.mark.parametrize("data", [b"", b"{}\n", b"\r\n--\r\n\xff\x00--boundary", "größe\n".encode()])
def test_a_clients_form_is_read(data):
    files = {"file": ("rows größe.jsonl", data)}
    request = httpx.Request("POST", "http://x", files=files, data={"purpose": "fine-tune"})
    found = form_parts(request.headers["content-type"], request.read())
    assert found["file"].data == data and found["purpose"].text == "fine-tune" and not found["purpose"].filename
    assert found["file"].filename == "rows größe.jsonl"


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("application/json", b"{}", "multipart/form-data"),
        ("multipart/form-data", b"", "with a boundary"),
        ('multipart/form-data; boundary="' + "x" * 71 + '"', b"", "with a boundary"),
        (TYPE, b"", "cut off"),
        (TYPE, part("a"), "cut off"),
        (TYPE, part("a") + b"--x", "cut off"),
        (TYPE, part("a") + part("a") + b"--x--\r\n", "'a' twice"),
        (TYPE, b"".join(part(f"a{i}") for i in range(MAX_PARTS + 5)) + b"--x--\r\n", "more than 16"),
        (TYPE, b"--x\r\nno blank line\r\n--x--\r\n", "no head"),
        (TYPE, part("a", head="X: " + "y" * 5000 + "{}") + b"--x--", "too long"),
        (TYPE, part("", head="X-Other: 1{}") + b"--x--", "no name"),
        (TYPE, part("a", head='Content-Disposition: attachment; name="{}"') + b"--x--", "no name"),
        (TYPE, b"--xy\r\n" + part("a") + b"--x--", "damaged"),
    ],
)
def test_what_is_no_form_is_refused(kind, body, words):
    with pytest.raises(ServeError, match=words):
        form_parts(kind, body)


def test_a_value_that_is_no_text_is_refused():
    with pytest.raises(ServeError, match="a must be UTF-8"):
        _ = form_parts(TYPE, part("a", b"\xff") + b"--x--\r\n")["a"].text

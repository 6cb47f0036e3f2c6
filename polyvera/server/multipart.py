"""form_parts: the parts of a multipart/form-data body (RFC 7578), which is in memory, bounded, before this is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.policy import HTTP

from polyvera.errors import ServeError

MAX_PARTS, MAX_HEAD_BYTES = 16, 4096
BOUNDARY = re.compile(r"[ -~]{0,69}[!-~]")


@dataclass(frozen=True, slots=True)
class FormPart:
    """One field of a form. filename: of a file, '' for a plain value."""

    name: str
    filename: str
    data: bytes

    @property
    def text(self) -> str:
        """A plain value. Raises ServeError where it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise ServeError(f"{self.name} must be UTF-8 text", self.name) from None


def form_parts(content_type: str, body: bytes) -> dict[str, FormPart]:
    """The fields of a form by name. Raises ServeError for all that is not a whole form with each field once."""
    mark = b"--" + _boundary(content_type)
    _, *parts = (b"\r\n" + body).split(b"\r\n" + mark, MAX_PARTS + 2)
    if len(parts) > MAX_PARTS + 1 or any(not part.startswith(b"\r\n") for part in parts[:-1]):
        raise ServeError(f"the form is damaged, or has more than {MAX_PARTS} fields")
    if not parts or not parts[-1].startswith(b"--"):
        raise ServeError("the form does not end with its boundary: it was cut off")
    found: dict[str, FormPart] = {}
    for part in map(_part, parts[:-1]):
        if part.name in found:
            raise ServeError(f"the form has {part.name[:100]!r} twice", part.name[:100])
        found[part.name] = part
    return found


def _boundary(content_type: str) -> bytes:
    head = _head(f"Content-Type: {content_type}".encode("latin-1", "replace"))
    boundary = head.get_boundary("") if head.get_content_type() == "multipart/form-data" else ""
    if not BOUNDARY.fullmatch(str(boundary)):
        raise ServeError("the body must be multipart/form-data with a boundary, as clients send files")
    return str(boundary).encode()


def _part(given: bytes) -> FormPart:
    text, blank, data = given[2:].partition(b"\r\n\r\n")
    if not blank or len(text) > MAX_HEAD_BYTES:
        raise ServeError("a field of the form has no head, or one that is too long")
    head = _head(text)
    name = head.get_param("name", header="content-disposition")
    if head.get_content_disposition() != "form-data" or not isinstance(name, str):
        raise ServeError("a field of the form has no name")
    return FormPart(name, head.get_filename("") or "", data)


def _head(text: bytes) -> EmailMessage:
    try:
        found = BytesHeaderParser(policy=HTTP).parsebytes(text)
        found.get_content_type(), found.get_content_disposition()
    except Exception as error:  # the parser of heads raises what it likes for what is none
        raise ServeError("the form has a head that cannot be read") from error
    return found

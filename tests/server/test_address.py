"""An address that other machines reach needs keys; a unix socket is its user's alone, and no server's file is lost."""

import socket
import stat
from pathlib import Path

import httpx
import pytest
from tiny_server import served

from polyvera.errors import ServeError
from polyvera.server.address import Address
from polyvera.server.config import ServerConfig


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_a_public_address_needs_keys(tmp_path: Path, host: str) -> None:
    with pytest.raises(ServeError, match="--keys FILE"):
        Address(host).check(ServerConfig("tiny"))
    Address(host).check(ServerConfig("tiny", keys=tmp_path / "keys.json"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_none(host: str) -> None:
    Address(host).check(ServerConfig("tiny"))


def test_a_unix_socket_answers_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with served(tmp_path, address=Address(uds=path)) as at:
        assert at.url == f"unix:{path}" and stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as http:
            asked = {"model": "acme/one", "prompt": "the", "max_tokens": 2}
            assert http.post("/v1/completions", json=asked).status_code == 200
        with pytest.raises(ServeError, match=r"cannot listen on unix:.*; choose another with --uds"):
            Address(uds=path).bound()
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path, file = tmp_path / "socket", tmp_path / "file"
    Address(uds=path).bound().close()
    assert path.exists()
    Address(uds=path).bound().close()
    file.write_text("kept")
    with pytest.raises(ServeError, match="Address already in use"):
        Address(uds=file).bound()
    with pytest.raises(ServeError, match="No such file"):
        Address(uds=tmp_path / "nowhere" / "socket").bound()
    assert file.read_text() == "kept"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own, pytest.raises(ServeError, match="choose another with --port"):
        Address(port=own.getsockname()[1]).bound()

"""One port, bound at once; addresses that other machines reach need keys."""

import signal
import socket
from pathlib import Path
from threading import Event

import pytest
from fastapi import FastAPI
from tiny_serve import make_llama, make_tokenizer

from polyvera.engine.generation.generator import Generator
from polyvera.errors import ServeError
from polyvera.server.config import ServerConfig
from polyvera.server.middleware import ServerState
from polyvera.server.server import Server, bound, check_address, reload_at_hangup


def made(port: int, host: str = "127.0.0.1") -> Server:
    engine = Generator(make_llama(), make_tokenizer())
    return Server(FastAPI(), engine, ServerConfig("tiny"), ServerState(), host, port)


def test_a_free_port_is_taken_before_it_runs() -> None:
    server = made(0)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10):
        assert host == "127.0.0.1" and int(port) > 0
    with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{port}: .*; choose another with --port"):
        made(int(port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_a_public_address_needs_keys(tmp_path: Path, host: str) -> None:
    with pytest.raises(ServeError, match="--keys FILE"):
        check_address(host, ServerConfig("tiny"))
    check_address(host, ServerConfig("tiny", keys=tmp_path / "keys.json"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_none(host: str) -> None:
    check_address(host, ServerConfig("tiny"))


def test_a_stopping_server_says_so_and_drains_once() -> None:
    server = made(0)
    for _ in range(2):
        server.stop()
    assert server._state.is_draining


def test_a_socket_that_was_bound_before_is_used() -> None:
    own = bound("127.0.0.1", 0)
    port = own.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    engine = Generator(make_llama(), make_tokenizer())
    server = Server(FastAPI(), engine, ServerConfig("tiny"), ServerState(), "127.0.0.1", port, own)
    assert server.url == f"http://127.0.0.1:{port}"
    with pytest.raises(ServeError, match="cannot listen"):
        bound("127.0.0.1", port)


def test_a_hangup_reloads() -> None:
    done, before = Event(), signal.getsignal(signal.SIGHUP)
    reload_at_hangup(ServerState(reloads=[done.set]))
    try:
        signal.raise_signal(signal.SIGHUP)
        assert done.wait(60)
    finally:
        signal.signal(signal.SIGHUP, before)

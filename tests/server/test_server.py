"""One port, bound at once; addresses that other machines reach need keys."""

import signal
import socket
from threading import Event

import pytest
from fastapi import FastAPI
from tiny_serve import make_llama, make_tokenizer

from polyvera.engine.generation.generator import Generator
from polyvera.errors import ServeError
from polyvera.server.address import Address
from polyvera.server.config import ServerConfig
from polyvera.server.middleware import ServerState
from polyvera.server.server import Server, reload_at_hangup


def made(port: int, host: str = "127.0.0.1") -> Server:
    engine = Generator(make_llama(), make_tokenizer())
    return Server(FastAPI(), engine, ServerConfig("tiny"), ServerState(), Address(host, port))


def test_a_free_port_is_taken_before_it_runs() -> None:
    server = made(0)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10):
        assert host == "127.0.0.1" and int(port) > 0
    with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{port}: .*; choose another with --port"):
        made(int(port))


def test_a_stopping_server_says_so_and_drains_once() -> None:
    server = made(0)
    for _ in range(2):
        server.stop()
    assert server._state.is_draining


def test_a_socket_that_was_bound_before_is_used() -> None:
    own = Address(port=0).bound()
    port = own.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    engine = Generator(make_llama(), make_tokenizer())
    server = Server(FastAPI(), engine, ServerConfig("tiny"), ServerState(), Address(port=port), own)
    assert server.url == f"http://127.0.0.1:{port}"
    with pytest.raises(ServeError, match="cannot listen"):
        Address(port=port).bound()


def test_a_hangup_reloads() -> None:
    done, before = Event(), signal.getsignal(signal.SIGHUP)
    reload_at_hangup(ServerState(reloads=[done.set]))
    try:
        signal.raise_signal(signal.SIGHUP)
        assert done.wait(60)
    finally:
        signal.signal(signal.SIGHUP, before)

"""Adapters on a hub: a real HTTP server stands in for it, and a client process of its own talks to it."""

import os
import subprocess
import sys

import pytest
from hub_server import running_hub

from polyvera.errors import FormatError, StoreUnavailableError
from polyvera.store.hub import located

SENT = """
import sys
from pathlib import Path
from polyvera.store.hub import fetched, send
folder, repository = Path(sys.argv[1]), sys.argv[2]
print(send(folder, repository, message="First"))
copy = fetched(repository)
print(*sorted(p.name for p in copy.iterdir()))
print((copy / "adapter_config.json").read_text())
"""


def client(code, hub, tmp_path, *words):
    """The output of Python code in a process that knows this hub alone."""
    known = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_x"}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | known, check=False)


def test_what_is_sent_is_fetched_and_nothing_else(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "README.md").write_text("# An adapter")
    (folder / "notes.txt").write_text("of nobody's concern")
    with running_hub() as hub:
        done = client(SENT, hub, tmp_path, folder, "team/one")
        assert done.returncode == 0, done.stderr
        assert set(hub.repositories["team/one"]) == {"adapter_config.json", "README.md", "notes.txt"}
    address, names, config = done.stdout.splitlines()
    assert "team/one/commit" in address and names == "README.md adapter_config.json"
    assert config == '{"peft_type": "LORA"}'


BRANCH = """
import sys
from pathlib import Path
from polyvera.store.hub import fetched, send
send(Path(sys.argv[1]), "team/one@trial")
fetched("team/one")
"""


def test_a_branch_is_made_and_an_earlier_copy_is_told_of(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with running_hub() as hub:
        done = client(BRANCH, hub, tmp_path, folder)
        assert done.returncode == 0 and "a copy that was fetched before" not in done.stderr, done.stderr
        assert {"main", "trial"} == hub.branches
        hub.repositories["team/bare"] = {"adapter.gguf": b"GGUF"}
        done = client("from polyvera.store.hub import fetched; fetched('team/bare')", hub, tmp_path)
        assert "FormatError: team/bare has no adapter_config.json" in done.stderr
        hub.repositories.clear()
        done = client("from polyvera.store.hub import fetched; print(fetched('team/one'))", hub, tmp_path)
    assert done.returncode == 0 and "team/one is a copy that was fetched before" in done.stderr
    done = client("import sys; from polyvera.store.hub import send; send('x', 'team/-x-')", hub, tmp_path)
    assert "StoreUnavailableError: team/-x- was not sent" in done.stderr and "token" not in done.stderr


def test_a_repository_that_is_not_there_is_named(tmp_path):
    with running_hub() as hub:
        done = client("from polyvera.store.hub import fetched; fetched('team/none')", hub, tmp_path)
    assert "StoreUnavailableError: 'team/none' is not a folder here" in done.stderr and hub.url in done.stderr


def test_a_folder_is_itself_and_a_path_is_never_asked_of_a_hub(tmp_path):
    assert located(str(tmp_path)) == tmp_path and located(str(tmp_path), "inner") == tmp_path / "inner"
    for source in (str(tmp_path / "none"), "./team/one", "a/b/c"):
        with pytest.raises(FormatError, match="there is no folder"):
            located(source)
    with pytest.raises(StoreUnavailableError, match="give the folder of a copy"):
        located("team/one")  # offline, as all tests are

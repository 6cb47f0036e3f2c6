"""What goes wrong on a disk: links, pipes, damage, no room. One bad entry never hides the others."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from drawn_adapters import drawn

from polyvera.errors import ConflictError, DamagedFileError, NotFoundError, StoreError, StoreFullError
from polyvera.store.registry import Registry

BAD: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "junk": lambda path: path.write_bytes(b"junk" * 10),
    "nothing in it": lambda path: path.write_bytes(b""),
    "a terabyte of nothing": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
    "as large as may be": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 60 << 30),
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    found = Registry(tmp_path / "store")
    found.put("t/x", drawn("vera"), alias="live")
    return found


@pytest.mark.parametrize("kind", BAD)
def test_a_version_that_is_bad_hides_no_other(registry: Registry, kind: str) -> None:
    folder = Path(registry.files.location("adapters/t/bad"))
    folder.mkdir()
    BAD[kind](folder / "1.safetensors")
    begun = time.monotonic()
    assert "t/x@1" in [str(ref) for ref in registry.list()]
    with pytest.raises(DamagedFileError, match="t/bad@1 is damaged") as refused:
        registry.get("t/bad@1")
    assert registry.url not in str(refused.value)
    assert [problem.path for problem in registry.verify()] == ["adapters/t/bad/1.safetensors"]
    assert registry.put("t/bad", drawn("vera")).version == 2 and registry.get("t/bad") is not None
    assert time.monotonic() - begun < 30, "no byte of it was read"


@pytest.mark.parametrize("kind", BAD)
def test_an_alias_that_is_bad_hides_no_other(registry: Registry, kind: str) -> None:
    path = Path(registry.files.location("aliases/t/x/@broken"))
    BAD[kind](path)
    assert registry.aliases("t/x") == {"live": 1}
    with pytest.raises(DamagedFileError, match="the alias t/x@broken is damaged"):
        registry.resolve("t/x@broken")
    assert [problem.path for problem in registry.verify()] == ["aliases/t/x/@broken"]
    registry.unalias("t/x", "broken")
    assert not path.is_symlink() and not path.exists() and registry.verify() == []


def no_room(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def left(registry: Registry) -> list[str]:
    return sorted(str(path.relative_to(registry.url)) for path in Path(registry.url).rglob("*") if path.is_file())


def test_a_full_disk_leaves_nothing_behind(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.put("t/y", drawn("vera"))
    before = left(registry)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_room)
        for act in (
            lambda: registry.put("t/x", drawn("vera")),
            lambda: registry.put("t/x", drawn("vera"), alias="live"),
            lambda: registry.alias("t/x", "next", 1),
            lambda: registry.remove("t/y@1"),
        ):
            with pytest.raises(StoreFullError):
                act()
    assert left(registry) == before and registry.verify() == []
    assert registry.put("t/x", drawn("vera")).version == 2, "it works once there is room"


def test_a_publish_whose_alias_fails_is_taken_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = registry.files.replace

    def fail(path: str, data: bytes) -> None:
        if path.startswith("aliases"):
            raise StoreFullError("no room")
        replace(path, data)

    monkeypatch.setattr(registry.files, "replace", fail)
    with pytest.raises(StoreFullError):
        registry.put("t/x", drawn("vera"), alias="live")
    assert registry.resolve("t/x").version == 1 and registry.aliases("t/x") == {"live": 1}
    with pytest.raises(NotFoundError):
        registry.get("t/x@2")


def test_the_last_number_is_the_last(registry: Registry) -> None:
    one = Path(registry.files.location("adapters/t/x/1.safetensors"))
    (one.parent / "999999999.safetensors").write_bytes(one.read_bytes())
    before = left(registry)
    with pytest.raises(StoreError, match="used up"):
        registry.put("t/x", drawn("vera"))
    assert left(registry) == before


def test_no_alias_ever_names_a_removed_version(registry: Registry) -> None:
    """Two of them at once: whichever comes first, the other is refused or sees it."""
    from threading import Thread

    def alias(version: int) -> None:
        try:
            registry.alias("t/x", "moving", version)
        except NotFoundError:
            return

    def remove(version: int) -> None:
        try:
            registry.remove(f"t/x@{version}")
        except ConflictError:
            return

    for _ in range(20):
        version = registry.put("t/x", drawn("vera")).version
        both = [Thread(target=act, args=(version,)) for act in (alias, remove)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert registry.verify() == []

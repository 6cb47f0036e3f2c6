"""What only a folder does: links are not followed, modes are ordinary, leftovers are swept."""

import os
import stat
import sys
from pathlib import Path

import pytest
from drawn_adapters import drawn

from polyvera.adapter.method import METHODS
from polyvera.errors import DamagedFileError, NotFoundError, ReferenceNameError, StoreError
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

FIRST, *_ = METHODS


@pytest.fixture
def folder(tmp_path):
    return Registry(tmp_path / "registry")


def test_a_ref_made_by_hand_stays_inside(folder, tmp_path):
    folder.put("a", drawn(FIRST))
    (tmp_path / "1.safetensors").write_bytes((tmp_path / "registry/adapters/a/1.safetensors").read_bytes())
    for name in ("../..", "a/../../..", "/" + str(tmp_path), ""):
        with pytest.raises(ReferenceNameError):
            folder.get(AdapterRef(name, 1, str(tmp_path / "1.safetensors"), 1))


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a right there")
def test_symbolic_links_lead_nowhere(folder, tmp_path):
    folder.put("a", drawn(FIRST))
    root, outside = tmp_path / "registry", tmp_path / "outside"
    outside.mkdir()
    (outside / "1.safetensors").write_bytes((root / "adapters/a/1.safetensors").read_bytes())
    (root / "adapters/linked").symlink_to(outside)
    (root / "adapters/a/2.safetensors").symlink_to(outside / "1.safetensors")
    for act in (
        lambda: folder.put("linked", drawn(FIRST)),
        lambda: folder.get("linked@1"),
        lambda: folder.get("a@2"),
        lambda: folder.get(AdapterRef("linked", 1, "", 1)),
        lambda: folder.remove("linked@1"),
        lambda: folder.put("linked/b", drawn(FIRST)),
    ):
        with pytest.raises(DamagedFileError, match="symbolic link"):
            act()
    assert [str(ref) for ref in folder.list("linked")] == [] and len(list(outside.iterdir())) == 1
    assert {problem.path for problem in folder.verify()} == {"adapters/linked", "adapters/a/2.safetensors"}
    assert folder.put("a", drawn(FIRST)).version == 3


def test_files_have_ordinary_permissions(folder, tmp_path):
    before = os.umask(0o022)
    try:
        ref = folder.put("a", drawn(FIRST), alias="prod")
    finally:
        os.umask(before)
    for path in (ref.path, tmp_path / "registry/aliases/a/@prod"):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o644


def test_old_leftovers_are_swept_and_young_ones_kept(tmp_path):
    Registry(tmp_path).put("a", drawn(FIRST))
    old, young = tmp_path / f".tmp/1-{'0' * 32}", tmp_path / f".tmp/2-{'0' * 32}"
    others = tmp_path / ".tmp/somebody's"
    for left in (old, young, others):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(others, (0, 0))
    assert Registry(tmp_path).verify() == [] and [str(ref) for ref in Registry(tmp_path).list()] == ["a@1"]
    Registry(tmp_path).put("a", drawn(FIRST))
    assert {*(tmp_path / ".tmp").iterdir()} == {young, others}


def test_reading_makes_no_folder(tmp_path):
    registry = Registry(tmp_path / "none")
    with pytest.raises(NotFoundError, match="there is no store"):
        registry.verify()
    assert registry.list() == []
    assert list(tmp_path.iterdir()) == []


def test_urls_that_cannot_be_opened(tmp_path):
    with pytest.raises(StoreError, match="Protocol not known"):
        Registry("nosuch://bucket")
    with pytest.raises(StoreError, match="takes no options"):
        Registry(tmp_path, key="x")
    with pytest.raises(StoreError, match="zero byte"):
        Registry(f"{tmp_path}/a\0b")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot"):
        Registry(tmp_path / "file").put("a", drawn(FIRST))
    assert Registry(f"file://{tmp_path}/there").put("a", drawn(FIRST)).path.startswith(str(tmp_path))

"""Which names are names, and what a reference asks for."""

import pytest

from polyvera.errors import ReferenceNameError
from polyvera.store.reference import Reference, check_alias, check_name, check_version, is_name, parse_reference

GOOD = ["a", "A1", "0", "customer-17", "team/task", "org/team/task", "a.b_c-d", "x" * 64, "console", "nullable.x"]
HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "a/",
    "/a",
    "a//b",
    "..",
    ".",
    "../a",
    "a/..",
    "a/../b",
    "a/./b",
    ".hidden",
    "-rf",
    "_a",
    "a\\b",
    "a\\..\\b",
    "C:",
    "C:\\a",
    "a:b",
    "a b",
    "a\nb",
    "a\n",
    "a\0",
    "a%2e%2e",
    "~root",
    "a*",
    "ä",
    "а",  # Cyrillic
    "１",
    "x" * 65,
    "a/b/c/d",
    "a.",
    "a/b.",
    "CON",
    "nul",
    "Aux.txt",
    "lpt1.tar.gz",
    "a/com9",
    "a.safetensors",
    "1.SafeTensors/b",
    "s3://bucket",
]


@pytest.mark.parametrize("name", GOOD)
def test_a_name_is_taken(name):
    assert check_name(name) == name and is_name(name)
    assert parse_reference(name) == parse_reference(f"{name}@latest") == Reference(name)
    assert parse_reference(f"{name}@12") == Reference(name, version=12)
    assert parse_reference(f"{name}@prod") == Reference(name, alias="prod")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_folder_everywhere_is_refused(name):
    assert not is_name(name)
    for text in (name, f"{name}@1", f"{name}@prod"):
        with pytest.raises(ReferenceNameError):
            parse_reference(text)


@pytest.mark.parametrize("tag", ["", "0", "-1", "01", "³", "9999999999", "a/b", "..", "a@b", "@", "v 1", "nul"])
def test_what_is_no_version_and_no_alias_is_refused(tag):
    with pytest.raises(ReferenceNameError):
        parse_reference(f"a@{tag}")


@pytest.mark.parametrize("alias", ["1", "007", "latest", "", "a/b", "..", "@a", "CON", "x" * 65])
def test_an_alias_hides_no_version(alias):
    with pytest.raises(ReferenceNameError):
        check_alias(alias)


@pytest.mark.parametrize("version", [0, -1, True, 1.5, "x", 10**9])
def test_a_version_counts_from_one(version):
    with pytest.raises(ReferenceNameError):
        check_version(version)

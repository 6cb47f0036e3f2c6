"""What the environment may say, and which vLLM is taken."""

import pytest

from polyvera.errors import SpecError
from polyvera.vllm.settings import Settings, check_version


def read(**environment):
    return Settings.read(environment)


def test_all_that_can_be_served_is_served_unless_said_otherwise():
    assert read() == Settings(store="", rank=256, vectors=True, gain=True, matrices=True)


@pytest.mark.parametrize(
    ("methods", "vectors", "gain", "matrices"),
    [
        ("vera", True, False, False),
        ("dvora", True, True, False),
        ("lora", False, False, True),
        ("vera, lora", True, False, True),
        ("none", False, False, False),
    ],
)
def test_methods_choose_what_a_slot_holds(methods, vectors, gain, matrices):
    found = read(POLYVERA_METHODS=methods)
    assert (found.vectors, found.gain, found.matrices) == (vectors, gain, matrices)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("POLYVERA_METHODS", "verra", "did you mean 'vera'"),
        ("POLYVERA_METHODS", "dora", "these are served"),
        ("POLYVERA_METHODS", "vera,", "these are served"),
        ("POLYVERA_RANK", "0", "whole number"),
        ("POLYVERA_RANK", "-1", "whole number"),
        ("POLYVERA_RANK", "a lot", "whole number"),
        ("POLYVERA_RANK", "1000000", "whole number"),
    ],
)
def test_what_cannot_be_is_refused(name, value, why):
    with pytest.raises(SpecError, match=why):
        read(**{name: value})


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.1", "0.32.0.dev3+gabc"])
def test_tested_releases_are_taken(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.3", "dev", ""])
def test_other_releases_are_refused(version):
    with pytest.raises(SpecError, match=r"at least 0\.32 and below 0\.33"):
        check_version(version)

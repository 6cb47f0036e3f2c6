"""The file of keys."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyvera.errors import AccessError, KeyFileError, ServeError
from polyvera.server.api_keys import EVERYONE, Caller, KeyFile, KeyRates, rates_text, read_keys


def test_a_key_is_known_and_its_secret_is_nowhere(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "new" / "keys.json")
    secret, key = file.add("acme", ["acme/*", "shared/one"], base=True, days=1)
    caller = file.caller(secret)
    assert caller.tenant == "acme" and caller.base and not caller.admin
    assert caller.sees("acme/x/y") and caller.sees("shared/one")
    assert not caller.sees("shared/one/more") and not caller.sees("acm") and not caller.sees("globex/x")
    assert secret not in file.path.read_text() and len(secret) > 40
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert EVERYONE.sees("anything") and key.id in file.path.read_text()


def test_a_key_has_its_rates_and_one_without_is_written_as_before(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, plain = file.add("acme", ["acme/*"])
    assert "weight" not in file.path.read_text() and "per_minute" not in file.path.read_text()
    secret, key = file.add("acme", ["acme/*"], weight=2.5, rates=KeyRates(60, None, 1_000_000))
    caller = file.caller(secret)
    assert (caller.key, caller.weight, caller.rates) == (key.id, 2.5, KeyRates(60, None, 1_000_000))
    assert rates_text(key) == "60 requests/min, 1,000,000 tokens/day, weight 2.5" and rates_text(plain) == "none"
    for wrong in ({"weight": 0.0}, {"rates": KeyRates(0)}, {"rates": KeyRates(tokens_per_day=-1)}):
        with pytest.raises(ServeError, match="weight|per_minute|per_day"):
            file.add("acme", ["acme/*"], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", ["", "pv-", "x" * 10_000, "\udcff"])
def test_another_key_is_unknown(tmp_path: Path, secret: str) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add("acme", ["*"])
    with pytest.raises(AccessError) as caught:
        file.caller(secret)
    assert type(caught.value) is AccessError


def test_changes_of_another_process_are_seen(tmp_path: Path) -> None:
    here, there = KeyFile(tmp_path / "keys.json"), KeyFile(tmp_path / "keys.json")
    secret, key = there.add("acme", ["acme/*"])
    assert here.caller(secret).tenant == "acme"
    there.remove(key.id)
    with pytest.raises(AccessError):
        here.caller(secret)
    with pytest.raises(ServeError, match="no key"):
        there.remove(key.id)


def test_a_file_that_cannot_be_read_lets_nobody_in_until_it_can(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    secret, _ = file.add("acme", ["acme/*"])
    whole = file.path.read_bytes()
    assert file.caller(secret)
    file.path.write_text("{")
    for _ in range(2):
        with pytest.raises(KeyFileError, match="no file of keys"):
            file.caller(secret)
    file.path.unlink()
    file.path.symlink_to("keys.json")
    with pytest.raises(KeyFileError, match="cannot be read"):
        file.caller(secret)
    file.path.unlink()
    os.mkfifo(file.path)
    with pytest.raises(KeyFileError, match="not a regular file"):
        file.caller(secret)
    file.path.unlink()
    file.path.write_bytes(whole)
    assert file.caller(secret)
    file.path.unlink()
    with pytest.raises(AccessError):
        file.caller(secret)


def test_none_is_lost_where_many_add(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: KeyFile(tmp_path / "keys.json").add(f"t{i}", ["*"]), range(24)))
    assert {key.tenant for key in read_keys(tmp_path / "keys.json")} == {f"t{i}" for i in range(24)}


@pytest.mark.parametrize(
    ("tenant", "pattern"), [("", "*"), ("../x", "*"), ("a b", "*"), ("a", "../*"), ("a", "*x"), ("a", "")]
)
def test_hostile_tenants_and_patterns_are_refused(tmp_path: Path, tenant: str, pattern: str) -> None:
    with pytest.raises(ServeError):
        KeyFile(tmp_path / "keys.json").add(tenant, [pattern])
    assert not (tmp_path / "keys.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}x", json.dumps({"keys": [{"sha256": "x"}]}), json.dumps({"kees": []})])
def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(ServeError, match="keys"):
        read_keys(tmp_path / "keys.json")


def test_what_a_tenant_trained_is_in_its_own_scope_alone() -> None:
    acme, operator = Caller("acme", ("acme/*",), base=False, admin=False), Caller("op", ("*",), base=True, admin=True)
    assert acme.sees("ft/acme/x") and EVERYONE.sees("ft/acme/x")
    assert not any(operator.sees(name) for name in ("ft/acme/x", "ft/acme"))
    assert not Caller("acm", ("ft/*",), base=False, admin=True).sees("ft/acme/x")
    assert not Caller("", (), base=False, admin=False).sees("ft/acme/x") and operator.sees("ft")

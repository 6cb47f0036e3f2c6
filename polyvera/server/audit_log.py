"""AuditLog: who changed what: publishes, removals, aliases and keys."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyvera.server.api_keys import Caller
from polyvera.server.json_lines import JsonLines

log = logging.getLogger("polyvera.audit")


class AuditLog:
    """A line of JSON for each change, in a file if there is one and always in the log `polyvera.audit`, level INFO.

    Any number of threads; it waits for the disk. A change that cannot be written is in the log as an error.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lines = None if path is None else JsonLines(path)

    def write(self, caller: Caller, action: str, **what: Any) -> None:
        """One change that was made. action: such as 'publish'. what: its object."""
        self._write({"tenant": caller.tenant, "key": caller.key, "action": action, **what})

    def keys_changed(self, added: Iterable[str], removed: Iterable[str]) -> None:
        """The file of keys has changed: ids of keys."""
        self._write({"action": "keys", "added": sorted(added), "removed": sorted(removed)})

    def _write(self, row: dict[str, Any]) -> None:
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **row}
        log.info("%s", json.dumps(row))
        if self._lines is not None:
            try:
                self._lines.write(row)
            except OSError as error:
                log.error("%s is not in the audit log: %s", json.dumps(row), error.strerror)

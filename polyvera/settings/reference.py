"""The reference page of a settings model: every name, type, bound, default and environment variable."""

from __future__ import annotations

from collections.abc import Iterator

from polyvera.settings.field import Setting
from polyvera.settings.model import SettingsModel

HEAD = "| key | flag | type | default | environment | meaning |\n| --- | --- | --- | --- | --- | --- |"


def page(model: type[SettingsModel], title: str, intro: str) -> str:
    """The page in Markdown: a table for each group."""
    settings = {path: one for path, one in model.settings().items() if not _is_table(path, model)}
    groups = dict.fromkeys(one.about.group for one in settings.values())
    tables = ["\n".join(_table(group, settings)) for group in groups]
    return "\n\n".join([f"# {title}", intro, *tables]) + "\n"


def _is_table(path: str, model: type[SettingsModel]) -> bool:
    return any(other.startswith(f"{path}.") for other in model.settings())


def _table(group: str, settings: dict[str, Setting]) -> Iterator[str]:
    yield f"## {group}\n"
    yield HEAD
    for path, one in settings.items():
        if one.about.group == group:
            names = (path, *one.about.aliases)
            keys = ", ".join(f"`{name}`" for name in names)
            flags = ", ".join(f"`--{name.replace('.', '-').replace('_', '-')}`" for name in names)
            default = f"`{one.default_text}`" if one.default_text else ""
            cells = (keys, flags, one.type_text, default, f"`{one.env}`", one.about.text)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

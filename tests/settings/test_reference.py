from tiny_settings import Bakery

from polyvera.settings.reference import page


def test_every_setting_is_a_line_with_all_its_names() -> None:
    text = page(Bakery, "Bakery", "What a bakery is.")
    assert text.startswith("# Bakery\n\nWhat a bakery is.\n\n## Shop\n")
    assert (
        "| `loaves`, `bread_size` | `--loaves`, `--bread-size` | integer ≥ 1 |  | `BAKERY_LOAVES` | Loaves a day. |"
        in text
    )
    assert "| `flour` | `--flour` | `rye` or `wheat` | `rye` | `FLOUR` | What it is made of. |" in text
    for path in Bakery.settings():
        assert (f"| `{path}`" in text) == (path != "oven")

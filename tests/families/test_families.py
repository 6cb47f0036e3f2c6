"""The law over all families: each way that a model goes gives what it should, or is refused before the first step."""

import pytest
import transformers
from cells import cells_of
from family import Family
from family_rows import ROWS
from matrix import line_of, lines, write


@pytest.mark.parametrize("name", ROWS)
def test_a_family_is_equal_or_refused(name, tmp_path):
    transformers.utils.logging.disable_progress_bar()
    family = Family(ROWS[name], tmp_path)
    cells = [(*cell[:3], cell[3].replace(str(tmp_path), "")) for cell in cells_of(family)]
    assert [cell for cell in cells if cell[3].startswith("failed")] == []
    line = line_of(name, type(family.model).__name__, family.experts, cells)
    if lines().get(name) != line:
        write(name, line)
        pytest.fail(f"docs/families.md said otherwise of {name}, and now says what came out: look at the difference")


def test_the_page_has_every_family_and_no_other():
    assert set(lines()) == set(ROWS)

"""What is said of an alignment is what was found."""

from pathlib import Path

from polyvera.align.mutual_knn import Alignment
from polyvera.align.report import draw, rows, to_json, upper, verdict

FOUND = Alignment(((0.1, 0.2), (0.5, 0.3)), (0.1, 0.15, 0.2), 10, 101)
MODELS = ("a", "b")


def test_numbers_and_words_agree(tmp_path: Path) -> None:
    told = to_json(FOUND, MODELS, "text")
    assert (told["score"], told["layers"], told["p"], told["chance"]) == (0.5, [1, 0], 0.25, 0.1)
    assert told["null_95"] == upper(FOUND) == 0.2
    assert [row["score"] for row in rows(FOUND, MODELS)] == ["0.200", "0.500"]
    assert "layers 1 and 0 share 50.0%" in verdict(FOUND) and "p = 0.25" in verdict(FOUND)
    assert draw(FOUND, MODELS, tmp_path / "map.png").stat().st_size > 1000

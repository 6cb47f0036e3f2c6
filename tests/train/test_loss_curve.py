from pathlib import Path

import pytest
from PIL import Image

from polyvera.train.loss_curve import History, draw, smoothed


def test_a_curve_is_drawn(tmp_path: Path) -> None:
    history = History(tuple((i, 3 / i) for i in range(1, 40)), ((10, 0.6), (20, 0.3), (39, 0.35)))
    with Image.open(draw(history, tmp_path / "curve.png", "vera of tiny")) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20)}
        assert image.size == (840, 480)
    assert {(0x1F, 0x4E, 0x9C), (0xC4, 0x50, 0x1B)} <= colours  # training and validation


def test_a_run_of_one_step_has_a_curve(tmp_path: Path) -> None:
    assert draw(History(((1, 2.0),)), tmp_path / "curve.png", "one").exists()


def test_smoothing_starts_at_the_first_loss_and_follows() -> None:
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0] * 3)
    assert smoothed([4.0, 2.0])[1] == pytest.approx((0.9 * 4 + 2) / 1.9)
    assert History(((1, 4.0), (2, 2.0))).recent(1) == 2.0

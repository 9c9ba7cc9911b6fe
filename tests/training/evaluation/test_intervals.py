import pytest

from training.evaluation.intervals import mean, proportion, text


def test_shares_have_wilson_s_interval():
    cell = proportion([True] * 80 + [False] * 20)
    assert cell == {"percent": 80.0, "low": 71.1, "high": 86.7, "n": 100}  # Wilson 1927, as published tables give it
    assert text(cell) == "80.0 % (71.1-86.7)"


def test_means_have_a_bootstrap_interval():
    """For many values it comes near mean +- 1.96 standard errors: here 0.5 +- 1.96 * 0.5 / sqrt(400)."""
    cell = mean([0.0, 1.0] * 200)
    assert (cell["mean"], cell["n"]) == (0.5, 400)
    assert cell["low"] == pytest.approx(0.451, abs=0.006)
    assert cell["high"] == pytest.approx(0.549, abs=0.006)
    assert text(mean([0.25])) == "0.250 (0.250-0.250)"


def test_nothing_counted():
    assert proportion([]) == mean([]) == {"n": 0}
    assert text({"n": 0}) == "-"

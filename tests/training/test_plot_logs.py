import json

import pytest
from PIL import Image

from training import plot_logs


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_step_logged_twice_counts_as_it_was_last(tmp_path):
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "runtime": 9}]
    assert plot_logs.read_column(write(tmp_path / "log.jsonl", rows), "loss") == ([1, 2], [3.0, 1.5])


def test_curves_are_drawn_and_a_missing_column_is_refused(tmp_path, monkeypatch, capsys):
    log, out = write(tmp_path / "log.jsonl", [{"step": s, "loss": 1 / s} for s in range(1, 9)]), tmp_path / "plot.png"
    monkeypatch.setattr("sys.argv", ["plot_logs", str(log), "--out", str(out)])
    plot_logs.main()
    assert len(set(Image.open(out).convert("RGB").getdata())) > 3
    monkeypatch.setattr("sys.argv", ["plot_logs", str(log), "--column", "psnr", "--out", str(out)])
    with pytest.raises(SystemExit):
        plot_logs.main()
    assert "no log has a column 'psnr'" in capsys.readouterr().err

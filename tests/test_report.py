"""Reports and figures: what is written can be read back, is all or nothing, and draws what the data says."""

import errno
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from reprogram import plot
from reprogram.errors import DataError
from reprogram.train import History
from tasks.metrics import Estimate, evaluate
from tasks.report import Report, Row, available_cores, measured, plain, show

RNG = np.random.default_rng(0)
Y = RNG.normal(size=30)
P = Y + RNG.normal(scale=0.3, size=30)


@pytest.fixture
def report():
    rows = [
        *measured("good", "reprogrammed", evaluate("regression", Y, P, seed=3), seed=3, seconds=1.25, train_size=50),
        *measured("bad", "baseline", evaluate("regression", Y, -P, seed=3), seed=3, train_size=50),
        Row("broken", "control", "rmse", math.nan, math.nan, math.nan, 0, 3),
    ]
    return Report("toy", "regression", "kcal/mol", tuple(rows), ("good wins.",), data={"read": 31, "kept": 30})


def test_rows_carry_value_interval_n_seed_and_cost(report):
    frame = report.to_frame()
    expected = {"metric", "value", "low", "high", "n", "seed", "method", "group", "seconds", "train_size"}
    assert set(frame.columns) == expected
    row = frame[(frame["method"] == "good") & (frame["metric"] == "rmse")].iloc[0]
    assert row["value"] == pytest.approx(np.sqrt(np.mean((Y - P) ** 2)))
    assert row["low"] < row["value"] < row["high"] and row["n"] == 30 and row["seed"] == 3


def test_ranked_knows_which_way_a_metric_points(report):
    assert [row.method for row in report.ranked()] == ["good", "bad", "broken"]
    assert [row.method for row in report.ranked("r2")] == ["good", "bad"]


def test_json_is_standard_has_a_schema_and_comes_back(report, tmp_path):
    folder = report.write(tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.md"]
    content = json.loads((folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert list(content) == [
        "schema", "task", "kind", "metric", "units", "rows", "verdict", "notes", "data", "versions", "cores",
    ]  # fmt: skip
    assert content["schema"] == 1 and content["cores"] == available_cores() and "torch" in content["versions"]
    assert content["rows"][-1]["value"] is None
    again = Report.read(folder)
    assert again.rows[:-1] == report.rows[:-1] and math.isnan(again.rows[-1].value)
    assert again.to_dict() == report.to_dict()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99, "rows": []}', '{"schema": 1, "rows": [{"x": 1}]}'])
def test_a_damaged_report_is_one_sentence(content, tmp_path):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match=r"^expected .*report") as caught:
        Report.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_markdown_shows_the_best_first_with_intervals_and_units(report):
    text = report.to_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| method | group | rmse | mae | r2 | seconds |"
    assert lines[2].startswith("| good | reprogrammed | ") and lines[2].endswith(" 1.2 |") and "[" in lines[2]
    assert lines[4].startswith("| broken | control | – | – | – |")
    assert "- good wins." in text and "kcal/mol" in text and "seed 3" in text


def test_nothing_is_left_when_the_disk_is_full(report, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(DataError, match="No space left"):
        report.write(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_show_and_plain_handle_what_does_not_exist():
    nan = math.nan
    assert show(None) == "–" and show(Estimate(nan, nan, nan, 0)) == "–"
    assert show(Estimate(1.2345, 1.0, 1.5, 9)) == "1.23 [1, 1.5]" and show(Estimate(2.0, nan, nan, 1)) == "2"
    assert plain({1: (np.float32(0.5), math.inf, np.int64(3), "a")}) == {"1": [0.5, None, 3, "a"]}


def test_parity_draws_points_line_and_intervals():
    ax = plot.parity(Y, P, low=P - 1, high=P + 1, units="kcal/mol", name="toy")
    assert ax.get_xlabel() == "measured (kcal/mol)" and ax.get_ylabel() == "predicted (kcal/mol)"
    points, bars = ax.collections[1].get_offsets(), ax.collections[0].get_segments()
    np.testing.assert_allclose(points, np.c_[Y, P])
    assert len(bars) == 30 and bars[0][1][1] - bars[0][0][1] == pytest.approx(2)
    assert ax.get_xlim() == ax.get_ylim()
    assert f"RMSE {np.sqrt(np.mean((Y - P) ** 2)):.2f}" in ax.texts[0].get_text()


def test_parity_leaves_out_missing_labels_and_refuses_other_lengths():
    y = Y.copy()
    y[:5] = np.nan
    assert len(plot.parity(y, P).collections[0].get_offsets()) == 25
    for broken in ([1.0], []):
        with pytest.raises(DataError, match="equal length"):
            plot.parity(Y, broken)
    with pytest.raises(DataError):
        plot.parity(np.full(30, np.nan), P)


def test_history_marks_the_epoch_kept():
    rows = [{"epoch": i, "train_loss": 3.0 - i, "validation_loss": 1 + (i - 2) ** 2} for i in range(5)]
    ax = plot.history(History(rows, 2))
    first, second = ax.figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("validation loss", "training loss")
    assert "epoch 3 kept" in ax.get_title()
    alone = plot.history(History([{"epoch": 0, "train_loss": 1.0}], 0))
    assert len(alone.figure.axes) == 1 and alone.get_ylabel() == "training loss"
    with pytest.raises(DataError, match="closed-form"):
        plot.history(History())


def test_comparison_puts_the_best_on_top_and_tells_groups_apart(report):
    ax = report.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["good", "bad"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and "RMSE (kcal/mol)" in ax.get_xlabel()
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"reprogrammed", "baseline"}
    colours = [c for c, _ in plot.GROUPS.values()]
    assert len(set(colours)) == len(plot.GROUPS) == len({m for _, m in plot.GROUPS.values()})
    with pytest.raises(DataError):
        plot.comparison(report.to_frame().iloc[-1:])


def test_comparison_of_a_metric_where_more_is_better():
    frame = pd.DataFrame({"method": ["a", "b"], "group": "baseline", "value": [0.6, 0.9], "low": 0.5, "high": 1.0})
    ax = plot.comparison(frame, larger_is_better=True)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"] and "higher is better" in ax.get_xlabel()


def test_learning_curve_draws_one_line_per_method_at_the_sizes_measured():
    frame = pd.DataFrame(
        [
            {"method": m, "train_size": n, "metric": "rmse", "value": 100 / n, "low": 0, "high": 3}
            for m in "ab"
            for n in (50, 100)
        ]
    )
    ax = plot.learning_curve(frame)
    assert [line.get_label() for line in ax.get_lines()] == ["a", "b"]
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [2, 1])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["50", "100"]
    with pytest.raises(DataError):
        plot.learning_curve(frame.iloc[:0])


def test_figures_are_saved_whole_and_without_pyplot_state(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    path = plot.save(plot.parity(Y, P), tmp_path / "parity.png")
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["parity.png"]
    assert ("matplotlib.pyplot" in sys.modules) == before
    with pytest.raises(DataError, match="ends in"):
        plot.save(plot.parity(Y, P), tmp_path / "parity.xyz")


def test_figures_use_the_axes_they_are_given():
    from matplotlib.figure import Figure

    axes = Figure().subplots(1, 2)
    assert plot.parity(Y, P, ax=axes[0]) is axes[0]
    assert plot.history(History([{"epoch": 0, "train_loss": 1.0}], 0), ax=axes[1]) is axes[1]

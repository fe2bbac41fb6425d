"""Charts: data URIs of SVGs, and the numbers that they show."""

import base64
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.projections.polar import PolarAxes

from core.config import load_settings
from evaluation.statistics import clustered_standard_error
from reporting import charts

TABLE = pd.DataFrame(
    {
        "image_id": [f"{group}_{view:02d}" for group in "abcd" for view in range(1, 5)],
        "group": [group for group in "abcd" for _ in range(4)],
        "view": [f"{view:02d}" for _ in "abcd" for view in range(1, 5)],
        "fold": [fold for fold in (0, 1, 0, 1) for _ in range(4)],
        "dice": np.random.default_rng(0).uniform(0.9, 1, 16),
        "area": np.linspace(0.1, 0.2, 16),
    }
)
CARS = pd.DataFrame({"make": ["Ford", "Ford", "Fiat"]}, index=["a", "b", "c"])


def decode(chart):
    assert chart.uri.startswith("data:image/svg+xml;base64,")
    return base64.b64decode(chart.uri.split(",")[1]).decode()


def test_chart_is_an_svg_with_text_and_equal_data_give_equal_bytes():
    chart = charts.draw_areas(TABLE)
    assert "mask, % of the image" in decode(chart) and chart.caption == "Dice by area of the mask"
    assert charts.draw_areas(TABLE) == chart
    assert charts.draw_areas(TABLE.assign(dice=0.5)) != chart


def test_mean_dice_by_returns_mean_clustered_error_and_number_of_groups():
    by_make = charts.mean_dice_by(TABLE.assign(make=TABLE["group"].map(CARS["make"])), "make")
    ford = TABLE[TABLE["group"].isin(["a", "b"])]
    error = clustered_standard_error(ford["dice"].to_numpy(), ford["group"].to_numpy(str))
    assert by_make.loc["Ford"].tolist() == pytest.approx([ford["dice"].mean(), error, 2])
    assert by_make.loc["Fiat", ["error", "groups"]].tolist() == [0, 1]
    assert list(by_make.index) == ["Fiat", "Ford"]  # the make of group d is not known


def test_breakdown_charts_are_those_that_the_table_allows():
    def captions(table, cars=None):
        return [chart.caption.split(".")[0] for chart in charts.breakdown_charts(table, cars)]

    views, folds, makes = "1 − Dice by view", "Dice by fold", "Mean Dice by make"
    assert captions(TABLE)[0].startswith(views) and len(captions(TABLE)) == 4
    assert captions(TABLE, CARS)[-1].startswith(makes)
    assert captions(TABLE, CARS.set_axis(["x", "y", "z"])) == captions(TABLE)  # of other cars
    named = TABLE.assign(view="left").drop(columns="area")
    assert captions(named) == [folds, "Number of images by Dice"]


def test_draw_confusion_matrix_names_the_classes():
    svg = decode(charts.draw_confusion_matrix(np.diag([5, 0]), ("road", "a $a_$")))
    assert svg.count("road") == svg.count("a $a_$") == 2


def record_calls(monkeypatch, name):
    """Replace a method of Axes; return the list of the arguments that it is called with."""
    calls, method = [], getattr(Axes, name)

    def call(self, *args, **options):
        calls.append(args)
        return method(self, *args, **options)

    monkeypatch.setattr(Axes, name, call)
    return calls


def test_confusion_matrix_shows_fractions_of_the_true_class(monkeypatch):
    shown = record_calls(monkeypatch, "imshow")
    charts.draw_confusion_matrix(np.array([[6, 2], [0, 4]]), ("road", "car"))
    assert shown[0][0].tolist() == [[0.75, 0.25], [0, 1]]


def test_learning_curve_of_a_run_is_the_mean_of_its_folds(monkeypatch):
    drawn, epoch = [], pd.Index([1], name="epoch")
    monkeypatch.setattr(charts, "draw_errors", lambda panel, *_: drawn.append(panel))
    monkeypatch.setattr(charts, "draw_losses", lambda *_: None)
    folds = {k: pd.DataFrame({"loss": [loss]}, index=epoch) for k, loss in ((0, 1.0), (1, 3.0))}
    monkeypatch.setattr(charts, "load_histories", lambda folder: folds)
    scores = SimpleNamespace(is_binary=True)
    charts.learning_curves(
        load_settings(["run=a"]), [SimpleNamespace(name=name, scores=scores) for name in "ab"]
    )
    assert drawn[-1]["b"]["loss"].tolist() == [2.0]


def test_areas_are_drawn_in_percent(monkeypatch):
    drawn = record_calls(monkeypatch, "plot")
    charts.draw_areas(TABLE)
    assert drawn[0][0].tolist() == pytest.approx((100 * TABLE["area"]).tolist())


def test_views_are_drawn_clockwise_in_the_order_of_their_numbers(monkeypatch):
    ticks, directions = [], []
    views = [str(view) for view in range(1, 13)]
    monkeypatch.setattr(PolarAxes, "set_xticks", lambda self, at, names: ticks.extend(names))
    monkeypatch.setattr(PolarAxes, "set_theta_direction", lambda self, d: directions.append(d))
    by_view = pd.DataFrame({"dice": 0.9, "error": 0.1}, index=pd.Index(sorted(views), name="view"))
    charts.draw_views(by_view)
    assert ticks[-12:] == views and directions[-1] == -1

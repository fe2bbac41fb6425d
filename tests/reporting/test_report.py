"""The report of two runs and their ensemble; its page in a browser, if one is installed."""

import base64
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import assert_input_error, once_per_session
from conftest import tiny_settings_args as tiny_args
from tiny_datasets import make_data

import leaderboard
import predict
import report
import train
from core.errors import InputError
from inference.postprocess import Binarizer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    """Output folder of two runs a and b, their ensemble, its submission and report. Read-only."""

    def make_report(folder):
        args = tiny_args(make_data(folder / "data"), folder / "output")
        train.main([*args, "run=a"])
        train.main([*args, "run=b", "epochs=2", "seed=1"])
        both = [f"output_dir={folder / 'output'}", "runs=[b,a]"]
        predict.main(both)
        leaderboard.main(both[:1])
        report.main(both)

    return once_per_session(tmp_path_factory, "report", make_report) / "output"


@pytest.fixture
def output_copy(output_dir, tmp_path):
    """A copy of `output_dir`, which the test may change."""
    return shutil.copytree(output_dir, tmp_path / "output")


def read_page(output_dir):
    return (output_dir / "report.html").read_text(encoding="utf-8")


def load(output_dir, *args):
    return report.load_report(report.report_settings([f"output_dir={output_dir}", *args]))


# ---------------------------------------------------------------- prediction and leaderboard


def test_predict_of_two_runs_scores_their_ensemble_first_and_weighs_them_equally(output_dir):
    folder = output_dir / "a+b"
    ensemble = json.loads((folder / "ensemble.json").read_text())
    submission = json.loads((folder / "submission.json").read_text())
    assert submission["runs"] == ensemble["runs"] == ["a", "b"]
    weight_by_run = dict.fromkeys("ab", 0.0)
    for path, weight in submission["weights"].items():
        weight_by_run[path.split("/")[-3]] += weight
    assert weight_by_run == pytest.approx({"a": 0.5, "b": 0.5})


# ---------------------------------------------------------------- the page


def test_report_loads_nothing_and_shows_the_worst_images_first(output_dir):
    page = read_page(output_dir)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "url(http" not in page
    oof = pd.read_csv(output_dir / "a+b" / "oof.csv").set_index("image_id")
    cards = re.findall(r'<article class="card" id="([^"]+)"', page)
    assert sorted(cards[: len(oof)]) == sorted(oof.index)
    shown = [float(dice) for dice in re.findall(r"<li>Dice ([\d.]+)</li>", page)]
    assert len(shown) == len(oof) and shown == sorted(shown)  # at the threshold of the page
    assert len(cards) == len(oof) + 6  # the test images
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_report_shows_scores_costs_and_differences_of_all_runs(output_dir):
    page = read_page(output_dir)
    dice = pd.read_csv(output_dir / "a+b" / "oof.csv")["oof_dice"].mean()
    assert f'<p class="headline">Dice {dice:.5f}</p>' in page
    for text in (
        "95% prediction interval for the mean over 2 new groups",
        "Pairwise differences",
        "Cost",
    ):
        assert text in page
    for run in ("a", "b", "a+b"):
        assert page.count(f"<td>{run}</td>") >= 4  # scores, costs and two differences
    assert "bash train.sh" in page and "leaderboard.py runs=a,b" in page


def test_report_draws_every_chart_as_an_image_with_a_caption(output_dir):
    charts = re.findall(
        r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"><figcaption>\2<',
        read_page(output_dir),
    )
    captions = [caption for _, caption in charts]
    starts = ["Mean Dice at each threshold", "1 − score by epoch", "Training loss by epoch"]
    starts += ["1 − Dice by view", "Dice by fold", "Number of images by Dice", "Dice by area"]
    for start in starts:
        assert any(caption.startswith(start) for caption in captions), start
    assert sum(caption.startswith("Training loss") for caption in captions) == 3  # a, b, both
    assert all(b"</svg>" in base64.b64decode(code) for code, _ in charts)


def test_report_without_runs_is_about_the_first_of_the_leaderboard(output_dir):
    settings = report.report_settings([f"output_dir={output_dir}"])
    assert settings.run == pd.read_csv(output_dir / "leaderboard.csv")["run"][0]


def test_report_writes_suspected_label_errors_with_the_paths_of_their_masks(output_copy):
    loaded = load(output_copy, "run=a")
    loaded.scores.histograms[0] = 0
    loaded.scores.histograms[0, 0, 255] = 1000  # confidently foreground, but not in the mask
    loaded.scores.histograms[0, 1, 0] = 1000  # and the opposite
    image_id = loaded.scores.table["image_id"][0]
    suspect = loaded.suspects.iloc[0]
    assert suspect["image_id"] == image_id
    assert suspect["mask"].name == f"{image_id}_mask.gif" and suspect["mask"].exists()
    loaded_page = report.render_page(loaded)
    assert f'<a href="#{image_id}">{image_id}</a>' in loaded_page
    assert str(suspect["mask"]) not in loaded_page


def test_report_of_one_group_has_no_interval(output_copy):
    loaded = load(output_copy, "run=a")
    loaded.scores.table["group"] = "one"
    assert "Not enough groups for an interval." in report.render_page(loaded)


SELF_TEST = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(event.message));
window.addEventListener("load", () => {
  const table = [...document.querySelectorAll("table")].find(t => t.rows.length > 3);
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim());
  const header = table.tHead.rows[0].cells[0];
  const click = () => { header.querySelector("button").click(); return header.ariaSort; };
  const sorted = [click(), column(), click(), column()];
  const loaded = [...document.images].filter(image => image.naturalWidth > 0).length;
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const result = {errors, sorted, loaded, images: document.images.length, wide};
  document.body.dataset.result = btoa(JSON.stringify(result));
});
</script>"""


def open_in_browser(page, width, folder):
    """Return the result of SELF_TEST in the page, and what the browser logs about the page."""
    html = page.replace('loading="lazy"', "")  # so that the load event waits for every image
    path = folder / "report.html"
    path.write_text(html.replace("<title>", SELF_TEST + "<title>", 1), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update"]
    options += [f"--user-data-dir={folder / 'browser'}", f"--window-size={width},900"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    completed = subprocess.run(
        [CHROMIUM, *options, path.as_uri()], capture_output=True, text=True, timeout=120
    )
    result = re.search(r'data-result="([^"]+)"', completed.stdout)
    assert result, completed.stderr[-2000:]
    log = [line for line in completed.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(base64.b64decode(result[1])), log


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_report_in_a_browser_loads_its_images_and_sorts_tables(output_dir, tmp_path, width):
    result, log = open_in_browser(read_page(output_dir), width, tmp_path)
    assert not result["errors"] and not log
    assert result["loaded"] == result["images"] > 10
    first, ascending, second, descending = result["sorted"]
    assert (first, second) == ("ascending", "descending")
    assert ascending == sorted(ascending) and descending == ascending[::-1]
    assert not result["wide"]  # the page itself does not scroll sideways


# ---------------------------------------------------------------- tables


def test_tables_escape_cells_and_leave_nan_empty(output_copy):
    loaded, long = load(output_copy, "run=a"), "x" * 200
    table = pd.DataFrame({"group": ["a<b", "c"], "dice": [0.5, np.nan], "reason": ["&", long]})
    loaded.group_table = lambda: table
    page = report.render_page(loaded)
    assert "<td>a&lt;b</td><td>0.50000</td><td>&amp;</td>" in page
    assert f"<td>c</td><td></td><td>{long}</td>" in page


def test_report_leaves_out_incomplete_test_images(output_copy, monkeypatch, capsys):
    def fail(settings):
        raise InputError("car_01.jpg: is missing")

    monkeypatch.setattr(report.datasets, "load_test_samples", fail)
    assert load(output_copy, "run=a").test_samples == []
    assert "the report is without test images: car_01.jpg: is missing" in capsys.readouterr().out


def test_group_table_lists_groups_worst_first_and_none_of_single_images(output_copy):
    loaded = load(output_copy, "run=a")
    loaded.cars = pd.DataFrame({"make": "Ford", "car": "2010 Ford Ka"}, index=["000000000001"])
    table = loaded.group_table()
    means = loaded.scores.table.groupby("group")["dice"].mean().sort_values()
    assert table["group"].tolist() == means.index.tolist()
    assert table["images"].eq(3).all() and table["mean Dice"].tolist() == means.tolist()
    assert table.set_index("group")["car"].to_dict()["000000000001"] == "2010 Ford Ka"
    loaded.scores.table["group"] = loaded.scores.table["image_id"]
    assert loaded.group_table() is None


# ---------------------------------------------------------------- the submission


def test_disagreement_section_lists_the_images_with_the_lowest_agreement(output_dir, monkeypatch):
    monkeypatch.setattr(report, "N_DISAGREEMENT", 2)
    summary, cards = load(output_dir, "runs=[a,b]").disagreement_section()
    stats = pd.read_csv(output_dir / "a+b" / "submission_stats.csv").nsmallest(2, "agreement")
    assert [f"{card.image_id}.jpg" for card in cards] == stats["img"].tolist()
    assert f"{stats['agreement'].iloc[0]:.5f}" in cards[0].lines[0]
    networks = json.loads((output_dir / "a+b" / "submission.json").read_text())["weights"]
    assert summary.startswith("The 2 images") and f"the {len(networks)} networks" in summary


def test_disagreement_section_without_submission_names_the_command(output_dir):
    summary, cards = load(output_dir, "run=b").disagreement_section()
    assert summary.startswith("There is no ") and not cards
    assert "`bash predict.sh runs=b`" in summary


@pytest.mark.parametrize("runs", [["a"], ["a", "b", "c"], {"a": 0.25, "b": 0.75}])
def test_disagreement_section_ignores_a_submission_of_other_runs_or_weights(output_copy, runs):
    path = output_copy / "a+b" / "submission.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"runs": runs}))
    summary, cards = load(output_copy, "runs=[a,b]").disagreement_section()
    assert "was made by other runs or weights" in summary and not cards
    assert "`bash predict.sh runs=a,b`" in summary


@pytest.fixture
def one_fold_of_few_images(tmp_path):
    args = tiny_args(make_data(tmp_path / "data"), tmp_path / "output")
    train.main([*args, "run=trial", "fold=0", "max_images=2", "epochs=1"])
    predict.main([f"output_dir={tmp_path / 'output'}", "run=trial"])
    return tmp_path / "output"


def test_report_of_one_network_trained_on_few_images(one_fold_of_few_images):
    loaded = load(one_fold_of_few_images, "run=trial")
    assert len(loaded.samples) == 4 and len(loaded.cards) == 2
    assert loaded.disagreement_section() == ("Disagreement needs two or more networks.", [])
    assert "networks of all folds together" not in report.render_page(loaded)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_report_with_a_damaged_submission_json_is_one_line(output_copy, text):
    path = output_copy / "a+b" / "submission.json"
    path.write_text(text)
    loaded = load(output_copy, "runs=[a,b]")
    with pytest.raises(InputError, match=r"submission\.json: cannot be read"):
        loaded.disagreement_section()


# ---------------------------------------------------------------- invalid input


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["runs=[a,nowhere]"], ["nowhere: has no trained fold", "train it with"]),
        (["runs=[a,b]", "postprocess=polish"], ["polish", "specks,largest,fill"]),
        (["run=a", "tta=none"], ["tta=none: a was scored with tta=hflip; set tta=hflip"]),
    ],
)
def test_report_rejects_invalid_settings(output_dir, args, parts):
    assert_input_error(report.main, [f"output_dir={output_dir}", *args], *parts)


@pytest.mark.parametrize("main", [leaderboard.main, report.main], ids=["leaderboard", "report"])
def test_scripts_without_a_run_name_the_folder(tmp_path, main):
    assert_input_error(
        main, [f"output_dir={tmp_path}"], str(tmp_path), "no run has a finished fold"
    )


def test_report_prints_the_path_and_the_run(output_copy, capsys):
    report.main([f"output_dir={output_copy}", "run=b"])
    assert capsys.readouterr().out.startswith(f"{output_copy / 'report.html'}: b, ")
    assert "<h1>b</h1>" in read_page(output_copy)


def test_disagreement_section_ignores_a_submission_for_other_test_images(output_copy):
    path = output_copy / "a+b/submission.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | {"data_dir": "/elsewhere"}))
    summary, cards = load(output_copy, "runs=[a,b]").disagreement_section()
    assert "has masks of /elsewhere; " in summary and not cards


def test_worst_images_are_those_at_the_threshold_of_the_page():
    levels = np.zeros((2, 2, 256), np.int64)
    levels[:, 0, 0], levels[1, 0, 240] = 90, 1
    levels[0, 1, 150] = levels[1, 1, 250] = 10  # at 0.8 only the second object is found
    table = pd.DataFrame({"image_id": ["a", "b"]})
    scores = SimpleNamespace(is_binary=True, histograms=levels, dice=None, table=table)
    page = SimpleNamespace(scores=scores, binarizer=Binarizer(0.8, []))
    assert report.Report.worst_ids.func(page) == ["a", "b"]


def test_suspects_are_shown_once():
    page = SimpleNamespace(worst_ids=["a"], suspects=pd.DataFrame({"image_id": ["a", "b"]}))
    assert report.Report.suspect_ids.func(page) == ["b"]

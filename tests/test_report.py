"""The real commands on a tiny data set: two runs, their ensemble, and the page, in a browser."""

import base64
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import make_data, refused, run_script, words_for

from evaluation import visualize
from inference import rle
from reporting import charts

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs a and b, judged together, a submission of both, and the report of the leader."""
    folder = tmp_path_factory.mktemp("report")
    data = make_data(folder / "data", cars=4)
    words = words_for(data, folder / "output")
    for run, more in (("a", []), ("b", ["epochs=2", "seed=1"])):
        done = run_script("train.py", *words, f"run={run}", *more)
        assert done.returncode == 0, done.stderr
    where = [f"output_dir={folder / 'output'}"]
    both = [*where, "runs=[b,a]"]
    for script, more in (("predict.py", both), ("report.py", both)):
        done = run_script(script, *more)
        assert done.returncode == 0, done.stderr
    return folder, where, done.stdout


def test_predict_judges_runs_that_were_not_and_takes_what_was_found(runs):
    folder, _, _ = runs
    judged = json.loads((folder / "output" / "a+b" / "ensemble.json").read_text())
    made = json.loads((folder / "output" / "a+b" / "submission.json").read_text())
    assert made["runs"] == judged["runs"] and sum(made["weights"].values()) == pytest.approx(1)
    by_run = dict.fromkeys(judged["runs"], 0.0)
    for path, weight in made["weights"].items():
        by_run[path.split("/")[-3]] += weight
    assert by_run == pytest.approx(judged["runs"])
    images = pd.read_csv(folder / "output" / "a+b" / "submission.images.csv")
    submission = pd.read_csv(folder / "output" / "a+b" / "submission.csv")
    assert images["img"].tolist() == submission["img"].tolist()
    areas = [rle.decode(text, (48, 72)).mean() for text in submission["rle_mask"].fillna("")]
    assert images["area"].tolist() == pytest.approx(areas, abs=1e-6)
    assert images["agreement"].between(0, 1).all()


def test_the_leaderboard_holds_runs_and_ensemble(runs):
    folder, where, _ = runs
    done = run_script("leaderboard.py", *where)
    table = pd.read_csv(folder / "output" / "leaderboard.csv")
    assert set(table["run"]) == {"a", "b", "a+b"} and table["dice"].is_monotonic_decreasing
    assert table["command"].str.contains("train.sh|leaderboard.py").all()
    text = (folder / "output" / "leaderboard.md").read_text()
    assert all(f"| {run} |" in text for run in ("a", "b", "a+b"))
    assert "post-processing of" in done.stdout


def test_the_page_needs_nothing_else_and_shows_the_worst_first(runs):
    folder, _, said = runs
    page = (folder / "output" / "report.html").read_text(encoding="utf-8")
    assert said.startswith(f"{folder / 'output' / 'report.html'}: a+b, ")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "url(http" not in page
    oof = pd.read_csv(folder / "output" / "a+b" / "oof.csv").sort_values("dice")
    shown = re.findall(r'<article class="card" id="([^"]+)"', page)
    assert shown[: len(oof)] == oof["image_id"].tolist()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert charts.TEXT_PLACEHOLDER not in page and charts.GRID_PLACEHOLDER not in page


SELF_TEST = """<script>
const faults = [];
window.addEventListener("error", event => faults.push(event.message));
window.addEventListener("load", () => {
  const table = [...document.querySelectorAll("table")].find(t => t.rows.length > 3);
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim());
  const head = table.tHead.rows[0].cells[0];
  head.querySelector("button").click();
  const up = column(), said = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  const found = {faults, up, down: column(), said, saidThen: head.getAttribute("aria-sort"),
    pictures: [...document.images].filter(image => image.naturalWidth > 0).length,
    images: document.images.length,
    wide: document.documentElement.scrollWidth > document.documentElement.clientWidth};
  document.body.dataset.found = btoa(JSON.stringify(found));
});
</script>"""


def in_browser(page, width, folder):
    """What the page's self-test found in a real browser, and what the browser complained of."""
    tested = folder / "tested.html"
    text = page.read_text(encoding="utf-8")
    text = text.replace('loading="lazy"', "")  # so that the load event waits for every picture
    tested.write_text(text.replace("<title>", SELF_TEST + "<title>", 1), encoding="utf-8")
    options = [f"--user-data-dir={folder / 'browser'}", f"--window-size={width},900"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *QUIET, *options, tested.as_uri()], capture_output=True, text=True, timeout=120
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    coded = re.search(r'data-found="([^"]+)"', done.stdout)
    assert coded, done.stderr[-2000:]
    return json.loads(base64.b64decode(coded[1])), complaints


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser_pictures_load_and_tables_sort(runs, tmp_path, width):
    found, complaints = in_browser(runs[0] / "output" / "report.html", width, tmp_path)
    assert not found["faults"] and not complaints
    assert found["pictures"] == found["images"] > 10
    assert found["up"] == sorted(found["up"]) and found["down"] == found["up"][::-1]
    assert (found["said"], found["saidThen"]) == ("ascending", "descending")
    assert not found["wide"]  # the page itself never scrolls sideways


def test_a_submission_of_other_runs_is_not_shown_as_these(runs):
    folder, where, _ = runs
    (folder / "output" / "b" / "submission.csv").unlink(missing_ok=True)
    done = run_script("report.py", *where, "run=b")
    assert done.returncode == 0, done.stderr
    page = (folder / "output" / "report.html").read_text(encoding="utf-8")
    assert "There is no" in page and "bash predict.sh runs=[b]" in page


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["runs=[a,nowhere]"], ["nowhere", "no trained fold"]),
        (["runs=[a,a]"], ["runs", "each once"]),
        (["runs=[a,b]", "postprocess=polish"], ["polish", "specks,largest,fill,hull"]),
        (["runs=[a,b]", "size=[8,8]"], ["size", "stored with the weights"]),
        (["threshold=2"], ["threshold=2", "below 1"]),
    ],
)
def test_wrong_words_end_in_one_line(runs, words, parts):
    refused(run_script("report.py", *runs[1], *words), *parts)


def test_no_run_is_said_so(tmp_path):
    for script in ("leaderboard.py", "report.py"):
        refused(run_script(script, f"output_dir={tmp_path}"), "no run has a finished fold")


def test_the_largest_error_is_in_the_zoom():
    truth = np.zeros((100, 150), bool)
    truth[20:60, 30:90] = True
    mask = truth.copy()
    mask[80:95, 120:150] = True  # invented in the corner
    mask[20:22, 30:40] = False  # and a little missed
    rows, columns = visualize.largest_error_window(mask, truth)
    assert rows.stop <= 100 and columns.stop == 150
    assert rows.start <= 80 and rows.stop >= 95 and columns.start <= 120
    assert (columns.stop - columns.start) / (rows.stop - rows.start) == pytest.approx(1.5, abs=0.1)
    assert visualize.largest_error_window(truth, truth) == (slice(0, 100), slice(0, 150))


def test_colours_mean_what_the_caption_says():
    image = np.full((40, 60, 3), 200, np.uint8)
    truth, mask = np.zeros((2, 40, 60), bool)
    truth[:20], mask[10:30] = True, True
    picture = visualize.error_map(image, mask, truth)
    assert (
        tuple(picture[5, 5]) == visualize.FALSE_NEGATIVE_COLOR
        and tuple(picture[25, 5]) == visualize.FALSE_POSITIVE_COLOR
    )
    assert tuple(picture[15, 5]) == tuple(picture[35, 5]) == (100, 100, 100)
    assert tuple(visualize.highlight_mask(image, mask)[15, 5]) == (200, 200, 200)
    share = np.zeros((40, 60))
    share[0], share[1] = 0.5, 1.0
    heat = visualize.disagreement_heatmap(image, share)
    assert heat[0].mean() > heat[1].mean() == heat[2].mean() == 100


def test_a_picture_stands_in_the_page_itself():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[..., 0] = 255
    uri, width, height = visualize.jpeg_data_uri(picture, 150)
    coded = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    back = cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB)
    assert back.shape == (height, width, 3) == (50, 150, 3)
    assert back[..., 0].mean() > 240 and back[..., 2].mean() < 15

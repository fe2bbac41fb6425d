"""Write output/report.html: out-of-fold scores and images of a run or an ensemble, on one page.

Without `run=`, `runs=` or `recipe=` it shows the leaderboard's top entry. The page opens offline.
"""

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import combinations
from pathlib import Path

from core import cli
from core.settings import Settings

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from core import config, provenance, run_folder
from core.errors import InputError
from core.files import atomic_write, atomic_write_text, file_sha256
from core.overrides import parse_overrides
from data import csv_files, datasets
from data.fingerprint import dataset_fingerprint
from data.sample import Sample
from evaluation import ensemble, label_errors, leaderboard, oof
from evaluation.leaderboard_entries import LeaderboardEntry, load_entries
from evaluation.metrics import dataset_scores, dice_curve, per_class, threshold_index
from evaluation.postprocess_choice import explain_steps
from evaluation.statistics import prediction_interval
from evaluation.submission import read_submission_json
from inference import load_runs
from inference.postprocess import Binarizer
from reporting import charts, gallery

N_WORST, N_SUSPECTS, N_DISAGREEMENT = 24, 12, 12  # images shown


@dataclass
class Report:
    """The context of report.html: its data, and the tables and images computed from it."""

    settings: Settings
    scores: oof.Scores  # out of fold
    binarizer: Binarizer
    entries: list[LeaderboardEntry]  # scored on the same images and folds, best first
    samples: list[Sample]
    test_samples: list[Sample]
    cars: pd.DataFrame | None  # make and car by group

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        return leaderboard.build_leaderboards(self.entries)[0]

    def pairwise_differences(self) -> pd.DataFrame:
        rows = []
        for a, b in combinations(self.entries, 2):
            difference = leaderboard.compare_to(a, b)
            text, images = leaderboard.format_difference(difference), difference["shared_images"]
            rows.append((a.name, b.name, images, text))
        return pd.DataFrame(rows, columns=["run", "compared to", "images", "difference (95%)"])

    def group_table(self) -> pd.DataFrame | None:
        """Return scores by group, worst first; None if every image is a group of its own."""
        table = self.scores.table
        groups = table.groupby("group")
        if len(groups) == len(table):
            return None
        columns = {
            "fold": groups["fold"].first(),
            "images": groups.size(),
            "mean Dice": groups["dice"].mean(),
            "worst": groups["dice"].min(),
            "worst view": table.loc[groups["dice"].idxmin()].set_index("group")["view"],
        }
        rows = pd.DataFrame(columns).reset_index().sort_values("mean Dice")
        if self.cars is not None:
            rows["car"] = rows["group"].map(self.cars["car"]).fillna("")
        return rows

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """Suspected label errors, most suspicious first, with the paths of their masks."""
        if not self.scores.is_binary:
            return pd.DataFrame(columns=["image_id", "dice", "reason", "mask"])
        masks = {sample.image_id: sample.mask for sample in self.samples}
        suspects = label_errors.find_label_errors(self.scores)
        return suspects.assign(mask=suspects["image_id"].map(masks))

    def class_table(self) -> pd.DataFrame:
        confusion, names = self.scores.confusion, self.samples[0].class_map.names
        fractions = confusion.sum(axis=1) / confusion.sum()
        columns = {"class": names, **per_class(confusion), "fraction of all pixels": fractions}
        return pd.DataFrame(columns)

    @cached_property
    def worst_ids(self) -> list[str]:
        """Images with the lowest Dice at the threshold of the page, without post-processing."""
        dice = self.scores.dice
        if self.scores.is_binary:
            index = threshold_index(self.binarizer.threshold)
            dice = dice_curve(self.scores.histograms)[:, index]
        lowest = pd.Series(dice).nsmallest(N_WORST).index
        return self.scores.table["image_id"][lowest].tolist()

    @cached_property
    def suspect_ids(self) -> list[str]:
        """Suspects that are not among the worst images."""
        return [i for i in self.suspects["image_id"] if i not in self.worst_ids][:N_SUSPECTS]

    @cached_property
    def cards(self) -> dict[str, gallery.Card]:
        """Cards of the worst images and the suspects, by image id."""
        ids = self.worst_ids + self.suspect_ids
        chosen = [sample for sample in self.samples if sample.image_id in ids]
        fingerprint = dataset_fingerprint(self.samples)
        predictions = ensemble.predict_out_of_fold(self.settings, chosen, fingerprint)
        return {p.sample.image_id: gallery.oof_card(p, self.binarizer) for p in predictions}

    def disagreement_section(self) -> tuple[str, list[gallery.Card]]:
        """Return a summary of the submission, and the test images with the lowest agreement."""
        path = self.settings.submission_path
        stats_path, json_path = path.with_name(f"{path.stem}_stats.csv"), path.with_suffix(".json")
        path = path if self.scores.is_binary else stats_path  # several classes have no csv of masks
        command = f"`bash predict.sh runs={','.join(self.settings.runs)}`"
        if not stats_path.exists() or not json_path.exists():
            return f"There is no {path} yet; {command} writes it.", []
        members = load_runs.load_members(self.settings)
        if len(members) == 1:
            return "Disagreement needs two or more networks.", []
        networks = sorted(file_sha256(member.path) for member in members)
        stored = read_submission_json(json_path)
        data_dir = config.to_stored_settings(self.settings)["data_dir"]
        if stored.get("data_dir", data_dir) != data_dir:
            return f"{path} has masks of {stored['data_dir']}; {command} replaces it.", []
        if stored["runs"] != sorted(self.settings.runs) or stored.get("networks") != networks:
            return f"{path} was made by other runs or weights; {command} replaces it.", []
        stats = pd.read_csv(stats_path).dropna().nsmallest(N_DISAGREEMENT, "agreement")
        agreement = dict(zip(stats["img"], stats["agreement"], strict=True))
        by_name = {sample.image.name: sample for sample in self.test_samples}
        samples = [by_name[name] for name in agreement if name in by_name]
        if not samples:
            return f"The images of {path} are not in {self.settings.data_dir}.", []
        summary = (
            f"The {len(samples)} images of {path} on which the {len(members)} networks agree least."
        )
        return summary, gallery.disagreement_cards(self.settings, members, samples, agreement)


def load_test_images(settings: Settings) -> list[Sample]:
    """Return the test samples, or print why there are none and return [].

    Also returns [] if some of them are not on this machine.
    """
    folder = datasets.get_format(settings).find_test_images_dir(settings)
    try:
        if folder.exists():
            return datasets.load_test_samples(settings)
        print(f"{folder}: does not exist; the report is without test images")
    except InputError as error:
        print(f"the report is without test images: {error}")
    return []


def load_report(settings: Settings) -> Report:
    scores = ensemble.ensure_oof_scores(settings)
    entries = load_entries(Path(settings.output_dir))
    own = next((entry for entry in entries if entry.name == settings.run), None)
    if own is None:  # a file system may ignore the case of names
        names = ", ".join(entry.name for entry in entries)
        raise InputError(f"run={settings.run}: no such run; found {names}")
    if settings.tta != own.columns["tta"]:
        found = f"{settings.run} was scored with tta={own.columns['tta']}"
        raise InputError(f"tta={settings.tta}: {found}; set tta={own.columns['tta']}")
    entries = leaderboard.sort_entries([entry for entry in entries if entry.data == own.data])
    return Report(
        settings,
        scores,
        oof.choose_binarizer(settings, scores),
        entries,
        ensemble.load_scored_samples(settings),
        load_test_images(settings),
        csv_files.read_car_metadata(settings),
    )


def report_settings(args: list[str]) -> Settings:
    """Return the settings of the runs in `args`, or else of the top leaderboard entry."""
    output_dir = Path(config.load_settings(args).output_dir)
    if not {"run", "runs", "recipe"} & parse_overrides(args).keys():
        entries = load_entries(output_dir)
        leader = output_dir / leaderboard.build_leaderboards(entries)[0].loc[0, "run"]
        is_ensemble = run_folder.ensemble_path(leader).exists()
        runs = ensemble.read_ensemble(leader)["runs"] if is_ensemble else [leader.name]
        args = [*args, f"runs={','.join(runs)}"]
        print(f"{leader.name} is at the top of the leaderboard; for another run, set run=")
    return load_runs.settings_for_prediction(args)


def render_page(report: Report) -> str:
    """Fill in the template report.html."""
    loader = FileSystemLoader(config.SRC / "reporting")
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=True)
    return templates.get_template("report.html").render(
        report=report,
        settings=report.settings,
        scores=report.scores,
        commit=provenance.current_commit(),
        date=date.today(),
        charts=charts,
        leaderboard=leaderboard,
        dataset_scores=dataset_scores,
        explain_steps=explain_steps,
        prediction_interval=prediction_interval,
    )


def main(args: list[str]) -> None:
    report = load_report(report_settings(args))
    output_dir = Path(report.settings.output_dir)
    suspects_path = output_dir / "suspects.csv"
    if report.scores.is_binary:
        with atomic_write(suspects_path) as tmp_path:
            report.suspects.to_csv(tmp_path, index=False)
    else:
        suspects_path.unlink(missing_ok=True)  # masks of several classes are not checked
    html = render_page(report)
    atomic_write_text(output_dir / "report.html", html)
    print(f"{output_dir / 'report.html'}: {report.settings.run}, {len(html) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run_main(main)

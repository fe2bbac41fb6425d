"""Out-of-fold scores of every run and ensemble → tables, and output/leaderboard.{csv,md}.

With `runs=[a,b]` these runs are judged together first: one pass over the training images.
"""

import sys
from pathlib import Path

import pandas as pd

from core import cli, config
from core.device import pick_device
from core.files import atomic_write
from data import datasets
from evaluation import comparison, ensemble, ensemble_weights

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))


def to_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


def write_leaderboard(output: Path, table: pd.DataFrame) -> None:
    """leaderboard.csv with everything, leaderboard.md to read."""
    with atomic_write(output / "leaderboard.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6f")
    text = "# Out-of-fold leaderboard\n"
    for title, part in comparison.split_by_data(table):
        text += f"\n## {title}\n\n{to_markdown(comparison.format_scores(part))}\n{to_markdown(comparison.format_costs(part))}\n"
        for _, row in part.iterrows():
            why = row.get("postprocess_why")
            text += f"- {row['run']}: `{row['command']}`\n" + (
                f"  - {why}\n" if isinstance(why, str) else ""
            )
    with atomic_write(output / "leaderboard.md") as partial:
        partial.write_text(text, encoding="utf-8")


def judge(words: list[str]) -> None:
    """Score several runs together out of fold; say what weights they get and why."""
    settings = ensemble.settings_for_prediction(words)
    rows = datasets.load_training_samples(settings)
    about = ensemble_weights.score_ensemble(settings, rows, pick_device(settings))
    votes = ", ".join(f"{run} {weight:.2f}" for run, weight in about["runs"].items())
    low, high = about["interval"]
    print(
        f"{settings.run}: weights {votes}; chosen weights against equal ones, on folds that did "
        f"not choose them: {about['gain_over_equal_weights']:+.6f} [{low:+.6f}, {high:+.6f}]"
    )


def main() -> None:
    settings = config.load_settings(sys.argv[1:])
    output = Path(settings.output_dir)
    if len(settings.runs) > 1:
        judge(sys.argv[1:])
    table = comparison.build_leaderboard(comparison.load_entries(output))
    write_leaderboard(output, table)
    for title, part in comparison.split_by_data(table):
        print(f"\n{title}", comparison.format_scores(part).to_string(index=False), "", sep="\n")
        print(comparison.format_costs(part).to_string(index=False))
        best = part.iloc[0]
        if isinstance(best.get("postprocess_why"), str):
            print(f"\npost-processing of {best['run']}, gain per fold:", sep="")
            print("  " + best["postprocess_why"].replace("; ", "\n  "))


if __name__ == "__main__":
    cli.run_main(main)

"""Out-of-fold scores of every run and ensemble → tables, and output/leaderboard.{csv,md}.

With `runs=[a,b]` these runs are judged together first: one pass over the training images.
"""

import sys
from pathlib import Path

import config

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    config.run(lambda: config.load(sys.argv[1:]))

import pandas as pd

import blend
import checkpoint
import datasets
import ranking
from device import pick_device
from files import replacing


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


def write(output: Path, table: pd.DataFrame) -> None:
    """leaderboard.csv with everything, leaderboard.md to read."""
    with replacing(output / "leaderboard.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6f")
    text = "# Out-of-fold leaderboard\n"
    for title, part in ranking.sections(table):
        text += (
            f"\n## {title}\n\n{markdown(ranking.scores(part))}\n{markdown(ranking.costs(part))}\n"
        )
        for _, row in part.iterrows():
            why = row.get("postprocess_why")
            text += f"- {row['run']}: `{row['command']}`\n" + (
                f"  - {why}\n" if isinstance(why, str) else ""
            )
    with replacing(output / "leaderboard.md") as partial:
        partial.write_text(text, encoding="utf-8")


def judge(words: list[str]) -> None:
    """Score several runs together out of fold; say what weights they get and why."""
    settings = checkpoint.settings_of_runs(words)
    rows = datasets.training_rows(settings)
    about = blend.judge(settings, rows, pick_device(settings))
    votes = ", ".join(f"{run} {weight:.2f}" for run, weight in about["runs"].items())
    low, high = about["interval"]
    print(
        f"{settings.run}: weights {votes}; chosen weights against equal ones, on folds that did "
        f"not choose them: {about['gain_over_equal_weights']:+.6f} [{low:+.6f}, {high:+.6f}]"
    )


def main() -> None:
    settings = config.load(sys.argv[1:])
    output = Path(settings.output_dir)
    if len(settings.runs) > 1:
        judge(sys.argv[1:])
    table = ranking.rank(ranking.entries(output))
    write(output, table)
    for title, part in ranking.sections(table):
        print(f"\n{title}", ranking.scores(part).to_string(index=False), "", sep="\n")
        print(ranking.costs(part).to_string(index=False))
        best = part.iloc[0]
        if isinstance(best.get("postprocess_why"), str):
            print(f"\npost-processing of {best['run']}, gain per fold:", sep="")
            print("  " + best["postprocess_why"].replace("; ", "\n  "))


if __name__ == "__main__":
    config.run(main)

"""Format counts and tables as text."""

import pandas as pd


def format_count(count: int, noun: str) -> str:
    """Format a number of things: "1 group", "8 groups"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def to_markdown(table: pd.DataFrame) -> str:
    """Format a table in Markdown, without its index."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"

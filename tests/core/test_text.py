"""Counts and tables as text."""

import pandas as pd
import pytest

from core.text import format_count, to_markdown


@pytest.mark.parametrize(("count", "text"), [(0, "0 cars"), (1, "1 car"), (2, "2 cars")])
def test_format_count_has_the_plural_unless_there_is_one(count, text):
    assert format_count(count, "car") == text


def test_to_markdown_has_header_rule_and_rows():
    table = pd.DataFrame({"run": ["a", "b"], "dice": ["0.9", ""]})
    assert to_markdown(table) == "| run | dice |\n| --- | --- |\n| a | 0.9 |\n| b |  |\n"

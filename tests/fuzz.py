"""Run the checks of damaged files for any length of time, guided by coverage:

python -m pip install atheris            # not among the requirements
python tests/fuzz.py folds -max_total_time=300      # or submission, text, recipe
"""

import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "tests", "tests/data", "tests/inference")]

MODULES = ["data.rle", "data.csv_files", "evaluation.submission", "core.config", "csv", "yaml"]
with atheris.instrument_imports(include=MODULES):
    import test_csv_files
    import test_fuzz
    import test_rle


def main() -> None:
    what, folder = sys.argv.pop(1), Path(tempfile.mkdtemp())
    checks = {
        "folds": lambda data: test_csv_files.check_read_folds(folder / "folds.csv", data),
        "submission": lambda data: test_fuzz.check_submission(folder, data),
        "text": lambda data: test_rle.check_decode(data.decode("utf-8", "replace")),
        "recipe": lambda data: test_fuzz.check_recipe(folder / "mine.yaml", data),
    }
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "folds").write_bytes(test_csv_files.FOLDS)
    (corpus / "submission").write_bytes(test_fuzz.SUBMISSION)
    (corpus / "text").write_bytes(test_rle.VALID_TEXT.encode())
    (corpus / "recipe").write_bytes(test_fuzz.RECIPE)
    atheris.Setup([*sys.argv, "-print_final_stats=1", str(corpus)], checks[what])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Check a written submission.csv strictly, and score it if truth_csv= is set."""

from core import cli, config

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from evaluation.submission import check_submission


def main(args: list[str]) -> None:
    check_submission(config.load_settings(args))


if __name__ == "__main__":
    cli.run_main(main)

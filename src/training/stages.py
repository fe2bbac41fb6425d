"""Training in stages: progressive image size, fine-tuning."""

from dataclasses import replace
from pathlib import Path

from core.run_folder import finished_folds, has_snapshot
from core.settings import Settings


def split_stages(settings: Settings) -> list[Settings]:
    """Return the settings of each stage, in order.

    The last stage is the run itself: core/config.py has merged its settings into `settings`. Each
    earlier stage is a run of its own, in the folder output/<run>/stage<n>.
    """
    stages, init_run = [], settings.init_run
    for number, overrides in enumerate(settings.stages[:-1], 1):
        run = f"{settings.run}/stage{number}"
        stages.append(replace(settings, **overrides, run=run, init_run=init_run, stages=[]))
        init_run = run
    return [*stages, settings]


def find_init_run(settings: Settings) -> str:
    """Return the run whose weights training starts from: the stage before, else init_run."""
    earlier = len(settings.stages) - 1
    return f"{settings.run}/stage{earlier}" if earlier > 0 else settings.init_run


def has_begun_later_stage(settings: Settings, fold: int) -> bool:
    """Whether a later stage of the same run has finished the fold or has a snapshot of it.

    The weights of this stage are then no longer needed. False for the last stage, the run itself.
    """
    run, _, number = settings.run.partition("/stage")
    if not number:
        return False
    run_dir = Path(settings.output_dir) / run
    numbers = [path.name[5:] for path in run_dir.glob("stage*")]
    stages = [run_dir / f"stage{n}" for n in numbers if n.isdecimal() and int(n) > int(number)]
    return any(
        has_snapshot(path, fold) or fold in finished_folds(path) for path in [run_dir, *stages]
    )

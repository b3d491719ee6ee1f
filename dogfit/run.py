"""The main job as a person types it: `python -m dogfit.run [SOURCE ...] --out DIR`."""

import sys
from collections.abc import Sequence

import tyro

import dogfit
from dogfit.config import RunConfig
from dogfit.console import INTERRUPTED
from dogfit.errors import DogfitError

FAILED, USAGE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job.

    Returns:
      The exit code: 0 done, 1 the job failed, 2 wrong usage, 3 input unusable, 4 the hub could not be
      reached, 130 interrupted.
    """
    try:
        config = tyro.cli(RunConfig, prog="dogfit", args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    except ValueError as error:
        return _fail(str(error), USAGE)
    if config.version:
        print(f"dogfit {dogfit.__version__}")
        return 0
    try:
        return _run(config)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last finished stage", INTERRUPTED)
    except DogfitError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        from dogfit.outputs import disk_trouble

        if (reason := disk_trouble(error)) is None:
            raise
        return _fail(f"could not write to {config.out}: {reason}; nothing partial is left there", FAILED)


def _run(config: RunConfig) -> int:
    # Nothing heavy is imported before the command line is known to be right.
    import json

    from dogfit.console import ctrl_c_between_steps, progress_for, without_library_logs
    from dogfit.job import run_job
    from dogfit.report.text import summary_lines

    progress = progress_for(config.quiet)
    with without_library_logs(), ctrl_c_between_steps(progress):
        summary = run_job(config, progress)
    if config.json:
        print(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    elif not config.quiet:
        print("\n".join(summary_lines(summary, config.out)))
    return 0


def _fail(message: str, code: int) -> int:
    print(f"dogfit: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python -m dogfit.run [SOURCE ...] --out DIR`."""

import sys
from collections.abc import Callable, Sequence

import tyro

import dogfit
from dogfit.closed_pipe import tolerate_closed_pipe
from dogfit.errors import DogfitError, LostProcessError
from dogfit.job.config import RunConfig
from dogfit.runtime.progress import INTERRUPTED

FAILED, USAGE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: its words, those of the process when None.

    Returns:
      The exit code: 0 done, 1 the job failed, 2 wrong usage, 3 input unusable, 4 the hub could not be
      reached, 130 interrupted.
    """
    with tolerate_closed_pipe():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    try:
        config = tyro.cli(RunConfig, prog="dogfit", args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    except ValueError as error:
        return _fail(str(error), USAGE)
    if config.version:
        print(f"dogfit {dogfit.__version__}")
        return 0
    if config.coordinator is None:
        return run_reported(config)
    from dogfit.runtime.supervisor import run_supervised

    return run_supervised(run_reported, config)


def run_reported(config: RunConfig) -> int:
    """Run the job in this process.

    Args:
      config: options of the command.

    Returns:
      See `exit_code_of`.
    """
    return exit_code_of(lambda: _run(config), config)


def exit_code_of(job: Callable[[], int], config: RunConfig) -> int:
    """Run something, and turn what goes wrong into a sentence on standard error and an exit code.

    Args:
      job: returns its exit code.
      config: options of the command.

    Returns:
      The exit code, see `main`, or `dogfit.runtime.supervisor.LOST_CODE`.
    """
    try:
        return job()
    except KeyboardInterrupt:
        return _fail(
            "interrupted; run the same command again to resume from the last completed stage", INTERRUPTED
        )
    except LostProcessError:
        return _lost()
    except DogfitError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        from dogfit.distributed import caused_by_loss
        from dogfit.runtime.workspace import disk_trouble

        if caused_by_loss(error, config.lost_after):
            return _lost()
        if (reason := disk_trouble(error)) is None:
            raise
        return _fail(f"could not write to {config.out}: {reason}; nothing partial is left there", FAILED)


def _lost() -> int:
    from dogfit.runtime.supervisor import LOST_CODE

    return LOST_CODE


def _run(config: RunConfig) -> int:
    # Nothing heavy is imported before the command line is known to be right.
    import json

    from dogfit import distributed
    from dogfit.devices import check_devices
    from dogfit.job.main import run_job
    from dogfit.report.text import summary_lines
    from dogfit.runtime.progress import Progress, ctrl_c_between_steps, progress_for, without_library_logs

    if config.coordinator is not None:
        distributed.start(
            config.coordinator, config.processes, config.process_id, lost_after_s=config.lost_after
        )
    check_devices()
    first = distributed.process_index() == 0
    progress = progress_for(config.quiet) if first else Progress()
    with without_library_logs(), ctrl_c_between_steps(progress):
        summary = run_job(config, progress)
    if config.coordinator is not None:
        distributed.finish()
    if config.json and first:
        print(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    elif not config.quiet and first:
        print("\n".join(summary_lines(summary, config.out)))
    return 0


def _fail(message: str, code: int) -> int:
    print(f"dogfit: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

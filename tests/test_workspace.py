"""The folder a run writes to: results that appear together, and stages that are kept."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dogfit.errors import OutputError
from dogfit.runtime.keys import make_key
from dogfit.runtime.workspace import RESULTS, Workspace, disk_trouble


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def shown(out: Path) -> set[str]:
    """Names a person sees."""
    return {path.name for path in out.iterdir() if path.name != ".dogfit"}


def finish(
    out: Path, inputs: str, *, summary: str = "s", overwrite: bool = False, mark: bytes = b"one"
) -> None:
    """A run that writes every result; tables depend on its inputs, the rest on the summary's settings too."""
    with Workspace(out, inputs, inputs + summary, overwrite=overwrite) as work:
        for name in RESULTS[:-1]:
            key = inputs if name in ("kernels.parquet", "fits.safetensors") else inputs + summary
            if "." in name:
                work.result(name, key, mark)
            else:
                work.result_folder(name, key, lambda folder: (folder / "file").write_bytes(mark))
        work.publish({})


def test_publish_shows_results_that_nobody_saw_before(tmp_path):
    out = tmp_path / "a" / "out"
    with Workspace(out, "f", "fs") as work:
        work.result("report.html", "k", b"page")
        assert shown(out) == set()
        work.publish({"seconds": 1})
    assert shown(out) == {"report.html", "run.json"}
    record = json.loads((out / "run.json").read_bytes())
    assert record["stages"] == {"report.html": "made"}
    assert record["seconds"] == 1


def test_stage_is_made_once_under_one_key(tmp_path):
    made = []

    def make(path: Path) -> None:
        made.append(1)
        path.write_bytes(b"costly")

    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "f", "fs") as work:
        work.stage("fit", "k", make)
        assert work.stages == {"fit": "made"}
        raise KeyboardInterrupt
    with Workspace(tmp_path / "out", "f", "fs") as work:
        assert work.stage("fit", "k", make).read_bytes() == b"costly"
        assert work.stages == {"fit": "kept"}
        assert len(made) == 1
        assert work.stage("fit", "other", b"new").read_bytes() == b"new"
        # One file of each stage: the folder does not grow.
        assert [path.name for path in (tmp_path / "out" / ".dogfit" / "stages").iterdir()] == ["fit.other"]


def test_stage_that_fails_is_not_kept(tmp_path):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "f", "fs") as work:
        work.stage("first", "k", b"")
        work.stage("fit", "k", fail)
    with Workspace(tmp_path / "out", "f", "fs") as work:
        assert work.stage("fit", "k", b"whole").read_bytes() == b"whole"
        assert work.stages == {"fit": "made"}


def test_json_stage_gives_back_what_it_made(tmp_path):
    with Workspace(tmp_path / "out", "f", "fs") as work:
        for _ in range(2):
            assert work.json_stage("numbers", "k", lambda: {"a": (1, 0.1)}) == {"a": [1, 0.1]}


def test_stages_are_kept_after_publishing_and_results_under_the_same_key_stay(tmp_path):
    out = tmp_path / "out"
    with Workspace(out, "f", "fs") as work:
        work.stage("fit", "k", b"1")
        work.publish({})
    finish(out, "f", summary="other", mark=b"one")
    finish(out, "f", summary="another", mark=b"two")
    stages = json.loads((out / "run.json").read_bytes())["stages"]
    assert {name for name, state in stages.items() if state == "kept"} == {
        "kernels.parquet",
        "fits.safetensors",
    }
    assert (out / "kernels.parquet").read_bytes() == b"one"
    assert (out / "summary.json").read_bytes() == b"two"
    with Workspace(out, "f", "fs") as work:
        assert work.stage("fit", "k", b"2").read_bytes() == b"1"


def test_checkpoint_folder_is_removed_under_other_keys_and_after_publishing(tmp_path):
    out = tmp_path / "out"
    with Workspace(out, "f", "fs") as work:
        old = work.checkpoint_folder("training", "k")
        old.mkdir(parents=True)
        assert work.checkpoint_folder("training", "k") == old
        assert old.is_dir()
        new = work.checkpoint_folder("training", "other")
        assert not old.exists()
        new.mkdir()
        work.publish({})
    assert not new.exists()


@pytest.mark.parametrize("before", [True, False])
def test_workspace_without_a_stage_leaves_nothing_when_the_run_fails(tmp_path, before):
    out = tmp_path / "deep" / "out"
    if before:
        out.mkdir(parents=True)
    with pytest.raises(RuntimeError), Workspace(out, "f", "fs"):
        raise RuntimeError
    assert tree(tmp_path) == ({"deep", "deep/out"} if before else set())


def test_workspace_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def full(path, *more, **options):
        if Path(path).name == "out" and Path(path).parent.is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *more, **options)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space left"), Workspace(tmp_path / "deep" / "out", "f", "fs"):
        pass
    assert tree(tmp_path) == set()


def test_workspace_leaves_nothing_on_a_disk_that_fails(tmp_path):
    with pytest.raises(OSError, match="full"), Workspace(tmp_path / "out", "f", "fs") as work:
        work.stage("fit", "k", b"1")
        raise OSError("full")
    assert tree(tmp_path) == set()


def test_disk_trouble_is_found_inside_other_errors():
    try:
        try:
            raise OSError(errno.ENOSPC, "x")
        except OSError as error:
            raise ValueError("wrapped") from error
    except ValueError as error:
        assert disk_trouble(error) == "x"
    full = os.strerror(errno.ENOSPC)
    assert disk_trouble(RuntimeError(f"could not write 10 bytes: {full} [28]")) == full
    assert disk_trouble(ValueError("other")) is None


def test_workspace_finds_the_same_run_finished(tmp_path):
    finish(tmp_path / "out", "f")
    with Workspace(tmp_path / "out", "f", "fs") as work:
        assert work.finished
    with Workspace(tmp_path / "out", "f", "fs", overwrite=True) as work:
        assert not work.finished


def test_workspace_that_lost_a_result_is_not_finished(tmp_path):
    finish(tmp_path / "out", "f")
    (tmp_path / "out" / "report.html").unlink()
    with Workspace(tmp_path / "out", "f", "fs") as work:
        assert not work.finished


def test_workspace_refuses_another_run_unless_told_to_overwrite(tmp_path):
    out = tmp_path / "out"
    finish(out, "f")
    (out / "notes.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match="a run with other inputs or settings; give another --out, or --"),
        Workspace(out, "g", "gs"),
    ):
        pass
    # The record alone says whose results these are.
    shutil.rmtree(out / ".dogfit")
    with pytest.raises(OutputError, match="holds a run with other inputs"), Workspace(out, "g", "gs"):
        pass
    assert (out / "summary.json").read_bytes() == b"one"
    finish(out, "g", overwrite=True, mark=b"two")
    assert (out / "figures" / "file").read_bytes() == b"two"
    assert (out / "notes.txt").read_text() == "mine"
    assert shown(out) == {*RESULTS, "notes.txt"}


def test_publish_removes_results_of_another_run(tmp_path):
    finish(tmp_path / "out", "f")
    with Workspace(tmp_path / "out", "g", "gs", overwrite=True) as work:
        work.result("report.html", "k", b"two")
        work.publish({})
    assert shown(tmp_path / "out") == {"report.html", "run.json"}


def test_overwrite_that_fails_keeps_the_old_results(tmp_path):
    finish(tmp_path / "out", "f")
    before = shown(tmp_path / "out")
    with pytest.raises(OSError), Workspace(tmp_path / "out", "g", "gs", overwrite=True) as work:
        work.result("report.html", "k", b"two")
        raise OSError("full")
    assert shown(tmp_path / "out") == before
    assert (tmp_path / "out" / "report.html").read_bytes() == b"one"


def test_overwrite_that_was_interrupted_resumes(tmp_path):
    finish(tmp_path / "out", "f")
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "g", "gs", overwrite=True) as work:
        work.stage("fit", "k", b"costly")
        raise KeyboardInterrupt
    with Workspace(tmp_path / "out", "g", "gs", overwrite=True) as work:
        assert work.stage("fit", "k", b"again").read_bytes() == b"costly"


def test_publish_that_was_interrupted_is_completed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    finish(out, "f")
    rename = Path.rename

    def interrupt(self, target):
        if self.name == "summary.json" and self.parent.name == "results":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        finish(out, "g", overwrite=True, mark=b"two")
    assert not (out / "run.json").exists()
    monkeypatch.undo()
    finish(out, "g", mark=b"two")
    assert shown(out) == set(RESULTS)
    assert (out / "figures" / "file").read_bytes() == b"two"


def test_workspace_refuses_an_unfinished_run_with_other_inputs(tmp_path):
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "f", "fs") as work:
        work.stage("fit", "k", b"1")
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match="unfinished run"), Workspace(tmp_path / "out", "g", "gs"):
        pass
    with Workspace(tmp_path / "out", "g", "gs", overwrite=True) as work:
        assert work.stage("fit", "k", b"2").read_bytes() == b"2"


def test_workspace_refuses_what_is_not_a_run(tmp_path):
    (tmp_path / "figures").mkdir()
    with (
        pytest.raises(OutputError, match="holds a figures that no run of dogfit finished"),
        Workspace(tmp_path, "f", "fs"),
    ):
        pass
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(OutputError, match="is a file"), Workspace(file, "f", "fs", overwrite=True):
        pass
    assert file.read_text() == "text"


def test_workspace_refuses_a_second_run_at_once(tmp_path):
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    out = tmp_path / "out"
    with Workspace(out, "f", "fs") as work:
        work.stage("fit", "k", b"1")
        for overwrite in (False, True):
            with (
                pytest.raises(OutputError, match=r"another run is writing to .*out; wait") as refused,
                Workspace(out, "f", "fs", overwrite=overwrite),
            ):
                pass
            assert refused.value.exit_code == 2
        assert tree(out / ".dogfit") == {"stages", "stages/fit.k", "state.json"}
        work.result("report.html", "k", b"page")
        work.publish({})
    assert shown(out) == {"report.html", "run.json"}
    finish(out, "f", overwrite=True)


def test_workspace_of_a_killed_run_is_free(tmp_path):
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    code = """
import sys
from pathlib import Path
from dogfit.runtime.workspace import Workspace
with Workspace(Path(sys.argv[1]), "f", "fs") as work:
    work.stage("fit", "k", b"costly")
    print("ready", flush=True)
    sys.stdin.read()
"""
    out = tmp_path / "out"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, out], text=True, **pipes) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match="another run"), Workspace(out, "f", "fs"):
            pass
        other.kill()
    with Workspace(out, "f", "fs") as work:
        assert work.stage("fit", "k", b"again").read_bytes() == b"costly"


def test_workspace_with_a_damaged_record_is_another_run(tmp_path):
    finish(tmp_path / "out", "f")
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(OutputError, match="other inputs"), Workspace(tmp_path / "out", "f", "fs"):
        pass


def test_overwrite_of_a_published_run_starts_again(tmp_path):
    out = tmp_path / "out"
    with Workspace(out, "f", "fs") as work:
        work.stage("fit", "k", b"1")
        work.publish({})
    with Workspace(out, "f", "fs", overwrite=True) as work:
        assert work.stage("fit", "k", b"2").read_bytes() == b"2"


def test_make_key_depends_on_every_part():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    parts = [
        (array,), (array.T,), (array.reshape(3, 2),), (array.astype(np.float64),), (array, 1), (array, "1"),
        (array, [1, 2]), (array, {"a": array}), (array, {"a": array + 1}), (b"a", b"b"), (b"ab", b""),
    ]  # fmt: skip
    keys = [make_key(*part) for part in parts]
    assert len(set(keys)) == len(keys)
    assert keys == [make_key(*part) for part in parts]
    assert make_key(np.asfortranarray(array)) == keys[0]

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dogfit.atomic_write import write_atomically
from dogfit.errors import OutputError
from dogfit.runtime.workspace import RESULTS, Workspace, disk_trouble


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def finish(out: Path, fingerprint: str, *, overwrite: bool = False, mark: bytes = b"one") -> None:
    """A run that writes every result."""
    with Workspace(out, fingerprint, overwrite=overwrite) as work:
        for name in RESULTS[:-1]:
            work.write(f"{name}/file" if "." not in name else name, mark)
        work.write("run.json", json.dumps({"fingerprint": fingerprint}).encode())
        work.publish()


def test_nothing_shows_before_publishing(tmp_path):
    out = tmp_path / "a" / "out"
    with Workspace(out, "f") as work:
        work.write("report.html", b"page")
        assert {path.name for path in out.iterdir()} == {".dogfit"}
        work.publish()
    assert tree(out) == {"report.html"}


def test_finished_stages_are_read_not_made_again(tmp_path):
    made = []

    def make() -> bytes:
        made.append(1)
        return b"costly"

    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "f") as work:
        work.stage("fit", make)
        with work.stage_folder("model") as (folder, finished):
            assert not finished
            write_atomically(folder / "weights", b"w")
        raise KeyboardInterrupt
    with Workspace(tmp_path / "out", "f") as work:
        assert work.stage("fit", make) == b"costly"
        with work.stage_folder("model") as (folder, finished):
            assert finished
            assert (folder / "weights").read_bytes() == b"w"
    assert made == [1]


def test_a_folder_left_by_an_error_is_not_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "f") as work:
        work.stage("fit", lambda: b"")
        with work.stage_folder("model"):
            raise KeyboardInterrupt
    with Workspace(tmp_path / "out", "f") as work, work.stage_folder("model") as (_, finished):
        assert not finished


@pytest.mark.parametrize("before", [True, False])
def test_failing_without_a_finished_stage_leaves_nothing(tmp_path, before):
    out = tmp_path / "deep" / "out"
    if before:
        out.mkdir(parents=True)
    with pytest.raises(RuntimeError), Workspace(out, "f"):
        raise RuntimeError
    assert tree(tmp_path) == ({"deep", "deep/out"} if before else set())


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def full(path, *more, **options):
        if Path(path).name == "out" and Path(path).parent.is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *more, **options)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space left"), Workspace(tmp_path / "deep" / "out", "f"):
        pass
    assert tree(tmp_path) == set()


def test_disk_trouble_leaves_nothing_even_after_a_stage(tmp_path):
    with pytest.raises(OSError, match="full"), Workspace(tmp_path / "out", "f") as work:
        work.stage("fit", lambda: b"1")
        raise OSError("full")
    assert tree(tmp_path) == set()


def test_disk_trouble_is_recognised_inside_other_errors():
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


def test_the_same_run_is_recognised_as_finished(tmp_path):
    finish(tmp_path / "out", "f")
    with Workspace(tmp_path / "out", "f") as work:
        assert work.finished
    with Workspace(tmp_path / "out", "f", overwrite=True) as work:
        assert not work.finished


def test_a_run_that_lost_a_result_is_not_finished(tmp_path):
    finish(tmp_path / "out", "f")
    (tmp_path / "out" / "report.html").unlink()
    with Workspace(tmp_path / "out", "f") as work:
        assert not work.finished


def test_another_run_is_refused_until_told_to_overwrite(tmp_path):
    out = tmp_path / "out"
    finish(out, "f")
    (out / "notes.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match="other inputs or settings; give another --out, or --overwrite"),
        Workspace(out, "g"),
    ):
        pass
    assert (out / "summary.json").read_bytes() == b"one"
    finish(out, "g", overwrite=True, mark=b"two")
    assert (out / "figures" / "file").read_bytes() == b"two"
    assert (out / "notes.txt").read_text() == "mine"
    assert {path.name for path in out.iterdir()} == {*RESULTS, "notes.txt"}


def test_overwriting_drops_results_the_new_run_does_not_have(tmp_path):
    finish(tmp_path / "out", "f")
    with Workspace(tmp_path / "out", "g", overwrite=True) as work:
        work.write("report.html", b"two")
        work.publish()
    assert tree(tmp_path / "out") == {"report.html"}


def test_a_failed_overwrite_keeps_the_old_results(tmp_path):
    finish(tmp_path / "out", "f")
    before = tree(tmp_path / "out")
    with pytest.raises(OSError), Workspace(tmp_path / "out", "g", overwrite=True) as work:
        work.write("report.html", b"two")
        raise OSError("full")
    assert tree(tmp_path / "out") == before
    assert (tmp_path / "out" / "report.html").read_bytes() == b"one"


def test_an_interrupted_overwrite_goes_on(tmp_path):
    finish(tmp_path / "out", "f")
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "g", overwrite=True) as work:
        work.stage("fit", lambda: b"costly")
        raise KeyboardInterrupt
    with Workspace(tmp_path / "out", "g", overwrite=True) as work:
        assert work.stage("fit", lambda: b"again") == b"costly"


def test_interrupted_publishing_is_made_good(tmp_path, monkeypatch):
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
    assert {path.name for path in out.iterdir()} == set(RESULTS)
    assert (out / "figures" / "file").read_bytes() == b"two"


def test_an_unfinished_run_with_other_inputs_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "f") as work:
        work.stage("fit", lambda: b"1")
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match="unfinished run"), Workspace(tmp_path / "out", "g"):
        pass
    with Workspace(tmp_path / "out", "g", overwrite=True) as work:
        assert work.stage("fit", lambda: b"2") == b"2"


def test_what_is_not_a_run_is_not_touched(tmp_path):
    (tmp_path / "figures").mkdir()
    with (
        pytest.raises(OutputError, match="holds a figures that no run of dogfit finished"),
        Workspace(tmp_path, "f"),
    ):
        pass
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(OutputError, match="is a file"), Workspace(file, "f", overwrite=True):
        pass
    assert file.read_text() == "text"


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    out = tmp_path / "out"
    with Workspace(out, "f") as work:
        work.stage("fit", lambda: b"1")
        for overwrite in (False, True):
            with (
                pytest.raises(OutputError, match=r"another run is writing to .*out; wait") as refused,
                Workspace(out, "f", overwrite=overwrite),
            ):
                pass
            assert refused.value.exit_code == 2
        assert tree(out) == {".dogfit", ".dogfit/fit", ".dogfit/state.json"}
        work.write("report.html", b"page")
        work.publish()
    assert tree(out) == {"report.html"}
    finish(out, "f", overwrite=True)


def test_a_killed_run_holds_nothing(tmp_path):
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    code = """
import sys
from pathlib import Path
from dogfit.runtime.workspace import Workspace
with Workspace(Path(sys.argv[1]), "f") as work:
    work.stage("fit", lambda: b"costly")
    print("ready", flush=True)
    sys.stdin.read()
"""
    out = tmp_path / "out"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, out], text=True, **pipes) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match="another run"), Workspace(out, "f"):
            pass
        other.kill()
    with Workspace(out, "f") as work:
        assert work.stage("fit", lambda: b"again") == b"costly"


def test_a_damaged_mark_counts_as_another_run(tmp_path):
    finish(tmp_path / "out", "f")
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(OutputError, match="other inputs"), Workspace(tmp_path / "out", "f"):
        pass

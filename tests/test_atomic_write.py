"""Files that appear whole or not at all, survive a loss of power, and keep their mode."""

import errno
import os
from pathlib import Path

import pytest

from dogfit.atomic_write import write_all_atomically, write_atomically


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_atomically_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    target = tmp_path / "folder" / "file"
    write_atomically(target, b"first")
    assert target.read_bytes() == b"first"
    for step, owner in (("fsync", os), ("replace", Path)):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(owner, step, full)
            write_atomically(target, b"second")
        assert target.read_bytes() == b"first"
        assert tree(tmp_path) == {"folder", "folder/file"}
    write_atomically(target, b"second")
    assert target.read_bytes() == b"second"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_write_atomically_leaves_nothing_when_the_writer_fails(tmp_path, error):
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "deep" / "folder" / "file", write)
    assert tree(tmp_path) == set()


def test_write_atomically_syncs_the_file_before_its_name_and_then_the_folder(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        same = [
            path
            for path in (tmp_path, *tmp_path.iterdir())
            if os.path.samestat(path.stat(), os.fstat(handle))
        ]
        done.append(("fsync", same[0].is_dir()))
        if not same[0].is_dir():
            assert same[0].read_bytes() == b"taps"
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        done.append(("replace", target.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomically(tmp_path / "file", b"taps")
    folder_synced = [("fsync", True)] if os.name != "nt" else []
    assert done == [("fsync", False), ("replace", "file"), *folder_synced]


def test_write_atomically_goes_on_where_folders_cannot_be_synced(tmp_path, monkeypatch):
    fsync = os.fsync

    def no_folders(handle: int) -> None:
        if os.path.samestat(tmp_path.stat(), os.fstat(handle)):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_atomically(tmp_path / "file", b"taps")
    assert tree(tmp_path) == {"file"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_write_atomically_gives_a_new_file_the_usual_mode_and_keeps_that_of_an_old_one(tmp_path):
    def write_for_the_owner(path: Path) -> None:
        path.write_bytes(b"taps")
        path.chmod(0o600)

    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "file", write_for_the_owner)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "file").chmod(0o640)
    write_atomically(tmp_path / "file", b"again")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_write_all_atomically_renames_in_order_once_all_are_written(tmp_path, monkeypatch):
    order = []
    replace = Path.replace

    def note(self: Path, target: Path) -> Path:
        order.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", note)
    files = {tmp_path / "b": b"1", tmp_path / "a": lambda path: path.write_bytes(b"2")}
    write_all_atomically(files)
    assert order == ["b", "a"]
    assert [(tmp_path / name).read_bytes() for name in "ba"] == [b"1", b"2"]
    with pytest.raises(OSError, match="No space left"):
        write_all_atomically({tmp_path / "new" / "c": b"3", tmp_path / "a": full})
    assert tree(tmp_path) == {"a", "b"}

"""Fits into Parquet: the same rows as in memory, whole files, runs that go on, and refusals."""

import numpy as np
import polars
import pytest
from polars.testing import assert_frame_equal

from dogfit.errors import DogfitError
from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import FitConfig
from dogfit.fitting.parquet import fit_parquet

FAMILIES = ("gaussian", "d1")


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    kernels = np.random.default_rng(0).normal(size=(260, 5, 5)).astype(np.float32)
    kernels[3], kernels[200, 1, 1] = 1.0, np.nan
    kernels[100:150] = 0.0  # one file without any fit
    return kernels


@pytest.fixture(scope="module")
def table(kernels) -> polars.DataFrame:
    return fit_kernels(kernels, FAMILIES).table()


def fit(kernels, folder, **options):
    return fit_parquet(kernels, folder, FAMILIES, **{"rows_per_file": 50, **options})


def rows_of(folder) -> polars.DataFrame:
    return polars.read_parquet(folder / "*.parquet")


def assert_same_rows(found: polars.DataFrame, table: polars.DataFrame):
    assert found["row"].to_list() == list(range(len(table)))
    assert_frame_equal(found.drop("row"), table, check_dtypes=False, rel_tol=1e-5, abs_tol=1e-5)


class TestRows:
    def test_fit_parquet_rows(self, kernels, table, tmp_path):
        """Are those of a fit in memory."""
        calls = []
        done = fit(kernels, tmp_path / "new" / "fits", progress=lambda *call: calls.append(call))
        assert_same_rows(rows_of(done.folder), table)
        assert_same_rows(done.scan().collect(), table)
        assert calls == [(50, 260), (100, 260), (150, 260), (200, 260), (250, 260), (260, 260)]
        assert (done.kernels, done.files, done.continued_from) == (260, 6, 0)
        counts = table["family"].drop_nulls().value_counts()
        assert done.families == dict(counts.iter_rows())
        assert (done.statuses["constant"], done.statuses["nonfinite"]) == (51, 1)
        assert sum(done.statuses.values()) == 260

    def test_fit_parquet_files(self, kernels, tmp_path):
        """Files share a schema and hold whole numbers of rows."""
        fit(kernels, tmp_path)
        files = sorted(tmp_path.glob("*.parquet"))
        assert [polars.scan_parquet(f).select(polars.len()).collect().item() for f in files] == [50] * 5 + [
            10
        ]
        assert len({str(polars.read_parquet_schema(f)) for f in files}) == 1
        assert {path.suffix for path in tmp_path.iterdir()} == {".parquet", ".json"}

    def test_fit_parquet_blocks(self, kernels, table, tmp_path):
        """Blocks of any length may come."""
        calls = []
        blocks = np.split(kernels, [0, 7, 130, 131])
        done = fit(iter(blocks), tmp_path, progress=lambda *call: calls.append(call))
        assert_same_rows(rows_of(tmp_path), table)
        assert done.kernels == 260
        assert calls[-1] == (260, None)

    @pytest.mark.parametrize("as_blocks", [False, True], ids=["array", "blocks"])
    def test_fit_parquet_no_kernels(self, kernels, tmp_path, as_blocks):
        """No kernels make one file without rows, of the schema of all others."""
        nothing = kernels[:0]
        done = fit([nothing, nothing] if as_blocks else nothing, tmp_path / "none")
        assert (done.kernels, done.files, done.families) == (0, 1, {})
        fit(kernels[:2], tmp_path / "two")
        assert done.scan().collect_schema() == rows_of(tmp_path / "two").schema
        assert fit(nothing, tmp_path / "again").scan().collect().height == 0

    def test_fit_parquet_memory_map(self, kernels, table, tmp_path):
        """Memory mapped files are read as they go."""
        np.save(tmp_path / "kernels.npy", kernels)
        fit(np.load(tmp_path / "kernels.npy", mmap_mode="r"), tmp_path / "fits")
        assert_same_rows(rows_of(tmp_path / "fits"), table)

    @pytest.mark.parametrize(
        "options",
        [
            {"config": FitConfig(effort=2, criterion="aicc")},
            pytest.param(
                {"weights": np.linspace(0.5, 1.0, 25).reshape(5, 5), "bounds": {"sigma_px": (0.5, 1.0)}},
                marks=pytest.mark.slow,
            ),
        ],
        ids=["config", "weights and bounds"],
    )
    def test_fit_parquet_options(self, kernels, tmp_path, options):
        """Options reach the fit."""
        fit_parquet(kernels[:20], tmp_path, ["gaussian"], **options)
        assert_same_rows(rows_of(tmp_path), fit_kernels(kernels[:20], ["gaussian"], **options).table())


class TestInterrupted:
    @pytest.mark.parametrize("as_blocks", [False, True], ids=["array", "blocks"])
    def test_fit_parquet_continues(self, kernels, table, tmp_path, as_blocks):
        """Goes on behind the last whole file."""

        def given():
            return iter(np.split(kernels, 7 * np.arange(1, 30))) if as_blocks else kernels

        def stop(done, _):
            if done == 150:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(given(), tmp_path, progress=stop)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
        assert len(before) == 3
        done = fit(given(), tmp_path)
        assert done.continued_from == 150
        assert_same_rows(rows_of(tmp_path), table)
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    def test_fit_parquet_finished(self, kernels, tmp_path):
        """A finished run returns at once."""
        first = fit(kernels, tmp_path)
        again = fit(kernels, tmp_path, progress=lambda *_: pytest.fail("it fitted again"))
        assert again.continued_from == 260
        assert (again.families, again.statuses) == (first.families, first.statuses)

    def test_fit_parquet_error_in_blocks(self, kernels, tmp_path):
        """An error leaves no part of a file."""

        def blocks():
            yield kernels[:60]
            raise OSError("the disk of the kernels is gone")

        with pytest.raises(OSError, match="is gone"):
            fit(blocks(), tmp_path)
        assert all(len(polars.read_parquet(path)) == 50 for path in tmp_path.glob("*.parquet"))
        assert not list(tmp_path.glob(".*"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"config": FitConfig(criterion="aicc")}, "config"),
            ({"rows_per_file": 60}, "rows_per_file"),
            ({"weights": np.ones((5, 5))}, "weights"),
            ({"bounds": {"sigma_px": 1.0}}, "bounds"),
        ],
        ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
    )
    def test_fit_parquet_other_settings(self, kernels, tmp_path, change, named):
        fit(kernels[:50], tmp_path)
        with pytest.raises(DogfitError, match=f"fits of another run: it differs in {named}$"):
            fit(kernels[:50], tmp_path, **change)

    def test_fit_parquet_other_kernels(self, kernels, tmp_path):
        fit(kernels[:50], tmp_path)
        with pytest.raises(DogfitError, match=r"it differs in kernels$"):
            fit(kernels[:51], tmp_path)
        with pytest.raises(DogfitError, match=r"it differs in first kernel$"):
            fit(kernels[1:51], tmp_path)
        with pytest.raises(DogfitError, match=r"it differs in families$"):
            fit_parquet(kernels[:50], tmp_path, ["d1"], rows_per_file=50)

    def test_fit_parquet_taken_folder(self, kernels, tmp_path):
        """Places that are taken."""
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(DogfitError, match=r"holds thesis.tex; give a folder, new or empty"):
            fit(kernels, tmp_path)
        with pytest.raises(DogfitError, match="is a file"):
            fit(kernels, tmp_path / "thesis.tex")

    def test_fit_parquet_missing_file(self, kernels, tmp_path):
        fit(kernels, tmp_path)
        (tmp_path / "rows-000000000050-000000000100.parquet").unlink()
        with pytest.raises(DogfitError, match="lacks the file of rows 50 to 100"):
            fit(kernels, tmp_path)

    def test_fit_parquet_bad_input(self, kernels, tmp_path):
        """What cannot be fitted leaves the folder free."""
        with pytest.raises(ValueError, match=r"must be \[n, h, w\]"):
            fit(kernels[0], tmp_path)
        with pytest.raises(ValueError, match="no block of kernels came"):
            fit([], tmp_path)
        with pytest.raises(ValueError, match="rows_per_file must be at least 1"):
            fit(kernels, tmp_path, rows_per_file=0)
        assert not list(tmp_path.iterdir())
        fit(kernels[:10], tmp_path)

"""What a reader is told of tensors, files and patterns that were left out."""

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import save_file

from dogfit.checkpoints import load_kernels
from dogfit.checkpoints.patterns import covering_patterns, matching_names
from dogfit.errors import InputError
from tiny_checkpoints import convnext_tensors, layer_names, load_tensors, random_tensor


def gray(prefix=""):
    """A network for gray images, the first convolution of which may be depthwise by its shape."""
    return {
        f"{prefix}conv.weight": random_tensor(8, 1, 5, 5),
        f"{prefix}conv_b.weight": random_tensor(16, 8, 3, 3),
    }


def options(text):
    """The patterns of the --include options in a message."""
    words = shlex.split(text[text.index("--include") :])
    return [words[i + 1] for i in range(0, len(words) - 1, 2) if words[i] == "--include"]


def test_load_kernels_lists_what_is_ambiguous(tmp_path):
    """The options in the note, or in the error, take exactly what was left out as ambiguous."""
    with pytest.raises(InputError, match="ambiguous") as caught:
        load_tensors(tmp_path, gray())
    assert layer_names(load_tensors(tmp_path, gray(), include=options(str(caught.value)))) == ["conv.weight"]
    bracketed = {f"['net']['{name}']": values for name, values in gray().items()}
    with pytest.raises(InputError, match="ambiguous") as caught:
        load_tensors(tmp_path, bracketed)
    (name,) = options(str(caught.value))
    assert layer_names(load_tensors(tmp_path, bracketed, include=[name])) == ["['net']['conv.weight']"]


def test_load_kernels_says_which_pattern_matches_nothing(tmp_path):
    kernels = load_tensors(
        tmp_path, convnext_tensors(), include=["stages.*", "no.such"], exclude=["*.dwconf.*", "stages.0.*"]
    )
    assert len(kernels.layers) == 11
    said = [note for note in kernels.notes if "matches the name of no tensor" in note]
    assert [note.split()[1] for note in said] == ["'no.such'", "'*.dwconf.*'"]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(convnext_tensors("a."), paths[0])
    save_file(convnext_tensors("b.", seed=1), paths[1])
    both = load_kernels(*paths, exclude=["a.stages.1.*", "b.stages.0.*"])
    assert not any("matches" in note for note in both.notes)


def test_load_kernels_takes_exact_names_literally(tmp_path):
    tensors = {f"['net']['{n}']": t for n, t in convnext_tensors().items()}
    name = "['net']['stages.0.1.dwconv.weight']"
    kernels = load_tensors(tmp_path, tensors, exclude=[name])
    assert name not in layer_names(kernels)
    assert len(kernels.layers) == 12
    assert not any("matches" in note for note in kernels.notes)


def test_matching_names_exact_or_pattern():
    names = {"a[1].w": 0, "a1.w": 0, "b.w": 0}
    assert matching_names(names, ["a[1].w"]) == {"a[1].w"}
    assert matching_names(names, ["a[12].w"]) == {"a1.w"}
    assert matching_names(names, ["*.w"]) == set(names)
    assert matching_names(names, []) == set()


def test_covering_patterns_match_what_they_stand_for():
    names = [f"s.{i}['k'].w" for i in range(12)] + ["other.w"]
    patterns = covering_patterns(names, ["s.3.w"])
    assert len(patterns) == 2
    assert matching_names(dict.fromkeys([*names, "s.3.w"]), patterns) == set(names)
    # A pattern that would match another name is not used.
    assert covering_patterns(["a.1.w", "a.2.w"], ["a.3.w"]) == ["a.1.w", "a.2.w"]


def sharded(folder, omit=""):
    """Two files and their index, which leaves out the tensors that have `omit` in their names."""
    files = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    weight_map = {}
    for name, values in convnext_tensors().items():
        file = f"model-0000{1 + ('stages.1' in name)}-of-00002.safetensors"
        files[file][name] = values
        if not omit or omit not in name:
            weight_map[name] = file
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sorted(folder / file for file in files)


def test_load_kernels_of_half_a_network(tmp_path):
    """A shard by its path, and an index that leaves out tensors, are said; the whole needs no word."""
    first, _ = sharded(tmp_path)
    assert load_kernels(tmp_path).notes == ()
    (note,) = load_kernels(first).notes
    assert "is one of 2 files that make the network" in note
    assert "'model.safetensors.index.json'" in note
    sharded(tmp_path, omit="stages.1.2.dwconv")
    kernels = load_kernels(tmp_path)
    assert len(kernels.layers) == 12
    (note,) = kernels.notes
    assert "the index omits 2 tensors that its files hold, such as 'stages.1.2.dwconv." in note
    # Files of other names are known by the index beside them, and numbered ones without an index.
    first.rename(tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(first.name, "one.safetensors"))
    assert "one of several files" in load_kernels(tmp_path / "one.safetensors").notes[0]
    index.unlink()
    (tmp_path / "one.safetensors").rename(tmp_path / "part_1-of-3.safetensors")
    assert "one of 3 files" in load_kernels(tmp_path / "part_1-of-3.safetensors").notes[0]


def test_load_kernels_names_a_file_that_is_ignored(tmp_path):
    save_file(convnext_tensors(), tmp_path / "model.safetensors")
    save_file(convnext_tensors(seed=1), tmp_path / "model_ema.safetensors")
    (note,) = load_kernels(tmp_path).notes
    assert "'model_ema.safetensors'" in note
    assert load_kernels(tmp_path / "model.safetensors").notes == ()


def test_load_kernels_names_subfolders(tmp_path):
    for folder in ("unet", "text/encoder", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("unet", "text/encoder"):
        save_file(convnext_tensors(), tmp_path / folder / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="in its subfolders 'text/encoder', 'unet'; give one of them"):
        load_kernels(tmp_path)


def test_load_kernels_hints_at_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match="no such file or folder; repositories on the hub are named owner/name"
    ):
        load_kernels("convnext_tiny")


@pytest.mark.parametrize(
    ("extra", "entry"),
    [({"__metadata__": None}, {}), ({}, {"note": [1]}), ({"__metadata__": {}}, {"a": None})],
)
def test_load_kernels_reads_headers_that_the_library_reads(tmp_path, extra, entry):
    from safetensors.numpy import load_file

    values = random_tensor(8, 1, 7, 7)
    place = {"dtype": "F32", "shape": [8, 1, 7, 7], "data_offsets": [0, values.nbytes]} | entry
    text = json.dumps(extra | {"s.dwconv.weight": place}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    np.testing.assert_array_equal(load_file(path)["s.dwconv.weight"], values)
    np.testing.assert_array_equal(load_kernels(path).groups[7].kernels, values[:, 0])

"""Reading from the hub, against a server on the loopback interface."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save

import dogfit.checkpoints.hub
from dogfit.checkpoints import load_kernels
from dogfit.errors import DogfitError, HubError, InputError
from dogfit.export.replace import replace_kernels
from hub_server import COMMIT, Hub, serve

REPO = "someone/tiny-convnext"


def _checkpoint(seed=0, filler=400_000):
    random = np.random.default_rng(seed)
    tensors = {"stem.0.weight": random.normal(size=(8, 3, 4, 4)).astype(np.float32)}
    for block in range(3):
        prefix = f"stages.0.blocks.{block}"
        tensors[f"{prefix}.conv_dw.weight"] = random.normal(size=(8, 1, 7, 7)).astype(np.float32)
        tensors[f"{prefix}.mlp.fc1.weight"] = np.zeros((filler // 32, 8), np.float32)
    return tensors


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running hub with one repository, and an empty cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(dogfit.checkpoints.hub, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    monkeypatch.chdir(tmp_path)
    with serve(Hub({REPO: {"README.md": b"", "model.safetensors": save(_checkpoint())}})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
    huggingface_hub.close_session()


def _expected():
    tensors = _checkpoint()
    return np.concatenate([tensors[f"stages.0.blocks.{b}.conv_dw.weight"][:, 0] for b in range(3)])


def test_reads_the_depthwise_ranges_alone(hub):
    progress = []
    kernels = load_kernels(REPO, progress=lambda *now: progress.append(now))
    np.testing.assert_array_equal(kernels.groups[7].kernels, _expected())
    (source,) = kernels.sources
    assert (source.name, source.revision, source.license) == (REPO, COMMIT, "apache-2.0")
    assert source.bytes_total == len(hub.repositories[REPO]["model.safetensors"])
    assert source.bytes_read == hub.sent < source.bytes_total / 10
    assert progress[-1][1] >= progress[-1][2] > 0
    assert all(span for method, path, span in hub.log if "/resolve/" in path and method == "GET")
    assert all(COMMIT in path for _, path, _ in hub.log if "/resolve/" in path)


def test_a_second_run_downloads_nothing(hub):
    first = load_kernels(REPO)
    sent = hub.sent
    hub.log.clear()
    again = load_kernels(f"{REPO}@main")
    assert hub.sent == sent
    assert [path for _, path, _ in hub.log if "/resolve/" in path] == []
    np.testing.assert_array_equal(again.groups[7].kernels, first.groups[7].kernels)
    assert again.sources == first.sources


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_offline_reads_what_was_fetched_before(hub, monkeypatch, way):
    load_kernels(REPO)
    hub.log.clear()
    if way == "environment":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in (REPO, f"{REPO}@{COMMIT}"):
        kernels = load_kernels(source, offline=way == "argument")
        np.testing.assert_array_equal(kernels.groups[7].kernels, _expected())
    assert hub.log == []


def test_offline_without_a_copy(hub):
    with pytest.raises(HubError, match="offline, and someone/tiny-convnext@main was not fetched before"):
        load_kernels(REPO, offline=True)
    assert hub.log == []


@pytest.mark.usefixtures("hub")
def test_offline_asked_for_more_than_was_fetched():
    load_kernels(REPO, exclude=["*blocks.2*"])
    with pytest.raises(HubError, match="not all that is now asked for"):
        load_kernels(REPO, offline=True)


def test_reads_the_hubs_own_cache(hub):
    path = huggingface_hub.hf_hub_download(
        REPO, "model.safetensors", cache_dir=huggingface_hub.constants.HF_HUB_CACHE, endpoint=hub.endpoint
    )
    assert Path(path).is_file()
    hub.log.clear()
    for offline in (False, True):
        kernels = load_kernels(REPO, offline=offline)
        np.testing.assert_array_equal(kernels.groups[7].kernels, _expected())
        assert kernels.models == (REPO,)
        assert kernels.sources[0].revision == COMMIT
    assert [path for _, path, _ in hub.log if "/resolve/" in path] == []


def test_replacing_kernels_fetches_the_whole_file_and_changes_kernels_alone(hub, tmp_path):
    done = replace_kernels(REPO, tmp_path / "new.safetensors", lambda kernels: kernels[:, ::-1])
    old, new = _checkpoint(), load_file(done.path)
    assert done.n_replaced == 24
    for name, values in old.items():
        assert np.array_equal(values, new[name]) == ("conv_dw" not in name), name
    hub.fail_always = (500, {})
    replace_kernels(REPO, tmp_path / "again.safetensors", lambda kernels: kernels[:, ::-1], offline=True)
    assert (tmp_path / "again.safetensors").read_bytes() == done.path.read_bytes()


def test_a_server_without_ranges_sends_the_whole_file_once(hub):
    hub.ranges = False
    kernels = load_kernels(REPO)
    np.testing.assert_array_equal(kernels.groups[7].kernels, _expected())
    assert kernels.sources[0].bytes_read == kernels.sources[0].bytes_total
    hub.log.clear()
    load_kernels(REPO)
    assert [path for _, path, _ in hub.log if "/resolve/" in path] == []


def test_a_cut_connection_is_tried_again(hub):
    hub.cut = 2
    np.testing.assert_array_equal(load_kernels(REPO).groups[7].kernels, _expected())


def test_a_connection_that_stays_cut(hub):
    hub.cut = 1000
    with pytest.raises(HubError, match=r"the connection to http://127\.0\.0\.1:.* failed"):
        load_kernels(REPO)


def test_a_passing_server_error_is_tried_again(hub):
    hub.fail = [(500, {}), (429, {})]
    np.testing.assert_array_equal(load_kernels(REPO).groups[7].kernels, _expected())


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "is gated: accept its terms at http.*someone/tiny-convnext"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated: accept its terms"),
        (401, {}, r"refused access \(401\); run `hf auth login`"),
        (403, {}, r"refused access \(403\)"),
        (404, {}, r"does not know this address \(404\)"),
        (404, {"X-Error-Code": "EntryNotFound"}, "a file is listed but not there"),
        (429, {}, r"fewer requests \(429\)"),
        (500, {}, r"server error 500"),
        (503, {}, r"server error 503"),
    ],
)
@pytest.mark.parametrize("stage", ["api", "file"])
def test_refusals(hub, status, headers, message, stage):
    if stage == "api":
        hub.fail_api = status, headers
        if status in (401, 404) and headers.get("X-Error-Code") != "GatedRepo":
            message = "no repository .* or it is private"
    else:
        hub.fail_always = status, headers
    with pytest.raises(HubError, match=message) as caught:
        load_kernels(REPO)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_missing_repository_and_no_such_path():
    with pytest.raises(HubError, match=r"no repository 'nobody/nothing' .* nor is there a local file"):
        load_kernels("nobody/nothing")


@pytest.mark.usefixtures("hub")
def test_wrong_revision():
    with pytest.raises(HubError, match="someone/tiny-convnext has no revision 'v2'"):
        load_kernels(f"{REPO}@v2")


@pytest.mark.usefixtures("hub")
def test_revision_names_the_model():
    kernels = load_kernels(f"{REPO}@v1", REPO)
    assert kernels.models == (f"{REPO}@v1", REPO)


@pytest.mark.usefixtures("hub")
def test_nobody_listens(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"the connection to http://127\.0\.0\.1:9 failed"):
        load_kernels(REPO)


def test_sharded_repository(hub):
    tensors = _checkpoint()
    shards = {"a.safetensors": {}, "b.safetensors": {}}
    weight_map = {}
    for number, (name, values) in enumerate(tensors.items()):
        shard = "ab"[number % 2] + ".safetensors"
        shards[shard][name] = values
        weight_map[name] = shard
    files = {name: save(part) for name, part in shards.items()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.repositories["someone/sharded"] = files
    kernels = load_kernels("someone/sharded")
    np.testing.assert_array_equal(kernels.groups[7].kernels, _expected())
    assert [layer.block for layer in kernels.layers] == [0, 1, 2]
    del files["b.safetensors"]
    with pytest.raises(InputError, match=r"1 of 2 shards are missing: 'b.safetensors'"):
        load_kernels("someone/sharded")


def test_repository_of_pickles(hub):
    hub.repositories["someone/old"] = {"pytorch_model.bin": b"", "config.json": b"{}"}
    with pytest.raises(InputError, match="someone/old: no safetensors file, only pickles"):
        load_kernels("someone/old")


def test_damaged_file_on_the_hub(hub):
    content = bytearray(hub.repositories[REPO]["model.safetensors"])
    content[20] ^= 0xFF
    hub.repositories[REPO]["model.safetensors"] = bytes(content)
    with pytest.raises(InputError, match="damaged safetensors header"):
        load_kernels(REPO)


def test_truncated_file_on_the_hub(hub):
    hub.repositories[REPO]["model.safetensors"] = hub.repositories[REPO]["model.safetensors"][:-100]
    with pytest.raises(InputError, match="truncated"):
        load_kernels(REPO)


@pytest.mark.usefixtures("hub")
def test_a_damaged_cache_is_not_believed():
    load_kernels(REPO)
    assets = Path(huggingface_hub.constants.HF_ASSETS_CACHE)
    cached = [path for path in assets.rglob("*") if path.is_file()]
    assert cached
    for path in cached:
        path.write_bytes(path.read_bytes()[:3])
    np.testing.assert_array_equal(load_kernels(REPO).groups[7].kernels, _expected())


@pytest.mark.usefixtures("hub")
def test_an_unwritable_cache_costs_nothing_but_the_next_download(tmp_path):
    (tmp_path / "assets").write_text("a file where the folder should be")
    np.testing.assert_array_equal(load_kernels(REPO).groups[7].kernels, _expected())


def test_endpoint_from_the_environment(hub, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    code = f"from dogfit.checkpoints import load_kernels; print(load_kernels({REPO!r}).n)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "24"), done.stderr
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "24"), done.stderr


def test_every_hub_error_is_a_dogfit_error():
    assert issubclass(HubError, DogfitError)
    assert not issubclass(HubError, InputError)

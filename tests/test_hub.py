"""Reading from a hub, against a server on the loopback interface."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save

import dogfit
from dogfit.checkpoints import HubConfig, hub_from_environment
from dogfit.errors import DogfitError, HubError, InputError
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


EXPECTED = np.concatenate([_checkpoint()[f"stages.0.blocks.{b}.conv_dw.weight"][:, 0] for b in range(3)])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running hub with one repository, and an empty cache; `hub.config` leads to both."""
    # The client must reach the loopback interface, whatever the environment of the tests says.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    monkeypatch.chdir(tmp_path)
    with serve(Hub({REPO: {"README.md": b"", "model.safetensors": save(_checkpoint())}})) as hub:
        hub.config = HubConfig(hub.endpoint, tmp_path / "hub", tmp_path / "pieces", pauses_s=(0.0, 0.0))
        yield hub
    huggingface_hub.close_session()


def load(hub, *sources, **options):
    return dogfit.load_kernels(*(sources or (REPO,)), hub=hub.config, **options)


def assert_complete(kernels):
    np.testing.assert_array_equal(kernels.groups[7].kernels, EXPECTED)


def requests_for_files(hub):
    return [path for _, path, _ in hub.log if "/resolve/" in path]


def test_load_kernels_reads_depthwise_ranges_only(hub):
    progress = []
    kernels = load(hub, progress=lambda *now: progress.append(now))
    assert_complete(kernels)
    (source,) = kernels.sources
    assert (source.name, source.revision, source.license) == (REPO, COMMIT, "apache-2.0")
    assert source.bytes_total == len(hub.repositories[REPO]["model.safetensors"])
    assert source.bytes_read == hub.sent < source.bytes_total / 10
    assert progress[-1][0] >= progress[-1][1] > 0
    assert all(span for method, path, span in hub.log if "/resolve/" in path and method == "GET")
    assert all(COMMIT in path for path in requests_for_files(hub))


def test_load_kernels_second_time_downloads_nothing(hub):
    first = load(hub)
    sent = hub.sent
    hub.log.clear()
    again = load(hub, f"{REPO}@main")
    assert hub.sent == sent
    assert requests_for_files(hub) == []
    assert_complete(again)
    assert again.sources == first.sources


@pytest.mark.parametrize("way", ["argument", "config"])
def test_load_kernels_offline(hub, way):
    """What was fetched before is read without a request, by branch or by commit."""
    load(hub)
    hub.log.clear()
    hub.config = replace(hub.config, offline=way == "config")
    for source in (REPO, f"{REPO}@{COMMIT}"):
        assert_complete(load(hub, source, offline=way == "argument"))
    assert hub.log == []


def test_load_kernels_offline_without_a_copy(hub):
    with pytest.raises(HubError, match="offline, and someone/tiny-convnext@main was not fetched before"):
        load(hub, offline=True)
    assert hub.log == []
    load(hub, exclude=["*blocks.2*"])
    with pytest.raises(HubError, match="not all that is needed now"):
        load(hub, offline=True)


@pytest.mark.parametrize("sharded", [False, True])
def test_load_kernels_from_the_client_cache(hub, sharded):
    """Files that huggingface_hub has downloaded are read where they are, also offline."""
    if sharded:
        _add_sharded(hub, REPO)
    for name in hub.repositories[REPO]:
        path = huggingface_hub.hf_hub_download(
            REPO, name, cache_dir=hub.config.cache_dir, endpoint=hub.endpoint
        )
        assert Path(path).is_file()
    hub.log.clear()
    for offline in (True, False):
        kernels = load(hub, offline=offline)
        assert_complete(kernels)
        assert kernels.models == (REPO,)
        assert kernels.sources[0].revision == COMMIT
    assert requests_for_files(hub) == []


def test_replace_kernels_downloads_the_whole_file(hub, tmp_path):
    def mirrored(kernels):
        return kernels[:, ::-1]

    done = dogfit.replace_kernels(REPO, tmp_path / "new.safetensors", mirrored, hub=hub.config)
    old, new = _checkpoint(), load_file(done.path)
    assert done.n_replaced == 24
    for name, values in old.items():
        assert np.array_equal(values, new[name]) == ("conv_dw" not in name), name
    hub.fail_always = (500, {})
    again = tmp_path / "again.safetensors"
    dogfit.replace_kernels(REPO, again, mirrored, hub=hub.config, offline=True)
    assert again.read_bytes() == done.path.read_bytes()


def test_load_kernels_from_a_server_without_ranges(hub):
    """The whole file is downloaded, once."""
    hub.ranges = False
    kernels = load(hub)
    assert_complete(kernels)
    assert kernels.sources[0].bytes_read == kernels.sources[0].bytes_total
    hub.log.clear()
    load(hub)
    assert requests_for_files(hub) == []


def test_load_kernels_tries_again_after_temporary_failures(hub):
    hub.cut = 2
    assert_complete(load(hub))
    hub.repositories["someone/other"] = hub.repositories[REPO]
    hub.fail = [(500, {}), (429, {})]
    assert_complete(load(hub, "someone/other"))
    assert hub.fail == []


def test_load_kernels_from_a_connection_that_stays_cut(hub):
    hub.cut = 1000
    with pytest.raises(HubError, match=r"the connection to http://127\.0\.0\.1:.* failed"):
        load(hub)
    hub.config = replace(hub.config, endpoint="http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"the connection to http://127\.0\.0\.1:9 failed"):
        load(hub)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "is gated: accept its terms at http.*someone/tiny-convnext"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated: accept its terms"),
        (401, {}, r"refused access \(401\); run `hf auth login`"),
        (403, {}, r"refused access \(403\)"),
        (404, {}, r"does not know this address \(404\)"),
        (404, {"X-Error-Code": "EntryNotFound"}, "a file is listed but missing"),
        (429, {}, r"fewer requests \(429\)"),
        (500, {}, r"server error \(500\)"),
        (503, {}, r"server error \(503\)"),
    ],
)
@pytest.mark.parametrize("stage", ["api", "file"])
def test_load_kernels_refused_by_the_hub(hub, status, headers, message, stage):
    """Every refusal is one line that says what to do, with the exit code of the hub."""
    if stage == "api":
        hub.fail_api = status, headers
        if status in (401, 404) and headers.get("X-Error-Code") != "GatedRepo":
            message = "no repository .* or it is private"
    else:
        hub.fail_always = status, headers
    with pytest.raises(HubError, match=message) as caught:
        load(hub)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_load_kernels_missing_repository_or_revision(hub):
    with pytest.raises(HubError, match=r"no repository 'nobody/nothing' .* no local file or folder"):
        load(hub, "nobody/nothing")
    with pytest.raises(HubError, match="someone/tiny-convnext has no revision 'v2'"):
        load(hub, f"{REPO}@v2")


def test_load_kernels_names_the_model_by_revision(hub):
    assert load(hub, f"{REPO}@v1", REPO).models == (f"{REPO}@v1", REPO)


def _add_sharded(hub, repository):
    """Serve the tensors in two files with an index."""
    shards = {"a.safetensors": {}, "b.safetensors": {}}
    weight_map = {}
    for number, (name, values) in enumerate(_checkpoint().items()):
        weight_map[name] = "ab"[number % 2] + ".safetensors"
        shards[weight_map[name]][name] = values
    files = {name: save(part) for name, part in shards.items()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.repositories[repository] = files


def test_load_kernels_sharded_repository(hub):
    _add_sharded(hub, "someone/sharded")
    kernels = load(hub, "someone/sharded")
    assert_complete(kernels)
    assert [layer.block for layer in kernels.layers] == [0, 1, 2]
    del hub.repositories["someone/sharded"]["b.safetensors"]
    with pytest.raises(InputError, match=r"1 of 2 shards are missing: 'b.safetensors'"):
        load(hub, "someone/sharded")


def test_load_kernels_repository_of_pickles(hub):
    """The message tells to download the file and then to convert it, from wherever it lies."""
    hub.repositories["someone/old"] = {"pytorch_model.bin": b"", "sub/a b.pth": b"", "config.json": b"{}"}
    with pytest.raises(InputError, match="someone/old: no safetensors file, only pickles") as caught:
        load(hub, "someone/old")
    assert str(caught.value).endswith(
        "hf download someone/old pytorch_model.bin --local-dir .; "
        "then: python -m dogfit.convert pytorch_model.bin"
    )
    with pytest.raises(InputError, match=r"old pytorch_model\.bin --revision main --local-dir"):
        load(hub, "someone/old@main")
    for source in ("hf://someone/old/sub", "hf://someone/old/sub/a b.pth"):
        with pytest.raises(InputError, match="pickles") as caught:
            load(hub, source)
        assert str(caught.value).endswith(
            "hf download someone/old 'sub/a b.pth' --local-dir .; "
            "then: python -m dogfit.convert 'sub/a b.pth'"
        )


@pytest.mark.parametrize(("kind", "message"), [("flip", "damaged safetensors header"), ("cut", "truncated")])
def test_load_kernels_damaged_file(hub, kind, message):
    content = bytearray(hub.repositories[REPO]["model.safetensors"])
    if kind == "flip":
        content[20] ^= 0xFF
    else:
        del content[-100:]
    hub.repositories[REPO]["model.safetensors"] = bytes(content)
    with pytest.raises(InputError, match=message):
        load(hub)


def test_load_kernels_ignores_a_damaged_cache(hub):
    load(hub)
    cached = [path for path in hub.config.pieces_dir.rglob("*") if path.is_file()]
    assert cached
    for path in cached:
        path.write_bytes(path.read_bytes()[:3])
    assert_complete(load(hub))


def test_load_kernels_without_a_writable_cache(hub):
    hub.config.pieces_dir.write_text("a file where the folder should be")
    assert_complete(load(hub))


def test_hub_from_environment(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    config = hub_from_environment()
    assert (config.endpoint, str(config.cache_dir)) == (constants.ENDPOINT, constants.HF_HUB_CACHE)
    assert config.pieces_dir.parent == Path(constants.HF_ASSETS_CACHE)
    assert not config.offline
    assert hub_from_environment(offline=True).offline
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_from_environment().offline


@pytest.mark.slow
def test_load_kernels_endpoint_from_the_environment(hub, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    code = f"import dogfit; print(dogfit.load_kernels({REPO!r}).n)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "24"), done.stderr
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "24"), done.stderr


def test_hub_error_is_not_an_input_error():
    assert issubclass(HubError, DogfitError)
    assert not issubclass(HubError, InputError)

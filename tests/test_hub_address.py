"""Spellings of what lies on the hub, and what its cache holds offline."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from dogfit.checkpoints import HubConfig, load_kernels
from dogfit.checkpoints.hub_address import HubAddress, read_address
from dogfit.errors import HubError, InputError
from tiny_checkpoints import convnext_tensors

REPO = "someone/tiny-net"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "revision", "path"),
    [
        (REPO, None, ""),
        (f"{REPO}@v1.0", "v1.0", ""),
        (f"{REPO}@refs/pr/3", "refs/pr/3", ""),
        (f"{REPO}/model.safetensors", None, "model.safetensors"),
        (f"{REPO}/unet/model.safetensors", None, "unet/model.safetensors"),
        (f"{REPO}@v1/unet/model.safetensors", "v1", "unet/model.safetensors"),
        (f"hf-hub:{REPO}", None, ""),
        (f"hf_hub:{REPO}@v1", "v1", ""),
        (f"hf://{REPO}", None, ""),
        (f"hf://{REPO}@refs/pr/3", "refs/pr/3", ""),
        (f"hf://models/{REPO}/unet", None, "unet"),
        (f"https://huggingface.co/{REPO}", None, ""),
        (f"https://huggingface.co/{REPO}/", None, ""),
        (f"huggingface.co/{REPO}", None, ""),
        (f"https://hf.co/{REPO}?library=timm", None, ""),
        (f"https://huggingface.co/{REPO}/tree/main", "main", ""),
        (f"https://huggingface.co/{REPO}/tree/v2/unet", "v2", "unet"),
        (f"https://huggingface.co/{REPO}/tree/refs%2Fpr%2F3", "refs/pr/3", ""),
        (f"https://huggingface.co/{REPO}/blob/main/my%20net.safetensors", "main", "my net.safetensors"),
        (
            f"https://huggingface.co/{REPO}/resolve/v2/model.safetensors?download=true",
            "v2",
            "model.safetensors",
        ),
        (f"https://huggingface.co/{REPO}/commit/{COMMIT}", COMMIT, ""),
        (f"http://mirror.example/{REPO}/tree/v2", "v2", ""),
    ],
)
def test_read_address_spellings(source, revision, path):
    hosts = ("huggingface.co", "hf.co", "mirror.example")
    assert read_address(source, hosts) == HubAddress(REPO, revision, path)


@pytest.mark.parametrize(
    "source",
    [
        "a",
        "a/b/c",
        "./a/b.safetensors",
        "../a/b",
        "/a/b/c.safetensors",
        "a/.b",
        "a/b@..",
        "a/../c.safetensors",
    ],
)
def test_read_address_of_local_paths(source):
    assert read_address(source) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://huggingface.co/gpt2", "names no model on the hub"),
        ("https://huggingface.co/datasets/someone/photos", "names no model on the hub"),
        ("hf://spaces/someone/demo", "names no model on the hub"),
        ("hf-hub:", "names no model on the hub"),
        ("https://example.org/net.safetensors", "download the file and give its path"),
        ("s3://bucket/net.safetensors", "download the file and give its path"),
    ],
)
def test_read_address_that_names_no_model(source, message):
    with pytest.raises(InputError, match=message):
        read_address(source)
    with pytest.raises(InputError, match=message):
        load_kernels(source)


def cached(folder, commit=COMMIT, *, ref=None, files=("model.safetensors",)):
    """The cache of huggingface_hub, with one snapshot of links to blobs."""
    root = folder / "hub" / "models--someone--tiny-net"
    for number, name in enumerate(files):
        blob, link = root / "blobs" / f"{commit[:8]}{number}", root / "snapshots" / commit / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        save_file(convnext_tensors(), blob)
        link.symlink_to(blob)
    if ref is not None:
        (root / "refs").mkdir()
        (root / "refs" / ref).write_text(commit)
    return HubConfig("http://127.0.0.1:9", folder / "hub", folder / "pieces", offline=True)


@pytest.mark.parametrize("source", [REPO, f"{REPO}@{COMMIT[:7]}", f"{REPO}@{COMMIT}", f"hf-hub:{REPO}"])
def test_load_kernels_from_the_only_snapshot(tmp_path, source):
    """Without refs/main the only snapshot is what was meant; a short revision is as good as a long one."""
    kernels = load_kernels(source, hub=cached(tmp_path))
    assert len(kernels.layers) == 13
    assert kernels.sources[0].revision == COMMIT


def test_load_kernels_from_one_of_several_snapshots(tmp_path):
    config = cached(tmp_path)
    cached(tmp_path, "fedcba98" + COMMIT[8:])
    with pytest.raises(HubError, match="offline, and someone/tiny-net@main was not fetched before"):
        load_kernels(REPO, hub=config)
    assert load_kernels(f"{REPO}@fedcba9", hub=config).sources[0].revision.startswith("fedcba98")


def test_load_kernels_of_an_incomplete_download(tmp_path):
    """A link to a blob that is not there is called what it is, on the hub and as a path."""
    config = cached(tmp_path, ref="main")
    root = tmp_path / "hub" / "models--someone--tiny-net"
    next((root / "blobs").iterdir()).unlink()
    with pytest.raises(
        HubError, match=r"the download of someone/tiny-net/model.safetensors .* is incomplete"
    ):
        load_kernels(REPO, hub=config)
    with pytest.raises(InputError, match=r"a link to a file that is missing; .* incomplete download"):
        load_kernels(root / "snapshots" / COMMIT)


def test_load_kernels_of_a_folder_in_a_repository(tmp_path):
    files = ("unet/model.safetensors", "vae/net.safetensors", "vae/deep/net.safetensors")
    config = cached(tmp_path, ref="main", files=files)
    with pytest.raises(InputError, match="in its subfolders 'unet', 'vae', 'vae/deep'"):
        load_kernels(REPO, hub=config)
    for source in (f"hf://{REPO}/unet", f"{REPO}/vae/net.safetensors", f"https://hf.co/{REPO}/tree/main/vae"):
        kernels = load_kernels(source, hub=config)
        assert len(kernels.layers) == 13
    assert kernels.models == (f"{REPO}/vae",)
    with pytest.raises(InputError, match="no such file or folder; its safetensors files are 'unet/model"):
        load_kernels(f"{REPO}/text.safetensors", hub=config)
    np.testing.assert_equal(kernels.sources[0].name, f"{REPO}/vae")

"""What the processes of a job tell each other; real ones are in test_distributed.py."""

import json
from types import SimpleNamespace

import pytest

from dogfit import distributed
from dogfit.errors import DogfitError, HubError, InputError
from dogfit.job import worker as follow
from dogfit.job.config import RunConfig
from dogfit.runtime import tasks as together
from job_inputs import checkpoint


def orders(monkeypatch, *given):
    """Have process 1 of two hear these."""
    left = iter([json.loads(json.dumps(order)) for order in given])
    monkeypatch.setattr(follow, "next_order", lambda: next(left))
    monkeypatch.setattr(follow, "finish", lambda: None)
    monkeypatch.setattr(distributed, "_state", lambda: SimpleNamespace(process_id=1, num_processes=2))


def test_a_process_ends_for_the_reason_that_process_0_gives(tmp_path, monkeypatch):
    orders(monkeypatch, {"do": "fail", "code": 4, "why": "no such repository"})
    with pytest.raises(DogfitError, match="no such repository") as error:
        follow.follow(RunConfig(out=tmp_path))
    assert error.value.exit_code == 4


def test_a_finished_job_asks_for_nothing(tmp_path, monkeypatch):
    orders(monkeypatch, {"do": "end"})
    follow.follow(RunConfig(sources=("nowhere.safetensors",), out=tmp_path))


def test_other_kernels_and_other_settings_are_refused(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "tiny.safetensors")
    config = RunConfig(sources=(str(source),), out=tmp_path / "out", sizes=(7,))
    from dogfit.checkpoints.load import load_each
    from dogfit.distributed import own_rows

    def begin(of):
        (found,) = load_each([of], sizes=(7,))
        names = [[layer.name for layer in found.layers]]
        orders(monkeypatch)
        digest = together.share_digest(found.groups, own_rows)
        return {"do": "begin", "settings": config.deciding(), "layers": names, "shares": ["", digest]}

    good = begin(source)
    orders(monkeypatch, good, {"do": "end"})
    follow.follow(config)
    other_kernels = begin(checkpoint(tmp_path / "other.safetensors", seed=9))
    for order in (other_kernels, {**good, "settings": {**good["settings"], "seed": 1}}):
        orders(monkeypatch, order, {"do": "end"})
        with pytest.raises(InputError, match="process 1 has read other kernels, or was started with other"):
            follow.follow(config)
    orders(monkeypatch, good, {"do": "sing", "size": 7, "read": True})
    with pytest.raises(DogfitError, match="process 0 asks for sing"):
        follow.follow(config)


def test_what_process_0_cannot_begin_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(together, "announce", lambda **order: told.append(order))
    monkeypatch.setattr(together, "finish", lambda: told.append("finished"))
    with pytest.raises(HubError), together.failing_together():
        raise HubError("alone, nobody is told")
    monkeypatch.setattr(together, "process_count", lambda: 2)
    with pytest.raises(HubError), together.failing_together():
        raise HubError("offline")
    assert told == [{"do": "fail", "code": 4, "why": "offline"}, "finished"]

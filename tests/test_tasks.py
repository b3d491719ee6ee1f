"""Messages of the processes of a job; real processes are in test_distributed.py."""

import json
from types import SimpleNamespace

import pytest

from dogfit import distributed
from dogfit.errors import DogfitError, HubError, InputError
from dogfit.job import worker
from dogfit.job.config import RunConfig
from dogfit.runtime import tasks
from job_inputs import checkpoint


def hear(monkeypatch, *given):
    """Have process 1 of two receive these tasks."""
    left = iter([json.loads(json.dumps(task)) for task in given])
    monkeypatch.setattr(worker, "receive_task", lambda: next(left))
    monkeypatch.setattr(worker, "finish", lambda: None)
    monkeypatch.setattr(distributed, "_state", lambda: SimpleNamespace(process_id=1, num_processes=2))


def test_run_worker_ends_for_the_reason_that_process_0_gives(tmp_path, monkeypatch):
    hear(monkeypatch, {"task": "fail", "code": 4, "reason": "no such repository"})
    with pytest.raises(DogfitError, match="no such repository") as error:
        worker.run_worker(RunConfig(out=tmp_path))
    assert error.value.exit_code == 4


def test_run_worker_of_a_finished_job_reads_nothing(tmp_path, monkeypatch):
    hear(monkeypatch, {"task": "end"})
    worker.run_worker(RunConfig(sources=("nowhere.safetensors",), out=tmp_path))


def test_run_worker_refuses_other_kernels_settings_and_tasks(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "tiny.safetensors")
    config = RunConfig(sources=(str(source),), out=tmp_path / "out", sizes=(7,))
    from dogfit.checkpoints.load import load_each
    from dogfit.distributed import own_rows

    def begin(of):
        (found,) = load_each([of], sizes=(7,))
        names = [[layer.name for layer in found.layers]]
        hear(monkeypatch)
        digest = tasks.shard_digest(found.groups, own_rows)
        settings = config.result_settings()
        return {"task": "begin", "settings": settings, "layers": names, "shards": ["", digest]}

    good = begin(source)
    hear(monkeypatch, good, {"task": "end"})
    worker.run_worker(config)
    other_kernels = begin(checkpoint(tmp_path / "other.safetensors", seed=9))
    for task in (other_kernels, {**good, "settings": {**good["settings"], "seed": 1}}):
        hear(monkeypatch, task, {"task": "end"})
        with pytest.raises(InputError, match="process 1 has read other kernels, or was started with other"):
            worker.run_worker(config)
    hear(monkeypatch, good, {"task": "sing", "size": 7, "sharded": True})
    with pytest.raises(DogfitError, match="process 0 assigns the task 'sing'"):
        worker.run_worker(config)


def test_broadcast_failure_tells_the_others_why_process_0_cannot_begin(monkeypatch):
    told = []
    monkeypatch.setattr(tasks, "broadcast_task", lambda task, **parameters: told.append((task, parameters)))
    monkeypatch.setattr(tasks, "finish", lambda: told.append("finished"))
    with pytest.raises(HubError), tasks.broadcast_failure():
        raise HubError("alone, nobody is told")
    monkeypatch.setattr(tasks, "process_count", lambda: 2)
    with pytest.raises(HubError), tasks.broadcast_failure():
        raise HubError("offline")
    assert told == [("fail", {"code": 4, "reason": "offline"}), "finished"]

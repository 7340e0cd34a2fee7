"""A checkpoint of somebody else: nothing in it runs when it is read, and what was written comes back."""

import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata as parts

from stepstack.config import ConfigError
from stepstack.core import checkpoint, stored, tree
from stepstack.core.config import AdamW, Muon, TrainableConfig
from stepstack.core.run import Run
from stepstack.loops.supervised import likelihood
from stepstack.models.lm.policy import Policy
from tests import tools
from tests.unit.core.test_trainable import MICRO

ADAMW = AdamW(lr=1e-2)


class Planted:
    """Runs when it is unpickled: makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def saved(folder, optim=ADAMW):
    run = Run(tools.config(folder))
    run.trainable("policy", Policy(tools.qwen2()), TrainableConfig(optim=optim, ema=0.9), total_updates=4)
    run.trainables["policy"].update([MICRO], likelihood, 11)
    run.step = 1
    run.save()
    return run


def resumed(folder, optim=ADAMW):
    run = Run(tools.config(folder))
    run.trainable("policy", Policy(tools.qwen2(seed=5)), TrainableConfig(optim=optim, ema=0.9), total_updates=4)
    run.resume()
    return run


def place(run):
    return run.checkpoints / "step-00000001"


def forged(run):
    """The manifest describes what now lies there, as somebody who plants a file would see to."""
    folder = place(run)
    (folder / checkpoint.MANIFEST).unlink()
    moved = folder.rename(folder.with_name(".partial-00000001"))
    checkpoint.finish(moved, folder, {"step": 1})


@pytest.mark.parametrize("optim", [AdamW(lr=1e-2), Muon()])
def test_what_was_saved_comes_back(tmp_path, optim):
    one = saved(tmp_path, optim)
    two = resumed(tmp_path, optim)
    for a, b in zip(one.trainables["policy"].parameters, two.trainables["policy"].parameters, strict=True):
        assert torch.equal(a, b)
    a, b = (run.trainables["policy"].optimizers[0].state_dict() for run in (one, two))
    assert a["param_groups"] == b["param_groups"]
    assert all(torch.equal(a["state"][k][n], b["state"][k][n]) for k in a["state"] for n in a["state"][k])


def test_code_in_the_index_is_not_run(tmp_path):
    run = saved(tmp_path)
    (place(run) / "policy" / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    forged(run)
    with pytest.raises(ConfigError, match=r"policy/.metadata is no index of a checkpoint \(it names _?io.open"):
        resumed(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_among_the_numbers_is_not_run(tmp_path):
    state = {"weights": {"x": torch.zeros(2)}, "optimizers": {"0": {"param_groups": Planted(tmp_path / "ran")}}}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "planted"), no_dist=True)
    read = {"weights": {"x": torch.zeros(2)}, "optimizers": {"0": {"param_groups": 1}}}
    with pytest.raises(ConfigError, match=r"planted: optimizers.0.param_groups is neither number nor text"):
        stored.load(read, tmp_path / "planted", no_dist=True)
    assert not (tmp_path / "ran").exists()


class LookedUp:
    """Looks up a method of a class that an index may name, as a first step to code."""

    def __reduce__(self):
        return getattr, (torch.Size, "__init__")


class Member:
    """Pickled as Python 3.11.2 pickles the members of an enum."""

    def __reduce__(self):
        return getattr, (parts._MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")


def test_only_members_of_enums_are_looked_up():
    assert (
        stored._Index(io.BytesIO(pickle.dumps(Member()))).load() is parts._MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    )
    with pytest.raises(pickle.UnpicklingError, match="looks up __init__ of what is no enum"):
        stored._Index(io.BytesIO(pickle.dumps(LookedUp()))).load()


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"nonsense", pickle.dumps({"a": 1})[:-3]])
def test_a_torn_index_is_named(tmp_path, content):
    run = saved(tmp_path)
    (place(run) / "policy" / ".metadata").write_bytes(content)
    forged(run)
    with pytest.raises(ConfigError, match=r"\.metadata is no index of a checkpoint"):
        resumed(tmp_path)


def test_no_checkpoint_holds_a_pickle_of_random_states(tmp_path):
    run = saved(tmp_path)
    names = {file.name for file in place(run).iterdir() if file.is_file()}
    assert names == {"complete.json", "state.json", "random-00000.json", "random-00000.safetensors"}


leaf = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
plain = st.recursive(
    leaf,
    lambda below: st.lists(below) | st.lists(below).map(tuple) | st.dictionaries(st.text() | st.integers(), below),
)


@settings(deadline=None)
@given(plain)
def test_a_tree_comes_back_as_it_was(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("tree")
    half = torch.ones(2, dtype=torch.bfloat16)
    tree.write({"value": value, "tensor": torch.arange(3), "half": (half,)}, folder, "x")
    found = tree.read(folder, "x")
    assert found["value"] == value
    assert type(found["value"]) is type(value)
    assert torch.equal(found["tensor"], torch.arange(3))
    assert found["half"][0].dtype == torch.bfloat16


def test_a_tree_holds_nothing_else(tmp_path):
    with pytest.raises(TypeError, match="set has no place in a checkpoint"):
        tree.write({"a": {1, 2}}, tmp_path, "x")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"x\.json does not exist: the checkpoint was written by an older stepstack"):
        tree.read(tmp_path, "x")

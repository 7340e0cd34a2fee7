"""What `stepstack launch` looks at before anything starts, and what it refuses."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from recipes.protocol import load_config
from recipes.steplaw.model import build
from stepstack.cli import main as cli
from stepstack.config import CONFIGS, ConfigError, Footprint, Launch, RunConfig
from stepstack.core import preflight
from stepstack.core.preflight import GIB, Gpu

H100 = Gpu("H100", 80 * GIB)


def texts(findings) -> str:
    return "\n".join(finding.text for finding in findings)


def wrong(findings) -> list[str]:
    return [finding.text for finding in findings if finding.wrong]


def test_packages_come_with_their_key_and_the_line_that_installs_them(monkeypatch):
    monkeypatch.setattr(preflight, "installed", lambda name: name == "tensorboard")
    vllm, flash = wrong(preflight.packages(load_config("orz-7b")))
    assert vllm == "rollout.generator: the package vllm is not installed: make setup EXTRAS=vllm"
    assert flash.startswith("model: the package flash_attn is not installed: pip install flash-attn ")
    assert "diffusers" in texts(preflight.packages(load_config("stepvideo-tiny")))
    assert "reasoning_gym" in texts(preflight.packages(load_config("orz-135m")))
    assert preflight.packages(load_config("orz-tiny")) == []
    assert preflight.packages(load_config("orz-7b", ["model.attention=auto", "rollout.generator={type: hf}"])) == []


def sized(states: float, activations: float = 0.0) -> RunConfig:
    """A config of eight processes that knows its models."""

    class Sized(RunConfig):
        def footprint(self, shards: int) -> Footprint:
            return Footprint(int(states * GIB), int(activations * GIB), GIB, GIB)

    return Sized(recipe="x", name="x", launch=Launch(file="fsdp2", processes_per_node=8))


def test_gpus_against_the_estimate():
    assert wrong(preflight.devices(sized(10), [H100] * 8, 8)) == []
    assert "8 x H100, 8 wanted" in texts(preflight.devices(sized(10), [H100] * 8, 8))
    [few] = wrong(preflight.devices(sized(10), [H100] * 4, 8))
    assert few == "launch.processes_per_node=8: nvidia-smi sees 4 GPUs here, set it to that or less"
    [large] = wrong(preflight.devices(sized(90), [H100] * 8, 8))
    assert "90 GiB of weights" in large
    assert "it has 80 GiB: take more processes" in large
    assert "it will hardly fit" in texts(preflight.devices(sized(70, 20), [H100] * 8, 8))
    assert wrong(preflight.devices(sized(70, 20), [H100] * 8, 8)) == []
    assert "sees none here" in texts(preflight.devices(sized(10), None, 8))


def test_nvidia_smi_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.gpus() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    tool.chmod(0o755)
    assert preflight.gpus() == [Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20)]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert preflight.gpus() is None


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("perception-grounding-2b", (4 + 1) * 4 * 2_208_985_600),  # weights, gradients, two moments, and the reference
        ("perception-detection-3b", (4 + 1) * 4 * 3_754_622_976),
    ],
)
def test_models_with_eyes_have_an_estimate(name, states):
    assert load_config(name).footprint(1).states == states


def test_weights_in_bfloat16_learn_in_float32():
    cfg, size = load_config("orz-32b"), 32_763_876_352
    whole = cfg.footprint(1)
    assert whole.states == 2 * 16 * size
    assert whole.checkpoint == 2 * 12 * size
    assert whole.host == 2 * 2 * size  # they are read as they are


def test_a_sweep_is_as_large_as_its_largest_cell():
    cfg = load_config("steplaw-tiny")
    sizes = [sum(p.numel() for p in build(cfg, cell).parameters()) for cell in cfg.cells]
    assert cfg.footprint(1).states == 16 * max(sizes)


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    config = replace(load_config("orz-7b"), dir=str(tmp_path))
    one = config.footprint(1).checkpoint
    assert one == 2 * 3 * 4 * 7_615_616_512  # actor and critic, weights and two moments
    space = lambda free: type("Usage", (), {"free": free})  # noqa: E731
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: space(3 * one - 1))
    [full] = wrong(preflight.disk(config, 1))
    assert "3 checkpoints of 170 GiB" in full
    assert "lower save.keep" in full
    (config.folder / "checkpoints" / "step-00000050").mkdir(parents=True)  # that one is on the disk already
    assert wrong(preflight.disk(config, 1)) == []


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        number = listener.getsockname()[1]
        config = RunConfig(recipe="x", launch=Launch(port=number))
        assert wrong(preflight.port(config)) == [
            f"launch.port={number} is taken on this machine: give another (launch.port=...)"
        ]
    assert wrong(preflight.port(config)) == []


def test_the_launcher_refuses_before_a_process_starts_and_a_dry_run_only_prints(capsys, monkeypatch):
    monkeypatch.setattr("stepstack.core.launch.supervise", lambda line: pytest.fail("a process was started"))
    monkeypatch.setattr(preflight, "gpus", list)
    words = ["launch", "stepvideo-t2v-1b"]
    assert cli.main(words) == 2
    assert "this machine cannot run it:\n  launch.processes_per_node=8: nvidia-smi sees 0" in capsys.readouterr().err
    assert cli.main([*words, "--dry-run"]) == 0
    *findings, line = capsys.readouterr().out.splitlines()
    assert all(finding.startswith("# ") for finding in findings)
    assert "accelerate launch" in line


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_can_be_looked_at(name):
    assert "the same on all machines" in texts(preflight.look(load_config(name), head=False))


def test_fingerprints_change_with_code_config_and_data(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    code, manifest = tmp_path / "src" / "a.py", tmp_path / "prepared" / "manifest.json"
    code.write_text("1")
    config = load_config("orz-7b", ["data.folder=prepared"])
    first = preflight.fingerprint(config)
    assert first == preflight.fingerprint(config)
    assert first["data"] == "none"
    manifest.parent.mkdir()
    manifest.write_text("{}")
    code.write_text("2")
    second = preflight.fingerprint(replace(config, steps=7))
    assert all(first[what] != second[what] for what in ("code", "config", "data"))


def test_who_differs_in_what_is_named():
    same = {"host": "a", "code": "1", "config": "2", "data": "3"}
    preflight.agree([same, {**same, "host": "b"}])
    others = {**same, "host": "b", "code": "9"}, same, {**same, "host": "c", "config": "9", "data": "9"}
    with pytest.raises(ConfigError) as refused:
        preflight.agree([same, *others])
    assert "what rank 0 on a has" in str(refused.value)
    assert "rank 1 on b has another code" in str(refused.value)
    assert "rank 3 on c has another config and data" in str(refused.value)
    assert "rank 2" not in str(refused.value)

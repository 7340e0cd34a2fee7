"""Versions of weights: two are kept, differences come back bit for bit, and what is torn is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.generation.service.weights import CHUNK_BYTES, WeightFiles, chunk_count, packed, read_chunk, unpacked
from stepstack.generation.types import EngineError


def weights(seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(7, 33, generator=generator).to(dtype) for name in ("a.weight", "b.weight")}


def test_two_versions_are_kept_each_with_its_digest(tmp_path):
    files = WeightFiles(tmp_path / "w")
    for version in range(4):
        files.write(weights(version), version)
    assert sorted(path.name for path in files.folder.iterdir()) == ["2.safetensors", "3.safetensors"]
    assert set(files.digests) == {2, 3}
    assert all(torch.equal(value, weights(3)[name]) for name, value in files.load(3).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_difference_comes_back_bit_for_bit_and_is_small_where_little_changed(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    old = {"w": torch.randn(300_000, generator=generator).to(dtype)}
    new = {"w": old["w"].clone()}
    new["w"][::100] += 0.01
    sender, receiver = WeightFiles(tmp_path / "s"), WeightFiles(tmp_path / "r")
    for version, value in enumerate((old, new)):
        sender.write(value, version)
    chunks, sizes = [], []
    for number in range(chunk_count(sender.path(1))):
        base = read_chunk(sender.path(0), number)
        sent = packed(read_chunk(sender.path(1), number), base)
        chunks.append(unpacked(sent, base))
        sizes.append(len(sent))
    assert sum(sizes) < 0.1 * sender.path(1).stat().st_size
    whole = tmp_path / "received"
    whole.write_bytes(b"".join(chunks))
    receiver.receive(whole, 1, sender.digests[1])
    assert torch.equal(receiver.load(1)["w"], new["w"])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=50), st.booleans())
def test_chunks_of_any_length(content, different):
    base = bytes(reversed(content)) if different else None
    assert unpacked(packed(content, base), base) == content


def test_a_file_of_several_chunks(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(bytes(range(256)) * (CHUNK_BYTES // 256) + b"the rest")
    assert chunk_count(file) == 2
    assert read_chunk(file, 1) == b"the rest"


def test_torn_content_is_refused(tmp_path):
    sent = packed(b"abcd" * 10, None)
    with pytest.raises(EngineError, match="a chunk of weights is torn"):
        unpacked(sent[:-3], None)
    files = WeightFiles(tmp_path / "w")
    (tmp_path / "got").write_bytes(b"other")
    with pytest.raises(EngineError, match="weights of version 5 arrived as"):
        files.receive(tmp_path / "got", 5, "00" * 32)
    assert not files.digests

"""Codes to sound chunk by chunk: the length of the whole, its mel, no step where chunks meet, and nothing twice."""

from __future__ import annotations

import pytest
import torch

from stepstack.models.speech.codebook import Codebook
from stepstack.models.speech.decoder import FRAMES_A_GROUP, ContextDecoder, ContextTables, context_size
from stepstack.models.speech.mel import griffin_lim, log_mel
from stepstack.models.speech.stream import SpeechStream, StreamShape
from stepstack.models.speech.tokenizer import FRAMES, Codes

GROUPS = 14


@pytest.fixture(scope="module")
def decoder() -> ContextDecoder:
    rng = torch.Generator().manual_seed(0)
    book = Codebook(torch.randn(16, 320, generator=rng).cumsum(1) / 20 - 3, torch.zeros(320), torch.ones(320))
    return ContextDecoder(book, ContextTables(torch.randn(context_size(8, 16), 320, generator=rng) / 20, 8, 16), 12)


@pytest.fixture(scope="module")
def codes() -> Codes:
    rng = torch.Generator().manual_seed(1)
    linguistic = torch.randint(8, (2 * GROUPS,), generator=rng).tolist()
    return linguistic, torch.randint(16, (3 * GROUPS,), generator=rng).tolist()


def pieces(decoder: ContextDecoder, codes: Codes, shape: StreamShape, groups: int = GROUPS) -> list[torch.Tensor]:
    stream = SpeechStream(decoder, shape)
    found = [stream.push(codes[0][2 * g : 2 * g + 2], codes[1][3 * g : 3 * g + 3]) for g in range(groups)]
    return [*found, stream.finish()]


@pytest.mark.parametrize("groups", range(1, GROUPS + 1))
@pytest.mark.parametrize("shape", [StreamShape(first=1, later=1), StreamShape(first=2, later=6)])
def test_all_pieces_have_the_samples_of_the_whole(decoder, codes, shape, groups):
    found = pieces(decoder, codes, shape, groups)
    assert sum(map(len, found)) == 1920 * groups
    first = next(k for k, piece in enumerate(found) if len(piece))
    assert first == min(shape.first, groups)  # one group ahead, or the end
    assert len(found[first]) == 1920 * min(shape.first, groups)


def test_a_part_has_the_mel_of_the_whole(decoder, codes):
    """Where a group stands between its neighbours, cutting the rest away changes nothing."""
    whole = decoder.mel(codes)
    part = decoder.mel((codes[0][2 * 3 : 2 * 9], codes[1][3 * 3 : 3 * 9]))
    inner = slice(FRAMES_A_GROUP, -FRAMES_A_GROUP)
    assert torch.equal(part[inner], whole[3 * FRAMES_A_GROUP : 9 * FRAMES_A_GROUP][inner])


def test_chunks_meet_without_a_step(decoder, codes):
    """A joint is no louder a step than those within chunks, and the mel is as near to the wanted one as the whole's."""
    found = [piece for piece in pieces(decoder, codes, StreamShape(first=2, later=3)) if len(piece)]
    wave = torch.cat(found)
    steps = wave.diff().abs()
    joints = torch.tensor([len(piece) for piece in found]).cumsum(0)[:-1] - 1
    assert len(joints) >= 4
    assert steps[joints].max() < steps.quantile(0.999)
    wanted, whole = decoder.mel(codes), decoder.decode(codes)
    errors = [(log_mel(sound, FRAMES) - wanted).abs().mean() for sound in (wave, whole)]
    assert errors[0] < 1.3 * errors[1]


def test_griffin_lim_goes_on_from_what_was_played(decoder, codes):
    mel = decoder.mel(codes)
    whole = griffin_lim(mel, FRAMES, 8)
    again = griffin_lim(mel, FRAMES, 8, seed=1, known_T=whole[:4000])
    assert torch.equal(again[:4000], whole[:4000])
    assert len(again) == len(whole)


def test_a_half_group_is_refused(decoder):
    with pytest.raises(ValueError, match="a group is 2 linguistic and 3 semantic codes"):
        SpeechStream(decoder).push([1], [1, 2, 3])

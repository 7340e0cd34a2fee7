"""Files of tokens, recordings by a meta file, and the engine: resumed, split over processes, filtered, reported."""

import json

import numpy as np
import pytest
import torch

from data.drawn.sentences import Line, Sentences, lines
from data.errors import DataError
from data.media import audio
from data.sets import speech
from data.sets.speech import Take
from stepstack.models.speech.tokens import TokenLayout
from stepstack.scoring.speech import TakeFilter, TakeMeasures

LAYOUT = TokenLayout(0, 16, 32)
LINES = lines(Sentences(train=10, engine=0, select=0, test=0), "train")
LIMITS = TakeFilter(wer=0.1, duration=None, silence=None)


def take(line: Line, groups: int = 2, code: int = 1) -> Take:
    return Take(line, ([code] * 2 * groups, [code + 1] * 3 * groups))


def test_token_files(tmp_path):
    takes = [take(line, groups=k + 1, code=k) for k, line in enumerate(LINES)]
    takes[3] = Take(takes[3].line, takes[3].codes, ended=False)
    file = tmp_path / "a.safetensors"
    speech.save_takes(file, takes, "abc")
    assert speech.load_takes(file, "abc") == takes
    with pytest.raises(DataError, match=r"codebooks abc, the tokenizer is xyz"):
        speech.load_takes(file, "xyz")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a.safetensors is no file of tokens"):
        speech.load_takes(file, "abc")
    with pytest.raises(DataError, match="does not exist"):
        speech.load_takes(tmp_path / "none", "abc")


def test_recordings(tmp_path):
    tone = (0.5 * np.sin(np.arange(8000) * 0.1)).astype(np.float32)
    audio.write_wav(tmp_path / "good.wav", tone, 16000)
    audio.write_wav(tmp_path / "low.wav", tone, 8000)
    audio.write_wav(tmp_path / "still.wav", 0 * tone, 16000)
    meta = tmp_path / "meta.lst"
    meta.write_text("a|open the box|good.wav|heart|(fast1)\n\nb|close it|good.wav\n")
    found = speech.read_recordings(meta)
    assert [line for line, _ in found] == [Line("open the box", "heart", "(fast1)"), Line("close it", "", "")]
    assert len(found[0][1]) == 8000
    meta.write_text("a|x|low.wav\nb||good.wav\nc|x|still.wav\nd|x|none.wav\ne|x|good.wav\n")
    with pytest.raises(DataError) as caught:
        speech.read_recordings(meta)
    words = ["meta.lst:1:", "8000 samples", "meta.lst:2:", "not empty", "meta.lst:3:", "silent", "meta.lst:4:", "exist"]
    assert all(word in str(caught.value) for word in words)


def test_lines_of_a_file(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("open the box\nclose it|deep|(slow1)\n")
    assert speech.read_lines(file) == [Line("open the box", "", ""), Line("close it", "deep", "(slow1)")]
    for content, words in (("|deep|\n", "number 1 is empty"), ("\n", "no lines")):
        file.write_text(content)
        with pytest.raises(DataError, match=words):
            speech.read_lines(file)


# -- the engine -----------------------------------------------------------------------------------------------------


def speak(part, first):
    """Two takes of each line; every third line comes out wrong twice, every fourth once."""
    return [
        [take(line, groups=1 + (first + k) % 3, code=(first + k + s) % 16) for s in (0, 1)]
        for k, line in enumerate(part)
    ]


def judge(takes):
    judged = []
    for place, each in enumerate(takes):
        number = LINES.index(each.line)
        wrong = number % 3 == 0 or (number % 4 == 0 and place % 2 == 0)
        judged.append((TakeMeasures(wer=0.5 if wrong else 0.0), "heard"))
    return judged


def run(folder, **options):
    return speech.run_engine(folder, LINES, speak, judge, identity="teacher-1", shard=4, **options)


def test_the_same_shards_whatever_the_processes(tmp_path):
    alone = run(tmp_path / "one")
    for process in (2, 0, 1):
        files = run(tmp_path / "three", process=process, processes=3)
    assert [file.read_bytes() for file in alone] == [file.read_bytes() for file in files]
    takes = speech.read_engine(files, LINES, "teacher-1", shard=4)
    assert [(each.number, each.sample) for each in takes] == [(n, s) for n in range(10) for s in (0, 1)]
    assert [each.take.line for each in takes[::2]] == LINES


def test_a_killed_engine_goes_on(tmp_path):
    whole = [file.read_bytes() for file in run(tmp_path / "whole")]
    calls = []

    def killed(part, first):
        calls.append(first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return speak(part, first)

    with pytest.raises(KeyboardInterrupt):
        speech.run_engine(tmp_path / "b", LINES, killed, judge, identity="teacher-1", shard=4)
    files = speech.run_engine(tmp_path / "b", LINES, killed, judge, identity="teacher-1", shard=4)
    assert calls == [0, 4, 4, 8]
    assert [file.read_bytes() for file in files] == whole


def test_shards_of_another_run_are_refused(tmp_path):
    files = run(tmp_path)
    with pytest.raises(DataError, match="its identity differs"):
        speech.run_engine(tmp_path, LINES, speak, judge, identity="teacher-2", shard=4)
    with pytest.raises(DataError, match="its lines differs"):
        speech.read_engine(files, LINES[::-1], "teacher-1", shard=4)
    files[1].unlink()
    with pytest.raises(DataError, match="is missing"):
        speech.read_engine(files, LINES, "teacher-1", shard=4)


@pytest.mark.parametrize("content", ["", '{"identity": "teacher-1", "lines": [', "[]", '{"identity": "teacher-1"}'])
def test_a_file_that_is_no_shard_is_named(tmp_path, content):
    """In the engine, which would go on from it, and in the reader."""
    files = run(tmp_path)
    files[1].write_text(content)
    for again in (lambda: run(tmp_path), lambda: speech.read_engine(files, LINES, "teacher-1", shard=4)):
        with pytest.raises(DataError, match=r"shard-00001.json is no whole shard .* remove it"):
            again()
    files[1].unlink()
    assert len(speech.read_engine(run(tmp_path), LINES, "teacher-1", shard=4)) == 20


def test_filters_report_and_best_of_n(tmp_path):
    takes = speech.read_engine(run(tmp_path), LINES, "teacher-1", shard=4)
    kept = speech.keep(takes, LIMITS, LAYOUT)
    wrong = [n for n in range(10) if n % 3 == 0]
    assert [each.number for each in kept.best] == [n for n in range(10) if n not in wrong]
    assert kept.silent_texts == [LINES[n].key for n in wrong]
    assert kept.rates[0] == {
        "by": "all",
        "value": "",
        "takes": 20,
        "kept": len(kept.passed),
        "rate": len(kept.passed) / 20,
    }
    assert next(each for each in kept.best if each.number == 4).sample == 1  # its first take was wrong
    assert next(each for each in kept.best if each.number == 1).sample == 0
    assert {row["by"] for row in kept.rates} == {"all", "speaker", "tag", "filter"}
    assert set(kept.codebooks) == {f"{a} {b}" for a in ("spoken", "kept") for b in ("linguistic", "semantic")}
    json.dumps(kept.rates)


def test_recordings_become_takes():
    rng = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(6000, generator=rng) for _ in range(20)]

    def encoder(wave):
        return wave[: len(wave) // 320 * 320].reshape(-1, 320)[:, :6].abs()

    tokenizer = speech.train_tokenizer(waves, encoder, (16, 32))
    said = speech.tokenize(LINES[0], waves[0], tokenizer)
    assert (len(said.codes[0]), len(said.codes[1])) == (6, 9)
    with pytest.raises(DataError, match="one group"):
        speech.tokenize(LINES[0], waves[0][:500], tokenizer)

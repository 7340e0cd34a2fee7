"""Blind votes over real HTTP: what the page is given, what is refused, what survives; sides are turned back."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from data.media import audio
from stepstack.config import ConfigError
from stepstack.harness.human import pairwise, votes
from stepstack.harness.human.pairwise import ClipPair, left_is_a
from stepstack.harness.human.votes import BadVote, Study, Votes, VoteServer

QUESTIONS = {"instruction": "Which does it?", "physics": "Which falls right?"}
COUNT = 12


@pytest.fixture
def study(tmp_path) -> Study:
    found = []
    for i in range(COUNT):
        files = {side: tmp_path / f"secret-{side}" / f"{i}.mp4" for side in ("model-a", "model-b")}
        files["picture"] = tmp_path / "pictures" / f"{i}.png"
        for side, file in files.items():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(f"{side} {i}".encode())
        group = "real" if i % 2 else "anime"
        found.append(
            ClipPair(f"item {i}", group, f"<b>prompt</b> {i}", files["picture"], files["model-a"], files["model-b"])
        )
    return Study(folder=tmp_path / "votes", pairs=found, questions=QUESTIONS)


@contextmanager
def serving(study: Study):
    study.begin()
    with VoteServer(study, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def get(url: str, **headers: str) -> tuple[int, bytes, str]:
    return ask(urllib.request.Request(url, headers=headers))


def post(url: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes, str]:
    return ask(urllib.request.Request(f"{url}votes", body, {"Content-Type": kind}))


def ask(request: urllib.request.Request) -> tuple[int, bytes, str]:
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Content-Type"]


def vote(url: str, number: int, annotator: str = "kim", **choices: str) -> tuple[int, bytes, str]:
    body = {"annotator": annotator, "pair": number, "choices": choices}
    return post(url, json.dumps(body).encode())


def lines(study: Study) -> list[dict]:
    return [json.loads(line) for line in (study.folder / "votes.jsonl").read_text().splitlines()]


def test_an_annotator_who_always_prefers_one_model_is_understood_wherever_it_stands(study):
    """The whole way: the voter sees sides only, looks at the clips' content, and the table tells the models."""
    with serving(study) as url:
        listed = json.loads(get(f"{url}pairs?annotator=kim")[1])
        assert listed["questions"] == QUESTIONS
        assert sorted(row["number"] for row in listed["pairs"]) == list(range(COUNT))
        sides = set()
        for row in listed["pairs"]:
            clips = {s: get(f"{url}clip?pair={row['number']}&side={s}&annotator=kim")[1] for s in ("left", "right")}
            assert sorted(clips.values()) == [f"model-{m} {row['number']}".encode() for m in "ab"]
            best = "left" if clips["left"].startswith(b"model-a") else "right"
            sides.add(best)
            assert vote(url, row["number"], instruction=best, physics="tie")[:2] == (200, b'{"saved": true}')
    assert sides == {"left", "right"}
    found = {(r.dimension, r.group): r for r in pairwise.tallies(study.pairs, Votes(study))}
    assert (found["instruction", "real"].wins, found["instruction", "anime"].wins) == (6, 6)
    assert (found["instruction", "total"].net.value, found["physics", "total"].ties) == (1.0, COUNT)


def test_votes_survive_a_restart_and_the_page_goes_on(study):
    with serving(study) as url:
        vote(url, 3, instruction="left", physics="right")
        vote(url, 3, "lee", instruction="right", physics="right")
        vote(url, 3, instruction="tie", physics="right")  # a changed mind
    with (study.folder / "votes.jsonl").open("a") as file:
        file.write('{"annotator": "kim", "pa')  # a kill
    with serving(study) as url:
        rows = json.loads(get(f"{url}pairs?annotator=kim")[1])["pairs"]
        assert {r["number"]: r["choices"] for r in rows if r["choices"]} == {
            3: {"instruction": "tie", "physics": "right"}
        }
        assert [r["number"] for r in rows] == study.order("kim") != study.order("lee")
        vote(url, 4, instruction="left", physics="left")
    assert [(row["annotator"], row["pair"]) for row in lines(study)] == [
        ("kim", "item 3"),
        ("lee", "item 3"),
        ("kim", "item 3"),
        ("kim", "item 4"),
    ]
    assert len(Votes(study).verdicts(study.pairs)) == 6


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "a vote is JSON"),
        (b"[]", "a vote is an object, not list"),
        (b'{"annotator": " ", "pair": 1}', "annotator must be a name"),
        (b'{"annotator": 5, "pair": 1}', "annotator must be a name"),
        (json.dumps({"annotator": "k" * 41, "pair": 1}).encode(), "1 to 40 characters"),
        (b'{"annotator": "kim", "pair": 12}', "from 0 to 11, not 12"),
        (b'{"annotator": "kim", "pair": -1}', "from 0 to 11, not -1"),
        (b'{"annotator": "kim", "pair": true}', "from 0 to 11, not True"),
        (b'{"annotator": "kim", "pair": 1, "choices": {"instruction": "left"}}', "for each of instruction, physics"),
        (b'{"annotator": "kim", "pair": 1, "choices": {"instruction": "left", "physics": "a"}}', "not 'a'"),
        (b'{"annotator": "kim", "pair": 1, "choices": {"instruction": [], "physics": "tie"}}', "not \\[\\]"),
    ],
)
def test_a_bad_vote_is_refused_and_not_kept(study, body, said):
    with serving(study) as url:
        status, answer, _ = post(url, body)
        assert status == 400
        with pytest.raises(BadVote, match=said):
            raise BadVote(json.loads(answer)["error"])
        assert post(url, b"x" * (votes.LARGEST + 1))[0] == 400
    assert not (study.folder / "votes.jsonl").exists()


def test_other_sites_cannot_read_or_vote(study):
    good = json.dumps({"annotator": "kim", "pair": 0, "choices": dict.fromkeys(QUESTIONS, "tie")}).encode()
    with serving(study) as url:
        assert get(url, Host="evil.example:80")[0] == 403
        there = url.removesuffix(f"{urlsplit(url).path}")  # without the token, which other users of the machine lack
        for path in ("/", "/pairs?annotator=kim", "/wrong/pairs?annotator=kim", "/votes", "//pairs?annotator=kim"):
            assert get(there + path)[0] == 403
        assert post(f"{there}/", good)[0] == 403
        assert post(url, good, "text/plain")[0] == 400  # what a form can send without asking
        assert post(url, good)[0] == 200


def test_what_is_asked_wrongly_is_named(study):
    with serving(study) as url:
        for path, said in (
            ("pairs", "annotator must be"),
            ("given?pair=x", "pair must be a number"),
            ("clip?pair=1&annotator=kim", "side must be left or right, not ''"),
            ("clip?pair=1&side=left", "annotator must be"),
        ):
            status, answer, _ = get(url + path)
            assert (status, said in json.loads(answer)["error"]) == (400, True), path
        assert get(f"{url}../votes.jsonl")[0] == 404
        assert (study.folder / "token").stat().st_mode & 0o777 == 0o600
        assert url.endswith(f"/{(study.folder / 'token').read_text()}/")
        with pytest.raises(ConfigError, match="another --port"):
            VoteServer(study, urlsplit(url).port)


def test_nothing_that_the_page_gets_tells_the_models(study):
    with serving(study) as url:
        page, listed, clip = (
            get(url + path) for path in ("", "pairs?annotator=kim", "clip?pair=0&side=left&annotator=kim")
        )
        assert (page[0], page[2], clip[2]) == (200, "text/html; charset=utf-8", "video/mp4")
        assert get(f"{url}given?pair=5")[1:] == (b"picture 5", "image/png")
        for text in (page[1], listed[1]):
            assert b"secret" not in text
            assert b"model-" not in text
    assert "secret" not in (study.folder / "study.json").read_text()


def test_votes_are_never_added_to_another_study(study):
    with pytest.raises(ConfigError, match="nobody has been asked"):
        study.check()
    study.begin()
    study.begin()
    swapped = [dataclasses.replace(p, a=p.b, b=p.a) for p in study.pairs]
    for other, said in (({"pairs": swapped}, "other pairs"), ({"seed": 1}, "other seed")):
        with pytest.raises(ConfigError, match=said):
            dataclasses.replace(study, **other).begin()


@pytest.mark.parametrize(
    ("seen", "left", "meant"),
    [
        ("left", "a", "a"),
        ("right", "a", "b"),
        ("left", "b", "b"),
        ("right", "b", "a"),
        ("tie", "a", "tie"),
        ("tie", "b", "tie"),
    ],
)
def test_a_side_is_turned_back(seen, left, meant):
    assert votes.unblinded(seen, left) == meant


def test_a_row_says_what_stood_left(study):
    for number, pair in enumerate(study.pairs):
        row = study.checked({"annotator": " kim ", "pair": number, "choices": dict.fromkeys(QUESTIONS, "left")})
        assert (row["annotator"], row["left"]) == ("kim", "a" if left_is_a(0, "kim", pair.name) else "b")


def test_the_script_is_javascript():
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    script = Path(votes.__file__).parent / "votes.js"
    assert subprocess.run([node, "--check", str(script)], check=False).returncode == 0


# ---- sounds


@pytest.fixture
def sounds(tmp_path) -> Study:
    """Tones of two models, a high one by the first and a low one by the second, after the recording of a voice."""
    found = []
    for i in range(COUNT):
        files = {name: tmp_path / f"secret-{name}" / f"{i}.wav" for name in ("model-a", "model-b", "voice")}
        for (name, file), pitch in zip(files.items(), (880, 220, 440), strict=True):
            time = np.arange(4000 + 160 * i) / 16000
            file.parent.mkdir(exist_ok=True)
            audio.write_wav(file, (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32), 16000)
            assert name
        given = files["voice"] if i else None
        found.append(ClipPair(f"{i}", "no tag", f"open box {i}", given, files["model-a"], files["model-b"]))
    return Study(folder=tmp_path / "votes", pairs=found, questions={"naturalness": "Which sounds real?"})


def pitch(content: bytes) -> float:
    """Loudest frequency of a WAV in Hz."""
    wave = np.frombuffer(content[44:], "<i2").astype(float)
    return float(np.abs(np.fft.rfft(wave)).argmax() * 16000 / len(wave))


def test_sounds_are_voted_on_blindly(sounds):
    """A voter who hears only pitches is understood wherever the models stand."""
    with serving(sounds) as url:
        listed = json.loads(get(f"{url}pairs?annotator=kim")[1])["pairs"]
        assert {row["number"]: row["given"] for row in listed} == {i: i > 0 for i in range(COUNT)}
        status, answer, _ = get(f"{url}given?pair=0")
        assert (status, json.loads(answer)["error"]) == (400, "this pair has nothing but its prompt")
        assert pitch(get(f"{url}given?pair=5")[1]) == pytest.approx(440, abs=8)
        for row in listed:
            heard = {}
            for side in ("left", "right"):
                status, content, kind = get(f"{url}clip?pair={row['number']}&side={side}&annotator=kim")
                assert (status, kind) == (200, "audio/wav")
                heard[side] = pitch(content)
            best = max(heard, key=heard.__getitem__)
            assert vote(url, row["number"], naturalness=best)[0] == 200
    [of_all] = [
        r for r in pairwise.tallies(sounds.pairs, Votes(sounds)) if (r.dimension, r.group) == ("total", "total")
    ]
    assert (of_all.wins, of_all.losses, of_all.net.value) == (COUNT, 0, 1.0)
    assert "secret" not in (sounds.folder / "study.json").read_text()

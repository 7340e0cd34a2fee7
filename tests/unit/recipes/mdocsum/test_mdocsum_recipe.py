"""The parts of the M-DocSum recipe: instructions, pairs, scores and prompts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from data.media.documents import FIGURE, Document, Figure
from recipes.mdocsum import data, model, pairs, prompt, recipe, reward, tasks
from recipes.mdocsum.config import CONTROLS, INSTRUCTIONS, PAIR_KINDS, LabelNoise, PromptConfig
from recipes.protocol import load_config
from stepstack.generation.types import Answer, EngineError, Rollout
from stepstack.records import Problem, Score
from stepstack.scoring import documents
from stepstack.scoring.documents import NO_FIGURE, Claim, Paragraph, SummaryGold, image_object, sentences

FEW = ("data.train=80", "data.select=6", "data.test=20")
CLEAN = LabelNoise()


@pytest.fixture(scope="module")
def cfg():
    return load_config("mdocsum-tiny", FEW)


@pytest.fixture(scope="module")
def processor(cfg):
    return model.untrained(cfg.model, cfg.data, 0)[1]


@pytest.fixture(scope="module")
def papers(cfg):
    return data.documents(cfg, "train")


def answer(problem: Problem, text: str) -> Answer:
    return Answer(problem=problem, sample=0, text=text, finish="stop")


def perfect(problem: Problem) -> str:
    return documents.write(problem.gold.paragraphs)


class Photo:
    def __init__(self, *size: int):
        self.size = size

    def image(self) -> Image.Image:
        return Image.new("RGB", self.size)


@pytest.mark.parametrize("kind", INSTRUCTIONS)
@pytest.mark.parametrize("style", ["short", "qwen"])
def test_every_instruction_has_an_answer_that_follows_from_the_reference(cfg, processor, papers, kind, style):
    asked = PromptConfig(style=style, listing=style == "short")
    for number, paper in enumerate(papers[:20]):
        lesson = prompt.lesson(paper, kind, asked, CLEAN, random.Random(number))
        row = data.row_of(number, lesson, paper, processor, replace(cfg, prompt=asked))
        assert row.prompt_ids.count(processor.image_token) == len(paper.figures) == len(row.pictures)
        assert "{" not in lesson.request.text.replace('{"', "")  # all slots are filled
        assert len(row.weights) == len(row.ids)
        assert (row.ids[-1], row.weights[-1]) == (processor.tokenizer.get_vocab()["<|im_end|>"], 1.0)
        assert processor.tokenizer.decode(row.ids[:-1]) == "".join(text for text, _ in lesson.answer)
    said = "".join(text for text, _ in lesson.answer)
    match kind:
        case "summary":
            figures = documents.score(said, paper.gold)
            assert figures["total"] == 1.0
            assert figures["listed"] == (figures["figures"] if style == "short" else 0)
        case "section":
            assert said in [documents.write([p])[1:-1] for p in paper.gold.paragraphs]
        case "captioning" | "retrieval":
            assert said in [image_object(f.idx, f.caption) for f in paper.figures]
        case "choice":
            assert said in [image_object(p.image, p.caption) for p in paper.gold.paragraphs]
        case "key_points":
            assert tuple(sentences(said)) in [p.key_points for p in paper.gold.paragraphs]
        case "figures":
            assert said.startswith("".join(image_object(f.idx, f.caption) for f in paper.figures))


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_a_paper_without_figures_is_asked_about_too(cfg, processor, kind):
    gold = SummaryGold(tuple(Paragraph(f"Nothing to see in {n}.") for n in "abcd"), {})
    paper = Document(0, "bare", "Nothing.", (), gold)
    asked = prompt.lesson(paper, kind, PromptConfig(), LabelNoise(first=0.5, random=0.5), random.Random(0))
    row = data.row_of(0, asked, paper, processor, cfg)
    assert row.pictures == ()
    assert processor.image_token not in row.prompt_ids
    if kind in prompt.ABOUT_FIGURES:
        assert documents.score(asked.answer[0][0], gold)["total"] == 1.0


def test_a_reference_is_a_single_token_of_the_tiny_model(cfg, processor, papers):
    lesson = prompt.lesson(papers[0], "figures", cfg.prompt, CLEAN, random.Random(0))
    row = data.row_of(0, lesson, papers[0], processor, cfg)
    assert row.weights == (1.0,) * len(papers[0].figures) + (0.0, 1.0) * prompt.LOOK_UPS + (1.0,)
    summary = data.row_of(
        0, prompt.summary_lesson(papers[0], papers[0].gold.paragraphs, cfg.prompt), papers[0], processor, cfg
    )
    assert len(summary.ids) < 32
    assert set(summary.weights) == {1.0}


def test_label_noise_is_as_frequent_as_it_says(papers):
    counts: Counter[str] = Counter()
    rng = random.Random(0)
    for noise, key in ((LabelNoise(first=0.6), "first"), (LabelNoise(random=0.3), "random"), (CLEAN, "clean")):
        for _ in range(20):
            for paper in papers:
                said = prompt.mislabelled(paper, noise, rng)
                for true, marked in zip(paper.gold.paragraphs, said, strict=True):
                    assert true.summary == marked.summary
                    if true.image not in (NO_FIGURE, "1"):
                        counts[key] += 1
                        counts[f"{key} wrong"] += marked.image != true.image
                        counts["not the first"] += noise.first > 0 and marked.image not in ("1", true.image)
                    if true.image == NO_FIGURE:
                        assert marked == true
    assert counts["first wrong"] / counts["first"] == pytest.approx(0.6, abs=0.03)
    assert counts["random wrong"] / counts["random"] == pytest.approx(0.3, abs=0.03)
    assert counts["clean wrong"] == counts["not the first"] == 0


@pytest.mark.parametrize("kind", [kind for kind in PAIR_KINDS if kind != pairs.SAMPLED])
def test_a_spoiled_reference_has_one_fault(papers, kind):
    found = 0
    for number, paper in enumerate(papers):
        bad = pairs.spoiled(paper, kind, random.Random(number))
        if bad is None:
            continue
        found += 1
        figures = documents.score(documents.write(bad), paper.gold)
        changed = [(new, old) for new, old in zip(bad, paper.gold.paragraphs, strict=True) if new != old]
        assert len(changed) == (2 if kind == "exchanged" else 1)
        assert figures["total"] < 1
        assert figures["following_strict"] == 1
        match kind:
            case "similar":
                assert (figures["wrong"], figures["confused"], figures["ts"]) == (1, 1, 1)
            case "exchanged":
                assert (figures["wrong"], figures["jaccard"], figures["ts"]) == (2, 1, 1)
            case "none":
                assert (figures["omatch"], figures["ts"], figures["wrong"]) == (0.75, 1, 0)
            case "number":
                assert (figures["is"], figures["completeness"], figures["accuracy"] < 1) == (1, 0.875, True)
            case "dropped":
                assert (figures["is"], figures["completeness"], figures["accuracy"]) == (1, 0.875, 1)
    assert found > len(papers) / 5


def test_a_paper_without_a_place_for_a_fault_has_none():
    bare = SummaryGold(tuple(Paragraph("Nothing to see.") for _ in range(4)), {})
    paper = Document(0, "bare", "Nothing.", (), bare)
    assert [pairs.spoiled(paper, kind, random.Random(0)) for kind in ("similar", "exchanged", "none", "number")] == [
        None
    ] * 4
    assert pairs.spoiled(paper, "dropped", random.Random(0)) is None  # it would leave no paragraph


def rollouts(*answers: tuple[tuple[int, ...], str]) -> list[Rollout]:
    problem = Problem(0, "", "")
    return [
        Rollout(problem=problem, sample=n, finish=finish, prompt=None, ids=ids, logprobs=(0.0,) * len(ids), version=0)
        for n, (ids, finish) in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.9, 0.2], ((2,), (3,))),
        ([0.5, 0.5, 0.46], None),  # nearer than the margin
        ([0.9, 0.9, 0.2], ((1,), (3,))),  # the first of equal ones
        ([0.2, 0.3, 1.0], ((2,), (1,))),  # the third was cut off: it may lose, but not win
    ],
)
def test_the_best_sample_that_ended_against_the_worst(values, expected):
    finishes = ["stop", "stop", "length" if values[-1] == 1.0 else "stop"]
    samples = rollouts(*(((n + 1,), finish) for n, finish in enumerate(finishes)))
    assert pairs.choose(samples, [Score(value) for value in values], 0.05) == expected
    assert pairs.choose(rollouts(((1,), "length")), [Score(1.0)], 0.0) is None
    same = rollouts(((1,), "stop"), ((1,), "stop"))
    assert pairs.choose(same, [Score(1.0), Score(0.0)], 0.0) is None


def test_shares_and_lengths_of_each_kind():
    made = [
        pairs.PreferredIds(0, "sampled", (1, 2, 3), (1,)),
        pairs.PreferredIds(1, "sampled", (1,), (1, 2, 3, 4)),
        pairs.PreferredIds(1, "number", (1,), (2,)),
        pairs.PreferredIds(2, "dropped", (1, 2), (2,)),
    ]
    assert pairs.shares(made) == {
        "dropped": {"pairs": 1, "share": 0.25, "longer": 1},
        "number": {"pairs": 1, "share": 0.25, "longer": 0},
        "sampled": {"pairs": 2, "share": 0.5, "longer": -0.5},
    }


def test_scores_of_perfect_answers_and_of_the_controls(cfg):
    metric = reward.make_metric(cfg)
    held_out = data.documents(cfg, "test")
    problems = data.problems(held_out)
    assert [score.value for score in metric([answer(p, perfect(p)) for p in problems])] == [1.0] * 20
    assert metric([]) == []
    moved = data.control(cfg, "exchanged", held_out)
    for score, old in zip(metric([answer(p, perfect(p)) for p in moved]), moved, strict=True):
        assert (score.value, score.parts["old_matched"]) == (1.0, 0.0)
        [kept] = metric([answer(old, documents.write(old.meta["before"].paragraphs))])
        assert (kept.parts["matched"], kept.parts["old_matched"]) == (0.0, kept.parts["cited"])
    assert (
        [task.name for task in tasks.tasks(cfg)]
        == [*cfg.task_names]
        == ["train", "select", "test", "sampled", *CONTROLS]
    )


class Yes:
    """An engine that says yes to what it finds in the question's text."""

    facts = {"engine": "yes"}  # noqa: RUF012

    def __init__(self, say=None):
        self.say, self.asked = say, 0

    def complete(self, questions, budget):
        for question in questions:
            self.asked += 1
            text, _, claim = question.request[0].content.partition("Statement:\n")
            said = self.say or (" Yes." if claim.split("\n")[0] in text else "no")
            yield question, [replace(answer(question.problem, said), sample=0)]


def test_a_served_judge_says_yes_or_no_and_is_asked_once_about_equal_claims():
    engine = Yes()
    claims = [Claim("b", "a b c"), Claim("d", "a b c"), Claim("b", "a b c")]
    assert reward.verdicts(engine, claims) == [True, False, True]
    assert engine.asked == 2
    with pytest.raises(EngineError, match=r"gave no verdict.*maybe"):
        reward.verdicts(Yes("maybe"), claims)


def test_a_prompt_has_the_tokens_of_each_figure_where_it_stands(processor):
    figures = (Figure("1", Photo(28, 28), "one", (28, 28)), Figure("2", Photo(56, 84), "two", (56, 84)))
    paper = Document(0, "p", f"<1>{FIGURE} and <|image_pad|> <2>{FIGURE}.", figures, SummaryGold((), {}))
    for style, meta in (("qwen", {"document": paper}), ("short", {})):
        asked = PromptConfig(style=style)
        request = prompt.request_of(paper, asked)
        ids = prompt.encode(Problem(0, "", "", meta), request, processor, asked).ids
        assert ids.count(processor.image_token) == 1 + 6  # the name in the text is text
        text = processor.tokenizer.decode(ids)
        assert f"<1>{prompt.START}{prompt.PAD}{prompt.STOP} and" in text
        assert f"<2>{prompt.START}{prompt.PAD * 6}{prompt.STOP}." in text
    with pytest.raises(ValueError, match="3 places for figures in the text of 2"):
        prompt.encode(Problem(0, "", "", {}), replace(request, text=request.text + FIGURE), processor, asked)


def test_epochs_bring_every_paper_once(papers):
    batches = [data.shuffled(papers, 30, step, 1) for step in range(8)]
    seen = [paper.index for batch in batches for paper in batch]
    assert sorted(seen[:80]) == sorted(seen[80:160]) == list(range(80))
    assert seen[:80] != seen[80:160]


def test_instructions_are_drawn_by_their_weights_after_the_list_of_figures(cfg, processor, papers):
    stage = replace(cfg.sft, batch=40, figures_first=0.5, mix={"summary": 0.5, "key_points": 0.5, "choice": 0.0})
    rows = data.lesson_rows(cfg, stage, papers, processor, steps=10)
    first = [processor.tokenizer.decode(row.prompt_ids) for row in rows(4)]
    then = [processor.tokenizer.decode(row.prompt_ids) for row in rows(5)]
    assert all(text.endswith("list: ") for text in first)
    assert 10 <= sum(text.endswith("summarise: ") for text in then) <= 30
    assert all(text.endswith("summarise: ") or "points of" in text for text in then)
    assert [row.ids for row in rows(5)] == [row.ids for row in rows(5)]


def test_the_memory_of_the_large_ones_is_estimated_where_their_size_is_known():
    first = load_config("mdocsum-7b-sft").footprint(8)
    assert first.states == 4 * 4 * 8_291_375_616 // 8
    second = load_config("mdocsum-7b-dpo", ("model.path=Qwen/Qwen2-VL-7B-Instruct", "second.reference=model"))
    assert second.footprint(8).states == 5 * 4 * 8_291_375_616 // 8
    adapters = load_config("mdocsum-7b-sft", ("sft.policy.lora={r: 8}", "model.dtype=bfloat16"))
    assert adapters.footprint(8).states == 2 * 8_291_375_616 // 8
    assert load_config("mdocsum-7b-dpo").footprint(8) is None  # the first stage's model is not there yet


def test_rows_are_shown_with_what_is_learned(cfg):
    rows = list(recipe.show_rows(cfg, 3))
    assert [row.title for row in rows] == ["paper 0, summary", "paper 1, figures", "paper 2, section"]
    learned = "".join(text for text, learns in rows[0].tokens if learns)
    assert documents.parse(learned).complete
    assert not any(learns for text, learns in rows[1].tokens if "shows its" in text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sft=null", "second=null"), "nothing to train"),
        (("pairs.kinds={sampled: 0}",), "pairs.kinds: all weights are 0"),
        (("data={type: folder, folder: x}",), "drawn papers alone"),
        (("sft.epochs=1",), "epochs or its steps"),
        (("pairs.kinds={worse: 1}",), "pairs.kinds"),
    ],
)
def test_configs_that_cannot_be(words, message):
    with pytest.raises(Exception, match=message):
        load_config("mdocsum-tiny", words)

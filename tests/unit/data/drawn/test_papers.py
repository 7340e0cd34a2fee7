"""Drawn papers: held out by their words, charts of a look each, cited by look alone."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from data.drawn import papers
from data.drawn.papers import LOOKS, SIDE, Papers, is_similar
from data.drawn.splits import SPLITS, split_of
from data.media.documents import FIGURE
from stepstack.config import ConfigError
from stepstack.scoring import documents
from stepstack.scoring.documents import NO_FIGURE

CFG = Papers(train=300, select=40, test=60)


@pytest.fixture(scope="module")
def drawn():
    return {split: papers.documents(CFG, split) for split in SPLITS}


def words(paper) -> str:
    return paper.text + str([figure.caption for figure in paper.figures])


def test_the_same_config_draws_the_same_papers(drawn):
    assert papers.documents(CFG, "select") == drawn["select"]
    assert papers.documents(replace(CFG, seed=1), "select") != drawn["select"]


def test_splits_share_no_paper(drawn):
    seen = [words(paper) for rows in drawn.values() for paper in rows]
    assert len(set(seen)) == len(seen) == 400
    rng = random.Random(0)
    first = papers.draw(rng, CFG)
    again = replace(first, charts=tuple(papers.chart(chart.look, rng) for chart in first.charts))
    assert first != again
    assert split_of(str(first)) == split_of(str(again))  # other marks do not make another paper


def test_every_figure_stands_behind_its_tag_in_order(drawn):
    for paper in drawn["train"]:
        tags = re.findall(rf"<(\d)>{FIGURE}", paper.text)
        assert tags == [figure.idx for figure in paper.figures] == [str(n + 1) for n in range(len(tags))]
        assert paper.text.count(FIGURE) == len(tags)
        assert re.findall(r"^# (\w+)$", paper.text, re.MULTILINE) == list(documents.PARAGRAPHS)
        assert 2 <= len(tags) <= 3
        assert len({figure.caption for figure in paper.figures}) == len(tags)


def test_figures_are_cited_by_look_and_never_by_idx(drawn):
    for paper in drawn["train"]:
        cited = [p for p in paper.gold.paragraphs if p.image != NO_FIGURE]
        assert 1 <= len(cited) <= 3
        assert len({p.image for p in cited}) == len(cited)
        for paragraph in cited:
            assert f"the {paragraph.caption} shows its" in paragraph.summary
            assert paper.gold.figures[paragraph.image] == paragraph.caption
        assert not re.search(r"\b[1-6]\b", re.sub(r"<\d>", "", paper.text))


def test_the_place_of_a_figure_says_nothing_about_who_cites_it(drawn):
    """A figure stands in the section that cites it about as often as in any other."""
    same = total = 0
    for paper in drawn["train"]:
        sections = re.split(r"# \w+\n", paper.text)[1:]
        for number, paragraph in enumerate(paper.gold.paragraphs):
            if paragraph.image != NO_FIGURE:
                same, total = same + (f"<{paragraph.image}>" in sections[number]), total + 1
    assert 0.19 < same / total < 0.31


def test_half_of_the_papers_have_figures_that_are_similar(drawn):
    looks = dict(zip(papers.captions(CFG), LOOKS, strict=True))
    for paper in drawn["train"]:
        for figure in paper.figures:
            others = [o for o in paper.figures if is_similar(looks[figure.caption], looks[o.caption])]
            assert paper.gold.similar[figure.idx] == tuple(other.idx for other in others)
    pairs = [paper for paper in drawn["train"] if len(paper.figures) == 2]
    alike = sum(bool(paper.gold.similar["1"]) for paper in pairs)
    assert 0.4 < alike / len(pairs) < 0.6


def test_the_reference_says_the_facts_and_the_citation_and_no_distractor(drawn):
    distracted = 0
    for paper in drawn["train"]:
        said = " ".join(p.summary for p in paper.gold.paragraphs)
        distracted += any(word in paper.text for word in papers.DISTRACTORS)
        assert not any(word in said for word in papers.DISTRACTORS)
        assert all(
            len(p.key_points) == 2 and all(point in p.summary for point in p.key_points) for p in paper.gold.paragraphs
        )
        assert documents.score(documents.write(paper.gold.paragraphs), paper.gold)["total"] == 1.0
    assert distracted > 150


def test_every_look_can_be_told_from_every_other():
    rng = random.Random(0)
    charts = {papers.chart(look, rng) for look in LOOKS for _ in range(5)}
    images = {chart: chart.image() for chart in charts}
    assert all(image.size == (SIDE, SIDE) and image.mode == "RGB" for image in images.values())
    colours = {
        chart: {rgb for _, rgb in image.getcolors() if rgb != (255, 255, 255)} for chart, image in images.items()
    }
    assert all(colours[chart] == {papers.RGB[chart.colour]} for chart in charts)
    ink = Counter()
    for chart, image in images.items():
        ink[chart.kind] += sum(count for count, rgb in image.getcolors() if rgb != (255, 255, 255)) / 20
    assert ink["bars"] > ink["dots"] > 0 < ink["line"]


def test_exchanged_figures_take_their_references_along(drawn):
    for paper in drawn["test"]:
        moved = papers.exchanged(paper, CFG)
        assert moved.text == paper.text
        assert [f.idx for f in moved.figures] == [f.idx for f in paper.figures]
        assert {f.picture for f in moved.figures} == {f.picture for f in paper.figures}
        for new, old in zip(moved.gold.paragraphs, paper.gold.paragraphs, strict=True):
            assert (new.image == NO_FIGURE) == (old.image == NO_FIGURE)
            assert new.summary == old.summary
            if new.image != NO_FIGURE:
                assert new.image != old.image
                assert moved.gold.figures[new.image] == old.caption


def test_unrelated_figures_are_of_other_looks(drawn):
    for paper in drawn["test"]:
        other = papers.unrelated(paper, CFG)
        looks = {papers.caption(figure.picture.look, CFG) for figure in other.figures}
        assert not looks & {figure.caption for figure in paper.figures}
        assert (other.gold, other.text) == (paper.gold, paper.text)
        assert other == papers.unrelated(paper, CFG)


def test_held_out_looks_are_in_no_training_paper_and_in_every_other():
    cfg = Papers(figures=(4, 4), captions="colour and kind", held_out_looks=3, train=200, select=20, test=20)
    unseen = {papers.caption(look, cfg) for look in cfg.unseen}
    assert len(unseen) == 3
    assert len({colour for colour, _ in cfg.unseen}) > 1
    for split in SPLITS:
        for paper in papers.documents(cfg, split):
            held_out = unseen & {figure.caption for figure in paper.figures}
            assert bool(held_out) == (split != "train")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="cites"):
        Papers(figures=(1, 3), cites=(2, 3))
    with pytest.raises(ValueError, match="figures"):
        Papers(figures=(3, 2))
    few = Papers(figures=(1, 1), cites=(0, 0), values=2, distractors=0.0, train=10**6)
    with pytest.raises(ConfigError, match="only"):
        papers.documents(replace(few, train=100_000), "train")

"""M-DocEval over answers: the score of evaluations, of pairs, and of GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from recipes.mdocsum.config import Config
from stepstack.generation.types import Answer
from stepstack.harness.config import ServedJudge
from stepstack.harness.engine import Engine
from stepstack.harness.judging import ask, no_verdict, open_judge
from stepstack.harness.training.validation import Validation
from stepstack.records import Problem, Score
from stepstack.rl.reward import Reward
from stepstack.scoring import documents
from stepstack.scoring.documents import Claim, ClaimJudge, SummaryGold, exact

# Ours: the judge of the paper and its words are not published.
QUESTION = "Text:\n{text}\n\nStatement:\n{point}\n\nDoes the text say what the statement says? Answer yes or no."
MAX_TOKENS = 8  # of a verdict


def gold_in(problem: Problem) -> SummaryGold:
    """The reference of a paper."""
    assert isinstance(problem.gold, SummaryGold)
    return problem.gold


def claim_judge(cfg: Config) -> ClaimJudge:
    """The config's judge of key points."""
    judge = cfg.score.judge
    return exact if judge is None else served(judge)


def served(cfg: ServedJudge) -> ClaimJudge:
    """A model on a server as a judge; it is asked for when the first claim comes."""
    return lambda claims: verdicts(open_judge(cfg), claims)


def verdicts(engine: Engine, claims: Sequence[Claim]) -> list[bool]:
    """Yes or no to each claim, equal ones being asked once. EngineError for a request that failed and for an answer
    that is neither."""
    said = ask(engine, [QUESTION.format(text=claim.text, point=claim.point) for claim in claims], MAX_TOKENS)
    if unclear := [text for text in said if not text.startswith(("yes", "no"))]:
        raise no_verdict(engine, f"it said {unclear[0]!r}")
    return [text.startswith("yes") for text in said]


def make_metric(cfg: Config) -> Reward:
    """M-DocEval's total, with all its figures as parts. Of exchanged figures there is also ``old_matched``, the matches
    with the gold of before."""
    judge, weight = claim_judge(cfg), cfg.score.weight

    def score(answers: Sequence[Answer]) -> list[Score]:
        pairs = [(answer.text, gold_in(answer.problem)) for answer in answers]
        scores = []
        for answer, figures in zip(answers, documents.evaluate(pairs, judge, weight) if pairs else [], strict=True):
            if before := answer.problem.meta.get("before"):
                old = documents.image_figures(documents.parse(answer.text), before)
                figures |= {"old_matched": old["matched"]}
            scores.append(Score(figures["total"], figures, answer.text))
        return scores

    return score


def watched(result: Validation) -> dict[str, float]:
    """Figures of the selection split that are logged while it trains."""
    parts = [score.parts for _, score in result.scored]
    figures = {name: fmean(row[name] for row in parts) for name in ("parse", "ts", "is")}
    cited = sum(row["cited"] for row in parts)
    match = {"match": sum(row["matched"] for row in parts) / cited} if cited else {}
    return result.metrics("eval") | {f"eval/{name}": value for name, value in (figures | match).items()}

"""A reward model as a reward: a sequence classifier with one output, which reads question and response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from stepstack.config import ConfigError
from stepstack.generation.types import Answer
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.records import Score
from stepstack.rl.config import ModelReward


@cache
def load_reward_model(cfg: ModelReward, device: str) -> RewardModel:
    """The model of a config, once in a process, since training and evaluations score by the same one."""
    return RewardModel(cfg, torch.device(device))


class RewardModel:
    """Scores answers by a classifier's one output. The model is read when the first answer comes."""

    def __init__(self, cfg: ModelReward, device: torch.device):
        self.cfg, self.device = cfg, device
        self._place = Pretrained(path=cfg.path, revision=cfg.revision, dtype=cfg.dtype)
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __call__(self, answers: Sequence[Answer]) -> list[Score]:
        """One Score an answer, in order; a response that was cut off is scored as it is.

        ConfigError for a model with more than one output, for a tokenizer without padding or, where the config has no
        ``text``, without a chat template, and for a text that is longer than the model's positions.
        """
        if not answers:
            return []
        lm, tokenizer = self._loaded = self._loaded or self._load()
        limit = lm.config.get_text_config().max_position_embeddings
        rows = [self._ids(answer, tokenizer, limit) for answer in answers]
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))  # rows of like lengths are padded least
        values = [0.0] * len(rows)
        for start in range(0, len(order), self.cfg.batch):
            some = order[start : start + self.cfg.batch]
            for at, value in zip(some, self._forward(lm, tokenizer, [rows[at] for at in some]), strict=True):
                values[at] = value
        return [Score(value, {"reward_model": value}) for value in values]

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        tokenizer = pretrained.load_tokenizer(self._place)
        lm = pretrained.load(self._place, AutoModelForSequenceClassification)
        if lm.config.num_labels != 1:
            raise ConfigError(f"reward.path={self.cfg.path} has {lm.config.num_labels} outputs: a reward model has one")
        if tokenizer.pad_token_id is None:
            raise ConfigError(f"reward.path={self.cfg.path}: its tokenizer has no pad_token: save it with one")
        if self.cfg.text is None and tokenizer.chat_template is None:
            raise ConfigError(
                f"reward.path={self.cfg.path}: its tokenizer has no chat template: set reward.text, in which "
                "{question} and {response} stand for the two"
            )
        lm.config.pad_token_id = tokenizer.pad_token_id  # by which the classifier finds a row's last token
        torch.nn.Module.to(lm, self.device)
        return lm.eval(), tokenizer

    def _ids(self, answer: Answer, tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
        question = answer.problem.text
        if self.cfg.text is None:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
            ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        else:
            pieces = {"{question}": question, "{response}": answer.text}
            filled = re.sub(r"\{question\}|\{response\}", lambda found: pieces[found[0]], self.cfg.text)
            ids = tokenizer(filled).input_ids
        if len(ids) > limit:
            raise ConfigError(
                f"problem {answer.problem.index} and its response have {len(ids)} tokens for the reward model, which "
                f"reads {limit}: lower rollout.sampling.max_tokens"
            )
        return list(ids)

    @torch.no_grad()
    def _forward(
        self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]
    ) -> list[float]:
        """Padded on the right, which a causal model never sees from before it."""
        batch = tokenizer.pad({"input_ids": [list(row) for row in rows]}, padding_side="right", return_tensors="pt")
        return lm(**batch.to(self.device)).logits[:, 0].float().tolist()

"""Settings of a Step Law sweep. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from data.drawn.grammar import Grammar
from stepstack.batching.config import BatchLayout
from stepstack.bounds import LearningRate, Magnitude, Text
from stepstack.config import Footprint, RunConfig, Scale, Strict
from stepstack.core.config import AdamW, Schedule
from stepstack.planning.steplaw.count import count


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus(Strict):
    """Documents that `stepstack data` shuffles, tokenises and joins, each with the tokenizer's end of text behind."""

    type: Literal["corpus"] = "corpus"
    """Choice of the data: a corpus."""
    folder: Text
    """Prepared folder, from the repository."""
    dataset: Text
    """Name on the hub, or a builder of datasets (json, parquet) for ``files``."""
    files: tuple[str, ...] = ()
    """Files that the builder reads; empty: those of the data set."""
    subset: str | None = None
    """Subset of the data set; null: its default."""
    column: str = "text"
    """Column of the documents' text."""
    tokenizer: Text
    """Folder or hub name of the tokenizer."""
    vocab: PositiveInt
    """Vocabulary of the models, at least the tokenizer's."""
    shuffle: PositiveInt = 10_000
    """Documents in the buffer from which the next is drawn."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell(Strict):
    """A model's shape and the tokens it is trained on."""

    hidden: PositiveInt
    """Width of the model."""
    intermediate: PositiveInt
    """Width of the MLPs."""
    layers: PositiveInt
    """Layers of the model."""
    heads: PositiveInt
    """Attention heads, as many of keys as of queries."""
    tokens: PositiveInt
    """Tokens of each training."""
    held_out: bool = False
    """Whether the cell's runs check the law, instead of making it."""
    batch: tuple[PositiveInt, ...] = ()
    """Batches of the cell in sequences, in place of the sweep's, where its optimum lies elsewhere; empty: the
    sweep's."""

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden} must be a multiple of {2 * self.heads}, twice the heads")

    def fields(self, vocab: int) -> dict[str, Any]:
        """Fields of the transformers config: Llama with as many key as query heads, which is the authors' shape."""
        return {
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
        }

    @property
    def params(self) -> int:
        """Parameters N by the count of the authors."""
        return count(self.fields(1)).matrices


@dataclass(frozen=True, slots=True)
class Point:
    """Point of the sweep. ``batch`` is in sequences of ``sequence`` tokens."""

    cell: Cell
    lr: float
    batch: int
    sequence: int

    @property
    def steps(self) -> int:
        return self.cell.tokens // (self.batch * self.sequence)

    @property
    def name(self) -> str:
        return f"n{self.cell.params}-d{self.cell.tokens}-lr{self.lr:g}-b{self.batch}"


Some = Field(min_length=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    """A sweep: every cell is trained at every ``lr`` and every ``batch``."""

    evals: tuple[str, ...] = ()
    """Tasks before and after training: none, since a point's result is its held-out loss."""
    cells: Annotated[tuple[Cell, ...], Some]
    """Models and their training tokens."""
    lr: Annotated[tuple[Magnitude, ...], Some]
    """Peak learning rates of the sweep."""
    batch: Annotated[tuple[PositiveInt, ...], Some]
    """Batches of the sweep in sequences."""
    sequence: PositiveInt
    """Tokens of a sequence."""
    data: Annotated[Grammar | Corpus, Field(discriminator="type")]
    """Text that is learned."""
    optim: AdamW = AdamW(weight_decay=0.1, schedule=Schedule(kind="cosine", warmup=2000))
    """Optimizer, whose learning rate and final learning rate are those of the point."""
    final_lr: LearningRate = 1e-5
    """Learning rate at the end of every training, whatever the peak."""
    clip: Magnitude = 1.0
    """Global norm to which gradients are clipped."""
    spread: Magnitude = 0.02
    """Standard deviation of the weights at the start."""
    held_out_rows: PositiveInt = 256
    """Sequences on which the held-out loss is measured."""
    part: tuple[NonNegativeInt, PositiveInt] = (0, 1)
    """Share [k, n] of the sweep: the k-th of n shares of the points, from 0, so that several machines share it."""
    layout: BatchLayout = BatchLayout()
    """How rows become micro-batches."""
    window: Magnitude = 0.02
    """Fraction above its best loss within which a cell's runs shape its surface."""

    def __post_init__(self) -> None:
        for point in self.points:
            if point.batch < self.launch.processes:
                raise ValueError(
                    f"batch={point.batch} sequences are fewer than the {self.launch.processes} processes: "
                    "start fewer, or leave this batch out"
                )
            if point.steps < 2:
                raise ValueError(
                    f"batch={point.batch} sequences of {self.sequence} tokens leave a cell of {point.cell.tokens} "
                    f"tokens {point.steps} updates: give it more tokens"
                )
        if not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f"part={list(self.part)}: must be [k, n] with k from 0 to n - 1")

    @property
    def points(self) -> list[Point]:
        """Points in the order of training, only those of this part."""
        all_points = [
            Point(c, lr, b, self.sequence) for c in self.cells for b in c.batch or self.batch for lr in self.lr
        ]
        return all_points[self.part[0] :: self.part[1]]

    @property
    def scale(self) -> Scale:
        """Scale of the last cell."""
        return Scale(self.cells[-1].params, self.cells[-1].tokens)

    def footprint(self, shards: int) -> Footprint:
        """Footprint of the largest cell: weights, gradients and two moments. Points are trained one after another."""
        vocab = self.data.vocab
        size = 4 * max(count(cell.fields(vocab)).total for cell in self.cells)
        return Footprint(states=4 * size // shards, activations=0, checkpoint=3 * size, host=size)

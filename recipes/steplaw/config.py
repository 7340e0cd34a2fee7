"""Settings of a Step Law sweep. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from data.drawn.grammar import Grammar
from stepstack.batching.config import BatchLayout
from stepstack.config import RunConfig, Scale, Strict
from stepstack.core.config import AdamW, Schedule
from stepstack.planning.steplaw.count import count


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus(Strict):
    """``dataset``: a name on the hub, or a builder of datasets (json, parquet) for ``files``. Documents are shuffled in
    a buffer of ``shuffle``, cut by ``tokenizer`` (a folder or a name on the hub) and joined with its end of text."""

    type: Literal["corpus"] = "corpus"
    folder: str
    dataset: str
    files: tuple[str, ...] = ()
    subset: str | None = None
    column: str = "text"
    tokenizer: str
    vocab: int
    shuffle: int = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell(Strict):
    """A model's shape and the tokens it is trained on. ``held_out``: its runs check the law, they do not make it.
    ``batch``: its own batches, in place of the sweep's, where its optimum lies elsewhere."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    tokens: int
    held_out: bool = False
    batch: tuple[int, ...] = ()

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
    """Every cell is trained at every ``lr`` and every ``batch`` (sequences).

    ``part``: (k, n) trains the k-th of n shares of the points, from 0, so that several machines share a sweep.
    ``window``: what fraction above its best loss a cell's runs may lie to shape its surface.
    """

    evals: tuple[str, ...] = ()
    cells: Annotated[tuple[Cell, ...], Some]
    lr: Annotated[tuple[float, ...], Some]
    batch: Annotated[tuple[PositiveInt, ...], Some]
    sequence: PositiveInt
    data: Annotated[Grammar | Corpus, Field(discriminator="type")]
    optim: AdamW = AdamW(weight_decay=0.1, schedule=Schedule(kind="cosine", warmup=2000))
    final_lr: float = 1e-5
    clip: float = 1.0
    spread: float = 0.02  # standard deviation of the initial weights
    held_out_rows: PositiveInt = 256
    part: tuple[int, int] = (0, 1)
    layout: BatchLayout = BatchLayout()
    window: float = 0.02

    def __post_init__(self) -> None:
        for point in self.points:
            if point.batch < self.launch.processes:
                raise ValueError(f"batch={point.batch} sequences are fewer than the {self.launch.processes} processes")
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

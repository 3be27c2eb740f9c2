"""One rank's share of a model: which rows and columns of each tensor, and what cannot be shared.

Tensor parallelism splits what a layer does by heads and by widths; each rank computes a part of the
layer's output, and the parts are summed over the ranks.

    rows of       query_key_value (of q, k and v each), g_proj, g_norm, q_proj, q_b_proj, kv_b_proj,
                  gate_proj, up_proj (of every expert), word_embeddings, lm_head
    columns of    dense, down_proj
    every rank    norms, router, q_a_proj, kv_a_proj_with_mqa, eh_proj
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lingflash.core.errors import ConfigError

_ROWS = frozenset(
    {
        "g_proj", "g_norm", "q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj",
        "word_embeddings", "lm_head",
    }
)  # fmt: skip
_COLUMNS = frozenset({"dense", "down_proj"})
_THREE_PARTS = "query_key_value"


@dataclass(frozen=True, slots=True)
class Shard:
    """A rank's place among those that share a model.

    Args:
        rank: from 0.
        size: ranks in all.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int, what: str) -> int:
        """How many of `count` things one rank has.

        Raises:
            ConfigError: they cannot be shared equally; `what` names them.
        """
        if count % self.size:
            raise ConfigError(
                f"--tensor-parallel-size is {self.size}, which does not divide {what} ({count}); "
                f"allowed here: {allowed_sizes(count)}.",
                param="tensor_parallel_size",
            )
        return count // self.size

    def cut(self, name: str, shape: Sequence[int]) -> Cut:
        """The part of a checkpoint's tensor that this rank holds.

        Args:
            name: of the unquantized tensor, such as "model.layers.0.attention.dense.weight".
            shape: of the whole tensor.
        """
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        whole = Cut(((0, shape[0]),), None if len(shape) < 2 else (0, shape[1]))
        if self.size == 1:
            return whole
        if leaf in _ROWS or leaf == _THREE_PARTS:
            parts = 3 if leaf == _THREE_PARTS else 1
            each = shape[0] // parts
            count = self.share(each, f"the rows of {name}")
            starts = [part * each + self.rank * count for part in range(parts)]
            return Cut(tuple((lo, lo + count) for lo in starts), whole.columns)
        if leaf in _COLUMNS:
            count = self.share(shape[1], f"the columns of {name}")
            return Cut(whole.rows, (self.rank * count, (self.rank + 1) * count))
        return whole


@dataclass(frozen=True, slots=True)
class Cut:
    """Ranges of a tensor: rows that are put below each other, and one range of columns.

    Args:
        rows: (start, stop) of each range.
        columns: (start, stop); None for a vector.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[int, int] | None

    @property
    def shape(self) -> tuple[int, ...]:
        rows = sum(hi - lo for lo, hi in self.rows)
        return (rows,) if self.columns is None else (rows, self.columns[1] - self.columns[0])

    def in_blocks(self, name: str, shape: Sequence[int], block: tuple[int, int]) -> Cut:
        """The same cut counted in blocks: of a grid of scales, or of packed words.

        Args:
            name: for the message.
            shape: rows and columns of the matrix.
            block: rows and columns of a block; 0 columns is a whole row, which a cut through the
                columns leaves in one piece.

        Raises:
            ConfigError: the cut goes through a block.
        """
        assert self.columns is not None
        rows = tuple(_blocks(name, r, shape[0], block[0], "rows") for r in self.rows)
        if not block[1]:
            return Cut(rows, (0, 1))
        return Cut(rows, _blocks(name, self.columns, shape[1], block[1], "columns"))


def _blocks(
    name: str, span: tuple[int, int], end: int, size: int, direction: str
) -> tuple[int, int]:
    lo, hi = span
    if lo % size or (hi % size and hi != end):
        raise ConfigError(
            f"--tensor-parallel-size cuts the {direction} of {name} at {lo} and {hi}, inside a "
            f"quantization block of {size}; use fewer ranks, or a format with smaller blocks.",
            param="tensor_parallel_size",
        )
    return lo // size, -(-hi // size)


def allowed_sizes(count: int, most: int = 64) -> str:
    """Divisors of a count, for messages."""
    return ", ".join(str(n) for n in range(1, min(count, most) + 1) if count % n == 0)

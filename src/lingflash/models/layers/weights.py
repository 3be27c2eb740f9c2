"""Places for a checkpoint's tensors: a model lists them, the loader fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lingflash.core.errors import ModelLoadError, UnsupportedModelError
from lingflash.kernels.cpu.packed import takes_format
from lingflash.parallel.shard import Cut, Shard
from lingflash.quant.matrix import Matrix, QuantizedExperts, QuantizedMatrix, StackedMatrix
from lingflash.quant.scheme import MatrixFormat

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Slot:
    """What goes into a (part of a) weight, and which part of the checkpoint's tensor.

    Args:
        destination: filled by the loader.
        cut: rows and columns of the stored tensor.
        shape: of the stored tensor.
        dequantize: set if the destination is dense and the stored matrix is not: the stored
            values and scales are read whole and turned into numbers.
    """

    destination: Tensor
    cut: Cut
    shape: tuple[int, ...]
    dequantize: MatrixFormat | None = None


@dataclass(slots=True)
class WeightSlots:
    """Allocates a model's weights and remembers which tensor of the checkpoint belongs where.

    Every size given to these methods is that of the rank's own share; `shard` knows which part of
    the checkpoint's tensor it is.

    Args:
        shapes: shape of every tensor in the checkpoint, for widths that config.json leaves open.
        dtype: of the weights that are neither kept in float32 nor quantized.
        formats: how quantized matrices are stored, by their name.
        shard: the rank's place.
    """

    shapes: Mapping[str, Sequence[int]]
    dtype: torch.dtype
    device: torch.device
    formats: Mapping[str, MatrixFormat] = field(default_factory=dict)
    shard: Shard = field(default_factory=Shard)
    slots: dict[str, Slot] = field(default_factory=dict)
    has_quantized: bool = False
    num_bytes: int = 0

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate an uninitialised weight that `assign` will hand out in parts."""
        weight = torch.empty(*shape, dtype=dtype or self.dtype, device=self.device)
        self.num_bytes += weight.nbytes
        return weight

    def matrix(self, *shape: int) -> Tensor:
        """Allocate a weight [..., out, in] that is only used in products.

        On the CPU its memory runs along `out`: with one row of activations, MKL streams such a
        matrix at 2.5 times the rate of the other order (18 against 7 GB/s for 1024 x 256,
        measured).
        """
        return self.transposed(*shape) if self.device.type == "cpu" else self.empty(*shape)

    def transposed(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate a weight [..., out, in] whose memory runs along `out`."""
        return self.empty(*shape[:-2], shape[-1], shape[-2], dtype=dtype).transpose(-1, -2)

    def assign(self, name: str, destination: Tensor) -> Tensor:
        """Say that the checkpoint's tensor `name` goes into this (part of a) dense weight."""
        if name in self.slots:
            raise ValueError(f"{name} is assigned twice.")
        stored = self.formats.get(name)
        shape = self.shapes.get(name) if stored is None else stored.shape
        # A missing tensor is reported by the loader, which knows all that are.
        shape = destination.shape if shape is None else shape
        self.slots[name] = Slot(destination, self.shard.cut(name, shape), tuple(shape), stored)
        return destination

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate a weight that is one tensor of the checkpoint, and is dense in any case."""
        return self.assign(name, self.empty(*shape, dtype=dtype))

    def take_matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """Allocate a matrix that is one tensor of the checkpoint."""
        return self.stack([name], [rows], columns)

    def stack(self, names: Sequence[str], rows: Sequence[int], columns: int) -> Matrix:
        """Allocate [sum(rows), columns] and give each name its rows: one product for all."""
        layouts = {_layout(self.formats.get(name)) for name in names}
        if layouts == {None}:
            weight = self.matrix(sum(rows), columns)
            for name, part in zip(names, weight.split(list(rows)), strict=True):
                self.assign(name, part)
            return weight
        if len(layouts) > 1:
            parts = [self.stack([n], [r], columns) for n, r in zip(names, rows, strict=True)]
            assert not any(isinstance(part, StackedMatrix) for part in parts)
            return StackedMatrix(tuple(p for p in parts if not isinstance(p, StackedMatrix)))
        first = self.formats[names[0]]
        values, scale = self._allocate(first, rows, columns)
        whole = QuantizedMatrix(values, scale, first.block, self.dtype, tuple(rows))
        for name, part in zip(names, whole.parts(), strict=True):
            self._assign_quantized(name, part)
        return whole

    def experts(
        self, names: Sequence[Sequence[str]], rows: Sequence[int], columns: int
    ) -> Tensor | QuantizedExperts:
        """Allocate [E, sum(rows), columns] and give each expert's names their rows.

        Raises:
            UnsupportedModelError: the experts of a layer are stored in different formats.
        """
        layouts = {_layout(self.formats.get(name)) for expert in names for name in expert}
        if len(layouts) > 1:
            raise UnsupportedModelError(
                f"{names[0][0]} and its layer's other experts are stored in different formats; "
                "one format for all experts of a layer is supported."
            )
        if layouts == {None}:
            weight = self.matrix(len(names), sum(rows), columns)
            for parts, expert in zip(weight, names, strict=True):
                for name, part in zip(expert, parts.split(list(rows)), strict=True):
                    self.assign(name, part)
            return weight
        first = self.formats[names[0][0]]
        values, scale = self._allocate(first, rows, columns, len(names))
        whole = QuantizedExperts(values, scale, first.block, self.dtype, tuple(rows))
        for e, expert in enumerate(names):
            for name, part in zip(expert, whole.matrix(e).parts(), strict=True):
                self._assign_quantized(name, part)
        return whole

    def _allocate(
        self, stored: MatrixFormat, rows: Sequence[int], columns: int, *lead: int
    ) -> tuple[Tensor, Tensor]:
        """Values and scales for matrices of these rows, below each other."""
        self.has_quantized = True
        grids = [stored.scale_shape(count, columns) for count in rows]
        values = stored.values_shape(sum(rows), columns)
        scale = sum(grid[0] for grid in grids), grids[0][1]
        make = self.empty
        if self.device.type == "cpu" and self.dtype == torch.float32:
            # As dense matrices lie there, if there is a kernel for it.
            lies_transposed = takes_format(stored.is_packed, stored.block, rows, columns)
            make = self.transposed if lies_transposed else self.empty
        dtype = torch.int32 if stored.is_packed else FP8
        return make(*lead, *values, dtype=dtype), make(*lead, *scale, dtype=stored.scale_dtype)

    def _assign_quantized(self, name: str, part: QuantizedMatrix) -> None:
        stored = self.formats[name]
        if stored.values in self.slots:
            raise ValueError(f"{name} is assigned twice.")
        rows, columns = stored.shape
        cut = self.shard.cut(name, stored.shape)
        if cut.shape != part.shape:
            raise ModelLoadError(
                f"{stored.values} holds a matrix of {[rows, columns]}"
                + (f", of which a rank has {list(cut.shape)}" if self.shard.size > 1 else "")
                + f"; needed is {list(part.shape)}."
            )
        words = cut.in_blocks(name, stored.shape, (1, 8 if stored.is_packed else 1))
        grid = cut.in_blocks(name, stored.shape, stored.block)
        values_shape = stored.values_shape(rows, columns)
        self.slots[stored.values] = Slot(part.values, words, values_shape)
        self.slots[stored.scale] = Slot(part.scale, grid, stored.scale_shape(rows, columns))

    def width_of(self, name: str) -> int:
        """This rank's rows of a matrix of the checkpoint.

        Raises:
            ModelLoadError: the checkpoint has no such tensor.
        """
        if name in self.formats:
            rows = self.formats[name].shape[0]
        elif name in self.shapes:
            rows = int(self.shapes[name][0])
        else:
            raise ModelLoadError(f"The checkpoint has no tensor {name}.")
        return self.shard.share(rows, f"the rows of {name}")


def _layout(stored: MatrixFormat | None) -> tuple[object, ...] | None:
    """What must agree for two matrices to lie in one allocation."""
    return None if stored is None else (stored.is_packed, stored.block, stored.scale_dtype)

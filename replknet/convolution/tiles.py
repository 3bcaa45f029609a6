"""How the matrix products of `toeplitz` are cut: into tiles, by shape and by the shared memory of a device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


class KernelError(RuntimeError):
    """A kernel could not be compiled or started."""


@dataclass(frozen=True)
class Tile:
    """What one program computes, and how.

    Attributes:
        rows, columns: Of the output, R and BN.
        down, across: Rows and columns of the map that one product takes, S and J.
        block: Rows of the product; of a weight gradient, rows that are summed at a time.
        warps, stages: Threads by 32, and loads under way.
    """

    rows: int
    columns: int
    down: int
    across: int
    block: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Blocks:
    """How a map is cut for a tile.

    Attributes:
        row_blocks, column_blocks: Of the output.
        left: Of the first column that a block of columns meets, from its own first.
        across: Parts of `Tile.across` columns that it meets.
        up: Of the first row that a block of rows meets, the other way.
        steps: Groups of `Tile.down` rows that it meets.
    """

    row_blocks: int
    column_blocks: int
    left: int
    across: int
    up: int
    steps: int


@lru_cache(maxsize=1024)
def cut_map(height: int, width: int, kernel: tuple[int, int], tile: Tile) -> Blocks:
    reach_y, reach_x = kernel[0] // 2, kernel[1] // 2
    column_blocks = -(-width // tile.columns)
    left = 0 if column_blocks == 1 else -reach_x // 8 * 8  # loads of 16 bytes stay aligned
    meets = width if column_blocks == 1 else tile.columns + reach_x - left
    up = -(-reach_y // tile.down) * tile.down
    return Blocks(
        row_blocks=-(-height // tile.rows),
        column_blocks=column_blocks,
        left=left,
        across=-(-meets // tile.across),
        up=up,
        steps=-(-(up + reach_y + tile.rows) // tile.down),
    )


def summed_at_a_time(num_images: int, cut: Blocks, block: int) -> tuple[int, int, int]:
    """Blocks of rows, images and blocks of columns, powers of two, that a weight gradient takes at a time."""
    block = min(block, max(16, at_least(num_images * cut.row_blocks * cut.column_blocks)))
    columns = min(at_least(cut.column_blocks), block)
    rows = 4 if cut.row_blocks >= 8 else 2 if cut.row_blocks >= 4 else 1
    images = min(at_least(num_images), max(1, block // (columns * rows)))
    return block // (columns * images), images, columns


def at_least(number: int) -> int:
    """The smallest power of two that is not below it."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Tiles:
    """Of outputs and input gradients, and of weight gradients, each in half precision and in float32."""

    output: tuple[Tile, Tile]
    weight_gradient: tuple[Tile, Tile]

    def of(self, weight_gradient: bool, planes: int) -> Tile:
        return (self.weight_gradient if weight_gradient else self.output)[planes > 1]


# Measured to be fast on a Hopper card; any is right.
UP_TO_8 = Tiles(
    (Tile(8, 8, 8, 8, 64, 4, 3), Tile(8, 8, 8, 8, 64, 4, 2)),
    (Tile(8, 8, 8, 8, 64, 4, 2), Tile(8, 8, 8, 8, 32, 4, 2)),
)
UP_TO_16 = Tiles(
    (Tile(8, 16, 2, 16, 64, 4, 3), Tile(8, 16, 2, 16, 64, 4, 2)),
    (Tile(4, 16, 4, 16, 32, 4, 2), Tile(4, 16, 4, 16, 32, 4, 2)),
)
UP_TO_32 = Tiles(
    (Tile(4, 32, 2, 16, 64, 4, 3), Tile(4, 32, 1, 32, 64, 4, 3)),
    (Tile(2, 32, 2, 32, 64, 4, 3), Tile(2, 32, 2, 32, 32, 4, 2)),
)
UP_TO_64 = Tiles(
    (Tile(4, 64, 1, 64, 128, 8, 3), Tile(2, 64, 1, 32, 64, 4, 3)),
    (Tile(2, 64, 2, 64, 64, 4, 3), Tile(2, 32, 1, 64, 32, 4, 2)),
)
UP_TO_64_SMALL_KERNELS = Tiles(
    UP_TO_64.output,
    (Tile(4, 16, 4, 32, 64, 4, 3), Tile(2, 64, 1, 64, 32, 4, 2)),
)
WIDE_SMALL_KERNELS = Tiles(
    (Tile(4, 32, 2, 16, 128, 4, 3), Tile(4, 32, 2, 16, 64, 4, 3)),
    (Tile(4, 16, 4, 32, 64, 4, 3), Tile(2, 32, 1, 64, 32, 4, 2)),
)
WIDE = Tiles(
    (Tile(8, 32, 1, 64, 128, 8, 3), Tile(2, 32, 1, 32, 128, 4, 3)),
    (Tile(2, 32, 1, 64, 128, 4, 2), Tile(2, 32, 1, 64, 32, 4, 2)),
)
FEW_ROWS = Tiles((Tile(2, 32, 1, 32, 128, 4, 3), WIDE.output[1]), WIDE.weight_gradient)


def tiles_for(shape: tuple[int, ...], kernel: tuple[int, int]) -> Tiles:
    """Those for maps (N, C, H, W)."""
    num_images, _, height, width = shape
    for limit, found in ((8, UP_TO_8), (16, UP_TO_16), (32, UP_TO_32)):
        if width <= limit:
            return found
    if num_images * -(-height // 8) * -(-width // 32) < 128:
        return FEW_ROWS
    if width <= 64:
        return UP_TO_64 if kernel[1] > 9 else UP_TO_64_SMALL_KERNELS
    return WIDE if kernel[1] > 9 else WIDE_SMALL_KERNELS


def multiply_adds(shape: tuple[int, ...], kernel: tuple[int, int], planes: int, *, weight_gradient: bool) -> int:
    """Of the matrix products of one direction, those with zeros included, for `planning`."""
    num_images, channels, height, width = shape
    tile = tiles_for(shape, kernel).of(weight_gradient, planes)
    cut = cut_map(height, width, kernel, tile)
    rows = num_images * cut.row_blocks * cut.column_blocks
    of_row = cut.steps * tile.down * cut.across * tile.across * tile.rows * tile.columns
    return channels * max(rows, 16) * of_row * (1, 3, 6)[planes - 1]


def scratch_bytes(shape: tuple[int, ...], kernel: tuple[int, int], planes: int, *, weight_gradient: bool) -> int:
    """Of the matrices of a kernel, or of the sums along diagonals of a weight gradient, about."""
    _, channels, height, width = shape
    tile = tiles_for(shape, kernel).of(weight_gradient, planes)
    cut = cut_map(height, width, kernel, tile)
    if weight_gradient:
        lags = at_least(tile.down + tile.rows - 1) * at_least(min(tile.across + tile.columns - 1, kernel[1]))
        return 4 * channels * cut.steps * cut.across * lags
    lines = cut.steps * tile.down + tile.rows - 1
    return 2 * planes * channels * lines * cut.across * tile.across * tile.columns


def fitting(
    tile: Tile, needs: Callable[[Tile], int], device: torch.device, compute: Callable[[Tile], Tensor]
) -> Tensor:
    """Compute with the tile, or with the next smaller one for whose `needs`, in bytes, the device has shared memory."""
    for smaller in _smaller(tile):
        if needs(smaller) > shared_memory(device):
            continue
        try:
            return compute(smaller)
        except TooLargeError:  # what the compiler needs is known only when it is done
            _SHARED_MEMORY[device] = needs(smaller) - 1
    raise KernelError(f"no tile fits the {shared_memory(device)} bytes of shared memory of {device}")


def _smaller(tile: Tile) -> Iterator[Tile]:
    yield tile
    while True:
        if tile.stages > 1:
            tile = replace(tile, stages=tile.stages - 1)
        elif tile.block > 32:
            tile = replace(tile, block=tile.block // 2, warps=4)
        elif tile.rows > 1 and tile.rows * tile.columns > 16:
            tile = replace(tile, rows=tile.rows // 2, warps=4)
        elif tile.down > 1 and tile.down * tile.across > 16:
            tile = replace(tile, down=tile.down // 2, warps=4)
        else:
            return
        yield tile


class TooLargeError(Exception):
    """A kernel needs more shared memory than the device has."""


_SHARED_MEMORY: dict[torch.device, int] = {}
"""Of a program, in bytes, by device: as it says, or less where a kernel turned out not to fit."""


def shared_memory(device: torch.device) -> int:
    if device not in _SHARED_MEMORY:
        known = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        _SHARED_MEMORY[device] = 2**20 if known is None else getattr(known, "shared_memory_per_block_optin", 48 * 2**10)
    return _SHARED_MEMORY[device]

"""The search for blocks, against plain loops."""

import pytest
import torch

from pkt.extract.blocks import _coupled, best_block, best_columns
from pkt.models.families import Dims


def by_loops(s_RC, shape):
    """The first of the best blocks, by adding up every block."""
    best, at = None, None
    for row in range(s_RC.shape[0] - shape[0] + 1):
        for column in range(s_RC.shape[1] - shape[1] + 1):
            total = float(s_RC[row : row + shape[0], column : column + shape[1]].double().sum())
            if best is None or total > best:
                best, at = total, (row, column)
    return at


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 2), (9, 11), (1, 11), (9, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_block_is_that_of_a_double_loop(shape, seed):
    s_RC = torch.rand(9, 11, generator=torch.Generator().manual_seed(seed))
    assert best_block(s_RC, shape) == by_loops(s_RC, shape)


@pytest.mark.parametrize("columns", [1, 5, 11])
def test_columns_of_all_rows_are_such_a_block(columns):
    s_RC = torch.rand(9, 11, generator=torch.Generator().manual_seed(0))
    assert best_columns(s_RC, columns) == best_block(s_RC, (9, columns))


def test_first_of_equal_blocks():
    assert best_block(torch.ones(4, 4), (2, 2)) == (0, 0)
    s_RC = torch.zeros(4, 6)
    s_RC[2, 1] = s_RC[2, 4] = 1.0
    assert best_block(s_RC, (1, 1)) == (2, 1)


def test_small_differences_beside_large_sums_count():
    """In float32 the summed-area table could not tell these blocks apart."""
    s_RC = torch.full((200, 200), 1e4)
    s_RC[150, 150] += 0.01
    row, column = best_block(s_RC, (50, 50))
    assert row <= 150 < row + 50
    assert column <= 150 < column + 50


DIMS = {
    "source": Dims(3, 20, 24, 6, 3, 4, 10, 10, 1e-6),
    "target": Dims(2, 12, 16, 4, 2, 4, 10, 10, 1e-6),
}


@pytest.mark.parametrize("parts", [("q", "k", "v", "o", "gate", "up", "down"), ("v", "down"), ("up",)])
def test_coupled_blocks_share_neurons_and_heads(parts):
    s, t = DIMS["source"], DIMS["target"]
    gen = torch.Generator().manual_seed(1)
    sizes = {"q": (24, 20), "k": (12, 20), "v": (12, 20), "o": (20, 24), "gate": (24, 20), "up": (24, 20), "down": (20, 24)}  # fmt: skip
    wanted = {"q": (16, 12), "k": (8, 12), "v": (8, 12), "o": (12, 16), "gate": (16, 12), "up": (16, 12), "down": (12, 16)}  # fmt: skip
    sums = {part: torch.rand(sizes[part], generator=gen) for part in parts}
    found = _coupled(sums, {part: wanted[part] for part in parts}, s, t)
    assert found.keys() == set(parts)
    for kind, lines in ((("gate", "up", "down"), 24 - 16 + 1), (("q", "k", "v", "o"), 3 - 2 + 1)):
        inside = [part for part in kind if part in parts]
        places = [(line, column) for line in range(lines) for column in range(20 - 12 + 1)]
        if inside:
            best = max(places, key=lambda at: sum(inside_block(sums[p], p, at, wanted[p], s) for p in inside))
            assert {part: found[part] for part in inside} == {
                part: corner(part, best, sums[part], s) for part in inside
            }


def corner(part, at, s_RC, dims):
    """Where a block starts: at an FFN neuron, or at a key-value head."""
    line, column = at
    if part in ("q", "k", "v", "o"):
        line = line * (s_RC.shape[1] if part == "o" else s_RC.shape[0]) // dims.kv_heads
    return (column, line) if part in ("down", "o") else (line, column)


def inside_block(s_RC, part, at, shape, dims):
    row, column = corner(part, at, s_RC, dims)
    return float(s_RC[row : row + shape[0], column : column + shape[1]].double().sum())

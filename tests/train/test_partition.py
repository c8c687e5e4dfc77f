"""Parts of equal size: exact for any graph and any first cut, and a row moves where it is linked."""

import numpy as np
import pytest
from omni2vec.data.counter import permuted
from omni2vec.train.neighbours import adjacency
from omni2vec.train.partition import even, metis


@pytest.mark.parametrize(("n", "size"), [(96, 8), (97, 8), (103, 8), (64, 32), (1000, 7)])
def test_sizes_are_exact_but_for_the_last_and_no_row_is_lost(n, size):
    parts = -(-n // size)
    rng = np.random.default_rng(n)
    edges = np.unique(np.sort(rng.integers(0, n, (4 * n, 2)), axis=1), axis=0)
    ends, linked = adjacency(edges[edges[:, 0] != edges[:, 1]], n)
    skewed = np.minimum(rng.integers(0, parts, n), rng.integers(0, parts, n))  # low numbers far too large
    for part in (skewed, np.zeros(n, np.int64), metis(ends, linked, parts, 0)):
        found, moved = even(part, ends, linked, size)
        assert np.bincount(found).tolist() == [size] * (n // size) + [n % size] * (n % size > 0)
        assert moved <= n - size


@pytest.mark.parametrize(("rows", "linked"), [(2**31, 10), (10, 2**31)])
def test_a_graph_of_more_than_metis_can_number_is_refused_with_what_to_do(rows, linked):
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"2,147,483,648 .*2,147,483,647 of each at most: lower Cluster\(neighbours\)"):
        metis(np.broadcast_to(one, rows), np.broadcast_to(one, linked), 2, 0)


def test_right_sizes_move_no_row():
    part = permuted(np.arange(40), 40, "parts") // 8
    ends, linked = adjacency(np.array([[0, 1]]), 40)
    found, moved = even(part, ends, linked, 8)
    assert moved == 0
    pairs = set(zip(part.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 5


def test_the_least_linked_row_goes_where_it_is_linked():
    """Rows 0-4 are in part 0, one too many; row 4 is linked to part 2 alone, which has room."""
    edges = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [2, 3], [4, 9], [4, 10]])
    ends, linked = adjacency(edges, 12)
    found, moved = even(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]), ends, linked, 4)
    assert moved == 1
    assert found[4] == found[9] == found[10]
    assert len(set(found[:4])) == 1

"""Tables of vectors by id: what is written is found again, and what is damaged is named."""

import numpy as np
import pytest
from omni2vec.data.relation import id_pair
from omni2vec.data.types import DataError
from omni2vec.data.vectors import Vectors, ordered, write


def table(folder, count=200, dim=6, dtype="float32", seed=0):
    ids = np.array([id_pair(f"item {i}") for i in range(count)], np.int64).reshape(-1, 2)
    ids = ids[ordered(ids)]
    matrix = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    parts = np.array_split(np.random.default_rng(1).permutation(count), 7)
    path = write(folder / "query.safetensors", ids, ((p, matrix[p]) for p in parts), dim, {"teacher": "t"}, dtype)
    return path, ids, matrix


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 1e-3)])
def test_vectors_of_windows_in_any_order_are_found_by_id_at_unit_length(tmp_path, dtype, error):
    path, _, matrix = table(tmp_path, dtype=dtype)
    found = Vectors.open(path)
    asked = np.array([id_pair(f"item {i}") for i in (5, 199, 0, 5)])
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    places = found.lookup(asked)
    assert np.abs(found.rows(places) - unit[places]).max() < error
    assert [tuple(found.ids[p]) for p in places] == [tuple(a) for a in asked]
    assert (len(found), found.dim, found.about["teacher"]) == (200, 6, "t")


def test_safetensors_reads_the_same_arrays(tmp_path):
    from safetensors.numpy import load_file

    path, ids, matrix = table(tmp_path)
    theirs = load_file(path)
    assert np.array_equal(theirs["ids"], ids) and np.array_equal(theirs["vectors"], matrix)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_id_that_is_not_there_has_no_row_even_where_its_first_half_is(tmp_path):
    ids = np.array([[1, -5], [1, 0], [1, 7], [3, 2]])
    write(tmp_path / "t", ids, [(np.arange(4), np.eye(4, dtype=np.float32))], 4, {})
    asked = np.array([[1, 7], [1, 6], [1, -5], [0, 0], [9, 9], [3, 2], [1, 8]])
    assert Vectors.open(tmp_path / "t").lookup(asked).tolist() == [2, -1, 0, -1, -1, 3, -1]


def test_an_empty_table_opens_and_finds_nothing(tmp_path):
    write(tmp_path / "t", np.zeros((0, 2), np.int64), [], 4, {})
    assert Vectors.open(tmp_path / "t").lookup(np.array([[1, 2]])).tolist() == [-1]


@pytest.mark.parametrize("ids", [[[2, 0], [1, 0]], [[1, 0], [1, 0]]], ids=["descending", "twice"])
def test_ids_out_of_order_or_twice_are_refused(tmp_path, ids):
    with pytest.raises(ValueError, match="not ascending"):
        write(tmp_path / "t", np.array(ids), [], 4, {})


def test_a_vector_that_is_no_number_is_refused_when_written_and_nothing_is_left(tmp_path):
    ids, bad = np.array([[1, 0], [2, 0]]), np.array([[1, 0], [np.nan, 0]], np.float32)
    with pytest.raises(DataError, match="vector 1 is not finite"):
        write(tmp_path / "t", ids, [(np.arange(2), bad)], 2, {})
    with pytest.raises(DataError, match=r"shape \(2, 2\); expected \(2, 3\)"):
        write(tmp_path / "t", ids, [(np.arange(2), bad)], 3, {})
    with pytest.raises(DataError, match="2 of 2 ids were given no vector"):
        write(tmp_path / "t", ids, [], 2, {})
    assert not list(tmp_path.iterdir())


def test_a_foreign_table_with_a_vector_that_is_no_number_names_its_row(tmp_path):
    from safetensors.numpy import save_file

    save_file(
        {"ids": np.array([[1, 0], [2, 0]]), "vectors": np.array([[1, 0], [np.inf, 0]], np.float32)}, tmp_path / "t"
    )
    found = Vectors.open(tmp_path / "t")
    assert found.rows(np.array([0])).tolist() == [[1, 0]]
    with pytest.raises(DataError, match="row 1 is a vector of length inf"):
        found.rows(np.array([0, 1]))


def test_a_file_that_is_missing_cut_or_of_other_arrays_is_named(tmp_path):
    from safetensors.numpy import save_file

    path, _, _ = table(tmp_path)
    whole = path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-9])
    (tmp_path / "other").write_bytes(b"hello")
    save_file({"ids": np.zeros((3, 2), np.int64), "vectors": np.zeros((4, 2), np.float32)}, tmp_path / "uneven")
    for name, said in (
        ("cut", "cut short"),
        ("other", "cannot be read"),
        ("none", "Embedded step"),
        ("uneven", "expected ids"),
    ):
        with pytest.raises(DataError, match=said):
            Vectors.open(tmp_path / name)

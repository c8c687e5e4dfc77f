"""The side-cars that a mixture reads: clusters of rows and weights of sources, whole, of these rows, or refused."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from omni2vec.data import clusters
from omni2vec.data.clusters import grouped
from omni2vec.data.types import DataError
from omni2vec.data.weights import weights_of
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Counted:
    """So many rows, of which nothing is read."""

    name: str = "rows"
    digest: str = "0123456789abcdef"
    count: int = 6

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        raise AssertionError("no row is needed")


def made(folder, cluster=(1, 0, 1, 2, 0, 1), rows=None):
    clusters.write(folder, np.array(cluster, np.int32), rows or Counted(), {"teacher": "t"})
    return folder


def test_rows_come_cluster_by_cluster_with_their_ends(tmp_path):
    members, ends = grouped(made(tmp_path), Counted())
    assert members.tolist() == [1, 4, 0, 2, 5, 3]
    assert ends.tolist() == [2, 5, 6]
    assert members.dtype == ends.dtype == np.int64


def test_an_empty_cluster_number_is_no_group(tmp_path):
    members, ends = grouped(made(tmp_path, (3, 3, 0, 0, 3, 0)), Counted())
    assert members.tolist() == [2, 3, 5, 0, 1, 4]
    assert ends.tolist() == [3, 6]


def test_every_row_stands_in_the_members_once(tmp_path):
    rows = Counted(count=1000)
    number = np.random.default_rng(0).integers(0, 40, 1000)
    members, ends = grouped(made(tmp_path, number, rows), rows)
    assert sorted(members.tolist()) == list(range(1000))
    begins = [0, *ends[:-1]]
    assert all(len(set(number[members[b:e]])) == 1 for b, e in zip(begins, ends, strict=True))


def test_what_was_said_of_the_clusters_comes_back(tmp_path):
    said = {"teacher": "t", "rows": "0123456789abcdef", "source": "rows"}
    assert clusters.about(made(tmp_path)) == said


def test_the_digest_names_clusters_and_rows_and_nothing_else(tmp_path):
    first = clusters.digest_of(made(tmp_path))
    clusters.write(tmp_path, np.array([1, 0, 1, 2, 0, 1], np.int32), Counted(), {"teacher": "another"})
    assert clusters.digest_of(tmp_path) == first
    assert clusters.digest_of(made(tmp_path, (1, 0, 1, 2, 0, 0))) != first
    assert clusters.digest_of(made(tmp_path, rows=Counted(digest="another"))) != first


def test_a_side_car_of_other_rows_is_refused_with_both_names(tmp_path):
    folder = made(tmp_path)
    with pytest.raises(DataError, match=r"'rows' with rows 01234567, but source 'other' has rows f{8}.*name"):
        grouped(folder, Counted("other", "ffffffffffff"))


def test_a_side_car_of_another_length_is_refused(tmp_path):
    folder = made(tmp_path)
    with pytest.raises(DataError, match="6 cluster numbers for 7 rows"):
        grouped(folder, Counted(count=7))


def test_a_negative_cluster_is_refused_with_its_row(tmp_path):
    folder = made(tmp_path, (0, 1, -2, 0, 1, 0))
    with pytest.raises(DataError, match="row 2 has cluster -2"):
        grouped(folder, Counted())


def test_a_missing_or_cut_side_car_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no clusters\.safetensors; name a Cluster step"):
        grouped(tmp_path, Counted())
    path = made(tmp_path) / clusters.FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="cut short"):
        grouped(tmp_path, Counted())


@pytest.mark.parametrize(
    "arrays",
    [{"cluster": np.zeros(6, np.int64)}, {"cluster": np.zeros((6, 1), np.int32)}, {"groups": np.zeros(6, np.int32)}],
)
def test_another_layout_is_refused(tmp_path, arrays):
    save_file(arrays, tmp_path / clusters.FILE, metadata={"rows": Counted().digest})
    with pytest.raises(DataError, match=r"expected one array, 'cluster', int32"):
        grouped(tmp_path, Counted())


def test_no_half_written_side_car_is_left(tmp_path):
    made(tmp_path)
    made(tmp_path, (0, 0, 0, 1, 1, 1))
    assert [p.name for p in tmp_path.iterdir()] == [clusters.FILE]
    assert grouped(tmp_path, Counted())[1].tolist() == [3, 6]


def test_weights_are_read_by_name(tmp_path):
    (tmp_path / "weights.json").write_text(json.dumps({"weights": {"a": 0.25, "b": 0.75}, "settings": {}}))
    assert weights_of(tmp_path) == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"weights": {"a": 0.5, "b": 0.4}}', "sum to 0.9, expected 1"),
        ('{"weights": {"a": -0.5, "b": 1.5}}', "source 'a' has weight -0.5"),
        ('{"weights": {"a": NaN}}', "source 'a' has weight nan"),
        ('{"weights": {"a": "1"}}', "source 'a' has weight '1'"),
        ('{"weights": {}}', "no weights in it"),
        ("[1]", "no weights in it"),
        ('{"weights"', "cannot be read"),
    ],
)
def test_numbers_that_are_no_shares_are_refused(tmp_path, text, why):
    (tmp_path / "weights.json").write_text(text)
    with pytest.raises(DataError, match=why):
        weights_of(tmp_path)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no weights\.json; name a Balance step"):
        weights_of(tmp_path)

"""The side-car of a source that says which of its rows are alike: one cluster number a row (B3, arXiv:2505.11293).

clusters.safetensors holds `cluster` int32 (n,), in the order of the rows, and for which rows it was made. The Cluster
step (train/cluster.py) writes it; a mixture only reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .types import DataError, Rows, digest

FILE = "clusters.safetensors"


def write(folder: Path, cluster: NDArray[np.int32], rows: Rows, about: Mapping[str, str]) -> Path:
    """The side-car for `rows`. about: what else should be known of it, such as the teacher's digest."""
    from safetensors.numpy import save_file

    path = folder / FILE
    aside = path.with_name(f".{FILE}.{os.getpid()}.part")
    save_file({"cluster": cluster}, aside, metadata={**about, "rows": rows.digest, "source": rows.name})
    aside.replace(path)
    return path


def about(folder: Path) -> dict[str, str]:
    """What was written of the side-car. Raises DataError where there is none."""
    return _read(folder)[1]


def digest_of(folder: Path) -> str:
    """Names the clusters and the rows that they are of: for what reads a folder that no step of its recipe made."""
    cluster, said = _read(folder)
    return digest(said.get("rows", ""), cluster.tobytes())


def grouped(folder: Path, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(members, ends): the rows cluster by cluster, ascending in each, and where each cluster ends among the members.

    Every row stands in `members` once. Raises DataError where the side-car is missing, damaged, or of other rows.
    """
    cluster, said = _read(folder)
    path = folder / FILE
    if said.get("rows") != rows.digest:
        raise DataError(
            f"{path}: made for source {said.get('source')!r} with rows {said.get('rows', '')[:8]}, but source "
            f"{rows.name!r} has rows {rows.digest[:8]}; give Cluster and Feed the very same source: its name counts "
            "too, and so does what Take, Rest or AtLeast leave of it"
        )
    if len(cluster) != len(rows):
        raise DataError(f"{path}: {len(cluster)} cluster numbers for {len(rows)} rows; make it again")
    if len(cluster) and int(cluster.min()) < 0:
        raise DataError(f"{path}: row {int(cluster.argmin())} has cluster {int(cluster.min())}; expected 0 or more")
    members = np.argsort(cluster, kind="stable").astype(np.int64)
    sizes = np.bincount(cluster)
    return members, np.cumsum(sizes[sizes > 0], dtype=np.int64)


def _read(folder: Path) -> tuple[NDArray[np.int32], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{folder}: no {FILE}; name a Cluster step or the folder that one has made")
    try:
        with safe_open(path, framework="numpy") as file:
            names, said = list(file.keys()), dict(file.metadata() or {})
            cluster = file.get_tensor("cluster") if names == ["cluster"] else None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); was it cut short? Make it again") from error
    if cluster is None or cluster.ndim != 1 or cluster.dtype != np.int32:
        found = f"{cluster.dtype} {cluster.shape}" if cluster is not None else ", ".join(names)
        raise DataError(f"{path}: holds {found}; expected one array, 'cluster', int32 (n,)")
    return cluster, said

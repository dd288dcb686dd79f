"""Clustering of clients by the inner products of their updates.

Only the k x k inner products of k clients' updates are needed. They are computed on the ranks that hold the updates
(`fedmpi.mpi.rows`). Clusters are numbered in the order of their first members.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Linkage = Literal["ward", "complete", "average", "single"]


def distances(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k, k] Euclidean distances of vectors with these inner products [k, k]."""
    squares = products.diagonal()
    found: NDArray[np.float64] = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    np.fill_diagonal(found, 0)
    return found


def cosines(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k, k] cosines of the angles between vectors with these inner products; 0 for a zero vector."""
    lengths = np.sqrt(products.diagonal())
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    found: NDArray[np.float64] = np.clip(products * np.outer(scale, scale), -1, 1)
    np.fill_diagonal(found, 1)
    return found


def points(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k, k], one point per row, with these inner products."""
    values, vectors = np.linalg.eigh(products)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def decomposed_cosines(products: NDArray[np.float64], directions: int) -> NDArray[np.float64]:
    """[k, directions] cosines between vectors with these inner products and their first singular vectors.

    Euclidean distances of the rows, over the root of `directions`, are the EDC of FedGroup (Duan et al., 2021). The
    vectors are not centred before. The sign of each singular vector is chosen so that its largest cosine is positive.
    """
    found = points(products)[:, ::-1][:, :directions]
    lengths = np.sqrt(products.diagonal())[:, None]
    found = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)
    largest = np.take_along_axis(found, np.abs(found).argmax(0)[None], 0)
    return np.asarray(np.where(largest < 0, -found, found))


def mean_differences(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k, k] mean difference of two vectors' cosines [k, k] with the other k - 2 vectors.

    The MADC of FedGroup (Duan et al., 2021).
    """
    from scipy.spatial.distance import cdist

    # Subtract the differences in the vectors' own two columns, which are 1 - cosine each.
    over_all = cdist(cosines, cosines, "cityblock")
    return np.maximum(over_all - 2 * (1 - cosines), 0) / max(len(cosines) - 2, 1)


def k_means(rows: NDArray[np.float64], clusters: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[k] the clusters of rows [k, n] by scikit-learn's k-means, started by k-means++; fewer if fewer rows differ."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(min(clusters, len(rows)), n_init=10, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # there are fewer different rows
        return _numbered(model.fit_predict(rows))


def hierarchical(
    distances: NDArray[np.float64], linkage: Linkage, clusters: int, threshold: float | None = None
) -> NDArray[np.int64]:
    """[k] the clusters by agglomerative clustering of items with these distances [k, k], by SciPy.

    Args:
        clusters: number of clusters; fewer if there are fewer items.
        threshold: the distance above which clusters are not joined, instead of their number.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    if len(distances) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = hierarchy.linkage(squareform(distances, checks=False), linkage)
    if threshold is not None:
        return _numbered(hierarchy.fcluster(tree, threshold, "distance"))
    return _numbered(hierarchy.cut_tree(tree, min(clusters, len(distances)))[:, 0])


def _numbered(labels: NDArray) -> NDArray[np.int64]:
    """The same clusters, numbered from 0 in the order of their first members."""
    _, first, number = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[number], dtype=np.int64)

"""Clusterings from inner products, beside those of the vectors themselves by NumPy, SciPy and loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import adjusted_rand_score

from fedmpi.algorithms.toolbox import clustering
from fedmpi.algorithms.toolbox.clustering import Linkage
from fedmpi.federation.evaluation import adjusted_rand_index

RNG = np.random.default_rng


def updates(count: int = 24, groups: int = 3, size: int = 400) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[count, size] in groups around different points, and the groups [count]."""
    rng = RNG(0)
    group = rng.permutation(count) % groups
    return 0.3 * rng.standard_normal((groups, size))[group] + 0.1 * rng.standard_normal((count, size)), group


@pytest.mark.parametrize(
    ("metric", "linkage"),
    [("euclidean", "ward"), ("euclidean", "complete"), ("cosine", "average"), ("cosine", "single")],
)
def test_hierarchical_clustering_of_inner_products(metric: str, linkage: Linkage) -> None:
    """Oracle: SciPy's, of the vectors themselves; and the groups that there are."""
    vectors, group = updates()
    products = vectors @ vectors.T
    apart = clustering.distances(products) if metric == "euclidean" else 1 - clustering.cosines(products)
    np.testing.assert_allclose(apart, squareform(pdist(vectors, metric)), rtol=1e-9, atol=1e-12)
    tree = hierarchy.linkage(pdist(vectors, metric), linkage)
    for clusters in (1, 2, 3, 7, 24, 99):
        oracle = hierarchy.cut_tree(tree, min(clusters, 24))[:, 0]
        found = clustering.hierarchical(apart, linkage, clusters)
        assert adjusted_rand_score(found, oracle) == 1
        assert len(np.unique(found)) == min(clusters, 24)
    assert adjusted_rand_score(clustering.hierarchical(apart, linkage, 3), group) == 1
    for threshold in (1e-9, float(np.median(apart)), np.inf):
        oracle = hierarchy.fcluster(tree, threshold, "distance")
        assert adjusted_rand_score(clustering.hierarchical(apart, linkage, 3, threshold), oracle) == 1


def test_clusters_are_numbered_by_their_first_members() -> None:
    """Oracle: by hand; one item alone is a cluster."""
    points = np.array([5.0, 0.0, 5.1, 9.0, 0.2])[:, None]
    assert clustering.hierarchical(squareform(pdist(points)), "single", 3).tolist() == [0, 1, 0, 2, 1]
    assert clustering.k_means(points, 3, RNG(0)).tolist() == [0, 1, 0, 2, 1]
    assert clustering.hierarchical(np.zeros((1, 1)), "ward", 3).tolist() == [0]
    assert clustering.k_means(points[[0, 0, 0]], 2, RNG(0)).tolist() == [0, 0, 0]


def test_points() -> None:
    """Oracle: the inner products that they are made of; k-means of them finds the groups."""
    vectors, group = updates()
    made = clustering.points(vectors @ vectors.T)
    np.testing.assert_allclose(made @ made.T, vectors @ vectors.T, rtol=1e-9, atol=1e-12)
    assert adjusted_rand_score(clustering.k_means(made, 3, RNG(0)), group) == 1


def test_decomposed_cosines() -> None:
    """Oracle: NumPy's singular vectors of the updates, and the cosines with them, up to their signs."""
    vectors, group = updates()
    made = clustering.decomposed_cosines(vectors @ vectors.T, 3)
    directions = np.linalg.svd(vectors.T, full_matrices=False)[0][:, :3]
    oracle = vectors @ directions / np.linalg.norm(vectors, axis=1, keepdims=True)
    oracle *= np.sign(np.take_along_axis(oracle, np.abs(oracle).argmax(0)[None], 0))
    np.testing.assert_allclose(made, oracle, atol=1e-9)
    assert adjusted_rand_score(clustering.k_means(made, 3, RNG(0)), group) == 1


def test_mean_differences() -> None:
    """Oracle: a triple loop; and of two families, collinear within and orthogonal across: 0 and 1."""
    vectors, _ = updates(9)
    cosines = clustering.cosines(vectors @ vectors.T)
    made = clustering.mean_differences(cosines)
    for i in range(9):
        for j in range(9):
            rest = [abs(cosines[i, z] - cosines[j, z]) for z in range(9) if z not in (i, j)]
            assert made[i, j] == pytest.approx(0 if i == j else np.mean(rest), abs=1e-12)
    np.testing.assert_array_equal(made, made.T)
    lengths = RNG(1).random(8)[:, None] + 0.5
    families = lengths * np.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]
    made = clustering.mean_differences(clustering.cosines(families @ families.T))
    np.testing.assert_allclose(made, 1 - np.kron(np.eye(2), np.ones((4, 4))), atol=1e-12)


def test_lengths_do_not_matter_to_directions() -> None:
    """Oracle: the same updates, as long as one another; and one of zeros, which has no direction."""
    vectors, _ = updates()
    scaled = RNG(2).uniform(0.1, 10, (24, 1)) * vectors
    for some, others in ((vectors, scaled), (vectors[:5], scaled[:5])):
        made, oracle = (clustering.cosines(x @ x.T) for x in (some, others))
        np.testing.assert_allclose(made, oracle, atol=1e-12)
        np.testing.assert_allclose(clustering.mean_differences(made), clustering.mean_differences(oracle), atol=1e-12)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = clustering.decomposed_cosines(units @ units.T, 3)
    assert (np.linalg.norm(rows, axis=1) <= 1 + 1e-12).all()
    scaled[3] = 0
    products = scaled @ scaled.T
    assert not clustering.cosines(products)[3, :3].any()
    assert not clustering.decomposed_cosines(products, 3)[3].any()


def test_adjusted_rand_index() -> None:
    """Oracle: by hand, of 15 pairs 4 are together in either, and 2 in both."""
    some, others = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 2, 2, 2])
    assert adjusted_rand_index(some, others) == pytest.approx((2 - 16 / 15) / (4 - 16 / 15))
    assert adjusted_rand_index(some, 9 - some) == 1
    assert np.isnan(adjusted_rand_index([], []))
    assert adjusted_rand_index([3], [7]) == 1

"""Metrics and losses against scikit-learn, PyTorch and closed forms, on small cases and on gathered test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics
from torch import nn

from fedmpi.errors import BadInput
from fedmpi.tasks import (
    Classification,
    Described,
    LanguageModel,
    Measures,
    Metric,
    MultiLabel,
    Ratio,
    Regression,
    Rows,
    Segmentation,
    Task,
    metric,
)
from fedmpi.tasks.losses import cross_entropy
from fedmpi.tasks.measures import named_metrics

RNG = np.random.default_rng(1)
N, CLASSES, OWNERS = 301, 7, 5


def measured(task: Task, output: NDArray, y: NDArray, outputs: int, *names: str) -> dict[str, float]:
    """All metrics by name, over all samples."""
    measures = Measures(task, named_metrics(task, names), outputs)
    rows = measures.rows(measures.measure(torch.from_numpy(output), torch.from_numpy(y)))
    return {name: found(rows, y, np.zeros(len(y), np.int64)) for name, found in measures.metrics.items()}


def test_classification() -> None:
    logits = RNG.normal(size=(N, CLASSES)).astype(np.float32)
    y = RNG.integers(0, CLASSES - 1, N)  # the last class has no sample
    logits[np.arange(N), y] += 1
    names = "macro_f1", "balanced_accuracy", "auroc", "top_5", "ece"
    found = measured(Classification(), logits, y, CLASSES, *names)
    scores, predicted = torch.from_numpy(logits).softmax(1).numpy(), logits.argmax(1)
    assert found["accuracy"] == sklearn_metrics.accuracy_score(y, predicted)
    assert found["loss"] == pytest.approx(sklearn_metrics.log_loss(y, scores, labels=range(CLASSES)), rel=1e-6)
    classes = np.arange(CLASSES - 1)
    assert found["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(y, predicted, labels=classes, average="macro"), rel=1e-12
    )
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([(predicted[y == c] == c).mean() for c in classes]), rel=1e-12
    )
    areas = [sklearn_metrics.roc_auc_score(y == c, scores[:, c]) for c in classes]
    assert found["auroc"] == pytest.approx(np.mean(areas), rel=1e-12)
    assert found["top_5"] == sklearn_metrics.top_k_accuracy_score(y, logits, k=5, labels=range(CLASSES))
    confidence = scores.max(1).astype(float)
    apart = 0.0
    for low in np.arange(15) / 15:
        some = (confidence > low) & (confidence <= low + 1 / 15)
        apart += abs((predicted[some] == y[some]).sum() - confidence[some].sum()) / N
    assert found["ece"] == pytest.approx(apart, abs=1e-6)


def better_pairs(scores: NDArray, is_own: NDArray) -> float:
    """The share of pairs in which the sample with the label has the larger score; ties count half."""
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in scores[is_own] for b in scores[~is_own]]))


@pytest.fixture
def powers() -> Iterator[Callable[[NDArray], NDArray]]:
    """e^z of logits as numbers of 400 digits, which neither round to 0 nor, beside a large one, vanish."""
    with localcontext() as context:
        context.prec = 400
        yield np.vectorize(lambda logit: Decimal(float(logit)).exp(), otypes=[object])


def test_metrics_of_networks_that_are_certain(powers: Callable[[NDArray], NDArray]) -> None:
    """Oracle: probabilities of many digits, of which float32 rounds many to 0 and 1."""
    logits, y = RNG.normal(scale=100, size=(120, CLASSES)).astype(np.float32), RNG.integers(0, CLASSES, 120)
    logits[np.arange(120), y] += 100
    probabilities = powers(logits) / powers(logits).sum(1, keepdims=True)
    rounded = torch.from_numpy(logits).softmax(1).numpy()
    areas = [np.mean([better_pairs(p[:, c], y == c) for c in range(CLASSES)]) for p in (probabilities, rounded)]
    assert abs(areas[0] - areas[1]) > 0.01, "the case tells them apart"
    found = measured(Classification(), logits, y, CLASSES, "auroc", "top_5")
    assert found["auroc"] == pytest.approx(areas[0], abs=1e-12)
    five = np.argsort(-probabilities, axis=1)[:, :5]
    assert found["top_5"] == (five == y[:, None]).any(1).mean() < 1


def test_labels_of_networks_that_are_certain(powers: Callable[[NDArray], NDArray]) -> None:
    """Oracle: as above."""
    y = (RNG.random((120, 3)) < 0.4).astype(np.uint8)
    logits = (RNG.normal(loc=60, scale=30, size=y.shape) + 30 * y).astype(np.float32)
    probabilities = powers(logits) / (1 + powers(logits))
    found = measured(MultiLabel(), logits, y, 3)
    assert found["map"] == pytest.approx(np.mean([average_precision(probabilities[:, c], y[:, c]) for c in range(3)]))
    assert found["micro_map"] == pytest.approx(average_precision(probabilities.ravel(), y.ravel()))
    rounded = torch.from_numpy(logits).sigmoid().numpy()
    assert abs(found["micro_map"] - average_precision(rounded.ravel(), y.ravel())) > 0.01, "the case tells them apart"


def average_precision(scores: NDArray, y: NDArray) -> float:
    """The sum over thresholds of the precision times the rise of the recall; equal scores are one threshold."""
    return float(sum(y[scores >= one].mean() * y[scores == one].sum() for one in set(scores)) / y.sum())


def test_ties_and_what_is_not_a_number() -> None:
    """Oracle: by hand. Of equal logits that of the lower class is the larger, as for accuracy."""
    names = "auroc", "top_5"
    y = np.arange(CLASSES)
    found = measured(Classification(), np.zeros((CLASSES, CLASSES), np.float32), y, CLASSES, *names)
    assert (found["accuracy"], found["top_5"], found["auroc"]) == (1 / CLASSES, 5 / CLASSES, 0.5)
    logits = np.eye(CLASSES, dtype=np.float32)
    logits[0, 3] = np.nan
    found = measured(Classification(), logits, y, CLASSES, *names)
    assert found["top_5"] == (CLASSES - 1) / CLASSES
    assert np.isnan(found["auroc"])
    logits[0, 3] = -np.inf  # a class that is ruled out
    assert measured(Classification(), logits, y, CLASSES, *names)["auroc"] == 1


def test_regression() -> None:
    output, y = RNG.normal(size=(2, N, 3)).astype(np.float32)
    found = measured(Regression(), output, y, 3)
    assert found["rmse"] == pytest.approx(np.sqrt(sklearn_metrics.mean_squared_error(y, output)), rel=1e-6)
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(y, output), rel=1e-6)
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(y, output), rel=1e-5)
    constant = measured(Regression(), output, np.ones_like(y), 3)
    assert np.isnan(constant["r2"])


def test_multilabel() -> None:
    logits = RNG.normal(size=(N, 4)).astype(np.float32)
    y = (RNG.random((N, 4)) < [0.5, 0.1, 0.3, 0]).astype(np.uint8)  # the last label applies to no sample
    found = measured(MultiLabel(), logits, y, 4)
    scores = torch.from_numpy(logits).sigmoid().numpy()
    assert found["map"] == pytest.approx(
        sklearn_metrics.average_precision_score(y[:, :3], scores[:, :3], average="macro"), rel=1e-12
    )
    assert found["micro_map"] == pytest.approx(
        sklearn_metrics.average_precision_score(y, scores, average="micro"), rel=1e-12
    )
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(y, logits >= 0, average="micro"), rel=1e-12)
    losses = nn.functional.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(y).float())
    assert found["loss"] == pytest.approx(losses.item(), rel=1e-6)


def test_segmentation() -> None:
    logits = RNG.normal(size=(20, 3, 5, 4)).astype(np.float32)
    y = RNG.integers(0, 3, (20, 5, 4))
    y[RNG.random(y.shape) < 0.2] = 255
    y[3] = 255  # nothing counts
    found = measured(Segmentation(), logits, y, 3)
    counts = y != 255
    true, predicted = y[counts], logits.argmax(1)[counts]
    assert found["mean_iou"] == pytest.approx(
        sklearn_metrics.jaccard_score(true, predicted, average="macro"), rel=1e-12
    )
    assert found["pixel_accuracy"] == sklearn_metrics.accuracy_score(true, predicted)
    background = np.where(counts, y, 0)  # a network may predict the class that is ignored
    found_without = measured(Segmentation(ignore=0), logits, background, 3)
    some = background > 0
    assert found_without["pixel_accuracy"] == (logits.argmax(1) == background)[some].mean()
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(y), ignore_index=255)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_language_model() -> None:
    vocabulary = 11
    logits = RNG.normal(size=(30, 6, vocabulary)).astype(np.float32)
    y = RNG.integers(0, vocabulary, (30, 6))
    y[np.arange(6) > RNG.integers(-1, 6, 30)[:, None]] = -1
    found = measured(LanguageModel(), logits, y, vocabulary)
    loss = nn.functional.cross_entropy(torch.from_numpy(logits).mT, torch.from_numpy(y), ignore_index=-1)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(np.exp(loss.item()), rel=1e-6)
    assert found["token_accuracy"] == (logits.argmax(-1) == y)[y >= 0].mean()
    padded = np.where(y < 0, 0, y)  # a network may predict the token that is ignored
    found = measured(LanguageModel(ignore=0), logits, padded, vocabulary)
    assert (logits.argmax(-1) == padded)[padded == 0].any()
    assert found["token_accuracy"] == (logits.argmax(-1) == padded)[padded > 0].mean()
    uniform = measured(LanguageModel(), np.zeros_like(logits), y, vocabulary)
    assert uniform["perplexity"] == pytest.approx(vocabulary, rel=1e-6)


@pytest.mark.parametrize(
    ("task", "output", "y"),
    [
        (Regression(), RNG.normal(size=(40, 2)), RNG.normal(size=(40, 2))),
        (MultiLabel(), RNG.normal(size=(40, 3)), RNG.integers(0, 2, (40, 3)).astype(np.uint8)),
        (Segmentation(), RNG.normal(size=(40, 3, 2, 2)), RNG.integers(0, 3, (40, 2, 2))),
        (LanguageModel(), RNG.normal(size=(40, 5, 4)), RNG.integers(-1, 4, (40, 5))),
        (Classification(), RNG.normal(size=(40, 6)), RNG.integers(0, 6, 40)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Task) else "",
)
def test_every_owner_has_the_metric_of_its_own_samples(task: Task, output: NDArray, y: NDArray) -> None:
    """Also a ratio, which is computed for all owners at once; the last owner has no sample."""
    outputs = output.shape[-1] if task.output_shape(y.shape[1:], 0)[-1:] == (0,) else output.shape[1]
    measures = Measures(task, task.metrics, outputs)
    y = y.astype(np.float32) if isinstance(task, Regression) else y
    rows = measures.rows(measures.measure(torch.from_numpy(output.astype(np.float32)), torch.from_numpy(y)))
    owners = RNG.integers(0, OWNERS, len(y))
    for name, one in measures.metrics.items():
        found = one.of_owners(rows, y, owners, OWNERS + 1)
        assert np.isnan(found[OWNERS])
        for owner in range(OWNERS):
            some = owners == owner
            expected = one({key: row[some] for key, row in rows.items()}, y[some], owners[some])
            assert found[owner] == pytest.approx(expected, rel=1e-12, nan_ok=True), name


def test_losses_are_those_that_pytorch_means() -> None:
    """The weighted mean of the losses of samples is PyTorch's mean over all that counts."""
    y = RNG.integers(-1, 4, (9, 5))
    y[2] = -1
    logits = torch.from_numpy(RNG.normal(size=(9, 5, 4)))
    task = LanguageModel()
    weights = torch.from_numpy(task.weights(y)).double()
    mean = (task.loss(logits, torch.from_numpy(y)) * weights).sum() / weights.sum()
    expected = nn.functional.cross_entropy(logits.mT, torch.from_numpy(y), ignore_index=-1)
    torch.testing.assert_close(mean, expected)
    masks = torch.from_numpy(np.where(y < 0, 255, y)[:, None])
    pixels = torch.from_numpy(RNG.normal(size=(9, 4, 1, 5)))
    weights = torch.from_numpy(Segmentation().weights(masks.numpy())).double()
    mean = (Segmentation().loss(pixels, masks) * weights).sum() / weights.sum()
    torch.testing.assert_close(mean, nn.functional.cross_entropy(pixels, masks, ignore_index=255))


def test_strata() -> None:
    class About:
        classes = 3
        vocabulary: int | None = None

    y = np.arange(100, dtype=np.float32)[:, None]
    train, test, count = Regression().strata(y, y[::10] + 0.5, About())
    assert count == 10
    np.testing.assert_array_equal(np.bincount(train), np.full(10, 10))
    np.testing.assert_array_equal(test, np.arange(10))
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]], np.uint8)
    train, test, count = MultiLabel().strata(labels, labels[:2], About())  # frequencies 4, 3, 2
    assert train.tolist() == [1, 0, 3, 2, 2, 1]
    assert test.tolist() == [1, 0]
    assert count == 4
    masks = np.zeros((4, 2, 3), np.int64)
    masks[1, 0], masks[2, 0, 0], masks[3] = 2, 1, 255
    masks[1, 1, 0] = 1
    train, _, count = Segmentation().strata(masks, masks, About())
    assert train.tolist() == [0, 2, 1, 0]
    assert count == 3


def test_targets_are_checked() -> None:
    class About:
        classes = 3
        vocabulary: int | None = 5

    class Nothing:
        classes = 0
        vocabulary: int | None = None

    def problem(task: Task, y: NDArray, about: type[Described] = About) -> str:
        found = task.problem(y, about())
        assert found is not None
        return found

    assert "from 1 to 3: labels are 0 to 2" in problem(Classification(), np.array([1, 2, 3]))
    assert "float64 of shape (2,): Classification needs int64" in problem(Classification(), np.array([1.0, 2.0]))
    assert "needs `classes`" in problem(Classification(), np.array([0, 1]), Nothing)
    assert "not finite" in problem(Regression(), np.array([[1], [np.nan]], np.float32))
    assert "Regression needs float32 of shape (2, outputs)" in problem(Regression(), np.array([0, 1]))
    assert "MultiLabel needs 0 and 1" in problem(MultiLabel(), np.full((2, 2), 2, np.uint8))
    assert "Segmentation needs int64 of shape (2, height, width)" in problem(Segmentation(), np.array([0, 1]))
    assert "from 0 to 3: classes are 0 to 2, and 255 is ignored" in problem(Segmentation(), np.array([[[0, 3, 255]]]))
    assert "from 0 to 5: tokens are 0 to 4, and -1 is ignored" in problem(LanguageModel(), np.array([[0, 5, -1]]))
    assert "needs `vocabulary`" in problem(LanguageModel(), np.array([[0]]), Nothing)
    for task, y in (
        (Classification(), np.array([0, 2])),
        (Regression(), np.zeros((2, 1), np.float32)),
        (MultiLabel(), np.ones((2, 3), np.uint8)),
        (Segmentation(), np.array([[[0, 255]]])),
        (LanguageModel(), np.array([[4, -1]])),
    ):
        assert task.problem(y, About()) is None


@metric(better="lower", needs=("scores",))
def brier(rows: Rows, targets: NDArray, owners: NDArray) -> float:
    return float(np.square(rows["scores"] - np.eye(rows["scores"].shape[1])[targets]).sum(1).mean())


def worst_owner(rows: Rows, targets: NDArray, owners: NDArray) -> float:
    return float(min(rows["correct"][owners == owner].mean() for owner in np.unique(owners)))


def accuracy(rows: Rows, targets: NDArray, owners: NDArray) -> float:
    return 0.0


def of_two(rows: Rows, targets: NDArray) -> float:
    return 0.0


def test_named_metrics() -> None:
    task, here = Classification(), __name__
    found = named_metrics(task, ("macro_f1", f"{here}.brier", f"{here}.worst_owner", "accuracy"))
    assert list(found) == ["loss", "accuracy", "macro_f1", "brier", "worst_owner"]
    assert found["brier"].better == "lower"
    assert found["worst_owner"].better == "higher"
    assert list(named_metrics(task, "ece")) == ["loss", "accuracy", "ece"]
    assert Measures(task, named_metrics(task, ()), 10).width == 3
    assert Measures(task, found, 10).width == 13
    for name, reason in {
        "f1": "must be a metric of Classification (accuracy, loss, macro_f1, ",
        f"{here}.nothing": "cannot be imported",
        "no_module.at_all": "cannot be imported",
        f"{here}.N": "is a int; must be a metric",
        f"{here}.of_two": "must be a function of (rows, targets, owners)",
        f"{here}.accuracy": "there is a metric of this name already",
    }.items():
        with pytest.raises(BadInput, match=f"metrics = {name}: ") as error:
            named_metrics(task, (name,))
        assert reason in str(error.value)


def test_cross_entropy_is_for_labels() -> None:
    with pytest.raises(ValueError, match=r"self\.task\.loss"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3))


def test_a_metric_over_nothing_is_unknown() -> None:
    nothing = np.zeros(0, np.int64)
    assert np.isnan(Metric(lambda rows, targets, owners: 1.0)({}, nothing, nothing))
    assert np.isnan(Ratio(of="loss")({"loss": np.zeros(0, np.float32)}, nothing, nothing))

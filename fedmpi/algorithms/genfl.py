"""GenFL: pre-training on images of a generator that was trained by all clients.

Cho, Garst, Tax: Enhancing Federated Models with Synthetic Data. Poster, TU Delft.
https://github.com/FederatedRP2024Delft/GenFL
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import BadInput, require
from fedmpi.lazy import torch
from fedmpi.models.generators import Generator
from fedmpi.models.generators.base import LearningGenerator
from fedmpi.models.generators.cvae import CVAE
from fedmpi.options import null_for, with_options
from fedmpi.policies.server_optimizers import Replace
from fedmpi.ranges import NonNegativeInt, PositiveInt, UpToOne, interval
from fedmpi.training.settings import LocalTraining
from fedmpi.typing import Batch, Cohort, Federation, Layout, Net, Tensor, Vectors


@with_options
class GenFL(FedAvg):
    """FedAvg from a model that the server has pre-trained on images of a federated generator (Cho et al.).

    1. The clients train a conditional generator by FedAvg. 2. The server samples labelled images from it. 3. The
    server pre-trains the model on these images. 4. The rounds are FedAvg, starting from the pre-trained model. 5. The
    generator's classification accuracy score (CAS; Ravuri and Vinyals, 2019) is the accuracy on all real images of a
    new model that was trained on synthetic images only. Column cas of /rounds has it, the same in all rows; cas_test
    is the accuracy on the test set alone. The ranks that train share the sampling and the evaluations. Stages 3 and 5
    run at the same time, on two of these ranks.

    Column weighted_client_accuracy is the paper's metric: the model's accuracy on each client's local test set, as a
    mean over clients weighted by their training samples. No test sample is trained on.

    Args:
        generator: the generator that the clients train first; null: CVAE.
        generator_rounds: rounds of the generator's training. Other settings are as in the rounds of the model.
        generator_epochs: local epochs of the generator per round, in batches of 32 by Adam at a rate of 1e-3.
        synthetic: number of images that the server makes.
        stratified: whether all classes have equally many images; else labels are drawn uniformly.
        pretrain: whether the model is pre-trained. If not, and cas_epochs is 0, no generator is trained.
        pretrain_epochs: epochs over the synthetic images, in batches of 32 by Adam at a rate of 1e-3.
        cas_epochs: epochs over the synthetic images of the model for the CAS, trained likewise; 0: no CAS.
        earlier: results file of another run, from which results of stages are taken. It may have another partition.
            The privacy budget that it has spent is not counted here.
        take: what is taken from the other run. generator: its trained generator, for stage 1. synthetic: its images,
            for stages 1 and 2. pretrained: its pre-trained model, for stages 1 to 3, and its images if there is a
            CAS.
        stop_at_skew: if the label skew of the clients is at least this value, they do not train, and the model stays
            as it was pre-trained. The skew is the mean, weighted by samples, of the total variation distances between
            the clients' label distributions and that of all samples: 0 if all are equal, 0.9 if each of ten clients
            has one of ten equal classes. null: they always train. It uses the clients' labels, so it cannot be
            combined with --privacy.
        paper_compat: whether to follow the authors' code. In each round the clients train on nine tenths of their
            samples, drawn again in each round, and are tested on nine tenths, most of which are the same (column
            leaky_client_accuracy). The CAS, column cas_compat, is the mean over all epochs of a model that is in
            evaluation mode from the second epoch on.
    """

    generator: Generator = null_for(CVAE)
    generator_rounds: PositiveInt = 20
    generator_epochs: PositiveInt = 2
    synthetic: Annotated[int, interval("[2, inf)")] = 60_000
    stratified: bool = False
    pretrain: bool = True
    pretrain_epochs: PositiveInt = 5
    cas_epochs: NonNegativeInt = 20
    earlier: Path | None = None
    take: Literal["generator", "synthetic", "pretrained"] = "synthetic"
    stop_at_skew: UpToOne | None = None
    paper_compat: bool = False

    needs_classes = True

    def __post_init__(self) -> None:
        if not isinstance(self.generator, LearningGenerator):
            kind = type(self.generator).__name__
            raise BadInput(f"= {kind}: must be a generator that learns from samples, such as CVAE", "generator")
        require(
            self.pretrain or self.stop_at_skew is None, "stop_at_skew", self.stop_at_skew, "null without pretrain"
        )
        require(self.earlier is not None or self.take == "synthetic", "take", self.take, "synthetic without earlier")
        self.learner = self.generator
        self.stops = False  # known after the clients' labels are compared
        self.learns = self.pretrain and not (self.earlier and self.take == "pretrained")
        self.wants_images = self.learns or self.cas_epochs > 0
        self.samples_generator = self.wants_images and (self.earlier is None or self.take == "generator")
        self.server_state = (
            "weights",
            *(["generator_weights"] if self.samples_generator else []),
            *(["pretrained"] if self.pretrain else []),
            *(["scores"] if self.cas_epochs else []),
        )

    @property
    def takes_privacy(self) -> bool:  # type: ignore[override]
        return self.stop_at_skew is None

    @property
    def networks(self) -> Mapping[str, Layout]:
        return {"generator_weights": self.factory.layout} if self.samples_generator else {}

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        # The CAS on all real images, and on the test set.
        self.scores = torch.full((2,), math.nan, dtype=torch.float64)
        if self.pretrain:
            self.pretrained = self.weights
        self.stops = self.stop_at_skew is not None and label_skew(fed.label_counts) >= self.stop_at_skew
        self.deal(fed)
        if self.samples_generator:
            if not fed.has_images:
                raise BadInput(f"= {type(self.generator).__name__}: needs a data set of images", "generator")
            make = partial(self.generator.build, fed.shape, fed.classes)
            local = by_adam(fed, self.generator_epochs)
            self.factory = fed.sibling(make, local, self.generator_rounds, "generator")
            self.generator_weights = self.factory.initial_weights()
        self.given: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None
        if self.earlier and fed.is_server:
            self.take_over(fed, _Earlier(self.earlier))

    def count_steps(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        return (0 if self.stops else 1) * super().count_steps(fed, cohort)

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        return ([], []) if self.stops else super().payload(layout)

    def take_over(self, fed: Federation, earlier: _Earlier) -> None:
        """At the server: read the results of the earlier run."""
        if self.take == "generator" and self.samples_generator:
            self.generator_weights = earlier.generator(self.factory.layout)
        if self.take == "pretrained" and self.pretrain:
            self.weights = self.pretrained = earlier.pretrained(fed.layout)
        if self.take != "generator" and self.wants_images:
            self.given = earlier.images(fed.shape, fed.classes)

    def stages(self, fed: Federation) -> Iterator[tuple[str, Federation, Algorithm]]:
        if self.samples_generator and self.earlier is None:
            yield "generator", self.factory, _Learning(self)
        if self.wants_images:
            images, labels = (
                self.sample(fed) if self.samples_generator else fed.at_server.spread(*(self.given or (None, None)))
            )
            fed.keep("synthetic", {"images": images, "labels": labels})
            self.teach(fed, images, labels)
        if self.stops:
            fed.say("the clients do not train: their labels differ too much (--algorithm.stop_at_skew)")

    def sample(self, fed: Federation) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """[n, C, H, W] images and [n] labels from the generator, on every rank."""
        began, stream = time.perf_counter(), fed.stream("synthetic labels")
        labels = stream.integers(fed.classes, size=self.synthetic)
        if self.stratified:
            labels = stream.permutation(np.arange(self.synthetic) % fed.classes)
        made_of = labels, self.learner.noise, self.learner.images
        images = self.factory.at_server.generate(self.generator_weights, *made_of)
        fed.say(f"{self.synthetic:,} synthetic images generated, {time.perf_counter() - began:.2f} s")
        return images, labels

    def teach(self, fed: Federation, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Pre-train the model, and another one for the CAS."""
        from fedmpi.federation.server import Lesson

        lessons: dict[str, Lesson] = {}
        if self.learns:
            lessons["pre-training"] = Lesson(self.weights, self.pretrain_epochs)
        if self.cas_epochs:
            lessons["CAS"] = Lesson(fed.initial_weights(1), self.cas_epochs, self.paper_compat)
        scores: list[tuple[float, float]] = []
        for epoch in fed.at_server.teach(list(lessons.values()), images, labels, by_adam(fed)):
            running = {name: lesson for name, lesson in lessons.items() if epoch <= lesson.epochs}
            if "CAS" in running and (self.paper_compat or epoch == self.cas_epochs):
                scores.append(self.score(fed, lessons["CAS"].weights))
            said = [f"{name} epoch {epoch}/{of.epochs} loss {of.loss:.4f}" for name, of in running.items()]
            if "CAS" in running and scores:
                said.append(f"accuracy {100 * scores[-1][0]:.2f} %")
            fed.say(", ".join(said))
        if self.learns:
            self.weights = self.pretrained = lessons["pre-training"].weights
        if scores:
            on_all, on_test = np.transpose(scores)
            found = torch.tensor([on_all.mean(), on_test[-1]], dtype=torch.float64)
            self.scores = found.to(self.weights.device)

    def score(self, fed: Federation, weights: Tensor) -> tuple[float, float]:
        """The accuracy on all real images, and on the test images."""
        tested = fed.evaluate(weights)
        hits = fed.reports.training_hits(weights, fed.shards).sum() + tested.rows["correct"].sum()
        return float(hits / (fed.samples.sum() + len(tested.targets))), tested.main

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if self.stops:
            return
        self.deal(fed)
        super().round(fed, cohort)

    def deal(self, fed: Federation) -> None:
        """Give the clients the samples of the coming round. How many they are is the same in all rounds."""
        if self.paper_compat:
            fed.at_clients.train_on([order[: len(order) - len(order) // 10] for order in self.shuffled(fed)])

    def evaluate(self, fed: Federation) -> None:
        super().evaluate(fed)
        if self.cas_epochs and fed.is_server:
            on_all, on_test = self.scores.tolist()
            fed.log(**{"cas_compat" if self.paper_compat else "cas": on_all, "cas_test": on_test})
        if self.paper_compat:
            from fedmpi.federation.evaluation import weighted_mean_of

            tested = [order[len(order) // 10 :] for order in self.shuffled(fed)]
            accuracy = fed.reports.training_hits(self.weights, tested) / np.array(list(map(len, tested)))
            fed.log(leaky_client_accuracy=weighted_mean_of(accuracy, fed.samples))

    def shuffled(self, fed: Federation) -> list[NDArray[np.int64]]:
        """The samples of each client, in a random order for this round."""
        return [fed.stream("slices", client).permutation(shard) for client, shard in enumerate(fed.shards)]


class _Learning(FedAvg):
    """The federation that trains the generator."""

    def __init__(self, whole: GenFL) -> None:
        self.whole = whole
        self.server_optimizer = Replace()

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        self.whole.generator_weights = self.weights  # the results file now has it

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return self.whole.learner.loss(net, batch.x, batch.y)


class _Earlier:
    """The results of another run.

    Raises:
        BadInput: the file cannot be read, or what it holds is missing or does not fit.
    """

    def __init__(self, path: Path) -> None:
        from fedmpi import results

        self._path = path
        try:
            self._run = results.open(path)
        except BadInput as error:
            raise BadInput(f"= {error}", "earlier") from None

    def generator(self, layout: Layout) -> Tensor:
        """[n], the weights of its generator."""
        return self._vector(self._run.tensors("generator_weights"), layout, "a generator")

    def pretrained(self, layout: Layout) -> Tensor:
        """[P], the model after its pre-training."""
        weights = self._run.model.get("pretrained")
        tensors = {} if weights is None else self._run.state_dict(weights)
        return self._vector(tensors, layout, "a pre-trained model")

    def images(self, shape: tuple[int, ...], classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """[n, C, H, W] and [n], its synthetic images."""
        found = self._run.synthetic
        self._require(bool(found), "synthetic images")
        fits = found["images"].shape[1:] == shape and found["labels"].max() < classes
        self._require(fits, f"synthetic images of shape {shape} with labels below {classes}")
        return found["images"], found["labels"]

    def _vector(self, tensors: Mapping[str, NDArray[np.float32]], layout: Layout, what: str) -> Tensor:
        self._require(bool(tensors), what)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        expected = {entry.name: entry.shape for entry in layout.entries}
        expected |= {name: tuple(tensor.shape) for name, tensor in layout.frozen.items()}
        self._require(shapes == expected, f"{what} like this run's")
        same = all(np.array_equal(tensors[name], frozen.numpy(force=True)) for name, frozen in layout.frozen.items())
        self._require(same, f"{what} whose frozen tensors are those of this run")
        vector = torch.empty(layout.size)
        for name, view in layout.views(vector).items():
            view.copy_(torch.from_numpy(tensors[name]))
        return vector

    def _require(self, condition: bool, what: str) -> None:
        require(condition, "earlier", self._path, f"a results file with {what}")


def by_adam(fed: Federation, epochs: int = 1) -> LocalTraining:
    """Training as in the paper, with clients per batched call and precision as in the rounds."""
    local = fed.local
    return LocalTraining(
        epochs=epochs,
        batch_size=32,
        lr=1e-3,
        optimizer="adam",
        vectorize=local.vectorize,
        precision=local.precision,
    )


def label_skew(label_counts: NDArray[np.int64]) -> float:
    """From counts [clients, classes]: sum_k (n_k / N) 1/2 sum_y |p_k(y) - p(y)|, in [0, 1)."""
    samples = label_counts.sum(axis=1, keepdims=True)
    apart = np.abs(label_counts / np.maximum(samples, 1) - label_counts.sum(axis=0) / samples.sum()).sum(axis=1) / 2
    return float(apart @ samples[:, 0] / samples.sum())

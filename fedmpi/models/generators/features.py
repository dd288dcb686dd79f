"""Generators of features, the input of a network's last layer."""

from __future__ import annotations

from fedmpi.errors import BadInput
from fedmpi.lazy import nn
from fedmpi.models.generators.base import Generator
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt, Widths


@with_options
class FeatureGenerator(Generator):
    """Fully connected layers that make feature vectors from noise and a label, for FedGen (Zhu et al., 2021).

    The input is the noise and the one-hot label, concatenated. Hidden layers with batch normalisation and LeakyReLU
    follow. The default is about the authors' network: 143,104 parameters for 512 features of 10 classes.

    FedFTG (Zhang et al., 2022) first brings noise and label to a common width by one layer each, and normalises them.
    Its Table 1(b) is noise 100 (for CIFAR-100: 256), branch 4096, hidden [8192]: 71,803,392 parameters for 512
    features of 10 classes. Its Table 2(b), for images of s x s pixels, is noise 256, branch s^2, hidden [s^2, s^2].

    Args:
        noise: length of the noise vector.
        branch: width of the two separate first layers, one for the noise and one for the label; null: none.
        hidden: widths of the hidden layers.
    """

    noise: PositiveInt = 32
    branch: PositiveInt | None = None
    hidden: Widths = (256,)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from fedmpi.models.generators._conditioned import Conditioned

        if len(shape) != 1:
            raise BadInput(f"= {type(self).__name__}: makes features, not samples of shape {shape}", "generator")
        of_noise: nn.Module = nn.Identity()
        of_label: nn.Module = nn.Identity()
        width = self.noise + classes
        layers: list[nn.Module] = []
        if self.branch is not None:
            of_noise, of_label = nn.Linear(self.noise, self.branch), nn.Linear(classes, self.branch)
            width = 2 * self.branch
            layers.append(nn.BatchNorm1d(width))
        for outputs in self.hidden:
            layers += [nn.Linear(width, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU(0.2)]
            width = outputs
        return Conditioned(of_noise, of_label, nn.Sequential(*layers, nn.Linear(width, *shape)), classes)

"""VGG, a network of FedFTG's experiments (Zhang et al., 2022)."""

from __future__ import annotations

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt, Widths
from fedmpi.typing import Backbone

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # widths of the convolutions before each pooling


@with_options
class VGG11(Model):
    """VGG-11 (Simonyan and Zisserman, 2015, configuration A), with fewer hidden units, for small images.

    3x3 convolutions with ReLU, and 2x2 max pooling that halves the image five times. Convolutions start with zero
    biases and Kaiming normal weights, fan-out. With PyTorch's initialisation hardly any signal passes through so many
    layers without normalisation. Images of at least 32x32. Features: [B, 512, H/32, W/32]. On 3x32x32 and 10 classes:
    9,750,922 parameters, without hidden units 9,225,610; batch norm adds 5,504 and keeps as many floats in buffers.

    torchvision's published weights fit with hidden [4096, 4096], images of 224x224, and norm none or batch
    (`--model.weights`).

    Args:
        hidden: widths of the fully connected layers before the last one.
        norm: normalisation after each convolution (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    hidden: Widths = (512, 512)
    norm: Norm = "none"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=(width for widths in _STAGES for width in widths))

    def published(self) -> str | None:
        return {"none": "vgg11", "batch": "vgg11_bn"}.get(self.norm)

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, norm_layer, start_from_kaiming_normal

        inputs, height, width = self.image(shape, at_least=32)
        layers: list[nn.Module] = []
        for widths in _STAGES:
            for maps in widths:
                layers += [
                    nn.Conv2d(inputs, maps, 3, padding=1),
                    norm_layer(self.norm, maps, self.groups),
                    nn.ReLU(),
                ]
                inputs = maps
            layers.insert(-1, nn.MaxPool2d(2))  # before the ReLU, as in McMahanCNN
        extractor = nn.Sequential(*layers)
        start_from_kaiming_normal(extractor)
        head: list[nn.Module] = [nn.Flatten()]
        inputs *= (height // 32) * (width // 32)
        for units in self.hidden:
            head += [nn.Linear(inputs, units), nn.ReLU()]
            inputs = units
        return Backbone(extractor, nn.Sequential(*head, nn.Linear(inputs, outputs)))

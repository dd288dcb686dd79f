"""Clients with the measured training speeds of phones and tablets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi import randomness
from fedmpi.options import with_options
from fedmpi.policies.conditions import DrawnSpeeds

#: Training latency of a ResNet on phones and tablets, in milliseconds: those entries of training_latency.json of
#: FLHetBench that have a standard deviation. There is an entry per device, so a model may come more than once.
#: Zhang et al.: FLHetBench: Benchmarking Device and State Heterogeneity in Federated Learning. CVPR 2024.
#: https://github.com/Carkham/FLHetBench
MILLISECONDS = (
    ("iPad Air 4", 53.73),
    ("iPhone 14", 54.22),
    ("Xiaomi 14 Pro", 54.80),
    ("iPhone 14", 56.08),
    ("iPhone 13", 57.86),
    ("Xiaomi 13", 59.30),
    ("Oppo Reno10 Pro+", 78.20),
    ("vivo X80", 81.00),
    ("iPhone 14", 81.96),
    ("Xiaomi 12S Pro", 86.80),
    ("Huawei MatePad 11", 90.00),
    ("Realme GT", 92.10),
    ("Realme GT", 92.20),
    ("Redmi K30 Pro", 93.10),
    ("Huawei P40 Pro", 93.70),
    ("Redmi K40", 101.10),
    ("vivo X80", 107.00),
    ("Honor Magic5", 109.10),
    ("vivo X80", 114.00),
    ("Xiaomi 10", 169.60),
    ("Huawei MGA-AL00", 291.00),
)


@with_options
class Phones(DrawnSpeeds):
    """Clients with the measured training speeds of 21 phones and tablets, on a virtual clock; else as Heterogeneous.

    For each client one of the devices is drawn. Its seconds per step are seconds_per_step times its measured time,
    divided by the median of all devices. The slowest device takes 3.2 times as long as the median, and the fastest
    0.6 times as long. Bandwidths are drawn from lognormal distributions, as by Heterogeneous.

    The times are training latencies of a ResNet (Zhang et al.: FLHetBench, CVPR 2024).
    """

    def slowness(self, clients: NDArray[np.int64], of: int, seed: int) -> NDArray[np.float64]:
        times = np.array([milliseconds for _, milliseconds in MILLISECONDS])
        drawn = randomness.uniform(seed, "device", 0, clients) * len(times)
        return times[drawn.astype(np.int64)] / np.median(times)

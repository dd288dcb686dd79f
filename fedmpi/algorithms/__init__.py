"""One file per method. The command line knows each class here that derives from `Algorithm` by its name.

May import from federation and all folders below it; experiment imports from here.
"""

import sys

from fedmpi.algorithms.apfl import APFL
from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.bulyan import Bulyan
from fedmpi.algorithms.calibrated import BalancedSoftmax, FedLC, FedRS
from fedmpi.algorithms.ccvr import CCVR
from fedmpi.algorithms.centralized import Centralized
from fedmpi.algorithms.cfl import CFL
from fedmpi.algorithms.distribution_fusion import DistributionFusion
from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.feature_fusion import FeatureFusion
from fedmpi.algorithms.fedacg import FedACG
from fedmpi.algorithms.fedala import FedALA
from fedmpi.algorithms.fedamp import FedAMP
from fedmpi.algorithms.fedasync import FedAsync
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedbabu import FedBABU
from fedmpi.algorithms.fedbn import FedBN
from fedmpi.algorithms.fedbuff import FedBuff
from fedmpi.algorithms.fedcluster import FedCluster
from fedmpi.algorithms.fedcm import FedCM
from fedmpi.algorithms.feddbe import FedDBE
from fedmpi.algorithms.feddf import FedDF
from fedmpi.algorithms.feddisco import FedDisco
from fedmpi.algorithms.feddyn import FedDyn
from fedmpi.algorithms.fedexlora import FedExLoRA
from fedmpi.algorithms.fedexp import FedExP
from fedmpi.algorithms.fedfomo import FedFomo
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.algorithms.fedgen import FedGen
from fedmpi.algorithms.fedgroup import FedGroup, FedGrouProx
from fedmpi.algorithms.fedma import FedMA
from fedmpi.algorithms.fednova import FedNova
from fedmpi.algorithms.fedntd import FedNTD
from fedmpi.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedmpi.algorithms.fedpac import FedPAC
from fedmpi.algorithms.fedper import FedPer, FedRep
from fedmpi.algorithms.fedproto import FedProto
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.algorithms.fedrod import FedRoD
from fedmpi.algorithms.fedsam import FedSAM
from fedmpi.algorithms.fesem import FeSEM
from fedmpi.algorithms.ffalora import FFALoRA
from fedmpi.algorithms.flhc import FLHC
from fedmpi.algorithms.genfl import GenFL
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.knnper import KNNPer
from fedmpi.algorithms.lgfedavg import LGFedAvg
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.algorithms.mimelite import MimeLite
from fedmpi.algorithms.mofedsam import MoFedSAM
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.perfedavg import PerFedAvg
from fedmpi.algorithms.pfedme import pFedMe
from fedmpi.algorithms.robust import Krum, Median, TrimmedMean
from fedmpi.algorithms.robust_means import CentredClipping, GeometricMedian, NormBounding
from fedmpi.algorithms.scaffnew import Scaffnew
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.components import import_all

__all__ = [
    "APFL",
    "CCVR",
    "CFL",
    "FLHC",
    "IFCA",
    "MOON",
    "SCAFFOLD",
    "Algorithm",
    "BalancedSoftmax",
    "Bulyan",
    "Centralized",
    "CentredClipping",
    "DistributionFusion",
    "Ditto",
    "FFALoRA",
    "FeSEM",
    "FeatureFusion",
    "FedACG",
    "FedALA",
    "FedAMP",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBABU",
    "FedBN",
    "FedBuff",
    "FedCM",
    "FedCluster",
    "FedDBE",
    "FedDF",
    "FedDisco",
    "FedDyn",
    "FedExLoRA",
    "FedExP",
    "FedFTG",
    "FedFomo",
    "FedGen",
    "FedGrouProx",
    "FedGroup",
    "FedLC",
    "FedMA",
    "FedNTD",
    "FedNova",
    "FedPAC",
    "FedPer",
    "FedProto",
    "FedProx",
    "FedRS",
    "FedRep",
    "FedRoD",
    "FedSAM",
    "FedYogi",
    "GenFL",
    "GeometricMedian",
    "KNNPer",
    "Krum",
    "LGFedAvg",
    "LocalOnly",
    "Median",
    "MimeLite",
    "MoFedSAM",
    "NormBounding",
    "PerFedAvg",
    "Scaffnew",
    "TrimmedMean",
    "pFedMe",
]

import_all(sys.modules[__name__])  # a new file in this folder needs no line above to be known by name

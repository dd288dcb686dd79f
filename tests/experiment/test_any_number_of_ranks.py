"""The same seed gives the same bits, whatever the number of ranks: weights, metrics, client records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from benchmarks.asynchronous import wave_sizes
from fedmpi import results
from fedmpi.results.check import problems
from tests.nodes.cluster import Cluster, Mpi, needs_nodes, needs_open_mpi
from tests.support.mpi import REPOSITORY, mpirun, succeed

SMALL = "--clients 12 --cohort 5 --rounds 2 --local.epochs 1"
SIDE_BY_SIDE = f"{SMALL} --local.vectorize 3 --model MLP --model.hidden '[33, 17]'"
TEXTS = f"{SMALL} --dataset texts.Places --model BiLSTM --model.embedding 5 --model.hidden 7"
CLUSTERS = (
    f"{SMALL} --rounds 3 --local.lr 0.05 --evaluate_every 3 --partition SwappedLabels --partition.over Dirichlet"
    " --sampler RoundRobin --model LogisticRegression"
)
GENFL = (
    "--algorithm GenFL --algorithm.generator CVAE --algorithm.generator.hidden '[33, 17]'"
    " --algorithm.generator_rounds 2 --algorithm.pretrain_epochs 1"
)
# What a client computes must not depend on the slot or the rank it is trained in: odd widths and batches of one make
# matrix libraries take other paths, normalisation and dropout have state, momentum and Adam have memory.
ASYNCHRONOUS = (
    "--clients 14 --cohort 4 --rounds 5 --local.epochs 1 --algorithm.concurrency 6 --algorithm.max_staleness 9"
    " --conditions Heterogeneous --conditions.speed_spread 1 --conditions.dropout 0.2 --conditions.deadline 1.5"
)
CASES = {
    "batchnorm": f"{SMALL} --model LeNet --local.epochs 2",
    "groupnorm": f"{SMALL} --model LeNet --model.norm group --local.momentum 0.9 --local.weight_decay 1e-3",
    "odd_widths": f"{SMALL} --model MLP --model.hidden '[33, 17]' --local.batch_size 1",
    "odd_batches": f"{SMALL} --model MLP --model.hidden '[61, 7]' --local.batch_size 7 --local.optimizer adam"
    " --local.lr 0.01",
    "adamw_accumulated": f"{SMALL} --model CifarCNN --local.accumulate 3 --local.batch_size 7 --local.optimizer adamw"
    " --local.lr 0.01 --local.weight_decay 0.1 --local.schedule cosine --local.schedule_by step --local.warmup 0.5",
    "side_by_side_adamw_accumulated": f"{SIDE_BY_SIDE} --local.accumulate 3 --local.batch_size 5"
    " --local.optimizer adamw --local.lr 0.01 --local.weight_decay 0.1 --local.schedule linear"
    " --local.schedule_by step --local.warmup 1.5 --local.precision bf16",
    "dropout": f"{SMALL} --model CifarCNN --local.lr 0.01",
    "side_by_side": f"{SIDE_BY_SIDE} --local.batch_size 1 --local.weight_decay 1e-3",
    "compiled": f"{SIDE_BY_SIDE} --local.compile on --model.norm batch --algorithm FedProx",
    "side_by_side_batchnorm": f"{SMALL} --local.vectorize 2 --model LeNet --local.momentum 0.9",
    "side_by_side_dropout": f"{SMALL} --local.vectorize 2 --model CifarCNN --local.lr 0.01",
    "bf16": f"{SMALL} --local.precision bf16 --model LeNet",
    "bf16_side_by_side": f"{SMALL} --local.precision bf16 --local.vectorize 4 --model MLP --model.hidden '[17, 32]'"
    " --local.batch_size 3",
    "recurrent": f"{SMALL} --model methods.Recurrent",
    "bilstm": f"{TEXTS} --sampler PowerOfChoice --sampler.candidates 9",
    "side_by_side_bilstm": f"{TEXTS} --algorithm MOON --local.vectorize 3",
    "many": "--clients 60 --cohort 40 --rounds 2 --local.epochs 1 --model LogisticRegression --algorithm FedProx",
    "noise": f"{SMALL} --model methods.Noisy",
    "augmented": f"{SMALL} --model LogisticRegression --local.augmentation crop_flip --local.clip_norm 1",
    "permuted": f"{SMALL} --model MLP --partition Permuted --partition.over Dirichlet --partition.over.alpha 0.1",
    "users": f"{SMALL} --dataset words.Words --model words.Bag --partition Users",
    "regression": f"{SMALL} --dataset tests.support.task_data.Diabetes --model MLP --validation 0.2"
    " --evaluate_fine_tuned 1",
    "multilabel": f"{SIDE_BY_SIDE} --dataset tests.support.task_data.Attributes --validation 0.1",
    "segmentation": f"{SMALL} --dataset tests.support.task_data.Masks --model tests.support.task_data.PerPixel",
    "language_model": f"{SMALL} --dataset tests.support.task_data.Characters --partition Users --local.vectorize 3"
    " --model tests.support.task_data.Bigrams --validation 0.1 --evaluate_fine_tuned 1",
    "validation": f"{CLUSTERS} --algorithm IFCA --validation 0.2 --metrics '[macro_f1, auroc]' --evaluate_local true",
    "weighted": f"{SMALL} --model LogisticRegression --sampler Weighted --local.schedule cosine",
    "bernoulli": f"{SMALL} --model LogisticRegression --sampler Bernoulli --weighting uniform",
    "all": "--clients 7 --rounds 2 --sampler All --model LogisticRegression --local.steps 3",
    "conditions": f"{SMALL} --local.epochs 2 --algorithm FedProx --model LogisticRegression --availability Markov"
    " --conditions Heterogeneous --conditions.dropout 0.2 --conditions.over_select 1.5 --conditions.stragglers 0.4"
    " --rounds 6 --conditions.deadline 2",
    "power_of_choice": f"{SMALL} --model LogisticRegression --sampler PowerOfChoice --sampler.candidates 9",
    "horvitz_thompson": f"{SMALL} --model LeNet --weighting horvitz_thompson --sampler Stratified"
    " --availability Independent --conditions Heterogeneous --conditions.dropout 0.3 --rounds 4",
    "median": f"{SMALL} --algorithm Median --model LeNet --attack SignFlip --attack.share 0.3",
    "krum": f"{SMALL} --algorithm Krum --algorithm.faulty 1 --algorithm.select 2 --model LeNet --attack Gaussian",
    "geometric_median": f"{SMALL} --algorithm GeometricMedian --model LeNet --attack IPM --attack.share 0.4",
    "centred_clipping": f"{SMALL} --algorithm CentredClipping --algorithm.radius 0.2 --model LeNet --attack MinMax"
    " --attack.share 0.5",
    "bulyan": f"{SMALL} --cohort 7 --algorithm Bulyan --model LeNet --attack MinSum --attack.share 0.4",
    "backdoor": f"{SMALL} --attack Backdoor --attack.share 0.4 --attack.scale 2 --model LeNet"
    " --local.augmentation crop_flip",
    "side_by_side_backdoor": f"{SIDE_BY_SIDE} --algorithm FedPer --attack Backdoor --attack.share 0.5",
    "alie": f"{SMALL} --attack ALIE --attack.share 0.5 --model LeNet --local.vectorize 2",
    "one": f"{SMALL} --model LeNet --cohort 1 --sampler RoundRobin",
    "fedprox": f"{SMALL} --algorithm FedProx --algorithm.mu 0.1 --model LogisticRegression",
    "server_optimizer": f"{SMALL} --server_optimizer Yogi --evaluate_means both --model LeNet",
    "local_only": f"{SMALL} --algorithm LocalOnly --model LeNet",
    "side_by_side_local_only": f"{SMALL} --algorithm LocalOnly --model LeNet --local.vectorize 4 --seed 1",
    "centralized": f"{SMALL} --algorithm Centralized --model LeNet",
    "ifca": f"{SMALL} --algorithm IFCA --algorithm.models 2 --model LeNet",
    "scaffold": f"{SMALL} --rounds 3 --algorithm SCAFFOLD --model LeNet --server_optimizer Adam --weighting samples",
    "scaffold_I": f"{SMALL} --algorithm SCAFFOLD --algorithm.option I --model MLP --local.vectorize 3",
    "scaffnew": f"{SMALL} --rounds 3 --sampler All --cohort 12 --algorithm Scaffnew --model LeNet",
    "side_by_side_scaffnew": f"{SIDE_BY_SIDE} --rounds 3 --sampler All --cohort 12 --algorithm Scaffnew"
    " --algorithm.p 0.2 --model.norm batch --local.batch_size 7",
    "top_k": f"{SMALL} --clients 7 --rounds 4 --algorithm SCAFFOLD --model LeNet --compression TopK"
    " --compression.share 0.1 --compression.forget_after 1",
    "qsgd": f"{SIDE_BY_SIDE} --compression QSGD --compression.levels 3",
    "feddyn": f"{SMALL} --rounds 3 --algorithm FedDyn --model LeNet --local.vectorize 2",
    "fedsam": f"{SMALL} --algorithm FedSAM --algorithm.rho 0.2 --algorithm.adaptive true --model LeNet",
    "side_by_side_fedsam": f"{SIDE_BY_SIDE} --algorithm FedSAM --local.batch_size 7 --model.norm batch",
    "mofedsam": f"{SMALL} --algorithm MoFedSAM --model LeNet",
    "side_by_side_mofedsam": f"{SIDE_BY_SIDE} --algorithm MoFedSAM --local.batch_size 7",
    "perfedavg": f"{SMALL} --algorithm PerFedAvg --algorithm.variant HF --model LeNet --local.batch_size 7",
    "side_by_side_perfedavg": f"{SIDE_BY_SIDE} --algorithm PerFedAvg --model.norm batch --local.batch_size 7",
    "pfedme": f"{SMALL} --rounds 3 --algorithm pFedMe --algorithm.inner_steps 2 --local.lr 0.05 --model LeNet",
    "side_by_side_pfedme": f"{SIDE_BY_SIDE} --algorithm pFedMe --algorithm.inner_steps 2 --local.momentum 0.5"
    " --local.batch_size 7 --model.norm batch",
    "fednova": f"{SMALL} --algorithm FedNova --algorithm.mu 0.1 --model LeNet --local.momentum 0.5",
    "fedlc": f"{SMALL} --algorithm FedLC --model LeNet --partition Shards",
    "side_by_side_balanced_softmax": f"{SIDE_BY_SIDE} --algorithm BalancedSoftmax --partition Shards",
    "side_by_side_fedrs": f"{SIDE_BY_SIDE} --algorithm FedRS --algorithm.scale frequency --model.norm batch",
    "fedntd": f"{SMALL} --algorithm FedNTD --model LeNet",
    "side_by_side_fedntd": f"{SIDE_BY_SIDE} --algorithm FedNTD --algorithm.tau 2 --model.norm batch",
    "fedcm": f"{SMALL} --algorithm FedCM --model LeNet --compression QSGD",
    "side_by_side_fedcm": f"{SIDE_BY_SIDE} --algorithm FedCM --local.schedule exponential",
    "fedacg": f"{SMALL} --algorithm FedACG --model LeNet",
    "side_by_side_fedacg": f"{SIDE_BY_SIDE} --algorithm FedACG --algorithm.mu 0.1 --model.norm batch",
    "fedexp": f"{SMALL} --algorithm FedExP --algorithm.epsilon 1e-6 --model LeNet --partition Shards",
    "side_by_side_fedexp": f"{SIDE_BY_SIDE} --algorithm FedExP --algorithm.epsilon 1e-6 --partition Shards",
    "feddisco": f"{SMALL} --algorithm FedDisco --algorithm.a 0.9 --model LeNet --partition Shards",
    "mimelite": f"{SMALL} --algorithm MimeLite --model LeNet",
    "side_by_side_mimelite": f"{SIDE_BY_SIDE} --algorithm MimeLite --algorithm.base adam --local.lr 0.001",
    "halfway": f"{SMALL} --algorithm methods.Halfway --model LeNet --partition Permuted --partition.over Dirichlet",
    "server_momentum": f"{SMALL} --algorithm FedAvgM --evaluate_means both --model LeNet --local.batch_size 50",
    "fedma": f"{SMALL} --algorithm FedMA --algorithm.sweeps 1 --model LeNet",
    "private": f"{SMALL} --model LeNet --model.norm group --weighting uniform --sampler Bernoulli"
    " --privacy CentralDP --privacy.clip 0.5 --privacy.noise_multiplier 0.02 --cohort 1 --rounds 6",
    "feature_fusion": f"{SMALL} --algorithm FeatureFusion --model LeNet --partition Permuted --held_out 3"
    " --held_out_epochs 2 --evaluate_local true",
    "side_by_side_feature_fusion": f"{SMALL} --algorithm FeatureFusion --algorithm.operator conv --model LeNet"
    " --local.vectorize 2",
    "fedgen": f"{SMALL} --algorithm FedGen --model LeNet",
    "side_by_side_fedgen": f"{SIDE_BY_SIDE} --algorithm FedGen --algorithm.generator FeatureGenerator"
    " --algorithm.generator.branch 9 --model.norm batch",
    "genfl": f"{SMALL} {GENFL} --algorithm.synthetic 2300 --algorithm.cas_epochs 2 --algorithm.paper_compat true"
    " --model LeNet",
    "side_by_side_genfl": f"{SIDE_BY_SIDE} {GENFL} --algorithm.synthetic 300 --algorithm.cas_epochs 0",
    # What the method calls its vectors is what fedmpi would call those that it keeps itself.
    "client_state": f"{SMALL} --rounds 8 --algorithm methods.Remembering --model LogisticRegression"
    " --evaluate_means both",
    "further_gradients": f"{SMALL} --algorithm methods.Extragradient --model LeNet --local.momentum 0.5"
    " --local.batch_size 7",
    "side_by_side_further_gradients": f"{SIDE_BY_SIDE} --algorithm methods.Extragradient --model.norm batch"
    " --local.batch_size 7 --local.clip_norm 1",
    "lost_updates": f"{SMALL} --algorithm methods.EvenOnly --model LogisticRegression",
    # Methods with clusters, of which some are absent at times.
    "fesem": f"{CLUSTERS} --algorithm FeSEM --model LeNet",
    "flhc": f"{CLUSTERS} --algorithm FLHC --algorithm.warmup 1 --algorithm.metric l1 --algorithm.linkage average",
    "group": f"{CLUSTERS} --algorithm FedGrouProx --algorithm.pretrained 2 --algorithm.intergroup 0.1"
    " --conditions Heterogeneous",
    "cfl": f"{CLUSTERS} --sampler All --cohort 12 --algorithm CFL --algorithm.mean_below 9"
    " --algorithm.largest_above 0 --algorithm.warmup 1 --local.vectorize 3",
    "ifca_shared": f"{CLUSTERS} --algorithm IFCA --algorithm.models 2 --algorithm.balance 0.2"
    " --algorithm.share_body true --model LeNet",
    "cycle": f"{CLUSTERS} --algorithm FedCluster --algorithm.clusters 3",
    # Clients that keep something, measured where they keep it.
    "moon": f"{SMALL} --rounds 3 --algorithm MOON --model LeNet",
    "ditto": f"{SMALL} --rounds 3 --algorithm Ditto --model LeNet --local.momentum 0.5",
    "fedbn": f"{SMALL} --algorithm FedBN --model LeNet",
    "fedper": f"{SMALL} --algorithm FedPer --model LeNet",
    "fedrep": f"{SMALL} --algorithm FedRep --algorithm.head_epochs 1 --model LeNet",
    "knnper": f"{SMALL} --algorithm KNNPer --model LeNet",
    "ccvr": f"{SMALL} --algorithm CCVR --algorithm.base SCAFFOLD --model LeNet --partition Shards",
    "side_by_side_ccvr": f"{SIDE_BY_SIDE} --algorithm CCVR --algorithm.samples 30 --model.norm batch",
    "fedbabu": f"{SMALL} --algorithm FedBABU --model LeNet --evaluate_fine_tuned 1",
    "lgfedavg": f"{SMALL} --algorithm LGFedAvg --model LeNet",
    "fedrod": f"{SMALL} --algorithm FedRoD --model LeNet --local.momentum 0.5",
    "apfl": f"{SMALL} --rounds 3 --algorithm APFL --model LeNet",
    "fedala": f"{SMALL} --algorithm FedALA --algorithm.rate 100 --algorithm.first_steps 2 --model LeNet --rounds 5",
    "fedamp": f"{SMALL} --algorithm FedAMP --model LeNet --rounds 3 --local.momentum 0.5",
    "fedfomo": f"{SMALL} --algorithm FedFomo --algorithm.models 3 --model LeNet --rounds 4",
    "fedproto": f"{SMALL} --rounds 3 --algorithm FedProto --model LeNet",
    "fedpac": f"{SMALL} --rounds 3 --algorithm FedPAC --model LeNet",
    "feddbe": f"{SMALL} --rounds 3 --algorithm FedDBE --model LeNet",
    "side_by_side_moon": f"{SIDE_BY_SIDE} --algorithm MOON --model Projected --model.size 7 --model.over MLP"
    " --model.over.hidden '[33, 17]'",
    "side_by_side_ditto": f"{SIDE_BY_SIDE} --algorithm Ditto --local.momentum 0.5 --algorithm.lr 0.02",
    "side_by_side_fedbn": f"{SIDE_BY_SIDE} --algorithm FedBN --model.norm batch",
    "side_by_side_fedper": f"{SIDE_BY_SIDE} --algorithm FedPer",
    "side_by_side_fedrep": f"{SIDE_BY_SIDE} --algorithm FedRep --algorithm.head_epochs 1 --model.norm batch"
    " --algorithm.head_lr 0.02",
    "side_by_side_fedbabu": f"{SIDE_BY_SIDE} --algorithm FedBABU --model.norm batch --evaluate_fine_tuned 1",
    "side_by_side_lgfedavg": f"{SIDE_BY_SIDE} --algorithm LGFedAvg --model.norm batch",
    "side_by_side_fedrod": f"{SIDE_BY_SIDE} --algorithm FedRoD --model.norm batch --local.weight_decay 1e-3",
    "side_by_side_apfl": f"{SIDE_BY_SIDE} --algorithm APFL --model.norm batch --local.momentum 0.5",
    "side_by_side_fedala": f"{SIDE_BY_SIDE} --algorithm FedALA --algorithm.first_steps 2 --rounds 5"
    " --model.norm batch",
    "side_by_side_fedamp": f"{SIDE_BY_SIDE} --algorithm FedAMP --algorithm.start mixture --rounds 3"
    " --model.norm batch",
    "side_by_side_fedfomo": f"{SIDE_BY_SIDE} --algorithm FedFomo --algorithm.fallback keep --rounds 4"
    " --model.norm batch",
    "side_by_side_fedproto": f"{SIDE_BY_SIDE} --rounds 3 --algorithm FedProto --model.norm batch",
    "side_by_side_fedpac": f"{SIDE_BY_SIDE} --rounds 3 --algorithm FedPAC --model.norm batch --local.batch_size 7",
    "side_by_side_feddbe": f"{SIDE_BY_SIDE} --rounds 3 --algorithm FedDBE --model.norm batch --local.batch_size 7",
    "fedftg": f"{SMALL} --algorithm FedFTG --algorithm.iterations 3 --model LeNet --evaluate_means cohort",
    "fedftg_repo": f"{SMALL} --algorithm FedFTG --algorithm.base MOON --algorithm.variant repo"
    " --algorithm.iterations 2 --model CifarCNN --local.vectorize 2 --local.lr 0.01",
    "feddf": f"{SMALL} --algorithm FedDF --algorithm.generator_steps 4 --algorithm.student_steps 3 --model LeNet",
    "feddf_proxy": f"{SMALL} --algorithm FedDF --algorithm.proxy Digits --algorithm.student_steps 5 --model LeNet"
    " --local.precision bf16",
    "distribution_fusion": f"{SMALL} --algorithm DistributionFusion --algorithm.first_steps 60 --model LeNet"
    " --rounds 3 --algorithm.fit_every 2 --algorithm.steps 5",
    "side_by_side_distribution_fusion": f"{SIDE_BY_SIDE} --algorithm DistributionFusion --algorithm.statistics all"
    " --algorithm.allocation soft --algorithm.first_steps 60 --model.norm layer --server_optimizer Momentum"
    " --rounds 3",
    # Some of the components have no client in the cohort.
    "absent_components": f"{SMALL} --algorithm DistributionFusion --model LeNet --partition Shards --cohort 4"
    " --rounds 5 --algorithm.fit_every 2 --algorithm.twin false",
    "side_by_side_absent_components": f"{SIDE_BY_SIDE} --algorithm DistributionFusion --algorithm.twin false"
    " --model.norm batch --partition Shards --rounds 5 --server_optimizer Momentum",
    "mixture_of_the_cohort": f"{SMALL} --rounds 3 --algorithm DistributionFusion --algorithm.mixture cohort"
    " --algorithm.first_steps 60 --model LeNet --algorithm.fit_every 2 --algorithm.steps 5",
    "frozen": f"{SMALL} --model networks.FrozenConvolution --algorithm MOON",
    "side_by_side_frozen": f"{SMALL} --model networks.HalfFrozen --model.floor true --local.vectorize 9"
    " --algorithm MOON --local.batch_size 2 --cohort 9",
    "side_by_side_frozen_alone": f"{SMALL} --model networks.HalfFrozen --model.norm layer --local.vectorize 9"
    " --local.batch_size 1 --cohort 9",
    "large": f"{SMALL} --model networks.Raw --algorithm FedAvgM --partition IID --local.batch_size 50"
    " --local.lr 0.01",
    "shapes": f"{SMALL} --model networks.Shapes",
    # What is drawn from the generators of random, numpy.random and torch, in a user's code of every kind.
    "drawn": f"{SMALL} --algorithm drawn.Method --model drawn.Network --dataset drawn.Half --partition drawn.Split"
    " --sampler drawn.Drawn --availability drawn.Some --conditions drawn.Lossy --attack drawn.Noise"
    " --compression drawn.Rounded --server_optimizer drawn.Rule --held_out 2 --held_out_epochs 1"
    " --evaluate_local true",
    # Clients that start from different versions of the model; some of their updates are lost.
    "buffered": f"--algorithm FedBuff {ASYNCHRONOUS}",
    "side_by_side_buffered": f"--algorithm FedBuff {ASYNCHRONOUS} --model MLP --model.hidden '[33, 17]'"
    " --local.vectorize 3",
    "buffered_compressed": f"--algorithm FedBuff {ASYNCHRONOUS} --model MLP --compression TopK"
    " --server_optimizer Momentum",
    "mixed": f"--algorithm FedAsync {ASYNCHRONOUS} --algorithm.mu 0.1",
    "side_by_side_mixed": f"--algorithm FedAsync {ASYNCHRONOUS} --algorithm.discount hinge --model MLP"
    " --local.vectorize 3",
    "rarely_evaluated": f"{SMALL} --rounds 3 --evaluate_every 2 --model LogisticRegression",
}
# What the default tests run: each way in which ranks share work, once. The further tests run all cases.
QUICK = (
    *("batchnorm", "odd_widths", "side_by_side", "compiled", "bilstm", "many", "noise", "users", "regression"),
    *("validation", "bernoulli", "conditions", "power_of_choice", "horvitz_thompson", "median", "krum", "backdoor"),
    *("server_optimizer", "local_only", "centralized", "scaffold", "top_k", "feddyn", "mimelite", "halfway", "fedma"),
    *("private", "feature_fusion", "genfl", "client_state", "further_gradients", "fesem", "ifca_shared", "ditto"),
    *("fedbn", "fedamp", "fedfomo", "fedproto", "fedpac", "fedftg", "distribution_fusion", "drawn", "buffered"),
    *("mixed", "rarely_evaluated"),
)
RARE = [name for name in CASES if name not in QUICK]
# Those to which it matters that there are more ranks than clients.
CROWD = ("odd_widths", "many", "power_of_choice", "client_state", "drawn")
# For the numbers of ranks on which a job of all cases takes minutes.
SOME = ("many", "conditions", "power_of_choice", "server_optimizer", "scaffold", "client_state", "drawn", "buffered")
# What goes different ways between nodes.
FEW = ("conditions", "power_of_choice", "scaffold", "client_state", "fedbn", "mixed", "fedamp")
FEWER = ("scaffold", "client_state")
TIMINGS = {"seconds", "train_seconds", "communication_seconds", "evaluation_seconds"}
TIMINGS |= {"teacher_seconds", "server_seconds", "cpu_joules", "gpu_joules"}


@dataclass(frozen=True)
class Part:
    """Ranks of a job that run some of the cases, `ranks_a_node` of them on a node (default: all on one)."""

    first: int
    ranks: int
    names: Iterable[str]
    ranks_a_node: int | None = None


#: What is run in addition to the default tests: more ranks than clients, ranks of several nodes, all cases.
FURTHER = {
    "all_on_3": Part(0, 3, CASES),
    "crowd_on_14": Part(0, 14, CROWD),
    "few_on_2": Part(0, 2, FEWER),
    "some_on_nodes_of_2": Part(0, 5, SOME, 2),
}
SLOW = {"all_on_16": Part(0, 16, CASES), "all_on_nodes_of_2": Part(0, 5, CASES, 2)}


def run_all(
    folder: Path, start: Callable[..., CompletedProcess[str]], parts: dict[str, Part]
) -> dict[str, dict[str, results.Run]]:
    """The runs of each part of a job, which `start` starts and waits for."""
    programs, arguments = REPOSITORY / "tests" / "jobs", []
    for name, part in parts.items():
        (folder / name).mkdir()
        (folder / name / "lines").write_text("\n".join(f"{case} {CASES[case]}" for case in part.names))
        node = "" if part.ranks_a_node is None else f":{part.ranks_a_node}"
        arguments.append(f"{name}:{part.first}:{part.ranks}{node}")
    succeed(start(programs / "runs.py", folder, *arguments, PYTHONPATH=f"{REPOSITORY}:{programs}"))
    return {
        name: {case: results.open(folder / name / f"{case}.h5") for case in part.names}
        for name, part in parts.items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, results.Run]:
    alone = {"alone": Part(0, 1, QUICK)}
    return run_all(tmp_path_factory.mktemp("ranks"), partial(mpirun, 0), alone)["alone"]


@pytest.fixture(scope="module")
def all_alone(alone: dict[str, results.Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, results.Run]:
    others = {"alone": Part(0, 1, RARE)}
    return alone | run_all(tmp_path_factory.mktemp("ranks"), partial(mpirun, 0), others)["alone"]


def test_equal_bits(alone: dict[str, results.Run], tmp_path: Path) -> None:
    ranks = 3
    _compare(alone, run_all(tmp_path, partial(mpirun, ranks), {"3": Part(0, ranks, QUICK)})["3"], ranks)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *[pytest.param(*named, marks=pytest.mark.further) for named in FURTHER.items()],
        *[pytest.param(*named, marks=pytest.mark.slow) for named in SLOW.items()],
    ],
)
def test_equal_bits_of_all(all_alone: dict[str, results.Run], name: str, part: Part, tmp_path: Path) -> None:
    start = partial(mpirun, part.ranks)
    _compare(all_alone, run_all(tmp_path, start, {name: part})[name], part.ranks)


@needs_nodes
@pytest.mark.parametrize(
    ("mpi", "names"),
    [
        pytest.param("mpich", FEW, marks=pytest.mark.further),
        pytest.param("openmpi", FEWER, marks=[pytest.mark.further, needs_open_mpi]),
        pytest.param("mpich", QUICK, marks=pytest.mark.slow),
        pytest.param("openmpi", QUICK, marks=[pytest.mark.slow, needs_open_mpi]),
    ],
    ids=["mpich-few", "openmpi-few", "mpich-all", "openmpi-all"],
)
def test_equal_bits_on_nodes(alone: dict[str, results.Run], mpi: Mpi, names: Iterable[str], tmp_path: Path) -> None:
    """Two nodes of two ranks and one of one, which share no memory."""
    ranks = 2, 2, 1
    with Cluster(len(ranks)) as cluster:
        start = partial(cluster.run, ranks, mpi=mpi)
        runs = run_all(tmp_path, start, {"nodes": Part(0, sum(ranks), names)})["nodes"]
    for run in runs.values():
        assert run.environment["hosts"].splitlines() == ["node1", "node1", "node2", "node2", "node3"]
        assert run.environment["mpi"].startswith({"mpich": "MPICH", "openmpi": "Open MPI"}[mpi])
    _compare(alone, runs, sum(ranks))


def _compare(alone: dict[str, results.Run], many: dict[str, results.Run], ranks: int) -> None:
    for name, run in many.items():
        one = alone[name]
        assert run.weights_sha256 == one.weights_sha256, name
        np.testing.assert_array_equal(run.weights, one.weights, err_msg=name)
        np.testing.assert_equal(run.initial, one.initial)
        assert run.rounds.keys() == one.rounds.keys()
        for column in run.rounds.keys() - TIMINGS:
            np.testing.assert_array_equal(run.rounds[column], one.rounds[column], err_msg=f"{name} {column}")
        for column in run.clients.keys() - {"rank", "seconds"}:
            np.testing.assert_array_equal(run.clients[column], one.clients[column], err_msg=f"{name} {column}")
        for column in run.evaluation:
            np.testing.assert_array_equal(run.evaluation[column], one.evaluation[column], err_msg=f"{name} {column}")
        np.testing.assert_equal(run.held_out, one.held_out)
        np.testing.assert_equal(run.clusters, one.clusters)
        np.testing.assert_equal(run.model, one.model)
        np.testing.assert_equal(run.synthetic, one.synthetic)
        assert set(run.clients["rank"]) <= set(range(1, ranks)), "rank 0 serves"
        assert run.ranks["clients"].sum() == len(run.clients["client"])


def test_the_cases_train(alone: dict[str, results.Run]) -> None:
    """Equal bits would be easy to have if nothing moved."""
    of_sha: dict[str | None, set[str]] = {}
    for name, run in alone.items():
        of_sha.setdefault(run.weights_sha256, set()).add(name)
    equal = [names for names in of_sha.values() if len(names) > 1]
    assert equal == [{"local_only", "fedamp", "fedfomo", "fedproto"}], (
        "only methods without a global model end with the initial one"
    )
    for name, run in alone.items():
        assert run.status == "finished"
        assert np.isfinite(run.weights).all()
        assert (run.clients["steps"] > 0).all(), name
        assert run.rounds["test_loss"][-1] != run.initial["test_loss"], name


def test_client_state_follows_its_client(alone: dict[str, results.Run]) -> None:
    clients, visits = alone["client_state"].clients["client"], alone["client_state"].clients["visits"]
    for client in set(clients):
        np.testing.assert_array_equal(visits[clients == client], np.arange(1, (clients == client).sum() + 1))


def test_evaluation_on_demand(alone: dict[str, results.Run]) -> None:
    np.testing.assert_array_equal(np.isnan(alone["rarely_evaluated"].rounds["test_accuracy"]), [True, False, False])


def test_asynchronous_updates_are_lost_or_stale(alone: dict[str, results.Run]) -> None:
    """And some of those of FedAsync are trained together, in the waves that the benchmark counts."""
    for name in ("buffered", "mixed"):
        rounds = alone[name].rounds
        assert sum(rounds[column].sum() for column in ("discarded", "dropped", "late")) > 0
        assert rounds["staleness_max"].max() > 0
    mixed = alone["mixed"]
    waves = [wave_sizes(mixed, round) for round in range(1, 6)]
    assert [len(sizes) for sizes in waves] == mixed.rounds["waves"].tolist()
    assert [sizes.sum() for sizes in waves] == mixed.rounds["updates"].tolist()
    assert max(map(max, waves)) > 1


def test_the_files_are_as_the_schema_says(alone: dict[str, results.Run]) -> None:
    assert {name: found for name, run in alone.items() if (found := problems(run.path))} == {}

"""How many clients a rank trains at once: by a fixed rule, because timings would change the bits of a run."""

from __future__ import annotations

from torch import nn

from fedmpi.data.client_samples import gathered
from fedmpi.errors import BadInput
from fedmpi.mpi.world import World
from fedmpi.training.block import Hooks
from fedmpi.training.compiled import lacking
from fedmpi.training.flat import FlatModel
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.settings import Choice, LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import LocalWork, Trainer
from fedmpi.training.trial import obstacle

# On a CPU, small networks spend most of their time between operations. Larger ones fill the caches.
SMALL_ON_CPU = 50_000
AT_ONCE_ON_CPU = 256
# With bf16 and in compiled code every block is filled up to its full size, so smaller blocks waste less work.
AT_ONCE_IF_FILLED = 128
AT_ONCE_ON_GPU = 32
# Fewer clients per round are not worth the time that importing PyTorch's vmap takes.
WORTH_IT_ON_CPU = 32
# Compiling takes about 20 seconds, and saves about 10 microseconds of a client's step.
STEPS_THAT_PAY = 5_000_000


def choose(world: World, work: LocalWork, cohort: int, rounds: int, hooks: Hooks) -> Choice:
    """How many clients a rank trains at once; the same on every rank, a collective.

    Before several clients are trained at once, this is tested: see `obstacle`.

    Args:
        cohort: clients per round.
        rounds: of the run.
        hooks: the method's loss and direction.

    Raises:
        BadInput: the user asks for several clients at once or for compiled code, but the network, the method or a
            machine does not allow it; on every rank alike.
    """
    wanted = rule(work.model, work.settings, cohort)
    is_compiled = _compiles(world, work, wanted.at_once, cohort * rounds)
    if is_compiled and work.settings.vectorize == "auto" and work.model.device.type == "cpu":
        wanted = Choice(min(AT_ONCE_IF_FILLED, cohort), wanted.reason)
    found = obstacle(work, hooks) if wanted.at_once > 1 else None
    # Different processors may give different answers, so the first rank with an objection decides.
    found = next(filter(None, world.gather_text(found or "")), None)
    if found is None:
        return Choice(wanted.at_once, f"{wanted.reason}; compiled", True) if is_compiled else wanted
    if work.settings.compile == "on":
        raise _agreed(BadInput(f"= on: must be off, because {found}", "--local.compile"))
    if work.settings.vectorize != "auto":
        raise _agreed(BadInput(f"= {wanted.at_once}: must be auto or off, because {found}", "--local.vectorize"))
    return Choice(1, found)


def rule(model: FlatModel, settings: LocalTraining, cohort: int) -> Choice:
    """How many clients should be trained at once, by the size of the network and the device."""
    if settings.vectorize == "off":
        return Choice(1, "--local.vectorize off")
    if settings.vectorize != "auto":
        return Choice(settings.vectorize, f"--local.vectorize {settings.vectorize}")
    if cohort == 1:
        return Choice(1, "a round has one client")
    if model.device.type != "cpu":
        return Choice(AT_ONCE_ON_GPU, "clients are trained on a GPU")
    if any(isinstance(layer, nn.modules.conv._ConvNd) for layer in model.module.modules()):
        return Choice(1, "the network has convolutions and runs on a CPU")
    frozen = sum(tensor.numel() for tensor in model.layout.frozen.values())
    if model.layout.parameters + frozen > SMALL_ON_CPU:
        return Choice(1, f"the network has more than {SMALL_ON_CPU:,} parameters and runs on a CPU")
    if cohort < WORTH_IT_ON_CPU:
        return Choice(1, f"a round has fewer than {WORTH_IT_ON_CPU} clients, and they run on a CPU")
    return Choice(
        min(AT_ONCE_IF_FILLED, cohort) if settings.precision == "bf16" else AT_ONCE_ON_CPU,
        "the network is small and runs on a CPU",
    )


def make_trainer(work: LocalWork, choice: Choice) -> Trainer:
    """The trainer of one rank."""
    return PlainTrainer(work) if choice.at_once == 1 else SideBySideTrainer(work, choice.at_once, choice.is_compiled)


def _compiles(world: World, work: LocalWork, at_once: int, trainings: int) -> bool:
    """Whether the local step is compiled; the same on every rank, a collective.

    Args:
        at_once: how many clients a rank trains at once.
        trainings: how many clients are trained in the run.
    """
    wanted = work.settings.compile
    if wanted == "off" or (wanted == "auto" and at_once == 1):
        return False
    if at_once == 1:
        several = "set --local.vectorize to the number of clients that a rank trains at once"
        raise _agreed(
            BadInput(f"= on: must be off for clients that are trained one by one; {several}", "--local.compile")
        )
    found = next(filter(None, world.gather_text(lacking() or "")), None)
    if wanted == "on" and found:
        raise _agreed(BadInput(f"= on: must be off, because {found}", "--local.compile"))
    steps = work.settings.count_steps(gathered(work.shards).sizes, work.model.normalises_batches).mean()
    pays = work.model.device.type == "cpu" and trainings * steps >= STEPS_THAT_PAY
    return found is None and (wanted == "on" or bool(pays))


def _agreed(error: BadInput) -> BadInput:
    error.agreed = True
    return error

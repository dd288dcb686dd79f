"""The device that a rank trains on."""

from __future__ import annotations

from typing import Literal

from mpi4py import MPI

from fedmpi.errors import BadInput
from fedmpi.lazy import torch
from fedmpi.mpi.world import World

DeviceChoice = Literal["auto", "cpu", "cuda"]


def pick_device(world: World, choice: DeviceChoice, server_too: bool) -> torch.device:
    """Assign the visible GPUs of a node to the ranks on it that train, round-robin.

    The server needs none, unless the method also trains there; then it shares the first GPU of its node.

    Ranks are counted within the node, because a launcher may spread consecutive ranks over nodes. If the launcher
    gives each rank one GPU (`--gpus-per-task=1`), it sees only that one, with index 0.

    Raises:
        BadInput: the user asked for GPUs, and a rank that trains sees none; on every rank alike.
    """
    trains = world.is_worker or server_too
    with world.agreed():
        visible = torch.cuda.device_count() if choice != "cpu" and trains else 0
        if choice == "cuda" and trains and not visible:
            raise BadInput(f"= cuda: rank {world.rank} on {MPI.Get_processor_name()} sees no GPU", "--device")
    training_before_me = world.node.exscan(int(world.is_worker)) or 0
    if not visible:
        return torch.device("cpu")
    device = torch.device("cuda", training_before_me % visible)
    torch.cuda.set_device(device)
    return device


def gpu_uuid(device: torch.device) -> str:
    """The identity of a GPU, independent of the numbering in this process; empty: a CPU, or unknown."""
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", "")) if device.type == "cuda" else ""


def computes_bf16() -> bool:
    """Whether PyTorch's library for CPUs has code for bfloat16 on this processor."""
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")

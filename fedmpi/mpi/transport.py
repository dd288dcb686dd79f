"""How MPI transports messages, as far as a process can see it from outside the library.

MPI has no call that names the transport. What can be seen are the library's own description, the transport libraries
that are loaded, the device files of networks that are open, and the settings that the user has asked for.

- Open MPI unloads the components that it does not use. So those that are loaded are in use (Open MPI 5 may have
  linked all of them into one library; then none is listed).
- MPICH loads libfabric or UCX, and sometimes both. libfabric chooses a provider among those built into it. The choice
  is known only if a setting such as FI_PROVIDER names it, or if an open device file belongs to one network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mpi4py import MPI

from fedmpi.options import spans

#: Loaded libraries that transport messages: components of Open MPI, libfabric, UCX, and drivers of networks.
_LIBRARY = re.compile(
    r"(mca_(?:pml|btl|mtl)_\w+|lib(?:fabric|ucp|uct_\w+|ibverbs|mlx5|efa|cxi|psm[23]?|opx|hfi\w*|xpmem|portals))"
    r"(?:-\w+)?\.so"
)
#: Device files of networks between nodes and of memory shared between processes. `cxi` is Slingshot, `hfi` Omni-Path.
_DEVICE_FILE = re.compile(r"/dev/(infiniband/uverbs\d+|cxi\d+|hfi\d\w*|ipath\w*|knem|xpmem)")
#: Environment variables that choose a transport.
_SETTING = re.compile(
    r"FI_PROVIDER|UCX_(TLS|NET_DEVICES)|OMPI_MCA_(pml|btl|mtl)(_\w+)?|PSM[23]_DEVICES|I_MPI_(FABRICS|OFI_PROVIDER)"
    r"|MPIR_CVAR_(CH4_NETMOD|OFI_USE_PROVIDER|NOLOCAL|CH4_SHM)|MPICH_(OFI_NIC_POLICY|SMP_SINGLE_COPY_MODE)"
)


def transport() -> str:
    """What this rank can see of MPI's transport, on one line.

    Call it after messages have been sent, because some libraries connect only then.
    """
    loaded: set[str] = set()
    with suppress(OSError):
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    opened: set[str] = set()
    for file in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            opened.add(os.readlink(file))
    return described(MPI.Get_library_version(), loaded, opened, os.environ)


def described(version: str, loaded: Iterable[str], opened: Iterable[str], settings: Mapping[str, str]) -> str:
    """The line of `transport`.

    Args:
        version: the library's description of itself.
        loaded: paths of loaded libraries.
        opened: paths of open files.
        settings: environment variables.
    """
    device = re.search(r"MPICH Device:\s*(\S.*)", version)
    libraries = {found[1].removeprefix("lib") for path in loaded if (found := _LIBRARY.search(Path(path).name))}
    files = {found[1] for path in opened if (found := _DEVICE_FILE.fullmatch(path))}
    asked = [f"{name}={value}" for name, value in sorted(settings.items()) if _SETTING.fullmatch(name)]
    parts = {
        "device": [device[1].strip()] if device else [],
        "loaded": sorted(libraries),
        "open": sorted(files),
        "set": asked,
    }
    return "; ".join(f"{name} {' '.join(values)}" for name, values in parts.items() if values) or "unknown"


def by_ranks(texts: Sequence[str]) -> list[str]:
    """One line per distinct text, which names the ranks that have it: `ranks 0-3: TEXT`.

    Args:
        texts: one per rank.
    """
    holders: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        holders.setdefault(text, []).append(rank)
    return [f"rank{'s' if len(ranks) > 1 else ''} {spans(ranks)}: {text}" for text, ranks in holders.items()]

"""What a process can see of MPI's transport: made up, and real jobs under MPICH and Open MPI."""

from __future__ import annotations

import shutil

import pytest

from fedmpi.mpi.transport import by_ranks, described
from tests.support.mpi import mpirun, succeed

SHOW = (
    "from mpi4py import MPI; from fedmpi.mpi.transport import transport; "
    "MPI.COMM_WORLD.allreduce(1); texts = MPI.COMM_WORLD.gather(transport()); "
    "print('', texts[0] == texts[1], texts[0], sep='|') if texts else None"
)


def test_described() -> None:
    """Oracle: by hand. Libraries, files and variables that do not transport messages are left out."""
    version = "MPICH Version:      4.2\nMPICH Device:       ch4:ofi\nMPICH configure:    --with-device=ch4:ofi\n"
    loaded = [
        "/opt/libfabric-2f1c.so.1.2",
        "/usr/lib/libpsm2.so.2",
        "/usr/lib/libm.so.6",
        "/usr/lib/libfabricated.so",
    ]
    opened = ["/dev/hfi1_0", "/dev/null", "/elsewhere/dev/hfi1_0", "socket:[7]"]
    settings = {"FI_PROVIDER": "psm2", "FI_PROVIDER_PATH": "x", "HOME": "/root", "OMPI_MCA_orte_jobid": "7"}
    said = "device ch4:ofi; loaded fabric psm2; open hfi1_0; set FI_PROVIDER=psm2"
    assert described(version, loaded, opened, settings) == said
    open_mpi = ["/opt/mca_pml_ucx.so", "/opt/mca_coll_tuned.so", "/opt/libucp.so.0", "/opt/libuct_ib_mlx5.so.0"]
    said = "loaded mca_pml_ucx ucp uct_ib_mlx5; open infiniband/uverbs0; set OMPI_MCA_pml=ucx UCX_TLS=rc,sm"
    settings = {"UCX_TLS": "rc,sm", "OMPI_MCA_pml": "ucx"}
    assert described("Open MPI v5", open_mpi, ["/dev/infiniband/uverbs0"], settings) == said
    assert described("Open MPI v5", [], [], {}) == "unknown"


def test_ranks_that_see_the_same_share_a_line() -> None:
    assert by_ranks(["tcp"]) == ["rank 0: tcp"]
    assert by_ranks(["tcp", "ib", "tcp", "tcp"]) == ["ranks 0, 2-3: tcp", "rank 1: ib"]


def test_mpich() -> None:
    """Oracle: the library's own description; a variable that the job sets."""
    said = succeed(mpirun(2, "-c", SHOW, UCX_TLS="self,sm,tcp"))
    assert said.startswith("|True|device ch4:")
    assert said.strip().endswith("set UCX_TLS=self,sm,tcp")


@pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="needs Debian's Open MPI: apt-get install openmpi-bin")
def test_open_mpi() -> None:
    """Oracle: Open MPI itself, which is told to use two of its components and no other."""
    chosen = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader", "MPI4PY_MPIABI": "openmpi"}
    said = succeed(mpirun(2, "-c", SHOW, launcher="mpirun.openmpi", **chosen))
    assert "|loaded mca_btl_self mca_btl_vader mca_pml_ob1" in said
    assert "set OMPI_MCA_btl=self,vader OMPI_MCA_pml=ob1" in said

"""The documents' code runs as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedmpi import results
from fedmpi.experiment.command_line import parse
from fedmpi.results.check import problems
from tests.support.mpi import REPOSITORY, default_launcher, environment, mpirun, succeed

DOCS = REPOSITORY / "docs"


class Page:
    """A page of the documentation, whose files are written to a folder and whose commands are run there.

    Args:
        name: of the page, without the suffix.
        folder: in which files are written and commands run.
        shorter: what is replaced in commands to save time.

    Attributes:
        commands: the indented blocks.
    """

    def __init__(self, name: str, folder: Path, shorter: dict[str, str] | None = None) -> None:
        self.text, self.folder, self.shorter = (DOCS / f"{name}.md").read_text(), folder, shorter or {}
        fences = re.sub(r"```.*?```", "", self.text, flags=re.DOTALL)
        found = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", fences, re.MULTILINE)
        self.commands = [re.sub("^    ", "", block, flags=re.MULTILINE) for block in found]
        for file, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", self.text, re.DOTALL):
            (folder / file).write_text(code)

    def block(self, beginning: str) -> str:
        """The only block of commands that begins like that."""
        (block,) = [block for block in self.commands if block.startswith(beginning)]
        return block

    def run(self, block: str) -> str:
        """The standard output of a block of commands, each of which must end well."""
        process = self.start(block)
        output, errors = process.communicate(timeout=480)
        assert process.returncode == 0, f"{block}\nexit status {process.returncode}\n{output}\n{errors}"
        return output

    def start(self, block: str) -> subprocess.Popen[str]:
        """The same without waiting for the end."""
        for long, short in self.shorter.items():
            block = block.replace(long, short)
        path = [str(Path(default_launcher()).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        variables = {
            **environment(),
            "PATH": os.pathsep.join(path),
            # Open MPI wants to be told before it starts more ranks than cores, or anything as root.
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        }
        return subprocess.Popen(
            ["bash", "-ec", block],
            cwd=self.folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.mark.further
def test_getting_started(tmp_path: Path) -> None:
    """Word by word from the doctor on, but for fewer rounds and seeds; Ctrl-C is pressed after three rounds."""
    pytest.importorskip("matplotlib")
    shorter = {"fedmpi --output": "fedmpi --rounds 6 --output", "--rounds 20": "--rounds 2", "0 1 2;": "0 1;"}
    page = Page("getting_started", tmp_path, shorter)
    install, doctor, demo, compare, *rest = page.commands
    assert install.splitlines() == [
        "python3 -m venv .venv",
        ". .venv/bin/activate",
        "pip install -e '.[mpich,plot]'",
    ]
    assert "ranks on 1 node" in (page.start(doctor).communicate(timeout=120)[0])
    page.run(demo)
    page.run(compare)
    table, pairs, plot, interrupted, resumed = rest
    printed = page.run(table).splitlines()
    assert [line.split()[0] for line in printed] == ["method", "FedAvg", "FedDyn"]
    assert printed[0].split() in [line.split() for line in page.text.splitlines()], "the page shows other columns"
    assert re.search(r"^FedDyn +uniform +2 ", page.run(pairs), re.MULTILINE)
    page.run(plot)
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")

    process = page.start(interrupted)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("round 3/"):
            os.killpg(process.pid, signal.SIGINT)
        if line.startswith("interrupted"):
            break
    process.communicate(timeout=120)
    assert results.open(tmp_path / "runs" / "long.h5").status == "interrupted"
    assert page.run(resumed).rstrip().endswith("bits      identical apart from timings")


@pytest.mark.further
def test_the_tutorial(tmp_path: Path) -> None:
    """Oracles: FedProx of the package, another number of ranks, and accuracies above that of no training."""
    pytest.importorskip("matplotlib")
    page = Page("tutorial", tmp_path, {"--rounds 20": "--rounds 4"})
    first, prox, smooth, server, memory, one_rank, phases, trial = page.commands
    assert "--algorithm.mu" in page.run(first)
    assert page.run(prox).rstrip().endswith("bits      identical apart from timings")
    page.run(smooth)
    page.run(server)
    assert (results.open(tmp_path / "runs" / "my_server.h5").rounds["change"] > 0).all()
    page.run(memory)
    assert page.run(one_rank).rstrip().endswith("bits      identical apart from timings")
    page.run(phases)
    rows = page.run(trial)
    for path in (tmp_path / "runs").glob("my_*.h5"):
        run = results.open(path)
        assert problems(path) == [], "a column of one's own is part of the schema"
        assert run.statistics().last > 0.5, path
        assert run.attributes["algorithm"] in rows
    plain = results.open(tmp_path / "runs" / "fedprox.h5").rounds["train_loss"]
    for name in ("my_smooth", "my_server", "my_memory", "my_phases", "my_trial"):
        assert (results.open(tmp_path / "runs" / f"{name}.h5").rounds["train_loss"][1:] != plain[1:]).all()


@pytest.mark.further
def test_a_data_set_a_partition_and_a_model_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = Page("models_and_data", tmp_path)
    block, users, compiled, in_bf16 = page.commands
    page.run(block)
    run = results.open(tmp_path / "runs" / "own.h5")
    names = [run.settings[name]["class_path"] for name in ("model", "dataset", "partition")]
    assert names == ["own.Tiny", "own.Rings", "own.Neighbours"]
    assert run.statistics().last > 0.7
    counts = run.partition["label_counts"]
    assert counts.sum(1).tolist() == [250] * 8
    assert counts[0].argmax() == 0
    assert counts[-1].argmax() == 3
    assert (tmp_path / "own.png").exists()
    page.run(users)
    run = results.open(tmp_path / "runs" / "hospitals.h5")
    assert sorted(run.partition["label_counts"].sum(1).tolist()) == [80, 120, 160, 200, 240]
    assert run.statistics().last > 0.8
    page.run(compiled.replace("--rounds 5000", "--rounds 2"))
    assert results.open(tmp_path / "runs" / "compiled.h5").settings["local"]["compile"] == "on"
    page.run(in_bf16)
    assert results.open(tmp_path / "runs" / "bf16.h5").settings["local"]["precision"] == "bf16"


@pytest.mark.further
def test_the_answers(tmp_path: Path) -> None:
    """Oracles: a run that goes on from the weights of another; one that ends when its accuracy is reached."""
    page = Page("faq", tmp_path, {f"--rounds {more}": "--rounds 1" for more in (4, 5, 10)})
    for block in page.commands:
        page.run(block)
    accumulated = results.open(tmp_path / "runs" / "accumulated.h5")
    assert (accumulated.clients["steps"] == 5 * -(-accumulated.clients["samples"] // 40)).all()
    first, second = (results.open(tmp_path / "runs" / f"{name}.h5") for name in ("first", "second"))
    assert second.statistics().initial == first.statistics().last
    page.run("mpirun -n 2 python -m mpi4py stop.py")
    stopped = results.open(tmp_path / "runs" / "stop.h5")
    assert stopped.status == "interrupted"
    assert stopped.statistics().last > 0.8
    assert len(stopped.rounds["round"]) < 30


@pytest.mark.further
def test_tables_of_ones_own(tmp_path: Path) -> None:
    """Oracles: accuracies and errors that are better than those of guessing."""
    page = Page("data", tmp_path)
    page.run(page.block("python write_table.py"))
    assert results.open(tmp_path / "runs" / "tumours.h5").rounds["test_accuracy"][-1] > 0.9
    assert results.open(tmp_path / "runs" / "area.h5").rounds["test_r2"][-1] > 0.8


@pytest.mark.further
def test_texts_of_ones_own(tmp_path: Path) -> None:
    """Oracles: an accuracy, and perplexities, that are better than those of guessing."""
    page = Page("data", tmp_path)
    page.run(page.block("python write_texts.py"))
    assert results.open(tmp_path / "runs" / "texts.h5").rounds["test_accuracy"][-1] > 0.6
    for name in ("packed", "answers"):
        found = results.open(tmp_path / "runs" / f"{name}.h5").statistics()
        assert found.last < found.initial / 2


@pytest.mark.parametrize("name", ["tasks", "participation"])
def test_commands_are_understood(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option that these pages use exists, and has a value that is allowed; the slow tests run the commands."""
    page = Page(name, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = 0
    for block in page.commands:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("printf"):  # a file that a command reads
                subprocess.run(line, shell=True, check=True)
            if command := re.match(r"(?:mpirun -n \d+ )?python -m fedmpi (--.*)", line):
                parse(shlex.split(command[1]))
                found += 1
    assert found >= 5


@pytest.mark.slow
def test_tasks(tmp_path: Path) -> None:
    """Oracles: a fit that explains something, the page's own functions, a round that validation has chosen."""
    pytest.importorskip("matplotlib")
    shorter = {"--clients 50 --rounds 40": "--clients 10 --rounds 3", "--clients 20 -": "--clients 5 -"}
    page = Page("tasks", tmp_path, {**shorter, "--rounds 10 --evaluate_every 10": "--rounds 3 --evaluate_every 3"})
    page.run(page.block("python -m fedmpi --dataset Diabetes"))
    assert results.open(tmp_path / "runs" / "diabetes.h5").rounds["test_r2"][-1] > 0.3
    assert (tmp_path / "diabetes.png").exists()
    page.run(page.block("python -m fedmpi --clients 20 --rounds 5"))
    fair = results.open(tmp_path / "runs" / "fair.h5")
    worst = np.nanmin(fair.evaluation["client_accuracy"][-1])
    assert fair.rounds["test_worst_client"][-1] == pytest.approx(worst, rel=1e-6)
    assert fair.described("test_brier").better == "lower"
    page.run(page.block("python -m fedmpi --dataset counts.Visits"))
    visits = results.open(tmp_path / "runs" / "visits.h5")
    assert visits.rounds["test_deviance"][-1] < 0.9 * visits.initial["test_deviance"]
    output = page.run(page.block("python -m fedmpi --clients 50"))
    assert "best on validation" in output
    page.run(page.block("python -m fedmpi --clients 20 --partition.alpha"))
    tuned = results.open(tmp_path / "runs" / "fine_tuned.h5")
    assert tuned.rounds["fine_tuned_accuracy"][-1] > tuned.rounds["test_accuracy"][-1]


@pytest.mark.slow
def test_slow_clients(tmp_path: Path) -> None:
    """Oracles: the clients that the page says there are, lost ones and late ones."""
    pytest.importorskip("matplotlib")
    page = Page("participation", tmp_path, {"--rounds 10": "--rounds 5"})
    page.run(page.block("mpirun -n 3 python -m fedmpi --conditions"))
    run = results.open(tmp_path / "runs" / "slow.h5")
    assert run.rounds["dropped"].sum() > 0
    assert run.rounds["late"].sum() > 0
    assert run.rounds["virtual_seconds"].max() <= 1
    assert (tmp_path / "slow.png").exists()
    page.run(page.block("printf"))
    measured = results.open(tmp_path / "runs" / "measured.h5")
    assert 0 < measured.rounds["unavailable"].sum() < 500


def test_which_clients_are_trained_side_by_side() -> None:
    """The numbers of the page's table are those of the rule."""
    from fedmpi.training import choice

    text = (DOCS / "models_and_data.md").read_text()
    table = text[text.index("## Which clients are trained side by side") :]
    assert f"| on a GPU | {choice.AT_ONCE_ON_GPU} |" in table
    assert f"more than {choice.SMALL_ON_CPU:,} parameters | 1 |" in table
    assert f"fewer than {choice.WORTH_IT_ON_CPU} clients | 1 |" in table
    assert f"`--local.precision bf16` or compiled steps | {choice.AT_ONCE_IF_FILLED}, or the size" in table
    assert f"| on a CPU | {choice.AT_ONCE_ON_CPU} |" in table


def test_a_list_of_runs() -> None:
    """The page's list for a Slurm array: settings that there are, and as many tasks as lines and seeds."""
    text = (DOCS / "cluster.md").read_text()
    (block,) = re.findall(r"```\n# my.list\n(.*?)```", text, re.DOTALL)
    rows = [line.split() for line in block.splitlines()]
    command = re.search(r"sbatch --array=0-(\d+) jobs/slurm_array.sbatch my.list (\d+)", text)
    assert command
    assert int(command[1]) == len(rows) * int(command[2]) - 1
    for name, config, *options in rows:
        settings, _ = parse(["--config", str(REPOSITORY / config), *options])
        assert type(settings.algorithm).__name__.lower() == name


def test_sweeps(tmp_path: Path) -> None:
    """The page's grid and its commands, without the runs themselves: as many as the page says, and their files."""
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    shorter = {"--local 2  ": "--local 2 --dry_run", "--slurm": "--slurm --dry_run", "--seeds 0 1 2": "--seeds 0"}
    page = Page("sweeps", tmp_path, shorter)
    (grid,) = re.findall(r"```yaml\n(# mu.yaml\n.*?)```", page.text, re.DOTALL)
    (tmp_path / "mu.yaml").write_text(grid)
    local, listed, slurm = page.commands
    commands = page.run(local.splitlines()[0]).splitlines()
    assert len(commands) == 2 * 2 * 3
    assert "runs/mu/mu_0.001-lr_0.01-0.h5" in commands[0]
    assert "`mu_0.001-lr_0.01-0.h5`" in page.text
    assert "runs/genfl/mnist-genfl_local-0.h5" in page.run(listed)
    *lines, command = page.run(slurm).splitlines()
    assert len(lines) == len(commands)
    assert "--array=0-11 --output=runs/mu/slurm-%A_%a.log --ntasks-per-node=5 --time=01:00:00" in command


def test_a_sweep_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page has it, but for the number of rounds; on two ranks."""
    text = (DOCS / "python.md").read_text()
    (script,) = re.findall(r"```python\n(# sweep.py.*?)```", text, re.DOTALL)
    assert "mpirun -n 6 python -m mpi4py sweep.py" in text
    (tmp_path / "sweep.py").write_text(script.replace("rounds=5", "rounds=1"))
    monkeypatch.chdir(tmp_path)
    output = succeed(mpirun(2, "-m", "mpi4py", "sweep.py"))
    runs = [results.open(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert [run.settings["algorithm"]["init_args"]["mu"] for run in runs] == [0.01, 1.0]
    assert all(output.count(f"{run.statistics().last}") == 2 for run in runs), "both ranks have the results"
    rows = succeed(mpirun(0, "-m", "fedmpi.results", "table", *(run.path for run in runs)))
    assert re.search(r"FedProx \(mu 0.01\).*\n.*FedProx \(mu 1.0\)", rows)


def test_every_method_has_a_page() -> None:
    """The names of the README's table of methods, each in some page of docs/methods."""
    readme = (REPOSITORY / "README.md").read_text()
    section = readme[readme.index("\n## Methods\n") : readme.index("Fed-GN is FedAvg")]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")]
    known = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(known) > 30
    pages = "\n".join(path.read_text() for path in [*DOCS.glob("methods*.md"), *DOCS.glob("methods/*.md")])
    missing = [name for name in known if not re.search(rf"\b{name}\b", pages)]
    assert not missing


def test_tables_end_with_an_empty_line() -> None:
    """A line that follows a table at once would be shown as one of its rows."""
    for page in (*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")):
        lines = [*page.read_text().splitlines(), ""]
        for line, after in pairwise(lines):
            assert not line.startswith("|") or not after or after.startswith("|"), f"{page}: {after}"


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs --strict checks links; a page that is left out of the navigation is only a remark there."""
    listed = set(re.findall(r"[\w/]+\.md", (REPOSITORY / "mkdocs.yml").read_text()))
    assert {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} == listed


def test_links_of_pages_outside_of_the_documentation() -> None:
    """Files and headings that the README, CONTRIBUTING.md and the jobs' README link to."""
    for page in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "jobs/papers/README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([\w-]+))?\)", page.read_text()):
            file = page.parent / target[0] if target[0] else page
            assert file.exists(), f"{page.name}: {target[0]}"
            assert not target[1] or target[1] in headings(file), f"{page.name}: {target[0]}#{target[1]}"


def headings(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in found}

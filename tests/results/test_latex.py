from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fedmpi.results.__main__ import main
from fedmpi.results.formats import Best, Near, latex
from tests.results.made_runs import finished
from tests.results.test_rounds import as_method

# Accuracy is 0.04 times the round, every other round.
OTHER = {"alpha: 0.3": "alpha: 0.7"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two methods and two alphas; FedAvg with another learning rate, and at 0.7 with one run less."""
    changes = {"lr: 1.0e-05": "lr: 0.1"}
    made = [
        finished(tmp_path / "a1.h5", rounds=4, seed=1),
        finished(tmp_path / "a2.h5", rounds=6, seed=2),
        finished(tmp_path / "a3.h5", rounds=10, seed=1, changes=OTHER),
        finished(tmp_path / "a4.h5", rounds=12, seed=2, changes=OTHER),
    ]
    others = [
        as_method(finished(tmp_path / "b1.h5", rounds=6, seed=1, changes=changes), "Fed_Avg"),
        as_method(finished(tmp_path / "b2.h5", rounds=8, seed=2, changes=changes), "Fed_Avg"),
        as_method(finished(tmp_path / "b3.h5", rounds=4, seed=1, changes={**changes, **OTHER}), "Fed_Avg"),
    ]
    return [*map(str, made), *others]


def test_a_table_for_a_paper(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: 20 ± 5.66 and 28 ± 5.66 overlap; 44 ± 5.66 and a single 16 do not."""
    options = ["--statistic", "last", "--format", "latex", "--caption", r"Digits & co (%), 5\% of #3, $\alpha$"]
    assert main(["table", *files, *options, "--label", "tab:a_1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        r"% needs \usepackage{booktabs}",
        "% lr: FedProx 1e-05, Fed_Avg 0.1",
        "% bold: best mean under the same conditions; underlined: mean ± spread overlaps with that of the best",
        r"\begin{table}",
        r"\centering",
        r"\caption{Digits \& co (\%), 5\% of \#3, $\alpha$}",
        r"\label{tab:a_1}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & $\alpha$ 0.3 & $\alpha$ 0.7 \\",
        r"\midrule",
        r"FedProx & \underline{20.00 $\pm$ 5.66} & \textbf{44.00 $\pm$ 5.66} \\",
        r"Fed\_Avg & \textbf{28.00 $\pm$ 5.66} & 16.00 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    assert main(["table", *files, *options[:2], "--format", "markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| FedProx | 1e-05 | <ins>20.00 ± 5.66</ins> | **44.00 ± 5.66** |",
        "| Fed_Avg | 0.1 | **28.00 ± 5.66** | 16.00 |",
    ]


def test_rows_of_other_conditions_are_not_compared(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: the same marks where the conditions are rows; runs stand there, for they are not as many."""
    assert main(["table", *files, "--format", "latex"]) == 0
    lines = [line.split(" & ") for line in capsys.readouterr().out.splitlines() if " & " in line]
    assert lines[0][:4] == ["method", r"$\alpha$", "runs", r"last (\%)"]
    assert [line[:4] for line in lines[1:]] == [
        ["FedProx", "0.3", "2", r"\underline{20.00 $\pm$ 5.66}"],
        ["FedProx", "0.7", "2", r"\textbf{44.00 $\pm$ 5.66}"],
        [r"Fed\_Avg", "0.3", "2", r"\textbf{28.00 $\pm$ 5.66}"],
        [r"Fed\_Avg", "0.7", "1", "16.00"],
    ]
    assert len(lines[0]) == 6, "no evaluated model, which is the same everywhere, and no costs"


def test_settings_of_one_method_are_compared_on_one_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: of two learning rates one is better; neither is better than another cohort, which is shown."""
    lr, cohort = {"lr: 1.0e-05": "lr: 0.1"}, {"cohort: 4": "cohort: 5"}
    files = [str(finished(tmp_path / "a.h5", rounds=4)), str(finished(tmp_path / "b.h5", rounds=6, changes=lr))]
    assert main(["table", *files, "--format", "latex"]) == 0
    assert r"FedProx & 0.1 & \textbf{24.00} &" in capsys.readouterr().out
    assert main(["table", *files, "--statistic", "last", "--format", "latex"]) == 0
    assert r"FedProx & 16.00 & 24.00 \\" in capsys.readouterr().out, "a column has one value here"
    other = as_method(finished(tmp_path / "c.h5", rounds=8, changes={**lr, **cohort}), "FedAvg")
    assert main(["table", *files, other, "--statistic", "last", "--format", "latex"]) == 0
    lines = [line.split(" & ") for line in capsys.readouterr().out.splitlines() if " & " in line]
    assert lines == [
        ["method", "cohort", "lr", r"last (\%) \\"],
        ["FedProx", "4", "1e-05", r"16.00 \\"],
        ["FedProx", "4", "0.1", r"\textbf{24.00} \\"],
        ["FedAvg", "5", "0.1", r"32.00 \\"],
    ]


def test_global_and_personal_models_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand; with the column that only methods with personal models have."""
    from fedmpi.results import open as open_run
    from tests.results.made_runs import add_round, started

    files = [
        str(finished(tmp_path / f"{mu}.h5", rounds=rounds, mu=mu)) for mu, rounds in ((0.1, 4), (0.2, 6), (0.3, 4))
    ]
    personal = started(tmp_path / "personal.h5", mu=0.4)
    add_round(personal, 2)
    row = {"round": 4, "test_accuracy": 0.9, "clients_trained": 9, "bytes_up": 0, "bytes_down": 0, "seconds": 0}
    personal.add_round(row)
    personal.finish("finished")
    assert open_run(tmp_path / "personal.h5").statistics().last == 0.9
    assert main(["table", *files, str(tmp_path / "personal.h5"), "--statistic", "last", "--format", "latex"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " & " in line]
    assert lines[0] == r"method & evaluated model & last (\%) \\"
    assert lines[2:] == [
        r"FedProx ($\mu$ 0.2) & global & \textbf{24.00} \\",
        r"FedProx ($\mu$ 0.3) & global & 16.00 \\",
        r"FedProx ($\mu$ 0.4) & personal & 90.00 \\",
    ]


def test_rounds_and_differences(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: FedProx's factor of 0.5 makes it reach 8 % in the fourth round, the other in the second."""
    half = [as_method(Path(files[0]), "Slow", 0.5), as_method(Path(files[1]), "Slow", 0.5), *files[4:6]]
    assert main(["rounds", *half, "--targets", "0.08", "--format", "latex", "--caption", "Rounds"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert r"method & rounds to 8 \% \\" in lines
    assert lines[-5:-3] == [r"Slow & 4 \\", r"Fed\_Avg & \textbf{2} \\"]
    assert main(["compare", *half, "--format", "latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith(r"Fed\_Avg & \textbf{28.00 $\pm$ 5.66} & 2 & +18.00 & ")


ALL = [
    ["method", "a_b & c", r"x^2 ~ <3> | \q {z} #1 $5"],
    ["Fed_Avg (mu 1e-05, lambda -0.5)", Best("-1.00 ± 0.10"), "-"],
    ["café 50 %, gammas", Near("2.00 ± 1.00 (1 of 2)"), "7"],
]


def test_special_characters() -> None:
    """Oracle: LaTeX's manual."""
    head, first, second = (line for line in latex(ALL).splitlines() if " & " in line)
    assert head == (
        r"method & a\_b \& c & x\textasciicircum{}2 \textasciitilde{} \textless{}3\textgreater{} \textbar{} "
        r"\textbackslash{}q \{z\} \#1 \$5 \\"
    )
    assert first == r"Fed\_Avg ($\mu$ 1e-05, $\lambda$ $-$0.5) & \textbf{$-$1.00 $\pm$ 0.10} & -- \\"
    assert second == r"café 50 \%, gammas & \underline{2.00 $\pm$ 1.00 (1 of 2)} & 7 \\"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex with booktabs")
def test_latex_takes_it(tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(latex(ALL, "All 100 % & more", "tab:all"), encoding="utf-8")
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}\ref{tab:all}\input{table}\end{document}"
    (tmp_path / "paper.tex").write_text(paper)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert found.returncode == 0, found.stdout[-2000:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--caption", "a"], "--caption needs --format latex"),
        (["--label", "a", "--format", "markdown"], "--label needs --format latex"),
        (
            ["--format", "latex", "--label", "a"],
            "--label needs --caption: LaTeX numbers a table where its caption is",
        ),
        (
            ["--statistic", "last", "--costs"],
            "--costs and --statistic cannot be combined: a table with one statistic ",
        ),
        (
            ["--format", "latex", "--caption", "a", "--label", "a}b"],
            "argument --label: a}b must have letters, digits",
        ),
    ],
)
def test_what_does_not_go_together(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(finished(tmp_path / "a.h5", rounds=2))
    try:
        status = main(["table", file, *options])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line

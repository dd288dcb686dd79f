"""The benchmark of clients that share a frozen transformer (`benchmarks.adapters`), with a network made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mpi import mpirun, succeed

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")


def test_eight_clients_have_no_copy_of_the_base(tmp_path: Path) -> None:
    """Oracle: by hand; the table of tokens alone has 30,522 rows of 512 numbers, 63 MB."""
    width = {"hidden_size": 512, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(**width)).save_pretrained(tmp_path)
    said = succeed(mpirun(0, "-m", "benchmarks.adapters", tmp_path, "1", "8", "8", "0"))
    megabytes, seconds = map(float, said.split())
    assert 0 < megabytes < 63
    assert seconds > 0

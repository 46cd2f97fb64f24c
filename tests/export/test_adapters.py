"""Adapters: trained beside frozen weights, merged into them, and kept alone as well."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export import cli
from export.training import adapters
from export.training.hyperparameters import Adapter, default_learning_rate
from export.training.progress import TrainingProgress
from serving.artifact import read_manifest
from serving.errors import ArtifactError
from serving.manifests import AdapterRecord, CheckpointManifest
from tests.helpers.checkpoints import ARCHITECTURES
from tests.helpers.reviews import review_rows, write_tsv

SMALL = ("--epochs", "3", "--batch-size", "16", "--max-length", "32", "--device", "cpu", "--name", "tiny")


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with train.tsv and test.tsv; also the working directory."""
    for seed, (split, count) in enumerate({"train": 200, "test": 40}.items()):
        write_tsv(in_folder / f"{split}.tsv", review_rows(count, seed=20 + seed))
    return in_folder


def command(checkpoint: Path, *more: str) -> list[str]:
    return ["finetune", "--checkpoint", str(checkpoint), "--train", "train.tsv", "--test", "test.tsv", *SMALL, *more]


@pytest.fixture
def taught(data: Path, base_checkpoint: Path) -> Path:
    """A checkpoint that has learnt the opposite of what the rows say: few weights are enough to learn better."""
    swapped = {"positive": "negative", "negative": "positive"}
    write_tsv(data / "opposite.tsv", [(text, swapped[label]) for text, label in review_rows(240, seed=22)])
    full = ("--train", "opposite.tsv", "--test", "opposite.tsv", "--keep-leaks", "--name", "taught", "--epochs", "6")
    assert cli.main(command(base_checkpoint, *full, "--learning-rate", "5e-3")) == 0
    return data / "artifacts" / "taught" / "checkpoint"


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_an_adapter_is_trained_merged_and_kept(data: Path, taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    capsys.readouterr()
    lora = ("--adapter", "LoRA", "--adapter-option", "r=4", "--learning-rate", "2e-2")
    assert cli.main(command(taught, *lora, "--json")) == 0
    folder = data / "artifacts" / "tiny" / "checkpoint"
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["test"]["accuracy"] > 0.8, "the words give the label away"
    assert 0 < figures["merged_difference"] < 1e-5
    assert 0 < figures["trained_parameters"] < figures["parameters"] / 2
    assert figures["steps"] == 3 * -(-figures["rows"]["train"] // 16)
    assert figures["peak_rss_mib"] > 100

    whole = AutoModelForSequenceClassification.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(taught)
    ids = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    alone = logits(PeftModel.from_pretrained(base, str(folder / "adapter")), ids)
    assert torch.allclose(logits(whole, ids), alone, atol=1e-5), "the adapter on the base is the checkpoint"
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, str(taught))
    manifest = read_manifest(folder, CheckpointManifest)
    assert manifest.adapter == AdapterRecord(method="lora", options={"r": 4}, load_in=None)
    assert "adapter/adapter_model.safetensors" in manifest.files


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_are_adapted_and_the_head_is_trained_whole(make_checkpoint: Callable[[str], Path], architecture: str) -> None:
    from transformers import AutoModelForSequenceClassification

    def trained_by(adapter: Adapter) -> set[str]:
        model = AutoModelForSequenceClassification.from_pretrained(make_checkpoint(architecture)).eval()
        linear.update(name for name, module in model.base_model.named_modules() if isinstance(module, torch.nn.Linear))
        before = logits(model, ids)
        adapted = adapters.add_adapter(model, adapter, new=set())
        assert torch.allclose(logits(adapted, ids), before, atol=1e-5), "nothing is learnt yet"
        trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert any(".modules_to_save." in name for name in trained) and not any("word_embeddings" in name for name in trained)
        return {name for name in trained if "lora_A" in name}

    linear: set[str] = set()
    ids = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    usual = trained_by(Adapter(method="lora"))
    layers = 1 if architecture == "albert" else 2  # which shares one
    assert len(usual) == layers * (1 if architecture == "modernbert" else 2), "queries and values"
    assert len(trained_by(Adapter(method="lora", options={"target_modules": "all-linear"}))) == len(linear)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # of ln_tuning, peft's own
@pytest.mark.parametrize("method", ["ia3", "loha", "lokr", "oft", "vera", "fourierft", "ln_tuning", "hra"])
def test_other_methods_are_trained_and_merged_too(make_checkpoint: Callable[[str], Path], method: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    assert method in adapters.adapter_methods()
    options = {"n_frequency": 10} if method == "fourierft" else {}
    model = AutoModelForSequenceClassification.from_pretrained(make_checkpoint("bert"))
    adapted = adapters.add_adapter(model, Adapter(method=method, options=options), new=set())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (4, 12), generator=generator)
    before = logits(adapted, ids)
    optimizer = torch.optim.SGD([one for one in adapted.parameters() if one.requires_grad], lr=0.1)
    loss = adapted.train()(input_ids=ids, labels=torch.tensor([0, 1, 0, 1])).loss
    loss.backward()
    optimizer.step()
    trained = logits(adapted, ids)
    assert not torch.allclose(before, trained)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole, apart = adapters.merge_adapter(adapted, None, tmp_path, batch)
    assert apart <= 1e-4 and torch.allclose(logits(whole, ids), trained, atol=1e-4)
    assert not any(method in name or "lora" in name for name, _ in whole.named_parameters())


def test_tied_weights_stay_frozen(make_checkpoint: Callable[[str], Path]) -> None:
    """What is added to an output layer that shares its weights with the embeddings could not be merged into both."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(make_checkpoint("distilbert"))
    adapted = adapters.add_adapter(model, Adapter(method="lora"), new={"vocab_transform.weight"})
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert not any("vocab_projector" in name for name in trained)
    assert "base_model.model.vocab_transform.modules_to_save.default.weight" in trained, "new weights have nothing to adapt"


def test_merging_that_changes_the_model_is_refused(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft.tuners.lora import LoraModel

    merge = LoraModel.merge_and_unload

    def and_something_else(self: Any, *arguments: Any, **named: Any) -> Any:
        whole = merge(self, *arguments, **named)
        whole.classifier.bias.data += 0.1
        return whole

    monkeypatch.setattr(LoraModel, "merge_and_unload", and_something_else)
    assert cli.main(command(base_checkpoint, "--adapter", "lora", "--epochs", "1")) == 1
    assert "error: merging the adapter changed the model's outputs by 0.1, where rounding explains 1e-05" in capsys.readouterr().err
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--adapter", "lara"), "no adapter 'lara': peft has no such method"),
        (("--adapter", "prompt_tuning"), "no adapter 'prompt_tuning': its weights cannot be merged into the model's"),
        (("--adapter", "lora", "--adapter-option", "rank=8"), "lora has no option rank (see LoraConfig in peft's documentation)"),
        (("--adapter", "lora", "--adapter-option", "target_modules=nope"), "lora cannot be used with this model: "),
        (("--adapter", "lora", "--adapter-option", "r=0"), "lora cannot be used with this model: "),
        (("--adapter-option", "r=8"), "--adapter-option goes with --adapter"),
        (("--load-in", "4bit"), "--load-in goes with --adapter"),
        (("--adapter", "lora", "--load-in", "4bit"), "--load-in 4bit needs an NVIDIA GPU, and torch sees none"),
    ],
)
def test_adapters_that_cannot_be_are_refused(
    data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], message: str
) -> None:
    if "needs an NVIDIA GPU" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(command(base_checkpoint, *given)) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (data / "artifacts" / "tiny" / "checkpoint").exists()


def test_an_interrupted_adapter_goes_on_as_if_never_interrupted(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = TrainingProgress.on_evaluate

    def press_ctrl_c(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        said(self, args, state, control, **more)
        if state.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    lora = ("--adapter", "lora", "--learning-rate", "2e-2")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "on_evaluate", press_ctrl_c)
        assert cli.main(command(base_checkpoint, *lora)) == 1
    assert cli.main(command(base_checkpoint, *lora)) == 0
    assert "resuming after checkpoint-" in capsys.readouterr().err
    folder = data / "artifacts" / "tiny" / "checkpoint"
    resumed = read_manifest(folder, CheckpointManifest).files["model.safetensors"]
    assert cli.main(command(base_checkpoint, *lora, "--force")) == 0
    assert read_manifest(folder, CheckpointManifest).files["model.safetensors"] == resumed


def test_the_usual_learning_rate_falls_with_size() -> None:
    sizes = [1e6, 6.6e7, 3.4e8, 7e9]
    rates = [default_learning_rate(int(size), adapter=False) for size in sizes]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)
    assert default_learning_rate(10**6, adapter=True) == 10 * rates[0]


def test_what_peft_refuses_is_an_error_of_ours(make_checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(make_checkpoint("bert"))
    with pytest.raises(ArtifactError, match="adalora cannot be used with this model: "):
        adapters.add_adapter(model, Adapter(method="adalora"), new=set())

"""The two graphs of an encoder-decoder compute what the model does, for rows that are at different positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from export.generation.encoder_decoder_graph import FAMILIES, export_encoder_decoder, load_encoder_decoder, require_family
from serving.errors import ExportError
from tests.helpers.encoder_decoders import CONFIGURATIONS, SOURCES, tiny_encoder_decoder

CAPACITY = 16


def padded(rows: list[list[int]], value: int) -> Any:
    longest = max(map(len, rows))
    return np.array([[*row, *[value] * (longest - len(row))] for row in rows])


def logits_of(model: Any, source: list[int], read: list[int]) -> Any:
    """Token by token, as ``generate`` reads: some families count a padding token among others differently."""
    import torch

    found, past = [], None
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=torch.tensor([source]))
        for token in read:
            output = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[token]]), past_key_values=past)
            found.append(output.logits[0, -1].numpy())
            past = output.past_key_values
    return np.array(found)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    import torch

    model = tiny_encoder_decoder(name)
    pad, start = model.config.pad_token_id, model.config.decoder_start_token_id
    sources = SOURCES[:3]
    read = [[start, 9, 30, pad, 41, 50, 11], [start, 8, 25, 77], [start, pad]]  # a padding token may be generated too
    right = [logits_of(model, source, tokens) for source, tokens in zip(sources, read, strict=True)]
    weights = {path: tensor.clone() for path, tensor in model.state_dict().items()}

    graphs = export_encoder_decoder(model, tmp_path, opset=18)

    limit = None if "t5" in name else CONFIGURATIONS[name]["max_position_embeddings"]
    assert (graphs.max_source_tokens, graphs.max_target_tokens) == (limit, limit)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[path]) for path, tensor in model.state_dict().items())
    again = [logits_of(model, source, tokens) for source, tokens in zip(sources, read, strict=True)]
    assert all((one == other).all() for one, other in zip(right, again, strict=True)), "the model is the same after the export"

    encoder, decoder = (ort.InferenceSession(str(path)) for path in (graphs.encoder, graphs.decoder))
    mask = (padded(sources, -1) >= 0).astype(np.int64)
    outputs = [output.name for output in encoder.get_outputs()]
    cross = encoder.run(outputs, {"input_ids": padded(sources, pad), "attention_mask": mask})
    feeds = dict(zip(outputs, cross, strict=True)) | {"encoder_mask": mask.astype(np.float32)}
    cache = {
        one.name: np.full((3, one.shape[1], CAPACITY, one.shape[3]), 7, dtype=np.float32)
        for one in decoder.get_inputs()
        if one.name.startswith("past.")
    }
    outputs = ["logits", *(name.replace("past", "present") for name in cache)]
    taken = [0, 0, 0]
    for counts in ([5, 2, 1], [1, 1, 1], [1, 1, 0]):  # a first step with prompts of several lengths, then one token a row
        rows = [row for row in range(3) if counts[row]]
        new = [read[row][taken[row] : taken[row] + counts[row]] for row in rows]
        last = np.array([taken[row] + counts[row] - 1 for row in rows])
        step = {
            "input_ids": padded(new, pad),
            "position_ids": np.array([[taken[row]] for row in rows]) + np.arange(max(map(len, new))),
            "seqlens_k": last.astype(np.int32),
            "total_sequence_length": np.array(last.max() + 1, dtype=np.int32),
        }
        of_rows = {name: tensor[rows] for name, tensor in (feeds | cache).items()}
        logits, *present = decoder.run(outputs, of_rows | step)
        for tensor, after in zip(cache.values(), present, strict=True):
            tensor[rows] = after
        for row, found, at in zip(rows, logits, last.tolist(), strict=True):
            assert np.abs(found - right[row][at]).max() < 2e-4
            taken[row] = at + 1


@pytest.mark.parametrize("family", ["led", "prophetnet", "pegasus_x", "gpt2"])
def test_other_families_are_refused(family: str) -> None:
    with pytest.raises(ExportError, match=f"architecture '{family}' cannot be exported") as raised:
        require_family(family)
    assert raised.value.hint is not None
    assert all(known in raised.value.hint for known in FAMILIES)


def test_a_checkpoint_of_another_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    from transformers import LEDConfig

    LEDConfig(d_model=32).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="architecture 'led' cannot be exported"):
        load_encoder_decoder(tmp_path)


def test_a_checkpoint_is_loaded_in_fp32(tmp_path: Path) -> None:
    import torch

    model = tiny_encoder_decoder("t5")
    model.to(torch.float16).save_pretrained(tmp_path)
    loaded = load_encoder_decoder(tmp_path)
    assert loaded.dtype == torch.float32
    assert not loaded.training

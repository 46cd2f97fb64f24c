"""Decoders exported once per test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from export.generation.decoder_graph import DecoderLayout, export_decoder
from export.generation.original_decoder import OriginalDecoder
from export.generation.slotted_decoder import SlottedDecoder
from tests.helpers.decoders import POSITIONS, make_decoder


@dataclass(frozen=True, kw_only=True)
class ExportedDecoder:
    model: Any
    path: Path
    layout: DecoderLayout

    @property
    def original(self) -> OriginalDecoder:
        return OriginalDecoder(self.model)

    def load(self, rows: int) -> SlottedDecoder:
        return SlottedDecoder(self.path, rows=rows, capacity=POSITIONS, threads=1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportedDecoder]:
    """Architecture → its tiny decoder and its graph."""
    folder = tmp_path_factory.mktemp("decoders")
    made: dict[str, ExportedDecoder] = {}

    def export(architecture: str) -> ExportedDecoder:
        if architecture not in made:
            model, path = make_decoder(architecture), folder / architecture / "model.onnx"
            made[architecture] = ExportedDecoder(model=model, path=path, layout=export_decoder(model, path))
        return made[architecture]

    return export

"""Scenarios of texts that a user's own transformer reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everloop.agents import TransformerEncoder
from everloop.loop import Training
from everloop.scenarios import SCENARIOS, Experiment

pytestmark = pytest.mark.usefixtures("surroundings")


def test_a_users_checkpoint_reads_the_texts(data: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "word",
        "is",
        "0",
        "1",
        *[f"##{i}" for i in range(10)],
    ]
    BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=16
    ).save_pretrained(tmp_path / "bert")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
    }
    BertModel(BertConfig(vocab_size=len(pieces), **sizes)).save_pretrained(tmp_path / "bert")
    made: Any = SCENARIOS["domain-sentiment"]
    experiment = Experiment(
        made(
            checkpoint=str(tmp_path / "bert"),
            length=12,
            epochs=1,
            training=Training(checkpointing=True),
        ),
        ["none"],
    )
    backbone: Any = experiment.learner.module.backbone
    assert isinstance(backbone, TransformerEncoder)
    assert backbone.checkpointing
    assert np.isfinite(experiment.run().scores[-1]).all()
    tagged: Any = SCENARIOS["domain-ner"]
    experiment = Experiment(
        tagged(checkpoint=str(tmp_path / "bert"), length=12, epochs=1), ["none"]
    )
    assert np.isfinite(experiment.run().scores[-1]).all()

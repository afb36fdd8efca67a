"""Encoders of token ids: padding, embeddings, transformers, and heads for every token."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from network_helpers import first_predictions
from torch import Tensor

from everloop.agents import Agent, Classifier, EmbeddingEncoder, TransformerEncoder
from everloop.envs import Tokens


def bert(**changes: Any) -> Any:
    from transformers import BertConfig

    sizes = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
    }
    return BertConfig(**{**sizes, "max_position_embeddings": 16, **changes})


def gpt() -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=16)


def t5() -> Any:
    from transformers import T5Config

    return T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2)


def bart() -> Any:
    from transformers import BartConfig

    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 12))
    }
    return BartConfig(vocab_size=30, d_model=8, max_position_embeddings=16, **sides)


CONFIGURATIONS = {"bert": bert, "gpt": gpt, "t5": t5, "bart": bart}


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(
        1, 30, (rows, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int32
    )


def encoder(kind: str, per_token: bool = False) -> Any:
    torch.manual_seed(0)
    if kind == "embedding":
        return EmbeddingEncoder(31, 8, per_token).eval()
    return TransformerEncoder(CONFIGURATIONS[kind](), per_token).eval()


KINDS = ["embedding", *CONFIGURATIONS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_token", [False, True])
def test_padding_does_not_change_the_features(kind: str, per_token: bool) -> None:
    net, tokens = encoder(kind, per_token), ids(3, 5)
    plain, padded = net(tokens), net(torch.nn.functional.pad(tokens, (0, 4)))
    assert plain.shape == ((3, 5, 8) if per_token else (3, 8))
    torch.testing.assert_close(padded[:, :5] if per_token else padded, plain, rtol=1e-4, atol=1e-5)
    assert net(torch.zeros(2, 5, dtype=torch.int32)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_features_depend_on_every_token_but_on_no_other_text(kind: str) -> None:
    net, tokens = encoder(kind), ids(3, 5)
    features = net(tokens)
    torch.testing.assert_close(
        torch.cat([net(row[None]) for row in tokens]), features, rtol=1e-4, atol=1e-5
    )
    for place in range(5):
        other = tokens.clone()
        other[:, place] = other[:, place] % 29 + 1
        assert (net(other) != features).any(dim=1).all(), place


def test_the_embedding_encoder_is_a_mean_and_a_hidden_layer() -> None:
    net = encoder("embedding")
    tokens = torch.tensor([[3, 5, 0], [7, 0, 0]], dtype=torch.int32)
    table, (linear, _) = net.embedding.weight, net.hidden
    means = torch.stack([(table[3] + table[5]) / 2, table[7]])
    torch.testing.assert_close(net(tokens), torch.relu(means @ linear.weight.T + linear.bias))


def test_a_tokens_embedding_reads_two_neighbours_on_each_side() -> None:
    net, tokens = encoder("embedding", per_token=True), ids(1, 9)
    other = tokens.clone()
    other[0, 4] = other[0, 4] % 29 + 1
    changed = (net(other) != net(tokens)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_transformer_gets_the_ids_of_its_own_vocabulary(kind: str) -> None:
    net, tokens = encoder(kind), ids(2, 6)
    own = net.transformer(
        input_ids=tokens.long() - 1, attention_mask=torch.ones(2, 6, dtype=torch.long)
    ).last_hidden_state
    torch.testing.assert_close(net(tokens), own.mean(1))
    torch.testing.assert_close(encoder(kind, True)(tokens), own)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_reads_with_its_encoder(kind: str, tmp_path: Path) -> None:
    """Its whole checkpoint is loaded, and nothing of the decoder is kept."""
    from transformers import AutoModel

    torch.manual_seed(0)
    whole = AutoModel.from_config(CONFIGURATIONS[kind]()).eval()
    whole.save_pretrained(tmp_path)
    net, tokens = TransformerEncoder(tmp_path).eval(), ids(2, 6)
    own = whole(input_ids=tokens.long() - 1, decoder_input_ids=torch.zeros(2, 1, dtype=torch.long))
    torch.testing.assert_close(net(tokens), own.encoder_last_hidden_state.mean(1))
    assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in whole.parameters())


def test_a_saved_checkpoint_is_loaded_with_its_weights(tmp_path: Path) -> None:
    net = encoder("bert")
    net.transformer.save_pretrained(tmp_path)
    loaded = TransformerEncoder(tmp_path).eval()
    torch.testing.assert_close(loaded(ids(2, 6)), net(ids(2, 6)), rtol=0, atol=0)
    assert loaded.size == 8


def test_a_missing_checkpoint_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            rf"^transformer {tmp_path}/none can't be loaded; give a folder or a Hub id that "
            r"has one$"
        ),
    ):
        TransformerEncoder(tmp_path / "none")


def gradients(net: Any, tokens: Tensor) -> list[Tensor]:
    torch.manual_seed(1)  # dropout
    net.zero_grad()
    net(tokens).square().sum().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_recomputing_activations_changes_no_gradient(kind: str) -> None:
    """Bit for bit, with dropout."""
    net, tokens = encoder(kind).train(), ids(4, 6)
    plain = gradients(net, tokens)
    assert not net.checkpointing
    net.checkpointing = True
    assert net.checkpointing
    for a, b in zip(gradients(net, tokens), plain, strict=True):
        assert torch.equal(a, b)


def test_an_agent_embeds_token_ids_or_uses_a_given_encoder() -> None:
    space = spaces.Dict({"tokens": Tokens(31, 6), "counts": spaces.Box(0, 9, (2,), np.float32)})
    torch.manual_seed(0)
    agent = Agent(space, 3, token_size=8, hidden_size=8)
    obs = {"tokens": ids(4, 6)[None], "counts": torch.rand(1, 4, 2)}
    assert first_predictions(agent, obs).shape == (1, 4, 3)
    embeddings = [m for m in agent.modules() if isinstance(m, EmbeddingEncoder)]
    assert [m.embedding.num_embeddings for m in embeddings] == [31]
    with_bert = Agent(space, 3, token_size=8, hidden_size=8, encoders={"tokens": encoder("bert")})
    assert first_predictions(with_bert, obs).shape == (1, 4, 3)


def test_a_classifier_predicts_for_every_token_with_its_tasks_head() -> None:
    net = Classifier(encoder("embedding", per_token=True), 5, "tokens", tasks=2)
    cue = torch.eye(2)[torch.tensor([0, 1, 1])][None]
    prediction = first_predictions(net, {"tokens": ids(3, 6)[None], "cue": cue})
    features = net.backbone(ids(3, 6))
    weight = net.heads.linear.weight.unflatten(0, (2, 5))
    bias = net.heads.linear.bias.unflatten(0, (2, 5))
    expected = torch.stack(
        [f @ weight[k].T + bias[k] for f, k in zip(features, (0, 1, 1), strict=True)]
    )
    torch.testing.assert_close(prediction, expected.flatten(1)[None])


def test_too_small_a_vocabulary_or_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^vocabulary is 1; it must be 2 or more$"):
        EmbeddingEncoder(1)
    with pytest.raises(ValueError, match=r"^size is 0; it must be 1 or more$"):
        EmbeddingEncoder(9, 0)


def test_a_transformer_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError,
        match=r'^a transformer needs the package transformers: pip install "everloop\[text\]"$',
    ):
        TransformerEncoder("bert-base-uncased")

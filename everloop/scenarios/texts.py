"""Text streams with one task per domain: reviews, newsgroups, named entities and your own texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gymnasium import spaces
from torch import nn

from everloop.agents import Classifier, EmbeddingEncoder, TransformerEncoder
from everloop.envs import ByColumn, Examples, TaskSplit
from everloop.envs.data import (
    HashTokenizer,
    PretrainedTokenizer,
    Tokenizer,
    load_ner,
    load_text,
    text_folders,
)
from everloop.loop import World, likelihood_for
from everloop.scenarios.stream import StreamScenario


@dataclass
class TextScenario(StreamScenario):
    """Texts in which each domain is a task, read by an embedding or by a transformer.

    Args:
        length: Maximum number of tokens per text, 1 or more; longer texts are truncated.
        checkpoint: Hugging Face transformer, as a folder or a Hub ID such as bert-base-uncased. It
            brings its own tokenizer, and needs the extra "text". By default words are hashed and an
            embedding is trained.
        size: Features of the embedding, 1 or more. No effect with `checkpoint` or `network`.
    """

    folder: ClassVar[str]
    """Name of the data's folder in EVERLOOP_DATA."""

    env_id: ClassVar[str] = "everloop/TextStream-v0"
    strategy_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ewc": {"strength": 100.0},
        "replay": {"strength": 1.0, "capacity": 500, "batch_size": 32},
    }
    epochs: int = 5
    batch_size: int = 32
    length: int = 128
    checkpoint: str | None = None
    size: int = 128

    def without_effect(self) -> dict[str, str]:
        unused = super().without_effect()
        if self.network is not None:
            unused["size"] = "network replaces it"
        elif self.checkpoint is not None:
            unused["size"] = "the checkpoint has a fixed size"
        return unused

    def texts(self, tokenizer: Tokenizer) -> tuple[Examples, Examples]:
        """Return the texts as tokens, (train, test)."""
        return load_text(
            self.given(self.folder), tokenizer=tokenizer, length=self.length, columns=("domain",)
        )

    def examples(self) -> tuple[Examples, Examples]:
        return self.texts(
            HashTokenizer() if self.checkpoint is None else PretrainedTokenizer(self.checkpoint)
        )

    def task_split(self) -> TaskSplit:
        return ByColumn("domain")

    def module(self, world: World, heads: int) -> nn.Module:
        actions = world.single_action_space
        tags = isinstance(actions, spaces.MultiDiscrete)
        tokens = world.single_observation_space["tokens"]  # type: ignore[index]
        backbone: nn.Module
        if self.checkpoint is None:
            backbone = EmbeddingEncoder(tokens.vocabulary, self.size, per_token=tags)
        else:
            backbone = TransformerEncoder(self.checkpoint, per_token=tags)
        outputs = likelihood_for(actions).size() // (tokens.shape[0] if tags else 1)
        return Classifier(backbone, outputs, "tokens", heads)


@dataclass
class DomainSentiment(TextScenario):
    """Sentiment of reviews of books, DVDs, electronics and kitchen goods (Blitzer et al. 2007)."""

    name: ClassVar[str] = "domain-sentiment"
    summary: ClassVar[str] = (
        "text stream: sentiment of product reviews, 4 tasks of one product category each"
    )
    needs: ClassVar[str] = (
        'reviews: folder "mdsd_sentiment" in EVERLOOP_DATA, or --data (columns text, label, '
        'domain); extra "data"'
    )
    folder: ClassVar[str] = "mdsd_sentiment"


@dataclass
class DomainNewsgroups(TextScenario):
    """Newsgroup of a post (Lang 1995): 7 hierarchies, one per task, with 1 to 5 groups each."""

    name: ClassVar[str] = "domain-newsgroups"
    summary: ClassVar[str] = "text stream: 20 newsgroups, 7 tasks of one hierarchy each"
    needs: ClassVar[str] = (
        'posts: folder "newsgroups20" in EVERLOOP_DATA, or --data (columns text, label, '
        'domain); extra "data"'
    )
    folder: ClassVar[str] = "newsgroups20"


@dataclass
class DomainNER(TextScenario):
    """Named entities in politics, science, music, literature and AI (CrossNER, Liu et al. 2021).

    The metric is entity-level F1.
    """

    name: ClassVar[str] = "domain-ner"
    summary: ClassVar[str] = (
        "text stream: named entities in 5 fields, one per task; the metric is entity F1"
    )
    needs: ClassVar[str] = (
        'CrossNER: folder "crossner" in EVERLOOP_DATA, or --data (columns tokens, ner_tags, '
        'domain); extras "data" and "text"'
    )
    folder: ClassVar[str] = "crossner"
    epochs: int = 30
    length: int = 96

    def texts(self, tokenizer: Tokenizer) -> tuple[Examples, Examples]:
        return load_ner(
            self.given(self.folder), tokenizer=tokenizer, length=self.length, columns=("domain",)
        )


@dataclass
class DomainText(TextScenario):
    """Your own labelled texts, such as news, then social media, then academic writing.

    Args:
        folders: Folders of texts, one for each domain, each with files CLASS/*.txt. All have the
            same classes, and different names.
        data: No effect here, because the texts are in folders.
    """

    name: ClassVar[str] = "domain-text"
    summary: ClassVar[str] = "text stream: your own folders of labelled texts, one per task"
    needs: ClassVar[str] = "--folders news,social,academic, each with files CLASS/*.txt"
    folders: list[str] = field(default_factory=list)

    def without_effect(self) -> dict[str, str]:
        return super().without_effect() | {"data": "the texts are in folders"}

    def texts(self, tokenizer: Tokenizer) -> tuple[Examples, Examples]:
        return text_folders(self.folders, tokenizer=tokenizer, length=self.length)

    def task_split(self) -> TaskSplit:
        return ByColumn("domain", order=[Path(folder).name for folder in self.folders])

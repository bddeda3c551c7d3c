"""From books to batches of token ids: the tokenizer and the order of reading."""

from __future__ import annotations

import io

import numpy as np
import sentencepiece
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from tinyedge_bench.demo_training.settings import BOS, EOS, UNK, Recipe, Shape


def train_tokenizer(books: list[str], vocabulary: int) -> bytes:
    """A serialized SentencePiece BPE model with the settings of Llama 2's own (as its tokenizer.model records them)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(paragraph for book in books for paragraph in book.split("\n\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        unk_surface=" \u2047 ",
        max_sentence_length=1 << 16,
        minloglevel=2,
    )
    return model.getvalue()


def token_stream(processor: SentencePieceProcessor, books: list[str], bpe_dropout: float = 0.0) -> Tensor:
    """All books as one row of token ids, each followed by EOS."""
    encoded = (processor.encode(book, enable_sampling=bpe_dropout > 0, alpha=bpe_dropout, nbest_size=-1) for book in books)
    return torch.from_numpy(np.concatenate([np.asarray([*ids, EOS], dtype=np.int64) for ids in encoded]))


class Batches:
    """Endless (batch, length + 1) windows, each BOS and then text; an epoch reads the books once, in shuffled windows."""

    def __init__(self, processor: SentencePieceProcessor, books: list[str], shape: Shape, recipe: Recipe) -> None:
        self.processor, self.books, self.recipe, self.long = processor, books, recipe, shape.context - 1
        self.plain = token_stream(processor, books)
        self.rows: Tensor = torch.empty(0, 0)
        self.epoch = 0

    def next(self, length: int) -> Tensor:
        if self.rows.shape[1] != length or len(self.rows) < self.recipe.batch:
            again = self.epoch % 2 == 1 and length < self.long
            stream = token_stream(self.processor, self.books, self.recipe.bpe_dropout) if again else self.plain
            offset = int(torch.randint(length, ()))
            count = (len(stream) - offset) // length
            if count < self.recipe.batch:
                raise SystemExit(f"error: the books give {len(stream)} tokens, too few for one batch; give more text")
            rows = stream[offset : offset + count * length].view(count, length)
            self.rows = rows[torch.randperm(count)]
            self.epoch += 1
        rows, self.rows = self.rows[: self.recipe.batch], self.rows[self.recipe.batch :]
        return torch.cat((torch.full((len(rows), 1), BOS), rows), dim=1)

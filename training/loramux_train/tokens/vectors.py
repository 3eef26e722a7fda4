"""The vectors of new words, for each text encoder of a base.

Takes a base and settings; gives the parameters that learn, and puts them in where captions have their words. The token
tables stay as they are, to the bit: vectors are parameters beside them. fp32 whatever the base's numbers are. Knows no
optimiser and no file.

A table's spread is the standard deviation of all its numbers. Random vectors start with it, and `norm = "table"` draws
them to it after every step, by the tenth power of how far they are off, as the pivotal tuning of diffusers' advanced
training scripts does.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from loramux_train.base import Base
from loramux_train.objective import TOKENS, generator_of
from loramux_train.outline import TEXT_ENCODERS
from loramux_train.token_settings import NewToken, TokenSettings
from loramux_train.tokens import placing
from loramux_train.tokens.placing import Placed
from loramux_train.tokens.words import Words

_PULL = 0.1


class Tokens:
    """The new words of a run. parameters: by tokens.ENCODER.NUMBER, [vectors, width]; began: their values at the start;
    learning: whether captions carry gradients to them."""

    def __init__(self, base: Base, settings: TokenSettings, seed: int) -> None:
        self.settings = settings
        self.words = Words([token.word for token in settings.new])
        self.learning = bool(settings.new)
        self._counts = [token.vectors for token in settings.new]
        self._parts = TEXT_ENCODERS[: len(base.text_encoders)]
        encoders: tuple[Any, ...] = base.text_encoders
        tables: list[Any] = [encoder.get_input_embeddings() for encoder in encoders]
        self._spreads = [float(torch.std(table.weight.float())) for table in tables] if settings.new else []
        self.parameters: dict[str, nn.Parameter] = {}
        for encoder, (part, tokenizer, table) in enumerate(zip(self._parts, base.tokenizers, tables, strict=True)):
            for number, token in enumerate(settings.new):
                generator = generator_of(seed, TOKENS, number * len(self._parts) + encoder)
                values = _start(token, tokenizer, table, generator)
                self.parameters[f"tokens.{part}.{number}"] = nn.Parameter(values)
        self.began = {name: value.detach().clone() for name, value in self.parameters.items()}

    def read(self, tokenizer: Any, captions: Sequence[str]) -> Placed:
        """Captions as padded ids, with the places of vectors."""
        return placing.read(tokenizer, captions, self.words, self._counts)

    def put_in(self, encoder: int, model: Any, placed: Placed) -> AbstractContextManager[None]:
        """Within it a text encoder reads the vectors where they are placed."""
        vectors = torch.cat(self._of(encoder)) if self.parameters else torch.empty(0)
        table: nn.Module = model.get_input_embeddings()
        return placing.put_in(table, placed, vectors if self.learning else vectors.detach())

    @torch.no_grad()
    def retract(self) -> None:
        """After a step: draw the vectors' spread to the table's, unless they are free."""
        if self.settings.norm == "free":
            return
        for encoder, spread in enumerate(self._spreads):
            rows = self._of(encoder)
            factor = (spread / torch.cat(rows).std()) ** _PULL
            for row in rows:
                row.mul_(factor)

    def changed(self, values: Mapping[str, Tensor]) -> bool:
        """Whether every word's vectors differ from those it began with."""
        return all(not torch.equal(values[name], began) for name, began in self.began.items())

    def vectors(self, values: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """A word's vectors [n, width] by text encoder, fp32 on the CPU."""
        return {part: values[f"tokens.{part}.{number}"].detach().float().cpu().clone() for part in self._parts}

    def _of(self, encoder: int) -> list[nn.Parameter]:
        return [self.parameters[f"tokens.{self._parts[encoder]}.{number}"] for number in range(len(self._counts))]


def _start(token: NewToken, tokenizer: Any, table: Any, generator: torch.Generator) -> Tensor:
    """[vectors, width]. The words' own vectors are shared out in order: of fewer some stand twice, of more there are
    means."""
    weight: Tensor = table.weight.detach().float()
    if token.start is None:
        drawn = torch.randn(token.vectors, weight.shape[1], generator=generator) * weight.std().cpu()
        return drawn.to(weight.device)
    ids: list[int] = tokenizer(token.start, add_special_tokens=False).input_ids
    shares = [share(number, token.vectors, len(ids)) for number in range(token.vectors)]
    return torch.stack([weight[ids[first:end]].mean(dim=0) for first, end in shares])


def share(number: int, vectors: int, words: int) -> tuple[int, int]:
    """First and end of the sub-tokens, of `words`, that vector `number` of `vectors` starts from; at least one."""
    first = number * words // vectors
    return first, max(first + 1, (number + 1) * words // vectors)

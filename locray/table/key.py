"""The key under which predictions belong together: a model and its configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.dataset as ds

from locray import schema
from locray.errors import UsageError

_TEXT = re.compile(r"([A-Za-z0-9_.-]+@[0-9a-f]{12})(?:/([0-9a-f]{12}))?")


@dataclass(frozen=True, slots=True, order=True)
class PredictionKey:
    """A model under one configuration. Two runs with the same key predict the same for the same image."""

    model_id: str
    config_hash: str

    def __str__(self) -> str:
        return f"{self.model_id}/{self.config_hash}"

    @property
    def row_filter(self) -> ds.Expression:
        """Selects the rows of this key in a scan of a predictions table."""
        return (ds.field(schema.MODEL_ID) == self.model_id) & (ds.field(schema.CONFIG_HASH) == self.config_hash)


@dataclass(frozen=True, slots=True)
class KeySelector:
    """A model and one of its configurations, or any of them where `config_hash` is None."""

    model_id: str
    config_hash: str | None = None

    @classmethod
    def of(cls, key: PredictionKey) -> "KeySelector":
        """Selects one key."""
        return cls(key.model_id, key.config_hash)

    @classmethod
    def parse(cls, text: str) -> "KeySelector | None":
        """Reads `name@0123456789ab` or `name@0123456789ab/ba9876543210`; None for any other text, such as a URI."""
        match = _TEXT.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    def __str__(self) -> str:
        return self.model_id if self.config_hash is None else f"{self.model_id}/{self.config_hash}"

    @property
    def key(self) -> PredictionKey | None:
        """The key that is selected, or None where the configuration is open."""
        return None if self.config_hash is None else PredictionKey(self.model_id, self.config_hash)

    def matches(self, key: PredictionKey) -> bool:
        """Whether the key is of this model and configuration."""
        return self.model_id == key.model_id and self.config_hash in (None, key.config_hash)


def choose_key(
    num_rows: Mapping[PredictionKey, int], wanted: KeySelector | None, where: str, *, may_be_absent: bool = False
) -> PredictionKey | None:
    """Returns the one key of the table that matches.

    Args:
        num_rows: rows of each key in the table.
        wanted: the user's selection; None: any key.
        where: the table, as messages name it.
        may_be_absent: where no key matches, returns the wanted one, or None if that is open.

    Raises:
        UsageError: several keys match, or none does.
    """
    matching = [key for key in num_rows if wanted is None or wanted.matches(key)]
    if len(matching) == 1:
        return matching[0]
    found = "; ".join(f"{key} ({count:,} rows)" for key, count in num_rows.items())
    if matching:
        raise UsageError(
            f"{where} holds rows of several models or configurations: {found}. Select one with --model ARTIFACT or "
            "--model ID/CONFIGURATION"
        )
    if may_be_absent:
        return None if wanted is None else wanted.key
    raise UsageError(
        f"{where} holds no rows of {wanted}. Found: {found}. Expected the model and the options that the table was "
        "labelled with, or --model ID/CONFIGURATION"
    )

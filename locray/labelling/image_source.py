"""The images of a table: a source kept apart from the table's own files."""

from locray import schema, storage
from locray.config import LabelConfig
from locray.errors import UsageError
from locray.sources import Source, open_source
from locray.sources.wrappers import ExcludePrefixes
from locray.table.open import FILE_PREFIXES, holds_rows, open_table

_EXAMPLES = ("_delta_log/00000000000000000000.json", f"{schema.MODEL_ID}=m/{schema.RUN_DATE}=2000-01-01/part-0.parquet")


def open_image_source(config: LabelConfig, table_uri: str, source: Source | None = None) -> Source:
    """Opens and checks the images of a configuration, without the files of the table at the normalised URI.

    Args:
        config: Names the images.
        table_uri: The table, which need not exist yet.
        source: The opened `config.images`. Default: opens it.

    Raises:
        UsageError: the source is not as expected, or the table is inside it.
    """
    source = without_table_files(source or open_source(config.images, config.uri_column), table_uri)
    check_apart(source, table_uri)
    source.check(may_be_empty=holds_rows(open_table(table_uri)))
    return source


def without_table_files(source: Source, table_uri: str) -> Source:
    """The source without the files of the table at the normalised URI: an inventory of a whole bucket lists them."""
    return ExcludePrefixes(source, [storage.join(table_uri, prefix) for prefix in FILE_PREFIXES])


def check_apart(source: Source, table_uri: str) -> None:
    """Makes sure that a source does not look for images where the table at the normalised URI writes its files.

    Raises:
        UsageError: it does; every run would list the files that the previous one has written.
    """
    if any(source.lists(storage.join(table_uri, file)) for file in _EXAMPLES):
        raise UsageError(
            f"the table {table_uri} lies among the images: the next run would list its files. Put the table outside "
            "of --images"
        )

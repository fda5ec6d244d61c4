"""What other programs do to a predictions table, with deltalake, while locray writes to it."""

from collections.abc import Callable

from deltalake import DeltaTable, Field, write_deltalake
from deltalake.schema import PrimitiveType

from locray import schema, storage

ForeignWriter = Callable[[DeltaTable], object]


def compact(table: DeltaTable) -> None:
    table.optimize.compact()


def z_order(table: DeltaTable) -> None:
    table.optimize.z_order([schema.IMAGE_URI])


def update(table: DeltaTable) -> None:
    table.update(updates={schema.FORMAT: "'unknown'"}, predicate=f"{schema.FORMAT} IS NULL")


def delete_nothing(table: DeltaTable) -> None:
    table.delete(f"{schema.IMAGE_URI} = 'no image'")


def delete_rows_of_another_model(table: DeltaTable) -> None:
    table.delete(f"{schema.MODEL_ID} = 'other@000000000000'")


def set_properties(table: DeltaTable) -> None:
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 60 days"})


def add_column(table: DeltaTable) -> None:
    table.alter.add_columns([Field(f"remark_{table.version()}", PrimitiveType("string"))])


def restore_the_same(table: DeltaTable) -> None:
    version = table.version()
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 90 days"})
    table.restore(version)


def overwrite_with_the_same(table: DeltaTable) -> None:
    rows = table.to_pyarrow_dataset(filesystem=storage.arrow_filesystem(_uri(table))).to_table()
    write_deltalake(table, rows, mode="overwrite")


def make_checkpoint(table: DeltaTable) -> None:
    table.create_checkpoint()


def _uri(table: DeltaTable) -> str:
    return table.table_uri.removeprefix("file://").rstrip("/")


HARMLESS: tuple[ForeignWriter, ...] = (
    compact,
    z_order,
    update,
    delete_nothing,
    delete_rows_of_another_model,
    set_properties,
    add_column,
    restore_the_same,
    overwrite_with_the_same,
    make_checkpoint,
)
"""None of them removes a row of the model or adds one."""

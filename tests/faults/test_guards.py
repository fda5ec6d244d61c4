"""Each guard of the commit path is needed: with it, the invariants hold; without it, the same events break them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from locray.config import LabelConfig
from locray.errors import FencedError, StoreError
from locray.labelling import run
from locray.labelling.outcomes import Bitmap
from locray.labelling.worklist import Worklist
from locray.progress import ignore
from locray.table import claimed, writer
from locray.table.data_files import row_dataset
from locray.table.open import create_table, open_table
from locray.table.writer import TableWriter
from locray.verification.findings import Check
from locray.verification.table import check_table
from tests.helpers.commit_path import assert_whole, listing_of
from tests.helpers.made_up import MENDED, MadeUpPipeline

guarded = pytest.mark.parametrize("guard", [True, False], ids=["with the guard", "without"])


class Crash(BaseException):
    """Ends a driver."""


class AllAtOnce(MadeUpPipeline):
    """Labels everything before the first commit, so that it doesn't need its worklist later."""

    def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
        yield from list(super().rows(worklist))


class Bench:
    """Runs in this process that write generated rows into a local table."""

    def __init__(self, images: Path, model: str, uri: str, patch: pytest.MonkeyPatch) -> None:
        self.images, self.model, self.uri, self.patch = images, model, uri, patch
        patch.setattr(run, "Pipeline", AllAtOnce)

    def label(self, **options: Any) -> None:
        config = {"images": str(self.images), "model": self.model, "table": self.uri, "unit_size": 2, "commit_rows": 4}
        run.label(LabelConfig(**(config | options)), ignore)

    def label_overtaken(self, *, guard: bool) -> None:
        """Labels. Expects a `FencedError` with the guard."""
        with pytest.raises(FencedError) if guard else nullcontext():
            self.label()

    def during_a_commit(self, *, before: Any = None, after: Any = None) -> None:
        """Calls a function once, before or after the next commit of rows."""
        real = TableWriter._send_commit

        def disturbed(writer: TableWriter, actions: Any, properties: Any) -> None:
            if not actions:
                real(writer, actions, properties)
                return
            self.patch.setattr(TableWriter, "_send_commit", real)
            if before:
                before()
            writer._send_commit(actions, properties)
            if after:
                after()

        self.patch.setattr(TableWriter, "_send_commit", disturbed)

    def check(self) -> None:
        assert_whole(self.uri, listing_of(self.images))

    def faults(self) -> set[Check]:
        return set(check_table(self.uri).findings.faults)


@pytest.fixture
def bench(made_up_images: Path, artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(made_up_images, artifact, str(tmp_path / "table"), monkeypatch)


@guarded
def test_the_transaction_number_fences_an_older_writer(bench: Bench, guard: bool) -> None:
    if not guard:
        real = TableWriter._send_commit

        def from_the_newest_snapshot(writer: TableWriter, *arguments: Any) -> None:
            writer.table.update_incremental()
            real(writer, *arguments)

        bench.patch.setattr(TableWriter, "_send_commit", from_the_newest_snapshot)
    bench.during_a_commit(before=bench.label)
    bench.label_overtaken(guard=guard)
    assert bench.faults() == set() if guard else Check.DUPLICATE in bench.faults()


@guarded
def test_the_comparison_after_a_refresh_detects_a_claim(bench: Bench, guard: bool) -> None:
    if not guard:

        def refresh(writer: TableWriter, number: int) -> None:
            writer.table.update_incremental()
            writer.transaction = number

        bench.patch.setattr(TableWriter, "_advance", refresh)
    bench.during_a_commit(after=bench.label)
    bench.label_overtaken(guard=guard)
    assert bench.faults() == set() if guard else Check.DUPLICATE in bench.faults()


@guarded
def test_the_write_id_tells_a_lost_response_from_a_refusal(bench: Bench, guard: bool) -> None:
    def lose_the_answer() -> None:
        raise StoreError("no answer")

    if not guard:
        bench.patch.setattr(TableWriter, "_has_commit", lambda *_: False)
        bench.patch.setattr(claimed, "_RETRY_DELAYS_S", (0.0,))
    bench.during_a_commit(after=lose_the_answer)
    if guard:
        bench.label()
        bench.check()
        return
    with pytest.raises(FencedError):  # fenced by its own commit
        bench.label()


@guarded
def test_the_write_id_protects_files_of_older_versions(bench: Bench, guard: bool) -> None:
    bench.label()
    labelled = DeltaTable(bench.uri)
    rows = row_dataset(labelled, bench.uri).to_table()
    bench.patch.setenv(MENDED, "1")
    bench.label(retry_failed=True)
    if not guard:
        bench.patch.setattr(writer, "WRITE_ID", "nobody's")
    bench.label()
    older = row_dataset(DeltaTable(bench.uri, version=labelled.version()), bench.uri)
    if guard:
        assert older.to_table().equals(rows)
        return
    with pytest.raises(FileNotFoundError):
        older.to_table()


@guarded
def test_the_bitmap_drops_rows_of_a_unit_that_was_labelled_twice(bench: Bench, guard: bool) -> None:
    if not guard:
        bench.patch.setattr(Bitmap, "add", lambda _, ordinals: np.ones(len(ordinals), dtype=bool))
    bench.label()
    assert bench.faults() == set() if guard else Check.DUPLICATE in bench.faults()


class LateClaim:
    """A writer that reads the table first and claims it only before its first write."""

    def __init__(self, uri: str, model_id: str) -> None:
        self.uri, self.model_id = uri, model_id
        self.table = open_table(uri) or create_table(uri)
        self.work_uri = f"{uri}/_locray/{model_id}"
        self.writer: TableWriter | None = None
        self.transaction = 0

    claim = classmethod(lambda cls, uri, model_id, **_: cls(uri, model_id))

    def clean_up(self) -> int:
        return 0

    def raise_if_fenced(self) -> AbstractContextManager[None]:
        return nullcontext()

    def append(self, *arguments: Any) -> None:
        self.writer = self.writer or TableWriter.claim(self.uri, self.model_id)
        self.writer.append(*arguments)

    replace = append


@guarded
def test_a_claim_comes_before_the_table_is_read(bench: Bench, guard: bool) -> None:
    class WhileAnotherRuns(AllAtOnce):
        def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
            for rows in super().rows(worklist):
                if run.Pipeline is WhileAnotherRuns:
                    bench.patch.setattr(run, "Pipeline", AllAtOnce)
                    bench.patch.setattr(run, "TableWriter", TableWriter)
                    bench.label()
                yield rows

    bench.patch.setattr(run, "Pipeline", WhileAnotherRuns)
    if guard:
        with pytest.raises(FencedError):
            bench.label()
    else:
        bench.patch.setattr(run, "TableWriter", LateClaim)
        bench.label()
    assert bench.faults() == set() if guard else Check.DUPLICATE in bench.faults()


@guarded
def test_a_claim_comes_before_the_clean_up(bench: Bench, guard: bool) -> None:
    if not guard:
        bench.patch.setattr(TableWriter, "check_claim", lambda _: None)

    def clean_up() -> None:
        model_id = run.ModelSpec.read(bench.model, LabelConfig(images="", model=bench.model, table="")).key.model_id
        unclaimed = open_table(bench.uri)
        assert unclaimed
        writer = (
            TableWriter.claim(bench.uri, model_id) if guard else TableWriter(bench.uri, model_id, 0, unclaimed, None)
        )
        writer.clean_up()

    bench.during_a_commit(before=clean_up)
    bench.label_overtaken(guard=guard)
    assert bench.faults() == (set() if guard else {Check.FILE_MISSING})


@guarded
def test_a_writer_fenced_while_paused_cleans_nothing_up(bench: Bench, guard: bool) -> None:
    if not guard:
        bench.patch.setattr(TableWriter, "check_claim", lambda _: None)
    model_id = run.ModelSpec.read(bench.model, LabelConfig(images="", model=bench.model, table="")).key.model_id
    asleep = TableWriter.claim(bench.uri, model_id)

    def wake_up() -> None:
        if guard:
            with pytest.raises(FencedError):
                asleep.clean_up()
        else:
            asleep.clean_up()

    bench.during_a_commit(before=wake_up)
    bench.label()
    assert bench.faults() == (set() if guard else {Check.FILE_MISSING})


@guarded
def test_a_file_is_written_before_its_commit(bench: Bench, guard: bool) -> None:
    def crash() -> None:
        raise Crash

    if not guard:
        real = writer.write_file

        def write_later(uri: str, *arguments: Any, **keywords: Any) -> Any:
            action = real(uri, *arguments, **keywords)
            Path(uri, action.path).unlink()
            return action

        bench.patch.setattr(writer, "write_file", write_later)
    bench.during_a_commit(after=crash)
    with pytest.raises(Crash):
        bench.label()
    assert bench.faults() == (set() if guard else {Check.FILE_MISSING})

"""The command line without Ray: help, wrong usage, exit codes. No message has a traceback."""

import contextlib
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from PIL import Image

from locray import schema
from locray.cli import commands
from locray.cli.main import main
from locray.config import COMMANDS
from locray.table.open import create_table
from tests.helpers.commands import PROJECT_ROOT


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def locray(*arguments: str, **environment: str) -> Done:
    """Runs the command in this process, so that torch is imported only once."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        for name in [name for name in os.environ if name.startswith("LOCRAY_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        returncode = main(arguments)
    return Done(returncode, stdout.getvalue(), stderr.getvalue())


def refused(*arguments: str, **environment: str) -> str:
    """Returns the message of a command that is refused as wrong usage."""
    done = locray(*arguments, **environment)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return " ".join(done.stderr.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def test_every_command_can_be_run() -> None:
    for verb in COMMANDS:
        assert inspect.isfunction(getattr(commands, verb.replace("-", "_"), None)), verb


def test_an_unknown_command_or_option_names_the_nearest() -> None:
    assert "label" in refused("lable")
    assert "--table" in refused("label", "--tabel", "x")


def test_missing_options_are_named() -> None:
    message = refused("label", "--images", "x")
    assert "--model is required" in message
    assert "--table is required" in message


@pytest.mark.parametrize("verb", ["label", "nightly"])
def test_a_folder_that_is_not_there(folder: Path, verb: str) -> None:
    message = refused(verb, "--images", f"{folder}/absent", "--model", f"{folder}/m", "--table", f"{folder}/t")
    assert f"{folder}/absent" in message
    assert not (folder / "t").exists()


def test_codes_to_retry_are_an_option_that_may_stand_alone(folder: Path) -> None:
    arguments = ("label", "--images", f"{folder}/absent", "--model", f"{folder}/m", "--table", f"{folder}/t")
    for accepted in (["--retry-failed"], ["--retry-failed", "corrupt,not_found"], ["--retry-failed", "--json"]):
        assert f"{folder}/absent" in refused(*arguments, *accepted)
    assert "did you mean 'corrupt'" in refused(*arguments, "--retry-failed", "corupt")
    assert "--retry-failed [CODE,...]" in locray("label", "--help").stdout


@pytest.mark.parametrize("verb", ["label", "nightly"])
def test_a_model_that_is_no_artifact(folder: Path, verb: str) -> None:
    (folder / "m").mkdir()
    message = refused(verb, "--images", f"{folder}/images", "--model", f"{folder}/m", "--table", f"{folder}/t")
    assert "model.json" in message
    assert not (folder / "t").exists()


@pytest.mark.parametrize("verb", ["label", "nightly"])
def test_a_model_whose_weights_are_damaged(folder: Path, verb: str, artifact: str) -> None:
    shutil.copytree(artifact, folder / "m")
    with (folder / "m" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    message = refused(verb, "--images", f"{folder}/images", "--model", f"{folder}/m", "--table", f"{folder}/t")
    assert "model.safetensors" in message
    assert not (folder / "t").exists()


@pytest.mark.parametrize("verb", ["label", "plan", "nightly"])
@pytest.mark.parametrize("images", ["images", "images/**", "**/*.parquet"])
def test_a_table_among_its_images(folder: Path, artifact: str, verb: str, images: str) -> None:
    (folder / "images" / "old.parquet").write_bytes(b"")
    table = f"{folder}/images/deep/t"
    message = refused(verb, "--images", f"{folder}/{images}", "--model", artifact, "--table", table)
    assert "among the images" in message
    assert not (folder / "images" / "deep").exists()


@pytest.mark.parametrize("verb", ["label", "nightly"])
@pytest.mark.parametrize("place", ["images/list.jpg", "t/list.parquet"])
def test_a_list_of_deferred_images_among_the_images_or_in_the_table(
    folder: Path, artifact: str, verb: str, place: str
) -> None:
    arguments = ("--images", f"{folder}/images", "--model", artifact, "--table", f"{folder}/t")
    message = refused(verb, *arguments, "--deferred-list", f"{folder}/{place}")
    assert f"--deferred-list {folder}/{place} is among the images or the files of the table" in message
    assert not (folder / place).exists()


def test_a_table_of_uris_with_an_empty_one(folder: Path, artifact: str) -> None:
    (folder / "uris.csv").write_text('image_uri\n/a.jpg\n""\n')
    message = refused("label", "--images", f"{folder}/uris.csv", "--model", artifact, "--table", f"{folder}/t")
    assert "row" in message


def test_a_status_of_nothing(folder: Path) -> None:
    assert "no predictions table" in refused("status", "--table", f"{folder}/t")


def test_verify_of_what_is_no_predictions_table(folder: Path) -> None:
    assert "no predictions table" in refused("verify", "--table", f"{folder}/t")
    (folder / "images" / "notes.txt").write_text("mine")
    assert "no predictions table" in refused("verify", "--table", f"{folder}/images")
    assert "is a file" in refused("verify", "--table", f"{folder}/images/notes.txt")
    DeltaTable.create(f"{folder}/sales", schema=pa.schema([("price", pa.float64())]))
    assert f"no column {schema.IMAGE_URI}" in refused("verify", "--table", f"{folder}/sales")


def test_verify_with_images_or_a_model_that_are_not_there(folder: Path) -> None:
    create_table(f"{folder}/t")
    assert f"{folder} has no 'absent'" in refused("verify", "--table", f"{folder}/t", "--images", f"{folder}/absent")
    assert "model.json" in refused("verify", "--table", f"{folder}/t", "--model", f"{folder}/images")
    assert "--images" in refused("verify", "--table", f"{folder}/t", "--uri-column", "uri")


def last_line_of(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]


def test_verify_tells_by_its_exit_code(folder: Path) -> None:
    create_table(f"{folder}/t")
    arguments = ("verify", "--table", f"{folder}/t", "--json")
    sound = locray(*arguments)
    assert (sound.returncode, json.loads(sound.stdout)["faults"]) == (0, {})
    assert last_line_of(sound).endswith(f"Verdict: {folder}/t is correct")
    Image.new("RGB", (8, 8)).save(folder / "images" / "a.jpg")
    pending = locray(*arguments, "--images", f"{folder}/images")
    assert pending.returncode == 4, pending
    finding = {"count": 1, "first": [f"{folder}/images/a.jpg"]}
    assert json.loads(pending.stdout)["pending"] == {"image_without_row": finding}
    assert "is correct but not complete (image_without_row 1)" in last_line_of(pending)
    wrong = schema.PREDICTIONS_SCHEMA.set(4, pa.field(schema.WIDTH, pa.int64()))
    DeltaTable.create(f"{folder}/u", wrong, partition_by=schema.PARTITION_COLUMNS)
    damaged = locray("verify", "--table", f"{folder}/u", "--json")
    assert damaged.returncode == 6, damaged
    assert json.loads(damaged.stdout)["faults"]["schema"]["count"] == 1
    assert "Verdict: " in last_line_of(damaged)
    told = " ".join(damaged.stderr.split())
    assert "schema: the table or a file has other columns" in told
    assert f"{folder}/u is damaged or inconsistent: schema" in told


@pytest.mark.parametrize(
    ("verb", "given", "name"),
    [
        ("label", {"images": "in", "table": "/t", "model": "/m"}, "images"),
        ("nightly", {"images": "/in", "table": "t", "model": "/m"}, "table"),
        ("verify", {"table": "./t"}, "table"),
        ("train", {"data": "/d", "format": "voc", "output": "m"}, "output"),
        ("train", {"data": "d", "format": "voc", "output": "/m"}, "data"),
    ],
)
def test_a_submitted_job_refuses_relative_paths(verb: str, given: dict[str, str], name: str) -> None:
    flags = [part for option, value in given.items() for part in (f"--{option}", value)]
    told = refused(verb, *flags, RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    assert f"--{name} {given[name]} is relative: in a submitted job" in told
    assert "Expected an absolute path that all nodes share, or an s3:// prefix" in told


def test_a_bad_configuration_file(folder: Path) -> None:
    (folder / "c.yaml").write_text("tabel: x\n")
    assert "'table'" in refused("status", "--config", f"{folder}/c.yaml")


def test_a_bad_environment(folder: Path) -> None:
    assert "LOCRAY_TABEL" in refused("status", "--table", f"{folder}/t", LOCRAY_TABEL="x")


def test_train_on_data_that_is_not_there(folder: Path) -> None:
    message = refused("train", "--data", f"{folder}/absent", "--format", "voc", "--output", f"{folder}/m")
    assert f"{folder}/absent does not exist" in message


def test_train_with_an_unknown_format_or_model(folder: Path) -> None:
    common = ("--data", f"{folder}/images", "--output", f"{folder}/m")
    assert "voc" in refused("train", *common, "--format", "vocc")
    (folder / "images" / "train.csv").write_text(
        "filename,class,xmin,ymin,xmax,ymax\na.jpg,a,1,1,2,2\nb.jpg,b,1,1,2,2\n"
    )
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8)).save(folder / "images" / name)
    assert "resnet18" in refused("train", *common, "--format", "csv", "--model", "localizer/resnet19")


def test_a_demo_does_not_overwrite_what_is_not_its_own(folder: Path) -> None:
    (folder / "images" / "holiday.jpg").write_bytes(b"mine")
    assert "not made by the demo" in refused("demo", "--output", f"{folder}/images")
    assert (folder / "images" / "holiday.jpg").read_bytes() == b"mine"


@pytest.mark.slow
def test_jobs_take_the_same_options() -> None:
    for verb in ("label", "train", "evaluate", "verify", "nightly"):
        command = [sys.executable, f"jobs/{verb}.py", "--help"]
        done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == locray(verb, "--help").stdout


def test_version() -> None:
    assert locray("--version").stdout.startswith("locray ")


def test_json_is_for_results_only(folder: Path) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(locray("status", "--table", f"{folder}/t", "--json").stdout)


def test_convert_writes_a_data_set_and_refuses_what_a_format_cannot_hold(folder: Path) -> None:
    Image.new("RGB", (40, 20)).save(folder / "images" / "a.png")
    text = "filename,class,xmin,ymin,xmax,ymax\na.png,cow,0,0,10,10\na.png,cow,5,5,5,9\n"
    (folder / "images" / "train.csv").write_text(text)
    arguments = ("convert", "--data", f"{folder}/images", "--format", "csv")
    done = locray(*arguments, "--to", "yolo", "--output", f"{folder}/yolo", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout.splitlines()[-1])
    names = ("splits", "images", "boxes", "copied_images", "skipped", "errors")
    assert [facts[name] for name in names] == [{"train": 1}, 1, 1, 1, {"empty_box": 1}, {}]
    assert (folder / "yolo/labels/train/a.txt").read_text() == "0 0.125 0.25 0.25 0.5\n"
    assert "is not empty" in refused(*arguments, "--to", "voc", "--output", f"{folder}/yolo")
    assert "can't hold boxes" in refused(*arguments, "--to", "folders", "--output", f"{folder}/out")
    assert "did you mean" in refused(*arguments[:-1], "cvs", "--to", "voc", "--output", f"{folder}/out")
    assert not (folder / "out").exists()

"""Configuration: three origins, one validation."""

from pathlib import Path
from types import NoneType

import pytest

from locray.cli.options import value_types
from locray.config import COMMANDS, LabelConfig, load_config, option_names
from locray.errors import ErrorCode, UsageError

REQUIRED = {"images": "in", "model": "m", "table": "out"}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "label.yaml"
    file.write_text("images: file\nmodel: file\ntable: file\nbatch-size: 8\n")
    config = load_config(
        LabelConfig,
        config_file=file,
        environment={"LOCRAY_MODEL": "environment", "LOCRAY_TABLE": "environment"},
        flags={"table": "flag"},
    )
    assert (config.images, config.model, config.table, config.batch_size) == ("file", "environment", "flag", 8)


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "label.yaml"
    file.write_text("image: x\n")
    with pytest.raises(UsageError, match=r"unknown option 'image'.*'images'"):
        load_config(LabelConfig, config_file=file)


def test_a_slip_in_the_environment_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"LOCRAY_TABEL.*'table'"):
        load_config(LabelConfig, environment={"LOCRAY_TABEL": "x"}, flags=REQUIRED)


def test_options_of_other_commands_and_foreign_variables_pass() -> None:
    environment = {"LOCRAY_EPOCHS": "3", "LOCRAY_SERVICE_HOST": "10.0.0.1", "LOCRAY_TEST_DATA": "x", "HOME": "/"}
    assert load_config(LabelConfig, environment=environment, flags=REQUIRED).table == "out"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--images is required"),
        ({**REQUIRED, "batch_size": "0"}, "--batch-size: .*greater than or equal to 1; found '0'"),
        ({**REQUIRED, "run_date": "tomorrow"}, "--run-date: expected a date, YYYY-MM-DD; found 'tomorrow'"),
        ({**REQUIRED, "run_date": "2026-02-30"}, "--run-date: expected a date, YYYY-MM-DD; found '2026-02-30'"),
        ({**REQUIRED, "run_date": "20260102"}, "--run-date: expected a date, YYYY-MM-DD; found '20260102'"),
        ({**REQUIRED, "max_failure_rate": "2"}, "--max-failure-rate"),
    ],
)
def test_a_bad_value_is_named_with_what_was_found(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(LabelConfig, flags=flags)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "just text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"bad\.yaml"):
        load_config(LabelConfig, config_file=file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        load_config(LabelConfig, config_file=tmp_path / "absent.yaml")


def test_every_option_says_what_it_is() -> None:
    for config_class in COMMANDS.values():
        for name, field in config_class.model_fields.items():
            assert field.description, f"{config_class.__name__}.{name}"


def test_an_option_name_means_one_thing_in_all_commands() -> None:
    """Options with one name have one type, required or not; but the demo writes to disks only, and formats differ."""
    kinds: dict[str, set[object]] = {}
    for config_class in COMMANDS.values():
        for option, name in option_names(config_class).items():
            kinds.setdefault(option, set()).add(
                frozenset(value_types(config_class.model_fields[name].annotation) - {NoneType})
            )
    clashes = {option for option, found in kinds.items() if len(found) > 1}
    assert clashes == {"output", "to"}


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        (None, ()),
        ("all", tuple(ErrorCode)),
        ("decoder_timeout, model_error", (ErrorCode.DECODER_TIMEOUT, ErrorCode.MODEL_ERROR)),
        ("false", ()),
    ],
)
def test_codes_to_retry_come_from_the_environment(value: str | None, codes: tuple[ErrorCode, ...]) -> None:
    environment = {} if value is None else {"LOCRAY_RETRY_FAILED": value}
    assert load_config(LabelConfig, environment=environment, flags=REQUIRED).retry_failed == codes


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("retry-failed: true", tuple(ErrorCode)),
        ("retry-failed: [corrupt, not_found, corrupt]", (ErrorCode.CORRUPT, ErrorCode.NOT_FOUND)),
        ("retry_failed: corrupt", (ErrorCode.CORRUPT,)),
        ("retry-failed: no", ()),
    ],
)
def test_codes_to_retry_come_from_a_file(tmp_path: Path, line: str, codes: tuple[ErrorCode, ...]) -> None:
    (tmp_path / "label.yaml").write_text(line)
    assert load_config(LabelConfig, config_file=tmp_path / "label.yaml", flags=REQUIRED).retry_failed == codes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("corupt", "--retry-failed: there is no error code 'corupt'; did you mean 'corrupt'?"),
        ("corrupt,", "--retry-failed: there is no error code ''; the codes are not_found, access_denied, changed, "),
        ([{"corrupt": 1}], r"--retry-failed: there is no error code \"{'corrupt': 1}\""),
        (3, "--retry-failed: expected error codes separated by commas; found 3"),
    ],
)
def test_a_code_that_is_none_is_named_with_the_nearest(value: object, message: str) -> None:
    with pytest.raises(UsageError) as told:
        load_config(LabelConfig, flags={**REQUIRED, "retry_failed": value})
    assert str(told.value).startswith(message.replace("\\", ""))

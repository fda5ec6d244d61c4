"""The help of every command as golden text. To write it again after a change: python -m tests.cli.test_help"""

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

from locray.cli.main import main
from locray.config import COMMANDS

GOLDEN = Path(__file__).with_name("help.txt")


def help_of_all_commands() -> str:
    parts = []
    with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
        for arguments in ([], *([verb] for verb in COMMANDS)):
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                assert main([*arguments, "--help"]) == 0
            parts.append(f"$ {' '.join(['locray', *arguments, '--help'])}\n{stdout.getvalue()}")
    return "\n".join(parts)


def test_help_is_the_golden_text() -> None:
    assert help_of_all_commands() == GOLDEN.read_text(encoding="utf-8"), "run: python -m tests.cli.test_help"


if __name__ == "__main__":
    GOLDEN.write_text(help_of_all_commands(), encoding="utf-8")

"""Options of the command that runs other commands as jobs on a cluster."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from locray.config.common import CommandConfig, Positional, Positive


class SubmitConfig(CommandConfig):
    """`locray submit`: runs a command as a job on a Ray cluster, shows its output and ends with its exit code."""

    command: Annotated[tuple[str, ...], Positional("[--] VERB [OPTIONS]")] = Field(
        (), description="Command to run, and its options."
    )
    address: str | None = Field(
        None,
        description="URL of the cluster's dashboard, such as http://head:8265. Default: RAY_API_SERVER_ADDRESS, else "
        "http://127.0.0.1:8265.",
    )
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = Field(
        None, description="Submission ID of the job, which no other job of the cluster has had. Default: a unique one."
    )
    upload: bool = Field(
        False, description="Upload this installation's locray, for a cluster that has another one or none."
    )
    working_dir: Path | None = Field(
        None, description="Folder to upload as the working directory of the job. Default: nothing is uploaded."
    )
    detach: bool = Field(False, description="Print the submission ID and exit, instead of waiting for the job.")
    follow: str | None = Field(None, description="Wait for the job with this submission ID, instead of a new one.")
    stop_timeout_s: Positive = Field(
        600, description="Time that the job gets to end in order after Ctrl-C or SIGTERM, in seconds."
    )

    @model_validator(mode="after")
    def _one_job(self) -> Self:
        if self.follow is None:
            if not self.command:
                raise ValueError("a command is required after the options: `locray submit -- label --images ...`")
        elif self.command or self.id or self.detach or self.upload or self.working_dir:
            raise ValueError("--follow waits for a job that exists: leave out the command and the options of a new job")
        if self.working_dir is not None and not self.working_dir.is_dir():
            raise ValueError(f"--working-dir {self.working_dir}: expected a folder on this machine")
        return self

"""Options of the two benchmarks."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from locray.config import CommandConfig, DatasetOptions
from locray.config.common import NotNegative, Positive
from locray.config.training import InputSize


class BenchmarkTrainingConfig(DatasetOptions):
    """`python -m benchmarks training`: training speed beside a plain PyTorch loop's, on the same files."""

    split: str = Field("train", description="Split to train on.")
    model: str = Field("localizer/resnet18", description="Architecture that both train.")
    input_size: InputSize | None = Field(
        None, description="Side of the network's square input in pixels. Default: what suits the model."
    )
    batch_size: Positive = Field(32, description="Images in one optimiser step.")
    rounds: Positive = Field(3, description="Number of runs of each, in turn.")


class BenchmarkConfig(CommandConfig):
    """`python -m benchmarks labelling`: labelling speed beside that of other tools and of a program written by hand."""

    images: str | None = Field(None, description="Folder of JPEG files to label. Default: pictures that are drawn.")
    model: str | None = Field(
        None, description="Folder or s3:// prefix of a model's artifact. Default: a small training makes one."
    )
    small_images: Positive = Field(256, description="Images to label as they are.")
    large_images: NotNegative = Field(48, description="Photographs of 2 to 12 megapixels to make of them and label.")
    rounds: Positive = Field(3, description="Number of runs of each, in turn.")
    contenders: str | None = Field(
        None,
        description="Who takes part beside locray, with commas: ceiling, ray_data, daft, dataloader, 'ray_data tuned', "
        "and so on. Default: all.",
    )
    no_compile: bool = Field(
        False, description="Compile no networks, which takes half a minute or more each for locray and the ceiling."
    )
    daft: Path | None = Field(
        None, description="Folder that holds Daft: pip install --target FOLDER daft 'pyarrow<26'. Default: left out."
    )
    output: Path | None = Field(None, description="Markdown file to write the tables to.")

    @model_validator(mode="after")
    def _output_can_be_written(self) -> Self:
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise ValueError(f"there is no folder to write {self.output} into")
        if self.output is not None and self.output.is_dir():
            raise ValueError(f"the output is a folder: {self.output}; give the name of a file")
        return self

"""The options of the commands around training and evaluation. Re-exported by `locray.config`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from locray.config.common import (
    CommandConfig,
    DatasetOptions,
    DeviceOptions,
    Fraction,
    ImageLimits,
    InferenceOptions,
    NotNegative,
    Positive,
    Precision,
)

InputSize = Annotated[int, Field(ge=16, le=2048)]


class AugmentationOptions(ImageLimits):
    """Random changes of training images, drawn anew for every epoch; boxes move with their pixels."""

    input_size: InputSize | None = Field(
        None, description="Side of the network's square input in pixels. Default: what suits the model."
    )
    crop: Fraction = Field(0.7, description="Share of the images that are zoomed into.")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        10, description="Largest random rotation to either side, in degrees."
    )
    flip: Literal["none", "horizontal", "both"] = Field("horizontal", description="Random flips.")
    colour: Fraction = Field(0.3, description="Largest random change of brightness, contrast and saturation.")
    mosaic: Fraction = Field(0, description="Share of the images that are put together from four.")
    copy_paste: Fraction = Field(0, description="Share of the images that get objects of other images pasted in.")
    seed: NotNegative = Field(0, description="Seed of weights, order and augmentation.")


class LearningOptions(CommandConfig):
    """How a network learns."""

    epochs: Positive = Field(10, description="Passes over the training split.")
    patience: Positive | None = Field(
        None, description="Stop after this many epochs without a better one. Default: train all epochs."
    )
    batch_size: Positive = Field(32, description="Images per optimizer step, over all workers.")
    accumulate: Positive = Field(
        1, description="Parts in which each worker computes its share of a batch: a larger batch in the same memory."
    )
    precision: Precision = Field(
        "auto", description="Arithmetic; auto takes bf16 where a quick measurement on the machine finds it faster."
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimizer.")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Peak of the learning-rate schedule. Default: 0.002 with adamw, 0.001 with adam, 0.01 with sgd.",
    )
    schedule: Literal["cosine", "one-cycle", "constant"] = Field(
        "cosine", description="Learning-rate schedule after the warm-up."
    )
    warm_up: Fraction = Field(0.1, description="Share of the steps over which the learning rate rises.")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight decay of the optimizer. Default: 0.05 with adamw, 0 with adam, 0.0001 with sgd."
    )
    clip_norm: Annotated[float, Field(gt=0)] = Field(5.0, description="Largest norm of the gradients of a step.")
    ema: Fraction = Field(
        0.04, description="Memory of the averaged weights, as a share of all steps; 0 uses the weights as they are."
    )
    weights: str | None = Field(
        None,
        description="Weights to start from: the folder of an artifact, a .pth or .safetensors file of torchvision's "
        "network, or a torchvision name.",
    )
    freeze_epochs: NotNegative = Field(0, description="Epochs in which pretrained layers stay as they are.")
    pretrained_rate: Fraction = Field(
        0.25, description="Learning rate of pretrained layers, relative to that of the new ones."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Learning rate of each pretrained stage, relative to the stage after it."
    )

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or what suits the optimizer."""
        default = {"adamw": 2e-3, "adam": 1e-3, "sgd": 1e-2}[self.optimizer]
        return default if self.learning_rate is None else self.learning_rate

    @property
    def effective_weight_decay(self) -> float:
        """`weight_decay`, or what suits the optimizer: AdamW's is decoupled from the gradients, so it can be larger."""
        default = {"adamw": 5e-2, "adam": 0.0, "sgd": 1e-4}[self.optimizer]
        return default if self.weight_decay is None else self.weight_decay

    @model_validator(mode="after")
    def _only_pretrained_layers_are_frozen(self) -> Self:
        if self.freeze_epochs and self.weights is None:
            raise ValueError(
                "--freeze-epochs needs --weights: layers that have learned nothing yet can't stay as they are"
            )
        return self


class WorkerOptions(DeviceOptions):
    """Where a training runs. Nothing here changes the model that comes out."""

    workers: Positive = Field(1, description="Training processes, one per GPU where there are GPUs.")
    min_workers: Positive | None = Field(
        None, description="Continue with as few workers as this while nodes are missing. Default: wait for --workers."
    )
    max_failures: NotNegative = Field(3, description="Worker failures to tolerate before the run fails.")


class TrainConfig(WorkerOptions, AugmentationOptions, LearningOptions, DatasetOptions):
    """`locray train`: from a data set to an artifact, on Ray Train."""

    model: str = Field(
        "localizer/mobilenet_v2",
        description="Architecture: small_cnn, small_resnet, localizer/<backbone> or detector/<name>[/<backbone>].",
    )
    output: str = Field(description="Folder or s3:// prefix for the artifact, its checkpoints and metrics.")
    train_split: str = Field("train", description="Split to learn from.")
    val_split: str = Field(
        "val", description="Split to choose the best epoch by; where the data has none, a tenth of the training split."
    )
    run_name: str | None = Field(None, description="Name to resume a run under. Default: derived from the options.")
    score_threshold: Fraction | None = Field(
        None, description="Score threshold that the artifact carries. Default: a detector's best on validation, else 0."
    )


class PreviewConfig(DatasetOptions, AugmentationOptions):
    """`locray preview`: a page of training images as a network would see them, with their boxes."""

    split: str = Field("train", description="Split to show.")
    count: Positive = Field(24, description="Images to show, each as it is and several times changed.")
    output: str = Field(description="HTML file to write.")


class ConvertConfig(DatasetOptions, ImageLimits):
    """`locray convert`: writes a data set in another format, all splits of it.

    voc, yolo, folders and regions get copies of the images beside the annotations. coco, csv and parquet name the
    images where they are; those of a .zip file are copied.
    """

    to: Literal["coco", "csv", "folders", "parquet", "regions", "voc", "yolo"] = Field(description="Format to write.")
    output: str = Field(description="New or empty folder or s3:// prefix for annotations and copied images.")


class EvaluateConfig(DatasetOptions, InferenceOptions):
    """`locray evaluate`: the metrics of an artifact, or of a predictions table, on an annotated data set."""

    split: str = Field("test", description="Split to evaluate on.")
    model: str | None = Field(None, description="Folder or s3:// prefix of the model's artifact.")
    table: str | None = Field(
        None, description="Folder or s3:// prefix of a predictions table to evaluate instead of running a model."
    )
    output: str | None = Field(None, description="JSON file to write the metrics to.")
    page: str | None = Field(None, description="HTML file to show the metrics and the worst images in.")

    @model_validator(mode="after")
    def _one_origin_of_predictions(self) -> Self:
        if self.model is None and self.table is None:
            raise ValueError("--model or --table is required: a model to run, or a table that holds its predictions")
        return self


class ExportModelConfig(CommandConfig):
    """`locray export-model`: an artifact in the form of another runtime."""

    model: str = Field(description="Folder or s3:// prefix of the model's artifact.")
    to: Literal["onnx", "torch-export"] = Field(description="Form to write: onnx, or torch-export (.pt2).")
    output: str = Field(description="File to write.")
    batch_size: Positive | None = Field(
        None,
        description="Images in every batch of the exported network. Default: any number, or one where the network "
        "can't take any.",
    )


class QuantizeConfig(DatasetOptions, ImageLimits):
    """`locray quantize`: an artifact whose backbone computes in 8-bit integers, made of another one."""

    model: str = Field(description="Folder or s3:// prefix of the model's artifact.")
    output: str = Field(description="Folder or s3:// prefix to write the new artifact to.")
    split: str = Field("train", description="Split whose images say which numbers the network meets.")
    sample: Positive = Field(256, description="Images to learn from, and as many more to compare the two models on.")


class CompileConfig(CommandConfig):
    """`locray compile`: the network of an artifact, compiled for processors such as this machine's."""

    model: str = Field(description="Folder or s3:// prefix of the model's artifact.")
    output: str | None = Field(
        None, description="Folder or s3:// prefix for the package. Default: compiled/ in the model's folder."
    )
    images: str | None = Field(
        None, description="Images to compare results on, named as for `label`. Default: pictures that are drawn."
    )
    batch_size: Positive = Field(32, description="The --batch-size that will be given to `label`.")
    precision: Precision = Field("auto", description="The --precision that will be given to `label`.")
    threads: Positive | None = Field(
        None, description="Threads of one of `label`'s workers. Default: all cores, as one worker per machine has."
    )
    min_speedup: Annotated[float, Field(ge=0)] = Field(
        1.04, description="Write nothing if the compiled network is not this many times as fast."
    )


class DemoConfig(CommandConfig):
    """`locray demo`: makes data, trains, evaluates, labels and shows the result, on one machine."""

    output: Path = Field(description="Folder for everything that the demo makes.")
    seed: NotNegative = Field(0, description="Seed of the pictures and of the training.")

    @model_validator(mode="after")
    def _output_is_no_file(self) -> Self:
        if self.output.is_file():
            raise ValueError(f"the output is a file: {self.output}; give a folder, which is made when it is not there")
        return self

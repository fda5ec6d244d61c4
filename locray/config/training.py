"""Options of the commands that train, evaluate and transform models, and that handle data sets."""

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
        None, description="Side of the network's square input, in pixels. Default: that of the architecture."
    )
    crop: Fraction = Field(0.7, description="Share of the training images that are cropped at random.")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        10, description="Largest random rotation to either side, in degrees."
    )
    flip: Literal["none", "horizontal", "both"] = Field("horizontal", description="Directions of random flips.")
    colour: Fraction = Field(0.3, description="Largest random change of brightness, contrast and saturation.")
    mosaic: Fraction = Field(0, description="Share of the training images that are composed of four.")
    copy_paste: Fraction = Field(
        0, description="Share of the training images into which objects of other images are pasted."
    )
    seed: NotNegative = Field(0, description="Seed of the initial weights, the order of images and the augmentation.")


class LearningOptions(CommandConfig):
    """How a network learns."""

    epochs: Positive = Field(10, description="Passes over the training split.")
    patience: Positive | None = Field(
        None, description="Stop after this many epochs without a better one. Default: train all epochs."
    )
    batch_size: Positive = Field(32, description="Images per optimizer step, over all workers.")
    accumulate: Positive = Field(
        1, description="Number of parts in which a worker computes its share of a batch, to save memory."
    )
    precision: Precision = Field(
        "auto",
        description="Number format of the arithmetic. auto: bf16 where a short measurement finds it faster, on GPUs "
        "also fp16, else fp32.",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimization algorithm.")
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
    clip_norm: Annotated[float, Field(gt=0)] = Field(
        5.0, description="Norm to which the gradients of a step are clipped."
    )
    ema: Fraction = Field(
        0.04, description="Time constant of the moving average of the weights, as a share of all steps; 0: no average."
    )
    weights: str | None = Field(
        None,
        description="Weights to start from: the folder of a model, a .pth or .safetensors file of torchvision's "
        "network, or the name of torchvision weights.",
    )
    freeze_epochs: NotNegative = Field(
        0, description="Number of first epochs in which pretrained layers are not trained."
    )
    pretrained_rate: Fraction = Field(
        0.25, description="Learning rate of pretrained layers, relative to that of new layers."
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
            raise ValueError("--freeze-epochs needs --weights: only pretrained layers can be frozen")
        return self


class WorkerOptions(DeviceOptions):
    """Where a training runs. Nothing here changes the model that comes out."""

    workers: Positive = Field(1, description="Training processes, one per GPU where there are GPUs.")
    min_workers: Positive | None = Field(
        None, description="Continue with as few workers as this while nodes are missing. Default: wait for --workers."
    )
    deterministic: bool = Field(
        False,
        description="Let a GPU compute the same weights again from the same command, which takes longer. Processors do "
        "so anyway.",
    )
    max_failures: NotNegative = Field(3, description="Worker failures to tolerate before the run fails.")


class TrainConfig(WorkerOptions, AugmentationOptions, LearningOptions, DatasetOptions):
    """`locray train`: trains a model on a data set."""

    model: str = Field(
        "localizer/mobilenet_v2",
        description="Architecture: small_cnn, small_resnet, localizer/<backbone> or detector/<name>[/<backbone>].",
    )
    output: str = Field(description="Folder or s3:// prefix to write the model, its checkpoints and its metrics to.")
    overwrite: bool = Field(
        False, description="If the output holds another model or run, delete it. Default: refuse to train."
    )
    train_split: str = Field("train", description="Split to train on.")
    val_split: str = Field(
        "val", description="Split to choose the best epoch on. If the data has none: a tenth of the training split."
    )
    run_name: str | None = Field(
        None, description="Name of the run, under which it can be resumed. Default: derived from the options."
    )
    score_threshold: Fraction | None = Field(
        None, description="Score threshold of the model. Default: a detector's best on the validation split, else 0."
    )


class PreviewConfig(DatasetOptions, AugmentationOptions):
    """`locray preview`: writes a page of training images as the network sees them, with their boxes."""

    split: str = Field("train", description="Split to show.")
    count: Positive = Field(24, description="Number of images to show, each as it is and with several random changes.")
    model: str | None = Field(
        None,
        description="Architecture that is to be trained, as of `locray train`: gives the input size, and a warning if "
        "the data don't suit it.",
    )
    output: str = Field(description="HTML file to write.")


class ConvertConfig(DatasetOptions, ImageLimits):
    """`locray convert`: writes a data set in another format, all splits of it.

    voc, yolo, folders and regions get copies of the images beside the annotations. coco, csv and parquet name the
    images where they are; those of a .zip file are copied.
    """

    to: Literal["coco", "csv", "folders", "parquet", "regions", "voc", "yolo"] = Field(description="Format to write.")
    output: str = Field(description="New or empty folder or s3:// prefix for annotations and copied images.")


class EvaluateConfig(DatasetOptions, InferenceOptions):
    """`locray evaluate`: measures a model, or the rows of a predictions table, on a data set."""

    split: str = Field("test", description="Split to evaluate on.")
    model: str | None = Field(None, description="Folder or s3:// prefix of the model.")
    table: str | None = Field(
        None,
        description="Folder or s3:// prefix of a predictions table, to evaluate its rows instead of running a model.",
    )
    output: str | None = Field(None, description="JSON file to write the metrics to.")
    page: str | None = Field(None, description="HTML file to write, with the metrics and the worst images.")

    @model_validator(mode="after")
    def _one_origin_of_predictions(self) -> Self:
        if self.model is None and self.table is None:
            raise ValueError("--model or --table is required: a model to run, or a table with its predictions")
        return self


class ExportModelConfig(CommandConfig):
    """`locray export-model`: writes a model as a file for another runtime."""

    model: str = Field(description="Folder or s3:// prefix of the model.")
    to: Literal["onnx", "torch-export"] = Field(description="Format to write: onnx, or torch-export (.pt2).")
    output: str = Field(description="File to write.")
    batch_size: Positive | None = Field(
        None,
        description="Fixed number of images per batch of the exported network. Default: any number, or one if the "
        "network supports no other.",
    )


class QuantizeConfig(DatasetOptions, ImageLimits):
    """`locray quantize`: makes a model whose backbone computes in 8-bit integers from another one."""

    model: str = Field(description="Folder or s3:// prefix of the model.")
    output: str = Field(description="Folder or s3:// prefix to write the new model to.")
    split: str = Field("train", description="Split whose images calibrate the ranges of the integers.")
    sample: Positive = Field(
        256, description="Number of images for the calibration, and of others to compare the two models on."
    )


class CompileConfig(CommandConfig):
    """`locray compile`: compiles the network of a model for machines like this one: for its GPU, or its processors."""

    model: str = Field(description="Folder or s3:// prefix of the model.")
    output: str | None = Field(
        None, description="Folder or s3:// prefix for the package. Default: compiled/ in the model's folder."
    )
    images: str | None = Field(
        None, description="Images to compare results on, named as for `label`. Default: pictures that are drawn."
    )
    batch_size: Positive | None = Field(
        None, description="The --batch-size that will be given to `label`. Default: the default there."
    )
    precision: Precision = Field("auto", description="The --precision that will be given to `label`.")
    threads: Positive | None = Field(
        None, description="Threads of one of `label`'s workers. Default: all cores, as one worker per machine has."
    )
    min_speedup: Annotated[float, Field(ge=0)] = Field(
        1.04, description="Write nothing if the compiled network is not this many times as fast."
    )


class DemoConfig(CommandConfig):
    """`locray demo`: draws a data set, trains on it, evaluates, labels a folder and shows the result."""

    output: Path = Field(description="Folder to write everything to.")
    seed: NotNegative = Field(0, description="Seed of the drawings and of the training.")

    @model_validator(mode="after")
    def _output_is_no_file(self) -> Self:
        if self.output.is_file():
            raise ValueError(
                f"the output is a file: {self.output}. Expected a folder; it is created if it does not exist"
            )
        return self

"""Whether a worker reaches what a run reads."""

from dataclasses import dataclass

from locray.models.files import read_artifact_info
from locray.sources import Source


@dataclass(frozen=True, slots=True)
class InputCheck:
    """Reaches for the images and the model, with the credentials and the disks of the node that it is called on."""

    source: Source
    model_uri: str

    def __call__(self) -> None:
        """Makes a request or two.

        Raises:
            StoreError: the images can't be listed or the model can't be read.
            UsageError: there is no model.
        """
        self.source.check(may_be_empty=True)
        read_artifact_info(self.model_uri)

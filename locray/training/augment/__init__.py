"""Random changes of training images that keep boxes true. Called by `samples`.

`chain` holds the order of things, `placing` and `canvas` the geometry, `mixing` what needs more than one image, and
`colour` the rest. Nothing here reads a file or remembers anything: whoever calls gives the images and the generator.
"""

from locray.training.augment.chain import Augmentation, Augmenter
from locray.training.augment.mixing import Mix
from locray.training.augment.scene import Objects, Scene

__all__ = ["Augmentation", "Augmenter", "Mix", "Objects", "Scene"]

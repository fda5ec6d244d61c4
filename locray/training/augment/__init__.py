"""Random changes of training images that keep their boxes right. Pure functions of images and a random generator."""

from locray.training.augment.augmenter import Augmenter
from locray.training.augment.mixing import Mix
from locray.training.augment.scene import Objects, Scene

__all__ = ["Augmenter", "Mix", "Objects", "Scene"]

"""From annotated images to an artifact: samples, augmentation, the learner, and its run on Ray Train."""

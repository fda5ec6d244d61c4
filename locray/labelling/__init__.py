"""From a store of images to rows of the predictions table, on Ray Data."""

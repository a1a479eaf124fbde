"""Streams of a data set's files, as `datasets` finds them."""

import functools

import datasets
import numpy as np
from PIL import Image

from gdzoo.data.folders import Listing, is_flat, is_image, linked_files, with_metadata


def load_streams(path: str, config_name: str | None, listing: Listing | None) -> tuple[datasets.DatasetBuilder, dict]:
    """The builder and a stream of each split, with features, of a folder (which has a listing) or of a Hub id."""
    data_files = linked_files(listing, config_name) if listing else None
    builder = datasets.load_dataset_builder(path, config_name, data_files=data_files)
    if builder.info.builder_name == "imagefolder" and builder.config.drop_labels is None:
        # `datasets` drops an image folder's labels where all images lie in folders of one name, and takes test/ for a
        # class where images lie directly in it.
        root, files = listing.root if listing else "", builder.config.data_files
        flat = [split for split in files if is_flat(filter(is_image, files[split]), root)]
        builder.config.drop_labels = "train" in flat
        if "train" not in flat and not with_metadata(files):
            for split in flat:  # without labels, where the training images have some
                del files[split]
    splits = builder.as_streaming_dataset()
    return builder, {split: _with_features(stream) for split, stream in splits.items()}


def has_metadata(features: datasets.Features) -> bool:
    """Whether an image folder's columns come from metadata files: folders give an image and a ClassLabel alone."""
    return any(
        column != "image" and not isinstance(feature, datasets.ClassLabel) for column, feature in features.items()
    )


def _with_features(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """The stream with features: some formats, such as CSV, have none before their first rows are read."""
    if stream.features is not None:
        return stream
    first = next(iter(stream.iter(batch_size=5)), {})
    return stream.cast(datasets.Dataset.from_dict(first).features)


@functools.cache
def digits_stream() -> datasets.IterableDataset:
    """scikit-learn's 1,797 handwritten digits [8, 8], as a `datasets` stream like any other."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)) for pixels in digits.images]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names])}
    )
    columns = {"image": images, "label": digits.target.tolist()}
    return datasets.Dataset.from_dict(columns, features=features).to_iterable_dataset(num_shards=4)

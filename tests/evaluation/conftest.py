"""Fixtures of several files of this folder."""

import pytest
import torch
from transformers import ViTImageProcessorPil, ViTModel

from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from tests.evaluation.models import vit_config
from tests.hub.conftest import hub, server  # noqa: F401


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return ImageData(BENCHMARKS["split-digits"])


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    ViTModel(vit_config()).eval().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)

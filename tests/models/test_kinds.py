"""What holds for every kind of text-to-image model beside Stable Diffusion, whose own tests are test_lora.py."""

import pytest
import torch
from diffusers import DiffusionPipeline

from gdzoo.models.flux import Flux
from gdzoo.models.lora import LORA_FILE, LORA_FOLDER, add_adapter, fused_copy
from gdzoo.models.stable_diffusion_3 import StableDiffusion3
from gdzoo.models.stable_diffusion_xl import StableDiffusionXL
from gdzoo.models.text_pipelines import load_text_to_image, network_of, save_pipeline
from tests.models.test_lora import shake
from tests.models.test_stable_diffusion import picture
from tests.models.tiny import make_tiny_flux, make_tiny_stable_diffusion_3, make_tiny_stable_diffusion_xl

MADE_BY = {
    StableDiffusionXL: make_tiny_stable_diffusion_xl,
    StableDiffusion3: make_tiny_stable_diffusion_3,
    Flux: make_tiny_flux,
}


@pytest.mark.parametrize("kind", MADE_BY)
def test_the_fused_pipeline_and_the_lora_on_the_base_draw_the_same(tmp_path, kind):
    base, folder = MADE_BY[kind](tmp_path / "base"), tmp_path / "published"
    network = network_of(load_text_to_image(base)[0])
    adapter = add_adapter(network, 4, 0, kind)
    shake(adapter)
    fused = fused_copy(network)
    save_pipeline(folder, fused, base)
    adapter.save(folder)
    published, pipeline = (DiffusionPipeline.from_pretrained(each) for each in (folder, base))
    drawn = picture(pipeline)
    pipeline.load_lora_weights(folder, subfolder=LORA_FOLDER, weight_name=LORA_FILE)
    torch.testing.assert_close(picture(pipeline), picture(published), rtol=0, atol=2e-3)
    assert (picture(published) - drawn).abs().max() > 0.005
    again = network_of(load_text_to_image(base)[0])
    add_adapter(again, 4, 9, kind).load(folder / LORA_FOLDER / LORA_FILE)
    there = fused_copy(again).state_dict()
    assert all(torch.equal(weight, there[name]) for name, weight in fused.state_dict().items())

"""Flags of diffusers' DreamBooth scripts that are no settings here: taken if they change nothing, else refused."""

from gdzoo.settings import OtherFlag

_OWN_ENCODER = OtherFlag("text encoder and tokenizer stay the pretrained model's own: leave it out", True)
_OWN_ADAM = OtherFlag("the optimizer is Adam with PyTorch's defaults, or --use_8bit_adam: leave it out", True)
_DATA_SETS = OtherFlag("use --task_datasets, each of which is one task: data sets of the Hub, or folders", True)
_WHOLE_IMAGE = OtherFlag("SDXL's sizes are those of a whole image of --resolution: leave it out", True)
_NO_TOKEN = OtherFlag(
    "no new token is learned: leave it out, and use a rare word, as in --instance_prompt 'a photo of sks dog'", True
)
_ONE_ADAPTER = "leave it out: the adapter is plain LoRA, with alpha = rank and without dropout"

OTHER_FLAGS = {
    "with_prior_preservation": OtherFlag(
        "--strategy decides what is preserved, and how; DreamBooth's prior preservation is generative_replay", values=0
    ),
    "class_data_dir": OtherFlag(
        "this folder is not read or written: images of the class are drawn from the model before each task"
        " (--num_class_images)"
    ),
    "prior_generation_precision": OtherFlag("images of the class are drawn in the precision of --mixed_precision"),
    "real_prior": OtherFlag("images of the class are drawn from the model: leave it out", True, 0),
    "hub_model_id": OtherFlag("each task has a repository OWNER/NAME-taskK: use --hub_namespace and --benchmark", True),
    "train_text_encoder": OtherFlag("the text encoder is never trained: leave it out", True, 0),
    "text_encoder_lr": OtherFlag("the text encoder is never trained: leave it out", True),
    "text_encoder_use_attention_mask": _OWN_ENCODER._replace(values=0),
    "tokenizer_name": _OWN_ENCODER,
    "tokenizer_max_length": _OWN_ENCODER,
    "pretrained_vae_model_name_or_path": OtherFlag(
        "the VAE stays the pretrained model's own, and works in float32 always: leave it out", True
    ),
    "skip_save_text_encoder": OtherFlag("every published pipeline is complete", values=0),
    "pre_compute_text_embeddings": OtherFlag("they always are", values=0),
    "validation_images": OtherFlag("Stable Diffusion takes prompts alone: use --validation_prompt", True, "+"),
    "validation_epochs": OtherFlag("use --validation_steps: tasks are counted in optimizer steps", True),
    "validation_scheduler": OtherFlag("validation images are drawn as models are judged: by DDIM, with --eval_steps"),
    "num_train_epochs": OtherFlag("use --max_train_steps, which is that of each task", True),
    "scale_lr": OtherFlag("give the --learning_rate that is meant", True, 0),
    "lr_num_cycles": OtherFlag("diffusers' default is used: leave it out", True),
    "lr_power": OtherFlag("diffusers' default is used: leave it out", True),
    "optimizer": _OWN_ADAM,
    "prodigy_beta3": _OWN_ADAM,
    "prodigy_decouple": _OWN_ADAM,
    "prodigy_use_bias_correction": _OWN_ADAM,
    "prodigy_safeguard_warmup": _OWN_ADAM,
    "adam_beta1": _OWN_ADAM,
    "adam_beta2": _OWN_ADAM,
    "adam_weight_decay": _OWN_ADAM,
    "adam_epsilon": _OWN_ADAM,
    "adam_weight_decay_text_encoder": OtherFlag("the text encoder is never trained: leave it out", True),
    "crops_coords_top_left_h": _WHOLE_IMAGE,
    "crops_coords_top_left_w": _WHOLE_IMAGE,
    "do_edm_style_training": OtherFlag("the noise is that of the model's own schedule: leave it out", True, 0),
    "offset_noise": OtherFlag("noise has no offset: leave it out", True, 0),
    "noise_offset": OtherFlag("noise has no offset: leave it out", True),
    "class_labels_conditioning": OtherFlag("Stable Diffusion takes prompts alone: leave it out", True),
    "max_sequence_length": OtherFlag(
        "T5 reads as many tokens as in the pipeline's own call (Stable Diffusion 3: 256, FLUX: 512): leave it out", True
    ),
    "precondition_outputs": OtherFlag("the target is the velocity, noise - x_0, as with 0: leave it out", True),
    "cache_latents": OtherFlag("they always are", values=0),
    "upcast_before_saving": OtherFlag("weights are always saved in float32", values=0),
    "lora_blocks": OtherFlag("name the layers of these blocks in --lora_layers: leave it out", True),
    "enable_xformers_memory_efficient_attention": OtherFlag(
        "PyTorch's own attention, as economical, is used", values=0
    ),
    "enable_npu_flash_attention": OtherFlag("PyTorch's own attention is used", values=0),
    "set_grads_to_none": OtherFlag("they always are", values=0),
    "logging_dir": OtherFlag("logs are written to OUTPUT_DIR/.training/logs"),
    "local_rank": OtherFlag(""),
    "lora_dropout": OtherFlag(_ONE_ADAPTER, True),
    "lora_alpha": OtherFlag(_ONE_ADAPTER, True),
    "use_dora": OtherFlag(_ONE_ADAPTER, True, 0),
    "output_kohya_format": OtherFlag("the adapter is saved in diffusers' format: leave it out", True, 0),
    "no_safe_serialization": OtherFlag("weights are saved as safetensors alone: leave it out", True, 0),
    "freeze_model": OtherFlag("all of the U-Net is trained, or an adapter (--rank): leave it out", True),
    "modifier_token": _NO_TOKEN,
    "initializer_token": _NO_TOKEN,
    "image_interpolation_mode": OtherFlag("photos are resized by lanczos, diffusers' default"),
    "cache_dir": OtherFlag("leave it out, and set HF_HOME in the environment", True),
    "hflip": OtherFlag("use --random_flip", True, 0),
    "noaug": OtherFlag("photos are cropped, and mirrored with --random_flip, but not changed otherwise", values=0),
    "dataset_name": _DATA_SETS,
    "train_data_dir": _DATA_SETS,
    "dataset_config_name": OtherFlag(
        "the default configuration of each of --task_datasets is read: leave it out", True
    ),
    "repeats": OtherFlag("photos are repeated as often as --max_train_steps needs, all of a task equally often"),
}

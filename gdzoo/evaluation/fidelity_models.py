"""The networks of gdzoo/evaluation/fidelity.py: CLIP and DINO, from the Hub or a folder; safetensors only."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from gdzoo.errors import one_line
from gdzoo.evaluation.features import processed
from gdzoo.models.fingerprints import weights_fingerprint
from gdzoo.models.refusals import check_hub

IMAGES_AT_ONCE, PROMPTS_AT_ONCE = 50, 64
FILES = ["config.json", "*processor_config.json", "model*.safetensors"]  # each needs a match
TOKENIZER = "tokenizer_config.json"
VOCABULARY = ["tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "*.safetensors.index.json"]
# Trap: on their main branches these have pickles alone; the Hub's converter has put safetensors beside them.
# transformers would find those by itself, but not again in the cache once there is no network.
CONVERTED = {"openai/clip-vit-base-patch32": "refs/pr/32", "facebook/dino-vits16": "refs/pr/1"}
# The config's model_type of what is taken. Dinov2's features are DINO's too: the class token after the last layer.
CLIP_TYPES, DINO_TYPES = ("clip",), ("vit", "dinov2", "dinov2_with_registers")


class Network:
    """A frozen network in float32 that gives features [N, D] of images; on its device while it is used."""

    def __init__(self, folder: Path, name: str, device: torch.device, model: PreTrainedModel):
        # backend="pil": the default needs torchvision, which gdzoo does not use.
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.model, self.name, self.device = model.requires_grad_(False).eval(), name, device
        self.fingerprint = weights_fingerprint(model, self.processor.to_json_string())

    @torch.no_grad()  # not inference_mode(), in which the weights would be moved
    def __call__(self, images: Tensor) -> Tensor:
        """Features [N, D], on the CPU, of uint8 images [N, C, H, W], gray or RGB."""
        self.model.to(self.device)
        return torch.cat(
            [
                self._features(processed(self.processor, batch.expand(-1, 3, -1, -1)).to(self.device)).float().cpu()
                for batch in images.split(IMAGES_AT_ONCE)
            ]
        )

    def _features(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def offload(self):
        """Free the accelerator until the network is used again."""
        self.model.to("cpu")


class Dino(Network):
    """The class token after the last layer norm (Caron et al. 2021). Not the pooler, which DINO was trained without."""

    def _features(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class Clip(Network):
    """The projected embeddings of images and of texts (Radford et al. 2021), whose cosines CLIP's logits are."""

    def __init__(self, folder: Path, name: str, device: torch.device, model: PreTrainedModel):
        super().__init__(folder, name, device, model)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._texts: dict[str, Tensor] = {}

    def _features(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    @torch.no_grad()  # not inference_mode(), in which the weights would be moved
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [N, D], on the CPU, of prompts, which are cut where CLIP reads no more; each computed once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        most = self.model.config.text_config.max_position_embeddings
        for start in range(0, len(new), PROMPTS_AT_ONCE):
            batch = new[start : start + PROMPTS_AT_ONCE]
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=most, return_tensors="pt")
            features = self.model.to(self.device).get_text_features(
                input_ids=tokens.input_ids.to(self.device), attention_mask=tokens.attention_mask.to(self.device)
            )
            self._texts |= zip(batch, features.pooler_output.float().cpu(), strict=True)
        return torch.stack([self._texts[prompt] for prompt in prompts])


# ---- loading ----


class Unreachable(ValueError):
    """A model that is not in the cache, while the Hub cannot be reached."""


# By flag: what its network measures.
MEASURES = {"clip_model": "CLIP-T, CLIP-I", "dino_model": "DINO, language drift, diversity"}
UNREACHABLE = "not in the cache, and the Hub cannot be reached"


def load_networks(
    names: Mapping[str, str | None], given: Collection[str], device: torch.device
) -> tuple[Clip | None, Dino | None, list[str]]:
    """The networks of --clip_model and --dino_model; and lines that name the metrics that are left out for lack of one.

    Args:
        names: a repository or a folder by flag; None: there is none, and nobody misses it.
        given: the flags without whose networks there is no run.

    Raises:
        ValueError: in one line that names the flag.
    """
    networks, lacking = {}, {}
    for flag, load in (("clip_model", load_clip), ("dino_model", load_dino)):
        if not (name := names[flag]):
            continue
        if flag not in given and UNREACHABLE in lacking and not cached_folder(name, FILES):
            lacking[UNREACHABLE].append(f"{MEASURES[flag]} ({name})")  # not to wait for the network again
            continue
        try:
            networks[flag] = load(name, device)
        except Unreachable as error:
            _refuse_given(flag, given, error)
            lacking.setdefault(UNREACHABLE, []).append(f"{MEASURES[flag]} ({name})")
        except ValueError as error:
            _refuse_given(flag, given, error)
            lacking[str(error)] = [MEASURES[flag]]
    lines = [f"metrics left out: {', '.join(those)}: {reason}" for reason, those in lacking.items()]
    return networks.get("clip_model"), networks.get("dino_model"), lines


def _refuse_given(flag: str, given: Collection[str], error: ValueError):
    if flag in given:
        raise ValueError(f"--{flag} {error}; or say --{flag} none") from error


def load_clip(repo_or_folder: str, device: torch.device) -> Clip:
    """The CLIPModel of a repository or a folder.

    Raises:
        ValueError: in one line, if it is none or cannot be loaded.
    """
    wrong = f"{repo_or_folder} is no CLIP model, such as openai/clip-vit-base-patch32"
    folder = _checked_folder(repo_or_folder, CLIP_TYPES, [*FILES, TOKENIZER], wrong)
    try:
        clip = Clip(folder, repo_or_folder, device, _load_model(folder, optional=()))
        _check_finite(clip(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), clip.texts(["a photo"]))
    except Exception as error:  # `from_pretrained` has no common error type
        raise ValueError(f"{repo_or_folder}: its CLIP model cannot be used ({one_line(error)})") from error
    clip.offload()
    return clip


def load_dino(repo_or_folder: str, device: torch.device) -> Dino:
    """The ViTModel, or Dinov2Model, of a repository or a folder.

    Raises:
        ValueError: in one line, if it is none or cannot be loaded.
    """
    wrong = f"{repo_or_folder} is no vision transformer, such as facebook/dino-vits16"
    folder = _checked_folder(repo_or_folder, DINO_TYPES, FILES, wrong)
    try:
        dino = Dino(folder, repo_or_folder, device, _load_model(folder, optional=("pooler.",)))
        _check_finite(dino(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    except Exception as error:  # `from_pretrained` has no common error type
        raise ValueError(f"{repo_or_folder}: its vision transformer cannot be used ({one_line(error)})") from error
    dino.offload()
    return dino


def _checked_folder(repo_or_folder: str, types: Sequence[str], needed: Sequence[str], wrong: str) -> Path:
    """The folder of a model of one of these types: itself, or one of the cache, into which it is downloaded."""
    folder = Path(repo_or_folder)
    if not folder.is_dir():
        folder = cached_folder(repo_or_folder, needed) or _download(repo_or_folder)
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
    except Exception as error:  # no common error type
        raise ValueError(f"{wrong} ({one_line(error)})") from error
    if kind not in types:
        raise ValueError(f"{wrong}: its model_type is {kind}, not {' or '.join(types)}")
    if lacking := [name for name in needed if not any(folder.glob(name))]:
        raise ValueError(f"{repo_or_folder}: it has no {', '.join(lacking)}; save it again with save_pretrained")
    return folder


def cached_folder(repo_id: str, needed: Sequence[str]) -> Path | None:
    """Where the cache has a repository whole; asked for first, since transformers would look for a newer version."""
    try:
        folder = _snapshot(repo_id, local_files_only=True)
    except Exception:  # not in the cache, or no name of a repository
        return None
    return folder if all(any(folder.glob(name)) for name in needed) else None


def _download(repo_id: str) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise Unreachable(f"{repo_id}: there is no such folder, it is not in the cache, and HF_HUB_OFFLINE is set")
    try:
        check_hub(repo_id)
    except ValueError as error:
        raise Unreachable(str(error)) from error
    try:
        return _snapshot(repo_id)
    except Exception as error:  # no common error type
        raise ValueError(
            f"{repo_id}: there is no such folder, and the Hub does not give it ({one_line(error)})"
        ) from error


def _snapshot(repo_id: str, **settings) -> Path:
    # Trap: without the patterns of the download, a look into the cache finds files missing (IncompleteSnapshotError).
    wanted = [*FILES, TOKENIZER, *VOCABULARY]
    return Path(snapshot_download(repo_id, revision=CONVERTED.get(repo_id), allow_patterns=wanted, **settings))


def _load_model(folder: Path, optional: tuple[str, ...]) -> PreTrainedModel:
    """All its weights, in float32. Raises ValueError: the checkpoint lacks some that are not `optional`."""
    # Trap: transformers 5 loads in the precision of the file, which a CPU may not have for every layer.
    model, report = AutoModel.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    # transformers initializes them at random.
    if missing := [name for name in report["missing_keys"] if not name.startswith(optional)]:
        raise ValueError(f"its checkpoint lacks {len(missing)} weights, {min(missing)} among them")
    if report["missing_keys"]:
        model.pooler = None  # made up, and in no feature: the fingerprint must not depend on it
    return model


def _check_finite(*features: Tensor):
    """Of broken weights: after training they would be metrics that results.json cannot hold."""
    if not all(each.isfinite().all() for each in features):
        raise ValueError("its features are not finite numbers")

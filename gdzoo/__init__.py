"""gdzoo: continual learning of diffusion models by generative distillation, as a Hugging Face Hub model zoo."""

__version__ = "0.1.0"

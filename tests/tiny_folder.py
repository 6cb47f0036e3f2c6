from pathlib import Path

from tiny_models import make_model, make_tokenizer


def save_tiny(folder: Path, positions: int = 512) -> Path:
    """A tiny random model and its tokenizer as a model folder, with room for long prompts."""
    model = make_model()
    model.config.max_position_embeddings = positions
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder

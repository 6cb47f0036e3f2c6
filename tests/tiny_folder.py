from pathlib import Path

from tiny_models import make_classifier, make_model, make_seq2seq, make_tokenizer


def save_tiny(folder: Path, positions: int = 512) -> Path:
    """A tiny random model and its tokenizer as a model folder, with room for long prompts."""
    model = make_model()
    model.config.max_position_embeddings = positions
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_encoder(folder: Path) -> Path:
    """A tiny random encoder without a head."""
    make_classifier().base_model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_seq2seq(folder: Path, family: str = "t5") -> Path:
    """A tiny random encoder-decoder and its tokenizer as a model folder."""
    make_seq2seq(family).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder

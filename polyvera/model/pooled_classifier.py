"""PooledForSequenceClassification: an encoder's classifier that reads the vector which its folder's settings pool.

transformers' own classifiers read the first token. Where a model was made by sentence-transformers, its files say how a
text becomes one vector, and a head learns far faster from that one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from polyvera.model.config import CLASSIFICATION, kind_of
from polyvera.model.pooling import FLAGS, MODES, MODULES, POOLING_CONFIG, find_file, read_json, stated_pooling

# A folder as sentence-transformers reads it: each module's type and path; the head is its last, a plain linear layer.
FOLDERS = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"}
HEAD_FILE = "model.safetensors"
NO_ACTIVATION = "torch.nn.modules.linear.Identity"


class PooledForSequenceClassification(PreTrainedModel):  # type: ignore[no-untyped-call]
    """(rows, tokens) -> logits (rows, classes): the pooled vector of an encoder's last hidden states, then one layer.

    The encoder keeps the name that it has in its family's own classifier, so layers are called the same in both.
    config: of the encoder, with classifier_pooling, a key of MODES. encoder: by default a new one.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: Any, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        encoder = AutoModel.from_config(config) if encoder is None else encoder  # type: ignore[no-untyped-call]
        self.base_model_prefix, self.mode = encoder.base_model_prefix, config.classifier_pooling
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # it reads the first token, and nothing here reads it
        setattr(self, self.base_model_prefix, encoder)
        rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout_prob"))
        self.rate: float = next((rate for rate in rates if rate), 0.0)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels).to(encoder.dtype)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: None = None, **given: Any
    ) -> SequenceClassifierOutput:
        """input_ids, attention_mask (rows, tokens); given: what else the encoder takes."""
        encoder: Any = self.base_model
        head: Any = self.classifier
        hidden: Tensor = encoder(input_ids=input_ids, attention_mask=attention_mask, **given)[0]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = MODES[self.mode](hidden.float(), mask.float()).to(hidden.dtype)
        return SequenceClassifierOutput(logits=head(F.dropout(pooled, self.rate, self.training)))

    def save_pretrained(self, save_directory: Any, **given: Any) -> None:  # type: ignore[override]
        """Writes a folder that sentence-transformers reads, whose vectors are the logits, and load_base() again."""
        folder, encoder = Path(save_directory), cast(PreTrainedModel, self.base_model)
        encoder.save_pretrained(folder, **given)
        pooled = {flag: mode == self.mode for flag, mode in FLAGS.items()}
        width, classes = self.classifier.in_features, self.classifier.out_features
        dense = {"in_features": width, "out_features": classes, "bias": True, "activation_function": NO_ACTIVATION}
        _write(folder / FOLDERS["Pooling"] / POOLING_CONFIG, {"word_embedding_dimension": width, **pooled})
        _write(folder / FOLDERS["Dense"] / POOLING_CONFIG, dense)
        tensors = {f"linear.{k}": t.detach().cpu().contiguous() for k, t in self.classifier.state_dict().items()}
        save_file(tensors, folder / FOLDERS["Dense"] / HEAD_FILE)
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(FOLDERS.items())
        ]
        _write(folder / MODULES, modules)


def pooled(model: PreTrainedModel, source: str | None) -> PreTrainedModel:
    """A family's classifier as one that pools as the settings in its folder or hub id say.

    As it is where nothing is stated, or where its head is the checkpoint's own. A head that save_pretrained() wrote is
    read. Raises ServeError for settings that cannot be understood.
    """
    if type(model).__name__ in (model.config.architectures or ()) or kind_of(model) != CLASSIFICATION:
        return model
    stated, head = stated_pooling(source), _own_head(model, source)
    if stated is None or model.base_model is model or (stated.refusal and head is None):
        return model
    model.config.classifier_pooling = stated.mode
    made = PooledForSequenceClassification(model.config, cast(PreTrainedModel, model.base_model))
    if head is not None:
        made.classifier.load_state_dict({k.removeprefix("linear."): t for k, t in head.items()})
        made.config.architectures = [type(made).__name__]
    return made


def _own_head(model: PreTrainedModel, source: str | None) -> dict[str, Tensor] | None:
    """The tensors of a head that save_pretrained() wrote there, where it has this model's classes."""
    dense = read_json(source, f"{FOLDERS['Dense']}/{POOLING_CONFIG}")
    if not isinstance(dense, dict) or dense.get("activation_function") != NO_ACTIVATION:
        return None
    if dense.get("out_features") != model.config.num_labels or model.device.type == "meta":
        return None
    file = find_file(source, f"{FOLDERS['Dense']}/{HEAD_FILE}")
    return None if file is None else load_file(file)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))

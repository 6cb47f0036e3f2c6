"""Layers that no loss trains are found before a step is made."""

import pytest
import torch
import transformers as T
from families import BERT, GEMMA, IMAGES, VISION
from tiny_models import make_model

from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.errors import RecipeError
from polyvera.model.layer_gradients import LayerProbe, check_shortest, probe_layers

ALL = AdapterSpec(targets="all-linear")


def test_every_layer_of_a_plain_model_is_reached_and_the_model_is_as_before() -> None:
    model = make_model().train()
    wants = [p.requires_grad for p in model.parameters()]
    assert probe_layers(model, tuple(find_sites(model, ALL))) == LayerProbe((), ())
    assert model.training and [p.requires_grad for p in model.parameters()] == wants
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


def test_a_pooler_that_no_answer_reads_is_found() -> None:
    model = T.BigBirdForSequenceClassification(T.BigBirdConfig(**BERT, attention_type="original_full"))
    assert probe_layers(model, tuple(find_sites(model, ALL))).dead == ("bert.pooler",)


def test_the_tower_of_images_is_not_of_the_text() -> None:
    config = T.Gemma3Config(text_config=GEMMA, vision_config=VISION, **IMAGES)
    model = T.Gemma3ForConditionalGeneration(config)
    names = tuple(find_sites(model, ALL))
    assert names and all(name.startswith("model.language_model.") for name in names)
    assert probe_layers(model, names).dead == ()


def test_an_expert_without_a_token_is_no_layer_without_use() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"experts": experts})])
            self.idle = torch.nn.Linear(4, 4)
            self.embed = torch.nn.Embedding(8, 4)
            self.config, self.device = T.BertConfig(vocab_size=8), torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return T.modeling_outputs.SequenceClassifierOutput(
                logits=self.layers[0]["experts"][1](self.embed(input_ids))
            )

    names = ("idle", *(f"layers.0.experts.{i}" for i in range(3)))
    assert probe_layers(Model(), names).dead == ("idle",)


def test_a_model_that_takes_no_rows_of_tokens_is_refused() -> None:
    model = T.ViTForImageClassification(T.ViTConfig(**VISION))
    with pytest.raises(RecipeError, match="ViTForImageClassification cannot be trained on rows of tokens"):
        probe_layers(model, tuple(find_sites(model, AdapterSpec())))


def test_a_layer_whose_output_is_written_over_is_found() -> None:
    model = make_model()
    mlp = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda module, given, out: out.add_(1.0))
    names = tuple(find_sites(model, ALL))
    assert probe_layers(model, names).written == ("model.layers.0.mlp.down_proj",)


def test_rows_that_are_too_short_for_a_model_are_refused() -> None:
    sizes = {"vocab_size": 32, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "block_sizes": [1, 1]}
    model = T.FunnelForSequenceClassification(T.FunnelConfig(**sizes, num_decoder_layers=1)).train()
    check_shortest(model, 3)
    with pytest.raises(RecipeError, match="cannot read rows of 2 tokens"):
        check_shortest(model, 2)
    assert model.training
    check_shortest(make_model(), 1)

"""What an adapter reaches of a model is told: blocks, weights, and the kinds left out."""

import torch
import transformers as T
from families import BERT, GEMMA, IMAGES, LLAMA, VISION

from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.model.coverage import coverage_of
from polyvera.model.shapes import model_shapes


def covered(model: torch.nn.Module, targets: object = "default") -> object:
    return coverage_of(model, find_sites(model, AdapterSpec(targets=targets)))


def test_all_matrices_of_a_plain_model_are_counted() -> None:
    model = T.LlamaForCausalLM(T.LlamaConfig(**LLAMA))
    found = covered(model, "all-linear")
    assert found.num_weights == sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert (found.num_adapted_blocks, found.num_blocks) == (2, 2)
    assert dict(found.left_out) == {"embeddings": 47 * 32, "other linear layers": 47 * 32}
    assert found.text.startswith("2 of 2 blocks and ") and "embeddings" in found.text


def test_experts_and_what_reads_no_text_are_named() -> None:
    experts = covered(T.MixtralForCausalLM(T.MixtralConfig(**LLAMA, num_local_experts=4)), "all-linear")
    assert experts.left_out[0][0] == "experts"
    config = T.Gemma3Config(text_config=GEMMA, vision_config=VISION, **IMAGES)
    assert "what reads no text" in dict(covered(T.Gemma3ForConditionalGeneration(config)).left_out)


def test_blocks_without_an_adapted_layer_are_counted() -> None:
    model = T.LlamaForCausalLM(T.LlamaConfig(**LLAMA))
    assert "1 of 2 blocks" in covered(model, ("layers.1.self_attn.q_proj",)).text


def test_shapes_carry_it() -> None:
    shapes = model_shapes(T.BertConfig(**BERT), AdapterSpec(head=("classifier",)), num_labels=2)
    assert shapes.coverage is not None and "the head" in dict(shapes.coverage.left_out)

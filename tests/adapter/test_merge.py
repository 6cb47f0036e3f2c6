import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.layer import AdaptedLinear
from polyvera.adapter.merge import Switch, merge
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError, SlotError

every = pytest.mark.parametrize("name", METHODS)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@every
def test_merged_equals_forward_and_is_plain(model: nn.Module, ids: Tensor, scramble, name: str) -> None:
    spec = AdapterSpec(name, rank=3, targets="all-linear", head=("classifier",) if hasattr(model, "classifier") else ())
    before = {n: type(m) for n, m in model.named_modules()}
    scramble(inject(model, spec, 2))
    with torch.no_grad(), route(2):
        expected = model(ids).logits
    plain = merge(model, 2)
    assert {n: type(m) for n, m in plain.named_modules()} == before
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, expected, atol=2e-5)


def test_merging_saves_as_an_ordinary_checkpoint(small_llama: nn.Module, ids: Tensor, scramble, tmp_path) -> None:
    scramble(inject(small_llama, AdapterSpec("dvora", rank=3, targets="all-linear")))
    plain = merge(small_llama)
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every
def test_switching_a_thousand_times_leaves_the_base_its_bits(
    small_llama: nn.Module, ids: Tensor, scramble, name, dtype
) -> None:
    model = small_llama.to(dtype)
    adapters = []
    for seed in range(3):
        spec = AdapterSpec(name, rank=3, targets=("q_proj", "up_proj") if seed else "all-linear")
        bank = inject(model, spec)
        scramble(bank, seed)
        adapters.append(extract(bank, 1, model))
        eject(model)
    base, switch = bits(model), Switch(model)
    first = {}
    for i in range(40):
        switch.to(adapters[i % 3])
        now = bits(model)
        first.setdefault(i % 3, now)
        assert all(torch.equal(now[n], first[i % 3][n]) for n in now)
    assert any(not torch.equal(first[0][n], base[n]) for n in base)
    merged = merge(_loaded(copy.deepcopy(switch.restore()), adapters[1]))
    assert all(torch.equal(p, first[1][n]) for n, p in merged.named_parameters())
    after = bits(model)
    assert all(torch.equal(after[n], base[n]) for n in base)


def _loaded(model: nn.Module, adapter) -> nn.Module:
    load(model, adapter)
    return model


def test_a_switch_moves_the_head_too(small_bert: nn.Module, ids: Tensor, scramble) -> None:
    spec = AdapterSpec(rank=3, head=("classifier",))
    bank = inject(small_bert, spec)
    scramble(bank)
    with torch.no_grad():
        expected = small_bert(ids).logits
        adapter = extract(bank, 1, small_bert)
        base = small_bert.to(torch.float32)
        eject(base)
        bare = base(ids).logits
        switch = Switch(base)
        assert torch.allclose(switch.to(adapter)(ids).logits, expected, atol=2e-5)
        assert torch.equal(switch.restore()(ids).logits, bare)


def test_a_switch_that_fails_leaves_the_base(small_llama: nn.Module, scramble) -> None:
    spec = AdapterSpec(rank=3)
    bank = inject(small_llama, spec)
    scramble(bank)
    bank._write(0, bank.take(1) * float("nan"))
    broken = extract(bank, 1, small_llama)
    base = bits(eject(small_llama))
    with pytest.raises(LayoutError, match="not finite"):
        Switch(small_llama).to(broken)
    assert not any(isinstance(m, AdaptedLinear) for m in small_llama.modules())
    assert all(torch.equal(base[n], p) for n, p in small_llama.named_parameters())


def test_a_quantized_base_is_merged_only_when_asked(scramble) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    layers = [bnb.nn.Linear8bitLt(i, o, bias=False, has_fp16_weights=False) for i, o in ((64, 32), (32, 64))]
    for layer in layers:
        layer.weight = bnb.nn.Int8Params(torch.randn(layer.out_features, layer.in_features), requires_grad=False)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).to("cpu")
    scramble(inject(model, AdapterSpec("vera", rank=3, targets=("0", "2"))))
    x = torch.randn(2, 64)
    expected = model(x)
    with pytest.raises(LayoutError, match="dequantize=True"):
        merge(model)
    merged = merge(model, dequantize=True)(x)
    assert (merged - expected).norm() < 0.02 * expected.norm()  # the 8-bit product rounds x too


def test_which_slot_must_be_said_where_there_are_two(small_llama: nn.Module) -> None:
    inject(small_llama, AdapterSpec(rank=3), 2)
    with pytest.raises(SlotError, match=r"occupied slots are \[1, 2\]"):
        merge(small_llama)


@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), ("q_proj",)])
def test_a_tie_ends_in_the_config_where_the_output_layer_is_merged(targets, ids: Tensor, tmp_path, scramble) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True)).eval()
    scramble(inject(model, AdapterSpec("lora", 4, targets)))
    wanted = model(ids).logits
    merged = merge(model)
    assert merged.config.tie_word_embeddings == ("lm_head" not in targets)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, wanted, rtol=1e-4, atol=1e-4)


def test_switching_an_output_layer_leaves_the_embedding_that_it_is_tied_to(ids: Tensor, scramble) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True)).eval()
    scramble(bank := inject(model, AdapterSpec("lora", 4, ("q_proj", "lm_head"))))
    wanted, adapter = model(ids).logits, extract(bank, 1, model)
    base, switch = bits(eject(model)), Switch(model)
    for _ in range(2):
        torch.testing.assert_close(switch.to(adapter)(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        switch.restore()
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert all(torch.equal(base[n], p) for n, p in bits(model).items())

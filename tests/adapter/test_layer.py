"""The laws of an adapted model, for every row of the table."""

import copy

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter.base_layer import dense_weight
from polyvera.adapter.equation import delta_weight
from polyvera.adapter.inject import banks_of, inject, load
from polyvera.adapter.layer_bank import LayerBank
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import checkpoint_context, route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError

SPECS = {
    f"{n}{'+m' if m else ''}": AdapterSpec(n, rank=4, targets="all-linear", magnitude=m)
    for n in METHODS
    for m in (0, 1)
}
every = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def logits(model: nn.Module, ids: Tensor, slots: object = None, **kwargs: object) -> Tensor:
    if slots is None:
        return model(ids, **kwargs).logits
    with route(slots):
        return model(ids, **kwargs).logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def whole(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[n].flatten() for n in sorted(found)])


def agree(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert set(a) == set(b) and a
    for name in a:
        assert (a[name] - b[name]).norm() <= tolerance * b[name].norm() + 1e-8, name


@every
def test_a_fresh_adapter_is_the_identity(model: nn.Module, ids: Tensor, spec: AdapterSpec) -> None:
    with torch.no_grad():
        bare = logits(model, ids)
    inject(model, spec)
    assert torch.allclose(logits(model, ids), bare, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(logits(model, ids), bare)


@every
def test_a_mixed_batch_equals_one_at_a_time(model: nn.Module, ids: Tensor, spec: AdapterSpec, scramble) -> None:
    with torch.no_grad():
        bare = logits(model, ids)
        scramble(inject(model, spec, 3))
        mixed = logits(model, ids, [2, 0, 3, 1])
        alone = [logits(model, ids, slot) for slot in range(4)]
    assert torch.equal(alone[0], bare) and torch.equal(mixed[1], bare[1])
    for row, slot in enumerate([2, 0, 3, 1]):
        assert torch.allclose(mixed[row], alone[slot][row], atol=1e-6)
    assert min((alone[i] - alone[j]).abs().max() for i in range(4) for j in range(i)) > 1e-4


@every
def test_gradients_of_a_mixed_batch_equal_one_at_a_time(
    small_llama: nn.Module, ids: Tensor, spec: AdapterSpec, scramble
) -> None:
    bank = inject(small_llama, spec, 3)
    scramble(bank)
    slots, weights = [2, 0, 3, 2], torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(0))
    (logits(small_llama, ids, slots) * weights).sum().backward()
    mixed = gradients(small_llama)
    for row, slot in enumerate(slots):
        if slot:
            (logits(small_llama, ids[row : row + 1], slot) * weights[row : row + 1]).sum().backward()
    agree(mixed, gradients(small_llama), 5e-5)  # sums in another order


@every
def test_gradients_equal_a_float64_model(small_llama: nn.Module, ids: Tensor, spec: AdapterSpec, scramble) -> None:
    scramble(inject(small_llama, spec), size=0.03)  # an m near 0 would magnify every rounding
    logits(small_llama, ids).square().sum().backward()
    exact = copy.deepcopy(small_llama).double()
    exact.zero_grad()
    for bank in banks_of(exact):
        bank.dtype = torch.float64
    logits(exact, ids).square().sum().backward()
    agree({n: g.double() for n, g in gradients(small_llama).items()}, gradients(exact))


@every
def test_only_trained_letters_get_gradients(small_llama: nn.Module, ids: Tensor, spec: AdapterSpec, scramble) -> None:
    bank = inject(small_llama, spec)
    scramble(bank)
    logits(small_llama, ids).sum().backward()
    names = set(gradients(small_llama))
    trained = {n for n, p in small_llama.named_parameters() if p.requires_grad}
    assert names == trained
    assert sum(small_llama.get_parameter(n).numel() for n in trained) == bank.layout.num_params


@pytest.mark.parametrize("reentrant", [True, False])
@every
def test_gradient_checkpointing_changes_nothing(
    small_llama: nn.Module, ids: Tensor, spec: AdapterSpec, scramble, reentrant
) -> None:
    scramble(inject(small_llama, spec))
    small_llama.train()
    embeddings = small_llama.get_input_embeddings()(ids).requires_grad_()
    small_llama(inputs_embeds=embeddings).logits.square().sum().backward()
    plain = gradients(small_llama)
    small_llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
    small_llama(inputs_embeds=embeddings).logits.square().sum().backward()
    agree(gradients(small_llama), plain)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_recomputes_on_the_route_of_its_forward(
    small_llama: nn.Module, ids: Tensor, scramble, name: str
) -> None:
    scramble(inject(small_llama, AdapterSpec(name, rank=4), 3))
    small_llama.train()
    embeddings = small_llama.get_input_embeddings()(ids).requires_grad_()

    def backward() -> dict[str, Tensor]:
        with route([1, 2, 3, 1]):
            out = small_llama(inputs_embeds=embeddings).logits.square().sum()
        out.backward()  # outside the route, as a trainer does it
        return gradients(small_llama)

    plain = backward()
    small_llama.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_context})
    agree(backward(), plain)


@every
def test_autocast_stays_near_fp32(small_llama: nn.Module, ids: Tensor, spec: AdapterSpec, scramble) -> None:
    scramble(inject(small_llama, spec, 2))
    for slots in (1, [1, 2, 0, 2]):
        exact = logits(small_llama, ids, slots)
        exact.square().mean().backward()
        truth = gradients(small_llama)
        with torch.autocast("cpu", torch.bfloat16):
            low = logits(small_llama, ids, slots)
            low.float().square().mean().backward()
        assert torch.allclose(low.float(), exact, atol=0.1, rtol=0.1)
        agree({"all": whole(gradients(small_llama))}, {"all": whole(truth)}, 0.3)


@every
def test_a_low_precision_base_keeps_its_dtype_and_fp32_vectors(
    small_llama: nn.Module, ids: Tensor, spec: AdapterSpec, scramble
) -> None:
    model = small_llama.bfloat16()
    scramble(inject(model, spec, 2))
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        mixed, alone = logits(model, ids, [1, 2, 0, 2]), logits(model, ids, 2)
    assert mixed.dtype == torch.bfloat16 and torch.equal(mixed[1], alone[1]) and torch.equal(mixed[3], alone[3])
    logits(model, ids, 1).float().sum().backward()
    assert all(g.isfinite().all() for g in gradients(model).values())


@pytest.mark.parametrize("name", METHODS)
def test_compiled_equals_eager(small_llama: nn.Module, ids: Tensor, scramble, name: str) -> None:
    torch._dynamo.reset()
    layer = small_llama.model.layers[0].mlp
    scramble(inject(layer, AdapterSpec(name, rank=4, targets=("gate_proj", "up_proj"))))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    eager = layer(x)
    eager.square().sum().backward()
    truth = gradients(layer)
    compiled = torch.compile(layer, backend="aot_eager")
    out = compiled(x)
    out.square().sum().backward()
    assert torch.allclose(out, eager, atol=1e-5)
    agree({n.removeprefix("_orig_mod."): g for n, g in gradients(compiled).items()}, truth)


def test_siblings_project_their_input_once(small_llama: nn.Module, ids: Tensor, scramble, monkeypatch) -> None:
    from polyvera.adapter import shared_input

    bank = inject(small_llama, AdapterSpec("vera", rank=4, targets="all-linear"))
    seen: list[tuple[int, ...]] = []
    plain = shared_input.project_input
    monkeypatch.setattr(shared_input, "project_input", lambda x, A, p: seen.append(tuple(x.shape)) or plain(x, A, p))
    out = logits(small_llama, ids)
    assert len(bank.layers) == 3 * 7 and len(seen) == 3 * 4  # qkv, o, gate and up, down
    out.sum().backward()
    assert all(layer._kept is None for layer in {b.shared for b in bank.layers.values()})


@every
def test_matrices_give_the_delta_that_the_forward_adds(model: nn.Module, spec: AdapterSpec, scramble) -> None:
    bank = inject(model, spec, 2)
    scramble(bank)
    for name, layer in bank.layers.items():
        x = torch.randn(5, layer.site.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), route(2):
            found = model.get_submodule(name)(x)
        f, W = layer.matrices(1), dense_weight(layer.base)
        merged = W + delta_weight(f["A"], f["B"], f.get("d"), f.get("b"), layer.site.scale, f.get("C"))
        g = f["m"] / merged.norm(dim=1) if "m" in f else torch.ones(len(W))
        bias = 0 if layer.base.bias is None else layer.base.bias
        assert torch.allclose(found, x @ (g[:, None] * merged).T + bias, atol=1e-5)


def test_dropout_acts_in_training_only(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    scramble(inject(small_llama, AdapterSpec("vera", rank=4, dropout=0.5)))
    assert torch.equal(logits(small_llama, ids), logits(small_llama, ids))
    small_llama.train()
    assert not torch.equal(logits(small_llama, ids), logits(small_llama, ids))


@every
def test_the_norm_follows_the_numbers(small_llama: nn.Module, ids: Tensor, spec: AdapterSpec, scramble) -> None:
    bank = inject(small_llama, spec)
    scramble(bank)
    with torch.no_grad():
        before = logits(small_llama, ids)
    optimizer = torch.optim.SGD([p for p in small_llama.parameters() if p.requires_grad], lr=0.05)
    logits(small_llama, ids).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        after = logits(small_llama, ids)
        bank._write(0, bank.take(1))  # the same numbers, every cache new
        assert torch.equal(logits(small_llama, ids), after) and not torch.equal(after, before)


@pytest.mark.parametrize("kind", ["bitsandbytes 8 bit", "bitsandbytes 4 bit", "torchao int8"])
@every
def test_a_quantized_base_works_unchanged(kind: str, spec: AdapterSpec, scramble) -> None:
    base = quantized(kind)
    x = torch.randn(4, 3, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare = base(x)
    spec = AdapterSpec.from_dict({**spec.to_dict(), "targets": ("0", "2")})
    if spec.row.reads_base:
        with pytest.raises(LayoutError, match="0 is quantized, and the basis is computed"):
            inject(base, spec, 2)
        return
    bank = inject(base, spec, 2)
    with torch.no_grad():
        assert torch.equal(base_at(base, x, 1), bare)
    scramble(bank)
    out = base_at(base, x, [1, 2, 0, 2])
    assert torch.allclose(out[2], bare[2], atol=1e-6) and not torch.allclose(out[0], bare[0], atol=1e-3)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in base.parameters() if p.requires_grad)
    f = bank.layers["0"].matrices(0)
    assert isinstance(bank.layers["0"], LayerBank) and f["A"].shape == (4, 64)


def base_at(model: nn.Module, x: Tensor, slots: object) -> Tensor:
    with route(slots):
        return model(x)


def quantized(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    if kind == "torchao int8":
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        return model
    bnb = pytest.importorskip("bitsandbytes")
    for i in (0, 2):
        plain = model[i]
        if kind.endswith("8 bit"):
            low = bnb.nn.Linear8bitLt(plain.in_features, plain.out_features, has_fp16_weights=False)
            low.weight = bnb.nn.Int8Params(plain.weight.data.clone(), requires_grad=False)
        else:
            low = bnb.nn.Linear4bit(plain.in_features, plain.out_features, compute_dtype=torch.float32)
            low.weight = bnb.nn.Params4bit(plain.weight.data.clone(), requires_grad=False)
        low.bias = plain.bias
        model[i] = low
    return model.to("cpu")


def test_loading_many_leaves_every_one_as_it_is_alone(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    from polyvera.adapter.inject import eject, extract

    specs = [
        AdapterSpec("vera", rank=6, seed=3, targets=("q_proj", "down_proj")),
        AdapterSpec("vera", rank=4, seed=0, targets=("q_proj", "v_proj")),
        AdapterSpec("dora", rank=2, targets="all-linear"),
        AdapterSpec("dvora", rank=5, seed=9, targets="all-linear", init="orthogonal"),
        AdapterSpec("adalora", rank=3, targets=("v_proj",)),
        AdapterSpec("lora-fa", rank=3, seed=4, targets=("v_proj", "o_proj")),
    ]
    adapters, alone = [], []
    for i, spec in enumerate(specs):
        bank = inject(small_llama, spec, 2)
        scramble(bank, seed=i)
        adapters.append(extract(bank, bank.slots[1], small_llama))
        eject(small_llama)
        with torch.no_grad():
            (slot,) = load(small_llama, adapters[-1])
            alone.append(logits(small_llama, ids, slot))
        eject(small_llama)
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        slots = load(small_llama, [adapters[i] for i in order])
        with torch.no_grad():
            for slot, i in zip(slots, order, strict=True):
                assert torch.equal(logits(small_llama, ids, slot), alone[i])
            mixed = logits(small_llama, ids, slots[:3] + [0])
            for row, i in enumerate(order[:3]):
                assert torch.allclose(mixed[row], alone[i][row], atol=1e-6)
        eject(small_llama)

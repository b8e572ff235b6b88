"""A pack lives as long as its parameter stays what it was."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

from gptrio.kernels.linear import packed_inference
from gptrio.kernels.packing import can_pack, find_pack, packed_bytes, release_packs
from gptrio.nn.linear import Conv1D, Linear
from gptrio.quantization.native import QuantizedLinear


@pytest.fixture(params=[Linear, Conv1D])
def module(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param(256, 256).eval()


def run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode(), packed_inference(module):
        return module(x)


def plain(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(x)


def in_place(module: nn.Module) -> None:
    with torch.no_grad():
        module.weight[3] += 1


def optimizer_step(module: nn.Module) -> None:
    module.weight.grad = torch.ones_like(module.weight)
    torch.optim.AdamW(module.parameters(), lr=0.1).step()


def load(module: nn.Module) -> None:
    module.load_state_dict({"weight": torch.randn(256, 256), "bias": torch.randn(256)})


def load_assigning(module: nn.Module) -> None:
    module.load_state_dict({"weight": torch.randn(256, 256), "bias": torch.randn(256)}, assign=True)


def new_parameter(module: nn.Module) -> None:
    module.weight = nn.Parameter(torch.randn(256, 256))


def data_replaced(module: nn.Module) -> None:
    module.weight.data = torch.randn(256, 256)


def data_transposed(module: nn.Module) -> None:
    module.weight.data = module.weight.data.T


def data_edited(module: nn.Module) -> None:
    module.weight.data.mul_(1.5)


def data_copied(module: nn.Module) -> None:
    module.weight.data.copy_(torch.randn(256, 256))


def initialised(module: nn.Module) -> None:
    nn.init.normal_(module.weight)


CHANGES = [
    in_place,
    optimizer_step,
    load,
    load_assigning,
    new_parameter,
    data_replaced,
    data_transposed,
    data_edited,
    data_copied,
    initialised,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weight_is_packed_anew(module: nn.Module, change) -> None:
    x = torch.randn(40, 256)
    before = run(module, x)
    change(module)
    after = run(module, x)
    torch.testing.assert_close(after, plain(module, x), atol=2e-5, rtol=2e-5)
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("change", [in_place, new_parameter, data_replaced, data_transposed])
def test_change_inside_the_context_is_seen(module: nn.Module, change) -> None:
    x = torch.randn(40, 256)
    with torch.no_grad(), packed_inference(module):
        module(x)
        change(module)
        after = module(x)
    torch.testing.assert_close(after, plain(module, x), atol=2e-5, rtol=2e-5)


def element(weight: Tensor) -> None:
    flat = weight.data.view(-1)
    flat[torch.randint(0, flat.numel(), ())] += 100


def row(weight: Tensor) -> None:
    weight.data[torch.randint(0, len(weight), ())] *= -100


def column(weight: Tensor) -> None:
    weight.data[:, torch.randint(0, weight.shape[1], ())] *= -100


def exchange(weight: Tensor) -> None:
    first, second = torch.randperm(len(weight))[:2].tolist()
    weight.data[[first, second]] = weight.data[[second, first]]


def through_numpy(weight: Tensor) -> None:
    array = weight.detach().numpy()
    array[int(torch.randint(0, 256, ())), int(torch.randint(0, 256, ()))] += 100


@pytest.mark.parametrize("edit", [element, row, column, exchange, through_numpy], ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("rows", [2, 40])
def test_edits_past_the_version_counter_are_seen_wherever_they_are(module: nn.Module, edit, rows: int) -> None:
    x = torch.randn(rows, 256)
    for _ in range(12):
        before, version = run(module, x), module.weight._version
        edit(module.weight)
        assert module.weight._version == version
        after = run(module, x)
        torch.testing.assert_close(after, plain(module, x), atol=1e-3, rtol=1e-4)
        assert not torch.equal(after, before)
        with torch.no_grad():
            nn.init.normal_(module.weight, std=0.02)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("part", ["weight", "weight_scale"])
@pytest.mark.parametrize("context", [packed_inference, lambda module: torch.no_grad()], ids=["packed", "plain"])
def test_edits_of_codes_and_scales_are_seen(bits: int, rows: int, part: str, context) -> None:
    """As by a copy of the layer, which has no packs yet."""
    layer, x = QuantizedLinear(Linear(256, 256), None if bits == 8 else 64), torch.randn(rows, 256)
    with torch.no_grad():
        for _ in range(10):
            with context(layer):
                before = layer(x)
            flat = getattr(layer, part).data.view(-1)
            place = torch.randint(0, flat.numel(), ())
            flat[place] = flat[place] ^ 0x55 if part == "weight" else flat[place] * 4
            fresh = copy.deepcopy(layer)
            with context(layer):
                after = layer(x)
            with context(fresh):
                assert torch.equal(after, fresh(x))
            assert not torch.equal(after, before)


def test_threads_find_free_and_lose_packs_at_once() -> None:
    """Packs die in one thread while another looks them up, frees them, or packs a weight that has the dead one's id."""
    shared, x = Linear(256, 256).eval(), torch.randn(4, 256)
    expected, errors = plain(shared, x), []

    def work(number: int) -> None:
        try:
            for turn in range(60):
                own = Linear(256, 256).eval()
                torch.testing.assert_close(run(own, x), plain(own, x), atol=2e-5, rtol=2e-5)
                torch.testing.assert_close(run(shared, x), expected, atol=2e-5, rtol=2e-5)
                if turn % 3 == number % 3:
                    release_packs(shared)
                del own
        except BaseException as error:  # to be shown by the test, not by the thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_shrunk_view_of_the_same_storage_is_seen() -> None:
    module, x = Linear(256, 300).eval(), torch.randn(40, 256)
    run(module, x)
    module.weight.data = module.weight.data[:280]
    module.bias.data = module.bias.data[:280]
    torch.testing.assert_close(run(module, x), plain(module, x), atol=2e-5, rtol=2e-5)


def test_unchanged_weight_keeps_its_pack(module: nn.Module) -> None:
    first = find_pack(module.weight, False)
    run(module, torch.randn(40, 256))
    assert (find_pack(module.weight, False) is first) == isinstance(module, Linear)


def test_dtype_change_is_packed_anew(module: nn.Module) -> None:
    x = torch.randn(40, 256)
    run(module, x)
    module.bfloat16()
    got = run(module, x.bfloat16())
    torch.testing.assert_close(got, plain(module, x.bfloat16()), atol=3e-2, rtol=3e-2)
    if can_pack(torch.bfloat16):
        assert packed_bytes(module) == module.weight.nbytes


def test_state_dict_pickle_and_save_hold_no_pack(module: nn.Module) -> None:
    x = torch.randn(40, 256)
    size = len(pickle.dumps(module))
    run(module, x)
    assert set(module.state_dict()) == {"weight", "bias"}
    assert len(pickle.dumps(module)) == size
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer)["weight"], module.weight)
    restored = pickle.loads(pickle.dumps(module))
    assert packed_bytes(restored) == 0 and torch.equal(plain(restored, x), plain(module, x))


def test_pack_goes_with_its_parameter(module: nn.Module) -> None:
    from gptrio.kernels.packing import _packs

    run(module, torch.randn(40, 256))
    key = id(module.weight)
    assert key in _packs
    module.weight = nn.Parameter(torch.randn(256, 256))
    gc.collect()
    assert key not in _packs or _packs[key][0]() is not None


def test_release_frees_packs(module: nn.Module) -> None:
    run(module, torch.randn(40, 256))
    assert packed_bytes(module) == module.weight.nbytes
    release_packs(module)
    assert packed_bytes(module) == 0


def test_inference_tensors_are_never_packed() -> None:
    with torch.inference_mode():
        module = Linear(256, 256)
    x = torch.randn(40, 256)
    assert torch.equal(run(module, x), plain(module, x))
    assert packed_bytes(module) == 0

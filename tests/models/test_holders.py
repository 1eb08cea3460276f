"""Conversions by timm, torch and Ultralytics keep inserted attention modules, or are refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from helpers.networks import randomize_norms
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.utils import ModelEmaV3, freeze, reparameterize_model, unfreeze
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules
from torch.distributed.fsdp import fully_shard
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecanet.errors import UserError
from ecanet.models import attention_modules, check_attention, checked_attention, insert_attention
from ecanet.models.probe import small_image

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def resnet(attention: str = "se", where: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).eval()
    randomize_norms(model)
    return insert_attention(model, attention, where=where)


def output(model: nn.Module, count: int) -> Tensor:
    """Return the model's output, after checking that ``count`` attention modules ran."""
    with torch.no_grad(), checked_attention(model) as modules:
        result = model.eval()(IMAGES.to(next(model.parameters()).dtype))
    assert len(modules) == count
    return result


def frozen(model: nn.Module) -> nn.Module:
    freeze(model)
    return model


def frozen_and_back(model: nn.Module) -> nn.Module:
    freeze(model)
    unfreeze(model)
    return model


def folded(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the preceding convolution, as in torch's documentation."""
    for block in [b for n, b in model.named_modules() if type(b).__name__ == "BasicBlock"]:
        for i in "12":
            conv, norm = getattr(block, f"conv{i}"), getattr(block, f"bn{i}")
            setattr(block, f"conv{i}", fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{i}", nn.Identity())
    return model


class Wrapper(nn.Module):
    """A layer around another one, as LoRA's."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def parametrized(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            nn.utils.parametrizations.weight_norm(module)
    return copy.deepcopy(model)


def pruned(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            prune.identity(module, "weight")
    return model


def applied(model: nn.Module) -> nn.Module:
    return model.apply(lambda module: None).double().float()


CONVERSIONS: list[Callable[[nn.Module], nn.Module]] = [
    frozen,
    frozen_and_back,
    nn.SyncBatchNorm.convert_sync_batchnorm,
    convert_sync_batchnorm,
    folded,
    parametrized,
    pruned,
    applied,
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),
    lambda model: ModelEmaV3(model).module,
    lambda model: torch.optim.swa_utils.AveragedModel(model).module,
]


@pytest.mark.parametrize("convert", CONVERSIONS)
@pytest.mark.parametrize("attention", ["se", "srm"])
def test_modules_at_norms_remain(convert: Callable[[nn.Module], nn.Module], attention: str) -> None:
    model = resnet(attention)
    expected = output(model, 8)
    names = list(attention_modules(model))
    converted = convert(model)
    torch.testing.assert_close(output(converted, 8), expected)
    assert list(attention_modules(converted)) == names
    if attention == "se":  # and again: what was converted keeps them as well
        torch.testing.assert_close(output(frozen(converted), 8), expected)


@pytest.mark.parametrize("convert", [fuse, lambda model: convert_splitbn_model(model, 2)])
def test_norms_that_are_fused_or_split_by_a_function(convert: Callable[..., nn.Module]) -> None:
    model = resnet()
    torch.testing.assert_close(output(convert(model), 8), output(model, 8))


def test_wrapped_layers_remain_and_may_replace_each_other() -> None:
    model = resnet()
    expected = output(model, 8)
    model.layer1[0].bn2 = Wrapper(model.layer1[0].bn2)
    model.layer2[0] = Wrapper(model.layer2[0])
    torch.testing.assert_close(output(model, 8), expected)


def test_quantizations_fusion_is_refused_at_a_place_and_works_elsewhere() -> None:
    model = resnet()
    expected = output(model, 8)
    elsewhere = fuse_modules(model, [["conv1", "bn1"], ["layer1.0.conv1", "layer1.0.bn1"]])
    torch.testing.assert_close(output(elsewhere, 8), expected)
    with pytest.raises((AssertionError, NotImplementedError), match="BatchNorm2dWithAttention"):
        fuse_modules(model, [["layer1.0.conv2", "layer1.0.bn2"]], inplace=True)
    torch.testing.assert_close(output(model, 8), expected)


# Blocks that merge convolutions, norms and parallel branches; their attention modules are elsewhere.
@pytest.mark.parametrize(
    "name", ["repvit_m0_9", "repghostnet_050", "efficientvit_m0", "fastvit_t8"]
)
def test_reparameterized_networks_keep_the_modules_of_their_branches(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).eval()
    randomize_norms(model)
    image = torch.rand_like(small_image(model, ""))
    insert_attention(model, "se")
    expected = model(image)
    count = len(attention_modules(model))
    merged = reparameterize_model(model)
    assert len(list(merged.parameters())) < len(list(model.parameters()))
    with checked_attention(merged) as modules:
        actual = merged(image)
    assert (actual - expected).norm() < 1e-4 * expected.norm()
    assert len(modules) == count


def test_a_module_after_a_block_that_merges_itself_follows_what_it_becomes() -> None:
    torch.manual_seed(0)
    model = timm.create_model("levit_conv_128s", num_classes=4).eval()
    randomize_norms(model)
    image = torch.rand_like(small_image(model, ""))
    insert_attention(model, "se", where="stem.conv*")
    expected = model(image)
    names = list(attention_modules(model))
    merged = reparameterize_model(model)
    assert isinstance(merged.stem.conv1, nn.Conv2d)
    assert (merged(image) - expected).norm() < 1e-4 * expected.norm()
    assert list(attention_modules(merged)) == names
    assert list(attention_modules(copy.deepcopy(merged))) == names


def test_freezing_reaches_the_batch_norms_inside_attention_modules() -> None:
    model = resnet("coord")
    freeze(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_freezing_one_norm_or_one_stage() -> None:
    model = resnet()
    expected = output(model, 8)
    freeze(model, ["layer1", "layer2.0.bn2"])
    assert type(model.layer1[0].bn2).__name__ == "FrozenBatchNorm2dWithAttention"
    torch.testing.assert_close(output(model, 8), expected)


def test_a_drop_path_that_is_replaced() -> None:
    model = insert_attention(timm.create_model("resnet10t", num_classes=4), "se").eval()
    expected = output(model, 4)
    for module in [m for m in model.modules() if hasattr(m, "drop_path") and hasattr(m, "conv1")]:
        module.drop_path = timm.layers.DropPath(0.1)
    torch.testing.assert_close(output(model, 4), expected)
    model.layer1[0].drop_path = None
    torch.testing.assert_close(output(model, 4), expected)


# Attention modules in front of drop paths, which these delete.
@pytest.mark.parametrize(("name", "count"), [("repvgg_a0", 17), ("mobileone_s0", 43)])
@pytest.mark.parametrize("inplace", [False, True])
def test_reparameterize_is_refused_before_any_change(name: str, count: int, inplace: bool) -> None:
    model = timm.create_model(name, num_classes=4).eval()
    insert_attention(model, "eca")
    expected = output(model, count)
    with pytest.raises(UserError, match=r"reparameterize\(\) of .* loses an att"):
        reparameterize_model(model, inplace=inplace)
    # The stem, where none is, may have been converted by then.
    torch.testing.assert_close(output(model, count), expected)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_reparameterize_keeps_modules_elsewhere(name: str) -> None:
    torch.manual_seed(0)
    # In float64, as random norms let these networks grow until a rounding of float32 changes gates.
    model = timm.create_model(name, num_classes=4).eval().double()
    randomize_norms(model)
    insert_attention(model, "eca", where="stages.*.*.attn")
    count = len(attention_modules(model))
    expected = output(model, count)
    fused = output(reparameterize_model(model), count)
    assert (fused - expected).norm() < 1e-6 * expected.norm()


class Conv(nn.Module):
    """Ultralytics' convolution: ``fuse`` of the model folds ``bn`` away and replaces ``forward``."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Detector(nn.Module):
    """The part of Ultralytics' BaseModel that fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(3, 8), Conv(8, 16), Conv(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def fuse(self) -> nn.Module:
        return fuse_ultralytics(self)


def fuse_ultralytics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, Conv) and hasattr(module, "bn"):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            delattr(module, "bn")
            module.forward = module.forward_fuse
    return model


def detector(where: str) -> nn.Module:
    torch.manual_seed(0)
    model = Detector().eval()
    randomize_norms(model)
    return insert_attention(model, "se", where=where)


def test_ultralytics_fuse_keeps_modules_after_whole_convolutions() -> None:
    model = detector("model.*")
    expected = output(model, 3)
    torch.testing.assert_close(output(model.fuse(), 3), expected)
    torch.testing.assert_close(output(copy.deepcopy(model), 3), expected)


@pytest.mark.parametrize("where", ["model.*.bn", "model.1.conv"])
def test_ultralytics_fuse_is_refused_if_it_loses_a_module(where: str) -> None:
    model = detector(where)
    count = len(attention_modules(model))
    expected = output(model, count)
    with pytest.raises(UserError, match=r"fuse\(\) of Detector loses an attention module"):
        model.fuse()
    assert torch.equal(output(model, count), expected)
    with pytest.raises(UserError, match="attention module"):
        fuse_ultralytics(model)  # past the method


def test_deleting_or_replacing_a_place_is_refused() -> None:
    model = resnet(where="layer1.*")
    with pytest.raises(UserError, match="loses an attention module"):
        del model.layer1[0]
    with pytest.raises(UserError, match="but its replacement"):
        model.layer1[0] = nn.Identity()
    model.layer1[0] = nn.Sequential(model.layer1[0])  # a wrapper, as FSDP's
    output(model, 2)
    insert_attention(model, "none")
    model.layer1[1] = nn.Identity()


def test_the_check_finds_lost_and_idle_modules() -> None:
    model = resnet()
    model.layer1[0].forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"1 of the 8 .* do not run \(layer1.0.bn2.attention"):
        output(model, 8)
    model = resnet()
    model.layer4[1]._modules["bn2"] = nn.Identity()
    with pytest.raises(UserError, match=r"7 of the 8 attention modules .* left"):
        output(model, 8)
    converted = copy.deepcopy(resnet())
    converted.layer2[0].bn2._modules["attention"] = nn.Identity()
    with pytest.raises(UserError, match="7 of the 8"):
        output(converted, 8)


def test_one_image_is_enough_to_check() -> None:
    model = resnet().train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    assert check_attention(model, 32) == 8
    assert [module.training for module in model.modules()] == modes
    assert model.bn1.num_batches_tracked == 0
    model.layer1[0].forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(UserError, match="do not run"):
        check_attention(model, 32)


def test_distributed_training_runs_all(tmp_path: object) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = resnet()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with checked_attention(model):
            wrapped(IMAGES).sum().backward()
        parameters = [p for m in attention_modules(model).values() for p in m.parameters()]
        assert all(p.grad is not None for p in parameters)
    finally:
        torch.distributed.destroy_process_group()


def test_fully_sharded_layers_keep_their_modules(tmp_path: object) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = resnet()
        expected = output(model, 8)
        for block in model.layer1:
            fully_shard(block)
        fully_shard(model)
        torch.testing.assert_close(output(model, 8), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_classes_keep_their_names_and_isinstance() -> None:
    model = resnet()
    assert type(model).__name__ == "ResNet"
    assert isinstance(model.layer1[0], torchvision.models.resnet.BasicBlock)
    assert type(model.layer1[0]).__name__ == "BasicBlock"
    assert list(resnet().state_dict()) == list(model.state_dict())

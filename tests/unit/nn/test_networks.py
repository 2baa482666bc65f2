"""Networks: the ensemble is its copies, encoders read what they say, heads give the deviations they promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from habilis.core import acceleration
from habilis.core.errors import ConfigError
from habilis.core.specs import DiscreteAction, MultiDiscreteAction, ObsGroup
from habilis.nn.distributions import Categorical, MultiCategorical
from habilis.nn.encoder import ImageEncoder, ObsEncoder
from habilis.nn.heads import CategoricalHead, GaussianHead, SquashedGaussianHead
from habilis.nn.init import linear
from habilis.nn.mlp import MLP, EnsembleLinear, EnsembleMLP
from habilis.nn.value import ValueNetwork


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("out", [1, 2])
def test_ensemble_equals_separate_networks(out, generator):
    ensemble = EnsembleMLP(3, 5, (8, 6), out, "relu", generator)
    x = torch.randn(7, 5, generator=generator)
    together = ensemble(x)
    assert together.shape == (3, 7, out)
    for k in range(3):
        alone = MLP(5, (8, 6), out, "relu", generator)
        stacked = [layer for layer in (*ensemble.hidden, ensemble.out) if isinstance(layer, EnsembleLinear)]
        plain = [layer for layer in (*alone.hidden, alone.out) if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for many, one in zip(stacked, plain, strict=True):
                one.weight.copy_(many.weight[k].T)
                one.bias.copy_(many.bias[k, 0])
        torch.testing.assert_close(together[k], alone(x))
    assert not torch.equal(together[0], together[1])


def test_linear_default_has_pytorchs_bounds(generator):
    layer = linear(100, 400, generator)
    for values in (layer.weight.detach(), layer.bias.detach()):
        assert float(values.abs().max()) <= 0.1
        # uniform on [-0.1, 0.1] has deviation 0.1 / sqrt(3)
        assert float(values.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


def test_linear_orthogonal(generator):
    layer = linear(6, 4, generator, gain=2.0)
    torch.testing.assert_close(layer.weight @ layer.weight.T, 4 * torch.eye(4), atol=1e-5, rtol=0)
    assert not layer.bias.any()


def test_mlp_without_an_output_layer_ends_with_its_activation(generator):
    net = MLP(3, (4,), None, "relu", generator)
    assert net.out_dim == 4
    assert bool((net(torch.randn(50, 3, generator=generator)) >= 0).all())
    assert MLP(3, (), None, "relu", generator).out_dim == 3


def image_group(*shape):
    return ObsGroup(shape, "uint8")


def random_images(group, *leading, generator):
    return torch.randint(256, (*leading, *group.shape), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        ((36, 44, 3), [(8, 4), (4, 2), (3, 1)]),
        ((4, 36, 44), [(8, 4), (4, 2), (3, 1)]),
        ((35, 50, 3), [(3, 2), (3, 2), (3, 1)]),
        ((1, 20, 24), [(3, 2), (3, 2), (3, 1)]),
        ((19, 30, 2), [(3, 1), (3, 1), (3, 1)]),
        ((10, 10, 4), [(3, 1), (3, 1), (3, 1)]),
        ((9, 9, 1), [(3, 1), (3, 1), (3, 1)]),
    ],
)
def test_nature_reads_either_layout_and_fits_its_kernels_to_the_image(generator, shape, kernels):
    group = image_group(*shape)
    encoder = ImageEncoder(group, "nature", generator)
    image = random_images(group, 2, 5, generator=generator)
    features = encoder(image)
    assert features.shape == (2, 5, encoder.out_dim) == (2, 5, 512)
    x = image[1, 3].float() / 255
    x = (x.permute(2, 0, 1) if shape[2] < shape[0] else x).unsqueeze(0)
    layers = [layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    assert [(*{*layer.kernel_size}, *{*layer.stride}) for layer in layers] == kernels
    for layer in layers:
        x = F.relu(F.conv2d(x, layer.weight, layer.bias, layer.stride))
    torch.testing.assert_close(features[1, 3], F.relu(encoder.project(x.flatten(1)))[0], atol=1e-5, rtol=1e-4)
    assert encoder(image[:0]).shape == (0, 5, 512)


def test_nature_refuses_what_is_too_small_for_it(generator):
    with pytest.raises(ConfigError, match=r"8 x 64 pixels.*needs 9.*impala"):
        ImageEncoder(image_group(8, 64, 3), "nature", generator)


@pytest.mark.parametrize("shape", [(84, 84, 4), (3, 24, 30), (10, 10, 6), (5, 7, 1)])
def test_impala_is_the_network_of_the_paper(generator, shape):
    group = image_group(*shape)
    encoder = ImageEncoder(group, "impala", generator)
    image = random_images(group, 2, generator=generator)
    x = image.float() / 255
    x = x if shape[0] < shape[2] else x.permute(0, 3, 1, 2)
    convolutions = iter([layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)])

    def conv(x):
        layer = next(convolutions)
        return F.conv2d(x, layer.weight, layer.bias, padding=1)

    for channels in (16, 32, 32):
        x = F.max_pool2d(conv(x), 3, 2, padding=1)
        assert x.shape[1] == channels
        for _ in range(2):
            x = x + conv(F.relu(conv(F.relu(x))))
    assert next(convolutions, None) is None
    expected = F.relu(encoder.project(F.relu(x).flatten(1)))
    assert expected.shape == (2, encoder.out_dim) == (2, 256)
    torch.testing.assert_close(encoder(image), expected, atol=1e-5, rtol=1e-4)


def test_stacked_frames_keep_the_axis_of_their_channels(generator):
    # 4 frames of a channels-first image of 3 channels and 12 pixels a side: the shape alone would not tell
    group = ObsGroup((12, 12, 12), "uint8", channel_axis=-3)
    assert not ImageEncoder(group, "nature", generator).channels_last
    assert ImageEncoder(ObsGroup((12, 12, 12), "uint8"), "nature", generator).channels_last


@pytest.mark.parametrize(("kind", "features"), [("nature", 512), ("impala", 256)])
def test_encoder_takes_the_kind_it_is_told(generator, kind, features):
    encoder = ObsEncoder({"policy": image_group(10, 10, 3)}, ("policy",), True, generator, kind)
    assert encoder.out_dim == features
    images = random_images(image_group(10, 10, 3), 4, generator=generator)
    assert encoder({"policy": images}).shape == (4, features)
    # images stay uint8 up to the network itself
    assert encoder.normalize({"policy": images})["policy"].dtype == torch.uint8


def test_encoder_joins_its_groups_and_normalises_only_vectors(generator):
    groups = {"policy": ObsGroup((3,)), "camera": ObsGroup((36, 36, 3), "uint8"), "critic": ObsGroup((5,))}
    encoder = ObsEncoder(groups, ("policy", "camera"), True, generator)
    obs = {
        "policy": torch.randn(9, 3, generator=generator) * 4 + 2,
        "camera": torch.randint(256, (9, 36, 36, 3), generator=generator, dtype=torch.uint8),
        "critic": torch.full((9, 5), math.nan),
    }
    encoder.update_normalizers(obs)
    features = encoder(obs)
    assert features.shape == (9, encoder.out_dim) == (9, 515)
    expected = (obs["policy"] - obs["policy"].mean(0)) / obs["policy"].std(0, correction=0)
    torch.testing.assert_close(features[:, :3], expected)
    assert torch.equal(features, encoder.features(encoder.normalize(obs)))
    assert list(encoder.normalizers) == ["policy"]


def test_normalisers_leave_out_invalid_rows(generator):
    encoder = ObsEncoder({"policy": ObsGroup((1,))}, ("policy",), True, generator)
    obs = {"policy": torch.tensor([[[1.0], [50.0]], [[3.0], [5.0]]])}
    encoder.update_normalizers(obs, torch.tensor([[True, False], [True, True]]))
    assert encoder.normalizers["policy"].mean.tolist() == [3]


def test_std_types(generator):
    features = torch.randn(6, 4, generator=generator) * 20
    heads = {kind: GaussianHead(4, 2, kind, 0.5, 0.1, generator) for kind in ("independent", "fixed", "annealed")}
    learnt = {kind: "log_std" in dict(head.named_parameters()) for kind, head in heads.items()}
    assert learnt == {"independent": True, "fixed": False, "annealed": False}
    for kind, head in heads.items():
        assert head(features).log_std.exp().tolist() == pytest.approx([0.5, 0.5])
        head.anneal(0.5)  # half way in the logarithm: sqrt(0.5 * 0.1)
        expected = math.sqrt(0.05) if kind == "annealed" else 0.5
        assert head(features).log_std.exp().tolist() == pytest.approx([expected] * 2)
    heads["annealed"].anneal(1.5)
    assert heads["annealed"](features).log_std.exp().tolist() == pytest.approx([0.1, 0.1])
    assert "log_std" in heads["annealed"].state_dict()


def test_dependent_std_depends_on_the_state_and_starts_near_the_first(generator):
    head = GaussianHead(4, 2, "dependent", 0.5, 0.1, generator)
    log_std = head(torch.randn(6, 4, generator=generator)).log_std.detach()
    assert log_std.shape == (6, 2)
    assert float((log_std - math.log(0.5)).abs().max()) < 0.1
    assert not torch.equal(log_std[0], log_std[1])
    assert head(torch.full((1, 4), 1e6)).log_std.isfinite().all()


def test_squashed_head_keeps_the_deviation_in_range(generator):
    log_std = SquashedGaussianHead(4, 2, generator)(torch.randn(50, 4, generator=generator) * 1e4).log_std.detach()
    assert (float(log_std.max()), float(log_std.min())) == (2, -20)


def test_categorical_heads(generator):
    features = torch.randn(6, 4, generator=generator)
    assert isinstance(CategoricalHead(4, DiscreteAction(3), generator)(features), Categorical)
    many = CategoricalHead(4, MultiDiscreteAction((3, 2)), generator)(features)
    assert isinstance(many, MultiCategorical)
    assert many.mode().shape == (6, 2)


def test_value_network_from_features_is_itself(generator):
    encoder = ObsEncoder({"policy": ObsGroup((3,))}, ("policy",), True, generator)
    value = ValueNetwork(encoder, MLP(3, (8,), None, "tanh", generator), generator)
    obs = {"policy": torch.randn(4, 5, 3, generator=generator)}
    assert value(obs).shape == (4, 5)
    assert torch.equal(value(obs), value.from_features(value.trunk(obs["policy"])))


def test_making_networks_leaves_the_global_random_state(generator):
    before = torch.get_rng_state()
    MLP(3, (8,), 2, "tanh", generator, orthogonal=True)
    EnsembleMLP(2, 3, (8,), 1, "relu", generator)
    ImageEncoder(image_group(36, 36, 3), "nature", generator)
    ImageEncoder(image_group(10, 10, 3), "impala", generator)
    GaussianHead(4, 2, "dependent", 0.5, 0.1, generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_hidden_layers_are_computed_in_bfloat16_where_asked_and_all_else_in_float32(generator, monkeypatch):
    """On any processor: the fallback to float32 where there are no units for it is a matter of speed alone."""
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: True)
    net, x = EnsembleMLP(2, 5, (64, 64), 1, "relu", generator), torch.randn(32, 5, generator=generator)
    seen = []
    net.hidden.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    with acceleration.hidden_precision("bfloat16"):
        reduced = net(x)
        gradient = torch.autograd.grad(reduced.square().mean(), list(net.parameters()))
    full = net(x)
    assert seen == [torch.bfloat16, torch.float32]
    assert reduced.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in gradient)
    assert not torch.equal(reduced, full)
    torch.testing.assert_close(reduced, full, atol=0.02, rtol=0)
    exact = torch.autograd.grad(full.square().mean(), list(net.parameters()))
    cosine = torch.cosine_similarity(
        torch.cat([g.flatten() for g in gradient]), torch.cat([g.flatten() for g in exact]), 0
    )
    assert float(cosine) > 0.999


def test_hidden_layers_stay_float32_where_there_are_no_units_for_less(generator, monkeypatch):
    monkeypatch.setattr(acceleration, "has_bfloat16", lambda device_type: False)
    net, x = MLP(5, (64,), 1, "relu", generator), torch.randn(32, 5, generator=generator)
    with acceleration.hidden_precision("bfloat16"):
        inside = net(x)
    assert torch.equal(inside, net(x))

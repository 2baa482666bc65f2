"""One description of networks: each kind is built with what it was asked for, and nonsense is refused."""

from __future__ import annotations

import pytest
import torch

from habilis.core.errors import ConfigError
from habilis.core.random import RandomStreams
from habilis.nn.mlp import MLP, EnsembleMLP
from habilis.nn.network import NetworkConfig, make_ensemble, make_trunk
from habilis.nn.norms import BatchRenorm, LayerNorm
from habilis.nn.residual import ResidualNetwork, SimBaBlock, SphericalBlock


def count(net, kind):
    return sum(isinstance(module, kind) for module in net.modules())


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_mlp_gets_its_parts(generator):
    droq = NetworkConfig(hidden=(8, 6), layer_norm=True, dropout=0.1, activation="silu")
    trunk, ensemble = make_trunk(droq, 3, generator), make_ensemble(droq, 2, 3, 5, generator)
    for net, kind, features in ((trunk, MLP, 6), (ensemble, EnsembleMLP, 5)):
        assert isinstance(net, kind)
        assert (count(net, LayerNorm), count(net, torch.nn.SiLU), net.out_dim) == (2, 2, features)
        assert net.noise(4, generator).shape[-1] == 14
        assert net.dropout == 0.1
    crossq = NetworkConfig(hidden=(8, 6), batch_renorm=True, renorm_warmup=7)
    for net in (make_trunk(crossq, 3, generator), make_ensemble(crossq, 2, 3, 5, generator)):
        assert [layer.warmup for layer in net.modules() if isinstance(layer, BatchRenorm)] == [7, 7, 7]


def test_orthogonal_is_handed_on():
    trunk = make_trunk(NetworkConfig(hidden=(4,)), 6, torch.Generator().manual_seed(0), orthogonal=True)
    weight = next(trunk.parameters())
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "block"), [("simba", SimBaBlock), ("simba_v2", SphericalBlock)])
def test_residual_networks_have_a_block_for_each_width(generator, kind, block):
    config = NetworkConfig(kind=kind, hidden=(16, 16, 16), activation="gelu")
    trunk, ensemble = make_trunk(config, 3, generator), make_ensemble(config, 2, 3, 5, generator)
    for net in (trunk, ensemble):
        assert isinstance(net, ResidualNetwork)
        assert (count(net, block), count(net, torch.nn.GELU)) == (3, 3)
    assert (trunk.out_dim, ensemble.out_dim) == (16, 5)
    assert trunk(torch.zeros(4, 3)).shape == (4, 16)
    assert ensemble(torch.zeros(4, 3)).shape == (2, 4, 5)


def test_residual_networks_get_their_parts(generator):
    crossq = NetworkConfig(kind="simba", hidden=(8, 8), batch_renorm=True, renorm_warmup=7)
    for net in (make_trunk(crossq, 3, generator), make_ensemble(crossq, 2, 3, 5, generator)):
        assert [layer.warmup for layer in net.modules() if isinstance(layer, BatchRenorm)] == [7, 7, 7, 7]
        assert count(net, LayerNorm) == 0
    for kind in ("simba", "simba_v2"):
        droq = NetworkConfig(kind=kind, hidden=(8, 8), layer_norm=True, dropout=0.1)
        assert make_trunk(droq, 3, generator).noise(4, generator).shape == (4, 64)
        assert make_ensemble(droq, 2, 3, 5, generator).noise(4, generator).shape == (2, 4, 64)


@pytest.mark.parametrize("kind", ["mlp", "simba", "simba_v2"])
def test_weights_come_from_the_given_generator_alone(kind):
    before = torch.get_rng_state()
    config = NetworkConfig(kind=kind, hidden=(8, 8))
    nets = [make_ensemble(config, 2, 3, 1, RandomStreams(seed).torch("init")) for seed in (0, 0, 1)]
    x = torch.ones(2, 3)
    assert torch.equal(nets[0](x), nets[1](x))
    assert not torch.equal(nets[0](x), nets[2](x))
    assert not torch.equal(nets[0](x)[0], nets[0](x)[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "transformer"}, "must be one of 'mlp', 'simba', 'simba_v2', got 'transformer'"),
        ({"dropout": 1.0}, "less than 1"),
        ({"dropout": -0.1}, "at least 0"),
        ({"hidden": (8, 0)}, "positive"),
        ({"renorm_warmup": -1}, "renorm_warmup"),
        ({"batch_renorm": True, "layer_norm": True}, "batch_renorm and layer_norm"),
        ({"batch_renorm": True, "dropout": 0.1}, "batch_renorm and dropout"),
        ({"kind": "simba", "hidden": (8, 8), "layer_norm": True, "batch_renorm": True}, "batch_renorm and layer_norm"),
        ({"kind": "simba_v2", "hidden": (8, 8), "batch_renorm": True}, "by --algo.no-batch-renorm"),
        ({"kind": "simba", "hidden": (8, 16)}, "one width"),
        ({"kind": "simba_v2", "hidden": ()}, "one width"),
    ],
)
def test_what_has_no_meaning_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**fields)

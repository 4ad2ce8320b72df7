"""Lookahead moves slow parameters every k steps of another optimizer."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmrednet.engine.lookahead import Lookahead


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_by_hand():
    """SGD with gradients of 1: two steps of -0.1, of which a quarter is kept."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    unused = nn.Parameter(torch.tensor([5.0]))
    optimizer = Lookahead([parameter, unused], 'SGD', lr=0.1, interval=2, alpha=0.25)
    values = []
    for _ in range(4):
        parameter.grad = torch.ones(1)
        optimizer.step()
        values.append(float(parameter.detach()))
    assert values == pytest.approx([0.9, 0.95, 0.85, 0.9])
    assert float(unused.detach()) == 5


def test_without_a_slow_step_it_is_the_other_optimizer():
    first = nn.Linear(3, 2)
    second = copy.deepcopy(first)
    train(first, Lookahead(first.parameters(), lr=0.01, interval=10), 9)
    train(second, torch.optim.RAdam(second.parameters(), lr=0.01), 9)
    assert torch.equal(first.weight, second.weight)


def test_an_interrupted_run_continues():
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    optimizer = Lookahead(model.parameters(), lr=0.1, interval=3)
    train(model, optimizer, 11)
    saved = Lookahead(other.parameters(), lr=0.1, interval=3)
    train(other, saved, 7)
    resumed = Lookahead(other.parameters(), lr=0.5, interval=3)
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert resumed.param_groups is resumed.base.param_groups
    assert resumed.param_groups[0]['lr'] == 0.1
    train(other, resumed, 4, start=7)
    assert torch.equal(model.weight, other.weight)


def test_in_a_config():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='mmrednet.Lookahead', lr=0.01, interval=2),
            paramwise_cfg=dict(custom_keys={'2': dict(lr_mult=0.0)}),
        ),
    )
    assert isinstance(wrapper.optimizer, Lookahead)
    assert isinstance(wrapper.optimizer.base, torch.optim.RAdam)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        wrapper.update_params(model(torch.randn(8, 3)).square().mean())
    assert not torch.equal(model[0].weight, before['0.weight'])
    assert torch.equal(model[2].weight, before['2.weight'])
    # the learning rate is that of the shared groups
    wrapper.param_groups[0]['lr'] = 0.5
    assert wrapper.optimizer.base.param_groups[0]['lr'] == 0.5


@pytest.mark.parametrize('options', [dict(interval=0), dict(alpha=0), dict(alpha=1.5)])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match='interval must be at least 1 and alpha in'):
        Lookahead([nn.Parameter(torch.ones(1))], lr=0.1, **options)

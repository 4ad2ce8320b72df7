"""Plot the learning rate of a config over its training. No model is built.

The data set is opened for the length of an epoch, unless --epoch-length gives it or the config
counts iterations.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib.pyplot as plt
import torch
from mmengine.config import DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner

from mmrednet.engine import load_config


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="path of the config, or a name such as 'mmrednet::...'")
    parser.add_argument(
        '--out', type=Path, default=Path('learning_rate.png'), help='default: learning_rate.png'
    )
    parser.add_argument('--epoch-length', type=int, help='number of iterations of an epoch')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='as in training'
    )
    args = parser.parse_args()
    if args.epoch_length is not None and args.epoch_length < 1:
        parser.error(f'--epoch-length must be at least 1, got {args.epoch_length}')
    return args


def scheduler_configs(cfg):
    """Return the schedulers of the optimizer as a list."""
    schedulers = cfg.get('param_scheduler') or []
    return schedulers if isinstance(schedulers, list) else [schedulers]


def lengths(cfg, epoch_length):
    """Return the number of epochs and the number of iterations per epoch."""
    if 'max_epochs' not in cfg.train_cfg:
        return 1, cfg.train_cfg.max_iters
    return cfg.train_cfg.max_epochs, epoch_length or len(
        Runner.build_dataloader(cfg.train_dataloader)
    )


def build_schedulers(cfg, optimizer, epochs, epoch_length):
    """Build the schedulers for an optimizer, as mmengine's runner does."""
    schedulers = []
    for config in scheduler_configs(cfg):
        end = epochs if config.get('by_epoch', True) else epochs * epoch_length
        default_args = dict(optimizer=optimizer, epoch_length=epoch_length, end=end)
        schedulers.append(PARAM_SCHEDULERS.build(dict(config), default_args=default_args))
    return schedulers


def learning_rates(cfg, epochs, epoch_length):
    """Return the learning rate of every iteration."""
    # one weight: the factors of parts of a model scale the whole curve
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1, bias=False), cfg.optim_wrapper)
    optimizer = wrapper.optimizer
    schedulers = build_schedulers(cfg, optimizer, epochs, epoch_length)
    rates = []
    for _ in range(epochs):
        for _ in range(epoch_length):
            rates.append(optimizer.param_groups[0]['lr'])
            # so that torch does not warn of schedulers without steps
            optimizer.step()
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return rates


def main():
    args = parse_args()
    cfg = load_config(args.config, options=args.cfg_options)
    epochs, epoch_length = lengths(cfg, args.epoch_length)
    rates = learning_rates(cfg, epochs, epoch_length)
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot(rates)
    axes.set(xlabel='iteration', ylabel='learning rate', title=Path(args.config).stem)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, bbox_inches='tight', dpi=150)
    print(f'first {rates[0]:.6g}, highest {max(rates):.6g}, last {rates[-1]:.6g}: {args.out}')


if __name__ == '__main__':
    main()

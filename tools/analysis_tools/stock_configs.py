"""Build every ResNet-50 config of the installed mmdet and mmseg with backbones of mmrednet.

The backbone's type is replaced, as a user does it, and nothing else. Models are built on the meta
device, which takes a few minutes for all configs and no memory. With --forward one config of each
head also computes an image on the CPU.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmengine.logging import MMLogger

import mmrednet.registry  # noqa: F401
from mmrednet.analysis.stock_configs import (
    BACKBONES,
    failure,
    forward_failure,
    one_of_each_head,
    stock_configs,
    with_backbone,
)
from mmrednet.engine import HOSTS

# height and width of an image: the first is fast, some heads need the second
SIZES = (64, 192)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--scopes', nargs='+', choices=HOSTS, default=list(HOSTS))
    parser.add_argument('--backbones', nargs='+', choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument('--match', default='', help='build only configs with this in their path')
    parser.add_argument(
        '--forward', action='store_true', help='compute an image with one config of each head'
    )
    parser.add_argument('--json', type=Path, metavar='F', help='write all errors to a file')
    return parser.parse_args()


def sweep_heads(scope, backbones, match):
    """Return the errors of one config of each head, {backbone: {config: error}}.

    A config that cannot compute an image of any size with its own ResNet is left out.
    """
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    errors = {name: {} for name in backbones}
    for config in one_of_each_head(stock_configs(scope, match)):
        runs = (size for size in SIZES if forward_failure(config.model, scope, size) is None)
        size = next(runs, None)
        if size is None:
            continue
        for name in backbones:
            model = with_backbone(config.model, f'mmrednet.{name}')
            errors[name][config.name] = forward_failure(model, scope, size)
    return errors


def sweep(scope, backbones, match):
    """Return the errors of each backbone, {backbone: {config: error or None}}.

    A config that does not build with its own ResNet here, because it needs another package, is
    left out.
    """
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    errors = {name: {} for name in backbones}
    for config in stock_configs(scope, match):
        if failure(config.model, scope):
            continue
        for name in backbones:
            model = with_backbone(config.model, f'mmrednet.{name}')
            errors[name][config.name] = failure(model, scope)
    return errors


def main():
    args = parse_args()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    run, verb = (sweep_heads, 'computes') if args.forward else (sweep, 'builds in')
    results = {}
    for scope in args.scopes:
        results[scope] = run(scope, args.backbones, args.match)
        for name, errors in results[scope].items():
            reasons = Counter(error for error in errors.values() if error)
            built = len(errors) - reasons.total()
            # the next framework takes minutes
            print(f'{scope}: {name} {verb} {built} of {len(errors)} configs', flush=True)
            for reason, times in reasons.most_common():
                print(f'  {times} x {reason}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()

"""Count the parameters of the models of configs, all and trainable, in a table."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.registry import MODELS

from mmrednet.engine import load_config, scope_of


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='paths of configs')
    print('| config | trainable | all |\n|---|---|---|')
    for path in parser.parse_args().configs:
        cfg = load_config(path)
        with torch.device('meta'), MODELS.switch_scope_and_registry(scope_of(cfg)) as registry:
            parameters = list(registry.build(cfg.model).parameters())
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        print(f'| {Path(path).stem} | {trainable:,} | {sum(parameter.numel() for parameter in parameters):,} |')


if __name__ == '__main__':
    main()

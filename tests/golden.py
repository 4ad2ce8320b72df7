"""Reference outputs of the official implementations: how their weights are filled and how results
compare.

Every tensor is a function of its official key, so a model that loads these names and gives these
numbers is the published function. The files in data/golden name repository, commit and path of each
reference.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

POSITION_TABLES = ('relative', 'rel_h', 'rel_w', 'emb_a', 'emb_b', 'emb_mix')
FOLDER = Path(__file__).parent / 'data' / 'golden'


def load(name):
    """Return the description of a case and its arrays (empty for models)."""
    path = FOLDER / f'{name}.json'
    case = json.loads(path.read_text())
    arrays = {}
    if 'arrays' in case:
        with np.load(path.parent / case['arrays'], allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return case, arrays


def uniform(key, shape):
    """Return uniform numbers in [0, 1) that depend on the key alone."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).random(tuple(shape))


def signed(key, shape):
    """Return the input or output gradient of this key: uniform numbers in [-1, 1)."""
    return torch.from_numpy(2 * uniform(key, shape) - 1)


def fill(key, shape):
    """Return the value of the parameter or buffer of this official key."""
    last, u = key.split('.')[-1], uniform(key, shape)
    if last == 'num_batches_tracked':
        return torch.zeros(shape, dtype=torch.int64)
    if last == 'running_var':
        return torch.from_numpy(0.5 + u)
    if last in POSITION_TABLES:
        return torch.from_numpy((2 * u - 1) * 0.5)
    if len(shape) >= 2:
        return torch.from_numpy((2 * u - 1) * np.sqrt(3 / np.prod(shape[1:])))
    if last == 'weight' or last.startswith(('layer_scale', 'gamma')):
        return torch.from_numpy(0.5 + u)
    return torch.from_numpy(0.2 * (u - 0.5))


def state_dict(case):
    """Return the official state dict of a case, without the index tables that a reference builds
    itself.
    """
    state = {}
    for key, shape, _ in case['state_dict']:
        if key.split('.')[-1] == 'flatten_index':
            continue
        factor = next((factor for suffix, factor in case['fill_scale'] if key.endswith(suffix)), 1)
        state[key] = fill(key, shape) * factor
    return state


def relative_error(got, expected):
    """Return the distance of two tensors over the length of the second."""
    return float(((got - expected).norm() / expected.norm()).detach())


def assert_outputs(case, outputs, tolerance=1e-10):
    """Compare named outputs with shape, length and sampled values of the case."""
    assert outputs, 'no output to compare'
    expected = {output['name']: output for output in case['outputs']}
    for name, got in outputs.items():
        want, flat = expected[name], got.detach().double().flatten()
        assert list(got.shape) == want['shape'], name
        sample = torch.tensor(want['values'], dtype=torch.float64)
        assert relative_error(flat[torch.tensor(want['indices'])], sample) < tolerance, name
        assert abs(float(flat.norm()) / want['l2'] - 1) < tolerance, name

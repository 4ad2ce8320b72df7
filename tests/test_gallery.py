"""The gallery has a network and a picture for every operator, and the page shows all of them."""

import argparse
import re
from pathlib import Path

import cv2
import gallery
import pytest
import torch
from mmengine.registry import MODELS
from operators import EXAMPLES

from mmrednet.analysis import attention_layers
from mmrednet.engine import load_config

ROOT = Path(__file__).parents[1]


def build(name, tmp_path):
    args = argparse.Namespace(work_dir=tmp_path)
    cfg = load_config(str(gallery.write_config(args, name)))
    with torch.device('meta'), MODELS.switch_scope_and_registry('mmseg') as registry:
        return registry.build(cfg.model)


@pytest.mark.parametrize('name', gallery.NETWORKS)
def test_networks_differ_in_their_operator(name, tmp_path):
    layers = attention_layers(build(name, tmp_path).backbone)
    blocks = {layer.partition('.conv2')[0] for layer in layers if '.conv2' in layer}
    plugins = [layer for layer in layers if '.conv2' not in layer]
    # the first stage has one block, the second one two
    assert len(blocks or plugins) == (1 if name == 'dcn' else 3)


def test_every_operator_has_a_network(tmp_path):
    names = set()
    for name in gallery.NETWORKS:
        layers = attention_layers(build(name, tmp_path).backbone).values()
        names |= {type(layer).__mro__[1].__name__ for layer in layers}
        names |= {type(layer).__name__ for layer in layers}
    # A chain has its operators; DCN has the points of DCNv2; the weights of neighbourhood attention
    # are those of SASA away from the border.
    assert set(EXAMPLES) - {'OperatorChain', 'DCN', 'NeighborhoodAttention'} <= names


def test_the_page_shows_every_picture():
    text = (ROOT / 'docs/gallery.md').read_text()
    shown = re.findall(r'\]\((images/gallery/.*?)\)', text)
    assert sorted(shown) == sorted(f'images/gallery/{name}.png' for name in gallery.PICTURES)
    for path in shown:
        picture = ROOT / 'docs' / path
        assert picture.stat().st_size <= gallery.MAX_BYTES
        # two panels in a row, at the size at which a page shows them
        assert cv2.imread(str(picture)).shape[1] < 800
    for name, (network, options) in gallery.PICTURES.items():
        assert f'python tools/gallery.py {name}\n' in text
        assert network in [*gallery.NETWORKS, 'detector']
        assert options in text

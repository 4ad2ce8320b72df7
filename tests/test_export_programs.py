"""Files of torch.export in the place of a model. Reading one executes code that is in it."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmseg.structures import SegDataSample

from mmrednet.commands import export, infer
from mmrednet.commands import test as evaluate
from mmrednet.engine import load_config
from mmrednet.export import capture, runtime
from mmrednet.export.evaluation import ExportedModel
from mmrednet.export.formats import FORMATS
from mmrednet.export.verification import predict, sample_image

SEGMENTER = 'configs/streets/segnext_mscan-narrow_streets.py'
SHAPE = (64, 96)


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    """A segmenter in eval mode, and its exported program."""
    folder = tmp_path_factory.mktemp('segmenter')
    torch.manual_seed(0)
    cfg = load_config(SEGMENTER)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    model.eval()
    weights, out = folder / 'weights.pth', folder / 'segmenter.pt2'
    torch.save(dict(meta={}, state_dict=model.state_dict()), weights)
    arguments = [SEGMENTER, str(weights), '--to', 'exported-program', '--out', str(out)]
    sizes = ['--shape', *map(str, SHAPE), '--no-verify']
    assert export.main([*arguments, *sizes]) == 0
    return model, out


def test_a_program_predicts_what_its_model_predicts(segmenter):
    model, path = segmenter
    image = sample_image(SHAPE)
    expected = predict(model, 'segmentation', image)[0]
    assert len(np.unique(expected)) > 1
    data = dict(
        inputs=[torch.from_numpy(image[0]).byte()],
        data_samples=[SegDataSample(metainfo=dict(ori_shape=SHAPE))],
    )
    result = ExportedModel(path, trust=True).test_step(data)[0]
    assert (result.pred_sem_seg.data.numpy() == expected).mean() > 0.999


def test_a_program_needs_trust(segmenter, tmp_path, capsys):
    path = segmenter[1]
    with pytest.raises(ValueError, match=r'segmenter\.pt2 executes code when it is read'):
        ExportedModel(path)
    photo = tmp_path / 'photo.png'
    cv2.imwrite(str(photo), np.zeros((8, 8, 3), np.uint8))
    for command, arguments in ((infer, [path, photo]), (evaluate, [SEGMENTER, path])):
        with pytest.raises(SystemExit):
            command.main(list(map(str, arguments)))
        assert 'pass --trust' in capsys.readouterr().err


def test_pictures_by_a_program(segmenter, tmp_path):
    photo = tmp_path / 'photo.png'
    cv2.imwrite(str(photo), np.zeros((*SHAPE, 3), np.uint8))
    infer.main([str(segmenter[1]), str(photo), '--trust', '--out-dir', str(tmp_path / 'out')])
    assert cv2.imread(str(tmp_path / 'out' / 'photo.png')).shape == (*SHAPE, 3)


def test_a_library_beside_a_file_needs_trust(tmp_path):
    path = tmp_path / 'model.xml'
    for ending in ('.xml', '.json', '.ops.so'):
        path.with_suffix(ending).write_text('{}')
    with pytest.raises(ValueError, match=r'model\.ops\.so executes code when it is read'):
        ExportedModel(path)


@pytest.mark.parametrize('name', ['exported-program', 'aoti'])
def test_damaged_files(name, tmp_path):
    path = tmp_path / f'model{FORMATS[name].ending}'
    path.write_bytes(b'PK no archive')
    description = dict(format=name, task='segmentation', input={}, outputs=['labels'])
    path.with_suffix('.json').write_text(json.dumps(description))
    with pytest.raises(ValueError, match=rf'{path.name} must be a file that mmrednet export wrote'):
        runtime.Model(path)


@pytest.mark.parametrize('text', ['no json', '[]', '{"format": "onnx"}', '{"format": "pickle"}'])
def test_damaged_descriptions(text, tmp_path):
    (tmp_path / 'model.json').write_text(text)
    with pytest.raises(ValueError, match=r'model\.json must be a description'):
        runtime.Model(tmp_path / 'model.onnx')


def test_every_format_can_be_run():
    assert set(runtime.RUNS) == set(FORMATS)


def test_a_program_for_any_size_is_saved_without_its_example(tmp_path):
    program = capture(torch.nn.Conv2d(3, 3, 1).eval(), torch.zeros(2, 3, 8, 8))
    path = tmp_path / 'convolution.pt2'
    FORMATS['exported-program'].write(program, path, ['features'], 'native')
    # the example alone would have 16 MB
    assert path.stat().st_size < 1e5
    assert program.example_inputs is not None

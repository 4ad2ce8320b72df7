"""Files of weights: what is read, what is refused and why, and that nothing is executed or half written."""

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmrednet.checkpoints import CheckpointError, read_checkpoint, sha256_of, write_checkpoint
from mmrednet.checkpoints.reading import hash_in_name

STATE = {'conv.weight': torch.randn(4, 3, 1, 1), 'bn.weight': torch.rand(4), 'bn.num_batches_tracked': torch.tensor(7)}


def same(state, expected):
    return list(state) == list(expected) and all(
        torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in expected.items())


@pytest.mark.parametrize('name', ['w.pth', 'w.pt', 'w.pth.tar', 'w.safetensors', 'w.npz'])
def test_what_is_written_is_read(name, tmp_path):
    write_checkpoint(tmp_path / name, STATE, metadata=dict(source='somewhere'))
    read = read_checkpoint(tmp_path / name)
    assert same(read.state, STATE)
    assert read.metadata == ({} if name == 'w.npz' else dict(source='somewhere'))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(('content', 'container'), [
    (STATE, ()), (dict(net=STATE, epoch=3), ('net',)), (dict(model=dict(state_dict=STATE)), ('model', 'state_dict')),
    (dict(epoch=3, state_dict=STATE, optimizer=dict(state={}), top1=np.float64(3.5)), ('state_dict',))])
def test_containers_of_both_torch_formats(content, container, legacy, tmp_path):
    torch.save(content, tmp_path / 'w.pth.tar', _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(tmp_path / 'w.pth.tar')
    assert same(read.state, STATE)
    assert read.container == container
    assert set(read.others) == {name for name in content if name not in container} - set(STATE)


def test_a_key_chooses_among_containers(tmp_path):
    ema = {name: value + 1 for name, value in STATE.items()}
    torch.save(dict(state_dict=STATE, state_dict_ema=ema), tmp_path / 'w.pth')
    assert same(read_checkpoint(tmp_path / 'w.pth').state, STATE)
    assert same(read_checkpoint(tmp_path / 'w.pth', key='state_dict_ema').state, ema)
    with pytest.raises(CheckpointError, match=r"key must be one of those in .*, \['state_dict', 'state_dict_ema'\]"):
        read_checkpoint(tmp_path / 'w.pth', key='teacher')


@pytest.mark.parametrize('allowed', [(), (HistoryBuffer,)])
def test_what_training_scripts_keep_beside_the_weights(allowed, tmp_path):
    beside = dict(message_hub=dict(log_scalars={'train/loss': HistoryBuffer([0.5, 0.25], [1, 1])}),
                  args=argparse.Namespace(lr=np.float32(0.1)), meta=dict(seed=np.int64(3), cfg='model = 1'))
    torch.save(dict(state_dict=STATE, **beside), tmp_path / 'w.pth')
    with torch.serialization.safe_globals(list(allowed)):
        before = torch.serialization.get_safe_globals()
        read = read_checkpoint(tmp_path / 'w.pth')
        assert set(torch.serialization.get_safe_globals()) == set(before)
    assert same(read.state, STATE)
    assert read.metadata == dict(cfg='model = 1')


class Malicious:

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('call', [(os.system, 'touch {}'), (eval, 'open("{}", "w")'), (exec, 'open("{}", "w")'),
                                  (getattr, Path, 'touch')])
def test_nothing_is_executed(call, legacy, tmp_path, monkeypatch):
    witness = tmp_path / 'executed'
    function, *arguments = call
    attack = Malicious(function, *(a.format(witness) if isinstance(a, str) else a for a in arguments))
    torch.save(dict(state_dict=STATE, meta=attack), tmp_path / 'w.pth', _use_new_zipfile_serialization=not legacy)
    loads = []
    original = torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **kw: loads.append(kw['weights_only']) or original(*args, **kw))
    with torch.serialization.safe_globals([os.system, eval, exec]), pytest.raises(
            CheckpointError, match='cannot be read as plain tensors, and nothing else is loaded'):
        read_checkpoint(tmp_path / 'w.pth')
    assert loads == [True]
    assert not witness.exists()


def test_plain_pickles_are_refused(tmp_path):
    (tmp_path / 'w.pth').write_bytes(pickle.dumps(Malicious(os.system, f'touch {tmp_path}/executed')))
    with pytest.raises(CheckpointError, match='cannot be read as plain tensors'):
        read_checkpoint(tmp_path / 'w.pth')
    array = np.array([Malicious(os.system, f'touch {tmp_path}/executed')], dtype=object)
    np.savez(tmp_path / 'w.npz', weight=array)
    with pytest.raises(CheckpointError, match="array 'weight.npy': arrays must hold numbers, got dtype object"):
        read_checkpoint(tmp_path / 'w.npz')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors', 'w.npz', 'legacy.pth'])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.99])
def test_truncated_files(name, share, tmp_path):
    path = tmp_path / name
    state = {'weight': torch.randn(64, 64), 'bias': torch.randn(64)}
    if name == 'legacy.pth':
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        write_checkpoint(path, state)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


@pytest.mark.parametrize(('content', 'message'), [
    (b'', 'got an empty file'), (b'\n<!DOCTYPE html><html>', 'got a web page'), (b'\x00' * 64, 'cannot be read'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'a pointer of Git LFS')])
def test_what_is_no_file_of_weights(content, message, tmp_path):
    (tmp_path / 'w.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'w.pth')
    with pytest.raises(FileNotFoundError, match='checkpoint must be an existing file, got'):
        read_checkpoint(tmp_path / 'other.pth')


def npz_of(path, shape, *, dtype='<f4', data=b'', compression=zipfile.ZIP_DEFLATED):
    """Write an archive with one array whose header states this shape."""
    text = repr(dict(descr=dtype, fortran_order=False, shape=shape)).encode()
    text += b' ' * (-(len(text) + 11) % 64) + b'\n'
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('weight.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data)


class TestBombs:

    def test_compressed_zeros(self, tmp_path):
        npz_of(tmp_path / 'w.npz', (1 << 24,), data=bytes(1 << 26))
        assert (tmp_path / 'w.npz').stat().st_size < 1 << 17
        with pytest.raises(CheckpointError, match='bytes of tensors, more than 100 times as many'):
            read_checkpoint(tmp_path / 'w.npz')

    @pytest.mark.parametrize('shape', [(1 << 50,), (1 << 40, 1 << 40), (-1,), (3,)])
    def test_stated_shapes_of_arrays(self, shape, tmp_path):
        npz_of(tmp_path / 'w.npz', shape, data=bytes(16))
        with pytest.raises(CheckpointError, match=r'a shape .* does not fit the 144 bytes that are there'):
            read_checkpoint(tmp_path / 'w.npz')

    def test_torch_archives_with_compressed_parts(self, tmp_path):
        torch.save(STATE, tmp_path / 'plain.pth')
        with zipfile.ZipFile(tmp_path / 'plain.pth') as source, zipfile.ZipFile(
                tmp_path / 'w.pth', 'w', zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        with pytest.raises(CheckpointError, match='got an archive with compressed parts'):
            read_checkpoint(tmp_path / 'w.pth')

    def test_views_of_one_number(self, tmp_path):
        torch.save(dict(weight=torch.zeros(1).expand(1 << 20, 1 << 10)), tmp_path / 'w.pth')
        with pytest.raises(CheckpointError, match='states 4294967296 bytes of tensors'):
            read_checkpoint(tmp_path / 'w.pth')

    def test_storages_that_the_legacy_format_states(self, tmp_path):
        buffer = io.BytesIO()
        torch.save(dict(weight=torch.zeros(12345)), buffer, _use_new_zipfile_serialization=False)
        content = buffer.getvalue()
        # the count of elements in the pickle: BININT2 becomes BININT
        stated = b'J' + struct.pack('<i', 1 << 30)
        (tmp_path / 'w.pth').write_bytes(content.replace(b'M' + struct.pack('<H', 12345), stated))
        with pytest.raises(CheckpointError, match=r'w.pth cannot be read'):
            read_checkpoint(tmp_path / 'w.pth')

    @pytest.mark.parametrize(('header', 'message'), [
        ({'a': dict(dtype='F32', shape=[1 << 40], data_offsets=[0, 4 << 40])}, 'perhaps cut off'),
        ({'a': dict(dtype='F32', shape=[1 << 40], data_offsets=[0, 8])}, 'must fit each other'),
        ({'a': dict(dtype='F32', shape=[-2], data_offsets=[0, -8])}, 'must fit each other'),
        ({'a': dict(dtype='F99', shape=[2], data_offsets=[0, 8])}, 'must fit each other'),
        ({'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8]),
          'b': dict(dtype='F32', shape=[2], data_offsets=[0, 8])}, 'one behind another'),
        ({'a': 3}, 'must fit each other'), ([], 'the header must be a dict'),
        ({'__metadata__': dict(a=3)}, '__metadata__ must be texts')])
    def test_headers_of_safetensors(self, header, message, tmp_path):
        text = json.dumps(header).encode()
        (tmp_path / 'w.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + bytes(8))
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / 'w.safetensors')
        (tmp_path / 'w.safetensors').write_bytes((1 << 60).to_bytes(8, 'little') + text)
        with pytest.raises(CheckpointError, match='its header must fit into'):
            read_checkpoint(tmp_path / 'w.safetensors')


@pytest.mark.parametrize(('value', 'message'), [
    (torch.tensor([1.0, float('nan')]), r"must be finite, got NaN or infinity in 1 of 3 tensors: \['bad'\]"),
    (torch.tensor([1.0, float('inf')]), 'must be finite'), (torch.ones(2, dtype=torch.int8), 'must be floating point'),
    (torch.ones(2, dtype=torch.complex64), 'must be floating point'), (torch.ones(2).to_sparse(), 'must be dense')])
def test_values_that_are_no_weights(value, message, tmp_path):
    torch.save(dict(good=torch.ones(2), counter=torch.tensor(3), bad=value), tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'w.pth')


def test_no_tensors(tmp_path):
    torch.save(dict(state_dict=dict(epoch=3)), tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match='must hold tensors, by themselves or under one of'):
        read_checkpoint(tmp_path / 'w.pth')
    torch.save([torch.ones(2)], tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match='must hold a dict of tensors, got list'):
        read_checkpoint(tmp_path / 'w.pth')


class TestWriting:

    def test_an_existing_file_stays(self, tmp_path):
        write_checkpoint(tmp_path / 'w.pth', STATE)
        with pytest.raises(FileExistsError, match='--force'):
            write_checkpoint(tmp_path / 'w.pth', {'other': torch.ones(1)})
        assert same(read_checkpoint(tmp_path / 'w.pth').state, STATE)
        write_checkpoint(tmp_path / 'w.pth', {'other': torch.ones(1)}, force=True)
        assert list(read_checkpoint(tmp_path / 'w.pth').state) == ['other']

    @pytest.mark.parametrize('name', ['w.pth', 'w.safetensors', 'w.npz'])
    @pytest.mark.parametrize('before', [None, b'what was there'])
    def test_a_failure_leaves_what_was_there(self, name, before, tmp_path, monkeypatch):
        if before:
            (tmp_path / name).write_bytes(before)

        def fail(file, *_):
            file.write(b'half')
            raise OSError('No space left on device')

        monkeypatch.setattr('mmrednet.checkpoints.writing._write', fail)
        with pytest.raises(OSError, match='No space left'):
            write_checkpoint(tmp_path / name, STATE, force=True)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([before] if before else [])

    def test_bad_targets(self, tmp_path):
        with pytest.raises(ValueError, match="the output must end in one of .* got 'w.onnx'"):
            write_checkpoint(tmp_path / 'w.onnx', STATE)
        with pytest.raises(FileNotFoundError, match='the folder of the output must exist'):
            write_checkpoint(tmp_path / 'nowhere' / 'w.pth', STATE)
        with pytest.raises(CheckpointError, match='cannot hold bfloat16'):
            write_checkpoint(tmp_path / 'w.npz', {'a': torch.ones(2, dtype=torch.bfloat16)})
        assert not list(tmp_path.iterdir())

    def test_views_are_written_alone(self, tmp_path):
        write_checkpoint(tmp_path / 'w.pth', {'a': torch.zeros(1 << 20)[:4]})
        assert (tmp_path / 'w.pth').stat().st_size < 1 << 12


def test_hashes(tmp_path):
    (tmp_path / 'w.pth').write_bytes(b'abc')
    assert sha256_of(tmp_path / 'w.pth') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert hash_in_name('van-tiny_8xb128_in1k_20220501-385941af.pth') == '385941af'
    assert hash_in_name('resnet50-0676ba61.safetensors') == '0676ba61'
    assert hash_in_name('rednet50.pth') is None
    # a date, and digits that are none
    assert hash_in_name('rednet26_20210517.pth') is None
    assert hash_in_name('rednet26_20211317.pth') == '20211317'

"""Files of weights: what is read, what is refused and why, and that nothing is executed or half
written.
"""

import argparse
import gzip
import io
import json
import os
import pickle
import pickletools
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from running import run_code

from mmrednet.backbones.downloads import hash_in_name
from mmrednet.checkpoints import CheckpointError, read_checkpoint, sha256_of, write_checkpoint

STATE = {
    'conv.weight': torch.randn(4, 3, 1, 1),
    'bn.weight': torch.rand(4),
    'bn.num_batches_tracked': torch.tensor(7),
}


def same(state, expected):
    return list(state) == list(expected) and all(
        torch.equal(state[name], value) and state[name].dtype == value.dtype
        for name, value in expected.items()
    )


@pytest.mark.parametrize('name', ['w.pth', 'w.pt', 'w.pth.tar', 'w.safetensors', 'w.npz'])
def test_what_is_written_is_read(name, tmp_path):
    write_checkpoint(tmp_path / name, STATE, metadata=dict(source='somewhere'))
    read = read_checkpoint(tmp_path / name)
    assert same(read.state, STATE)
    assert read.metadata == ({} if name == 'w.npz' else dict(source='somewhere'))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    ('content', 'container'),
    [
        (STATE, ()),
        (dict(net=STATE, epoch=3), ('net',)),
        (dict(model=dict(state_dict=STATE)), ('model', 'state_dict')),
        (
            dict(epoch=3, state_dict=STATE, optimizer=dict(state={}), top1=np.float64(3.5)),
            ('state_dict',),
        ),
    ],
)
def test_containers_of_both_torch_formats(content, container, legacy, tmp_path):
    torch.save(content, tmp_path / 'w.pth.tar', _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(tmp_path / 'w.pth.tar')
    assert same(read.state, STATE)
    assert read.container == container
    assert set(read.unused_keys) == {name for name in content if name not in container} - set(STATE)


def test_a_key_chooses_among_containers(tmp_path):
    ema = {name: value + 1 for name, value in STATE.items()}
    torch.save(dict(state_dict=STATE, state_dict_ema=ema), tmp_path / 'w.pth')
    assert same(read_checkpoint(tmp_path / 'w.pth').state, STATE)
    assert same(read_checkpoint(tmp_path / 'w.pth', key='state_dict_ema').state, ema)
    with pytest.raises(
        CheckpointError, match=r"key must be one of those in .*, \['state_dict', 'state_dict_ema'\]"
    ):
        read_checkpoint(tmp_path / 'w.pth', key='teacher')


@pytest.mark.parametrize('allowed', [(), (HistoryBuffer,)])
def test_what_training_scripts_keep_beside_the_weights(allowed, tmp_path):
    beside = dict(
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([0.5, 0.25], [1, 1])}),
        args=argparse.Namespace(lr=np.float32(0.1)),
        meta=dict(seed=np.int64(3), cfg='model = 1'),
    )
    torch.save(dict(state_dict=STATE, **beside), tmp_path / 'w.pth')
    with torch.serialization.safe_globals(list(allowed)):
        before = torch.serialization.get_safe_globals()
        read = read_checkpoint(tmp_path / 'w.pth')
        assert set(torch.serialization.get_safe_globals()) == set(before)
    assert same(read.state, STATE)
    assert read.metadata == dict(cfg='model = 1')


class TestSafeGlobals:
    """Torch's table of allowed classes is one for all threads."""

    @pytest.fixture
    def path(self, tmp_path):
        torch.save(dict(state_dict=STATE, args=argparse.Namespace(lr=0.1)), tmp_path / 'w.pth')
        return tmp_path / 'w.pth'

    def test_two_threads_leave_the_table_as_it_was(self, path, monkeypatch):
        original, names = torch.load, []
        second_loads, first_is_done = threading.Event(), threading.Event()

        def load(*args, **kwargs):
            names.append(threading.current_thread().name)
            if len(names) == 1:
                # long enough for the other thread to get here, if nothing holds it up
                second_loads.wait(0.3)
            else:
                second_loads.set()
                first_is_done.wait(0.3)
            return original(*args, **kwargs)

        def read():
            read_checkpoint(path)
            first_is_done.set()

        monkeypatch.setattr(torch, 'load', load)
        with torch.serialization.safe_globals([HistoryBuffer]):
            before = torch.serialization.get_safe_globals()
            threads = [threading.Thread(target=read) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert set(torch.serialization.get_safe_globals()) == set(before)
        assert len(names) == 2

    def test_what_another_thread_allows_meanwhile_stays(self, path, monkeypatch):
        original = torch.load

        def load(*args, **kwargs):
            torch.serialization.add_safe_globals([HistoryBuffer])
            return original(*args, **kwargs)

        monkeypatch.setattr(torch, 'load', load)
        with torch.serialization.safe_globals([]):
            before = torch.serialization.get_safe_globals()
            read_checkpoint(path)
            after = torch.serialization.get_safe_globals()
        assert set(after) == {*before, HistoryBuffer}

    def test_plain_files_leave_it_alone(self, tmp_path, monkeypatch):
        torch.save(STATE, tmp_path / 'w.pth')
        monkeypatch.delattr(torch.serialization, 'clear_safe_globals')
        assert same(read_checkpoint(tmp_path / 'w.pth').state, STATE)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    'call',
    [
        (os.system, 'touch {}'),
        (eval, 'open("{}", "w")'),
        (exec, 'open("{}", "w")'),
        (getattr, Path, 'touch'),
    ],
)
def test_nothing_is_executed(call, legacy, tmp_path, monkeypatch):
    witness = tmp_path / 'executed'
    function, *arguments = call
    attack = Malicious(
        function, *(a.format(witness) if isinstance(a, str) else a for a in arguments)
    )
    torch.save(
        dict(state_dict=STATE, meta=attack),
        tmp_path / 'w.pth',
        _use_new_zipfile_serialization=not legacy,
    )
    loads = []
    original = torch.load
    monkeypatch.setattr(
        torch, 'load', lambda *args, **kw: loads.append(kw['weights_only']) or original(*args, **kw)
    )
    with (
        torch.serialization.safe_globals([os.system, eval, exec]),
        pytest.raises(
            CheckpointError, match='cannot be read as plain tensors, and nothing else is loaded'
        ),
    ):
        read_checkpoint(tmp_path / 'w.pth')
    # what is named is looked at first
    assert False not in loads
    assert not witness.exists()


def test_torch_is_told_to_load_tensors_alone(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / 'w.pth')
    loads, original = [], torch.load
    monkeypatch.setattr(
        torch, 'load', lambda *args, **kw: loads.append(kw) or original(*args, **kw)
    )
    assert same(read_checkpoint(tmp_path / 'w.pth').state, STATE)
    assert loads == [dict(map_location='cpu', weights_only=True, mmap=True)]


def test_plain_pickles_are_refused(tmp_path):
    (tmp_path / 'w.pth').write_bytes(
        pickle.dumps(Malicious(os.system, f'touch {tmp_path}/executed'))
    )
    with pytest.raises(CheckpointError, match='cannot be read as plain tensors'):
        read_checkpoint(tmp_path / 'w.pth')
    array = np.array([Malicious(os.system, f'touch {tmp_path}/executed')], dtype=object)
    np.savez(tmp_path / 'w.npz', weight=array)
    with pytest.raises(
        CheckpointError, match="array 'weight.npy': arrays must hold numbers, got dtype object"
    ):
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
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'got an empty file'),
        (b'\n<!DOCTYPE html><html>', 'got a web page'),
        (b'\x00' * 64, r'cannot be read|no safetensors file'),
        (b'version https://git-lfs.github.com/spec/v1\noid', 'a pointer of Git LFS'),
        (b'\x89HDF\r\n\x1a\n' + bytes(64), 'got an HDF5 file'),
        (gzip.compress(b'weights', mtime=0), 'got a gzip file'),
        (bytes(257) + b'ustar', 'got a tar archive'),
        (b'{"a": 3}', 'got a JSON file'),
        (
            json.dumps(
                dict(weight_map=dict(a='model-1.bin', b='model-2.bin', c='model-1.bin'))
            ).encode(),
            r'the index of a model in 2 files: give one that has the weights wanted, '
            r"\['model-1.bin', 'model-2.bin'\]",
        ),
    ],
)
@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
def test_what_is_no_file_of_weights(content, message, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match='checkpoint must be an existing file, got'):
        read_checkpoint(tmp_path / 'other.pth')


def npz_of(path, shape, *, dtype='<f4', data=b'', compression=zipfile.ZIP_DEFLATED):
    """Write an archive with one array whose header states this shape."""
    text = repr(dict(descr=dtype, fortran_order=False, shape=shape)).encode()
    text += b' ' * (-(len(text) + 11) % 64) + b'\n'
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr(
            'weight.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data
        )


def torch_file_of(path, instructions):
    """Write torch's archive of a pickle, and return its path."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in parts.items():
            archive.writestr(
                name, b'\x80\x02' + instructions + b'.' if name.endswith('data.pkl') else content
            )
    return path


def remembered(number, instructions):
    """Return instructions, and one that keeps their value under a number."""
    return instructions + b'q' + bytes([number])


def doubled(times):
    """Return the instructions for a tuple of twice a tuple of twice a tuple, down to an empty
    one."""
    return b')' + b''.join(
        remembered(index, b'') + b'h' + bytes([index]) + b'\x86' for index in range(times)
    )


def storage_of(kind, count):
    """Return the instructions for a storage '0' on the CPU, of a kind and a count of elements."""
    fields = b'ctorch\nFloatStorage\n' + b'X\x01\0\0\x000' + b'X\x03\0\0\0cpu'
    return b'(' + kind + fields + count + b'tQ'


class TestPicklesThatGrow:
    @pytest.mark.parametrize(
        ('instructions', 'message'),
        [
            # {<2 ** 23 tuples>: 1}
            (b'}' + doubled(23) + b'K\x01s', 'it builds more than 100 times its own size'),
            (b')' + b'\x85' * 200, 'or deeper than 100 values in each other'),
            # a list that takes itself, again and again
            (remembered(0, b']') + b'h\x00a' * 200, 'deeper than 100 values'),
            # ten thousand copies of ten thousand characters
            (
                b'('
                + remembered(0, b'X' + struct.pack('<I', 10000) + b'a' * 10000)
                + remembered(1, b'c_codecs\nencode\n')
                + b'h\x01h\x00\x85R' * 10000
                + b'l',
                'it builds more than 100 times',
            ),
            (
                b'c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R',
                'it names builtins.bytearray, which weights do not need',
            ),
            (b'c__builtin__\nset\n]\x85R', 'it names builtins.set,'),
            (b'ctorch\nTensor\n', 'it names torch.Tensor,'),
            (b'ctorch.storage\nUntypedStorage\n', 'it names torch.storage.UntypedStorage,'),
            # protocol 4 names things on the stack
            (
                b'X\x02\0\0\0os' + b'X\x06\0\0\0system' + b'\x93',
                'it has the instruction STACK_GLOBAL',
            ),
            (b'(cos\nsystem\no', 'it names os.system'),
            (b'(ios\nsystem\n', 'it has the instruction INST'),
            # storages that are described in another way than torch does
            (b'X\x01\0\0\x000Q', 'it describes a storage in another way'),
            (storage_of(b'X\x07\0\0\0storage', b'J\xff\xff\xff\xff'), 'it describes a storage'),
            (storage_of(b'X\x06\0\0\0module', b'K\x04'), 'it describes a storage'),
            (
                b']'
                + storage_of(b'X\x07\0\0\0storage', b'K\x04')
                + b'a'
                + storage_of(b'X\x07\0\0\0storage', b'K\x05')
                + b'a',
                "it states two sizes of storage '0'",
            ),
            (b'h\x07', 'KeyError'),
            (b'X\xff\xff\xff\xffabc', 'w.pth cannot be read as plain tensors'),
        ],
    )
    def test_are_refused_before_they_are_built(self, instructions, message, tmp_path, monkeypatch):
        path = torch_file_of(tmp_path / 'w.pth', instructions)
        monkeypatch.delattr(torch, 'load')
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)

    def test_a_long_list_is_no_growth(self, tmp_path):
        """Which comes in pieces, each added to all that came before."""
        # 400 pieces: with all that came before each, 200 times as much as there is
        torch.save(dict(state_dict=STATE, seen=[1] * 400_000), tmp_path / 'w.pth')
        same(read_checkpoint(tmp_path / 'w.pth').state, STATE)

    def test_every_pickle_of_a_file_is_looked_at(self, tmp_path):
        torch.save(STATE, tmp_path / 'w.pth', _use_new_zipfile_serialization=False)
        content = (tmp_path / 'w.pth').read_bytes()
        growing = b'\x80\x02}' + doubled(23) + b'K\x01s.'
        with (tmp_path / 'w.pth').open('rb') as file:
            ends = [0]
            for _ in range(5):
                list(pickletools.genops(file))
                ends.append(file.tell())
        for first, last in zip(ends[1:], ends[2:], strict=False):
            (tmp_path / 'w.pth').write_bytes(content[:first] + growing + content[last:])
            with pytest.raises(CheckpointError, match='it builds more than 100 times its own size'):
                read_checkpoint(tmp_path / 'w.pth')

    def test_small_repetitions_are_read(self, tmp_path):
        path = torch_file_of(tmp_path / 'w.pth', b'}' + doubled(8) + b'K\x01s')
        with pytest.raises(CheckpointError, match='must hold tensors'):
            read_checkpoint(path)


def rewritten(path, replace):
    """Write an archive of torch's again, with what this makes of each part's name and content."""
    with zipfile.ZipFile(path) as archive:
        parts = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in parts:
            for new_name, new_content in replace(name, content):
                archive.writestr(new_name, new_content)


def pickle_ends(path):
    """Return where each of the five pickles of torch's older format ends."""
    ends = []
    with path.open('rb') as file:
        for _ in range(5):
            list(pickletools.genops(file))
            ends.append(file.tell())
    return ends


class TestStorages:
    """What a file states of its storages is what it holds, before torch reads it."""

    def test_a_changed_byte_is_found(self, tmp_path):
        path = tmp_path / 'w.pth'
        torch.save(dict(weight=torch.full((64,), 0.5)), path)
        content = path.read_bytes()
        offset = content.index(struct.pack('<f', 0.5) * 64)
        path.write_bytes(content[:offset] + b'\x01' + content[offset + 1 :])
        with pytest.raises(CheckpointError, match="'w/data/0' does not have its checksum"):
            read_checkpoint(path)

    def test_a_changed_byte_of_an_array_is_found(self, tmp_path):
        path = tmp_path / 'w.npz'
        np.savez(path, weight=np.full(64, 0.5, np.float32))
        content = path.read_bytes()
        offset = content.index(struct.pack('<f', 0.5) * 64)
        path.write_bytes(content[:offset] + b'\x01' + content[offset + 1 :])
        with pytest.raises(CheckpointError, match="array 'weight.npy': Bad CRC-32"):
            read_checkpoint(path)

    def test_files_without_checksums_are_refused(self, tmp_path):
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(STATE, tmp_path / 'w.pth')
        finally:
            torch.serialization.set_crc32_options(True)
        with pytest.raises(CheckpointError, match='or it was written without checksums'):
            read_checkpoint(tmp_path / 'w.pth')

    @pytest.mark.parametrize(
        ('replace', 'message'),
        [
            # fewer bytes than the pickle states
            (
                lambda name, content: [(name, content[:8] if name.endswith('data/0') else content)],
                "it states 16 bytes for storage '0', but has 8",
            ),
            (
                lambda name, content: [] if name.endswith('data/0') else [(name, content)],
                "it states 16 bytes for storage '0', but has None",
            ),
            (
                lambda name, content: [(name, content), (name.upper(), content)],
                'two parts of the archive have the same name',
            ),
        ],
    )
    def test_of_archives(self, replace, message, tmp_path, monkeypatch):
        torch.save(dict(weight=torch.ones(4)), tmp_path / 'w.pth')
        rewritten(tmp_path / 'w.pth', replace)
        monkeypatch.delattr(torch, 'load')
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / 'w.pth')

    @pytest.mark.parametrize(
        ('keys', 'message'),
        [
            ([], 'it lists 0 storages, but its tensors need 1 others'),
            (['7'], 'it lists 1 storages'),
            (('0',), 'must be a list of strings'),
            ([3], 'must be a list of strings'),
        ],
    )
    def test_lists_of_the_older_format(self, keys, message, tmp_path, monkeypatch):
        """Torch leaves storages that are not in the list as the memory was."""
        path = tmp_path / 'w.pth'
        torch.save(dict(weight=torch.ones(300)), path, _use_new_zipfile_serialization=False)
        content, ends = path.read_bytes(), pickle_ends(path)
        path.write_bytes(content[: ends[3]] + pickle.dumps(keys, 2) + content[ends[4] :])
        monkeypatch.delattr(torch, 'load')
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)

    def test_sizes_of_the_older_format(self, tmp_path, monkeypatch):
        path = tmp_path / 'w.pth'
        torch.save(dict(weight=torch.ones(300)), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-4])
        monkeypatch.delattr(torch, 'load')
        with pytest.raises(CheckpointError, match='need 1208 bytes, but 1204 bytes follow'):
            read_checkpoint(path)

    def test_a_storage_of_two_tensors(self, tmp_path):
        weight = torch.arange(6.0)
        state = dict(weight=weight, part=weight[2:4])
        for legacy in (False, True):
            torch.save(state, tmp_path / 'w.pth', _use_new_zipfile_serialization=not legacy)
            assert same(read_checkpoint(tmp_path / 'w.pth').state, state)


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('module.' * 140 + 'conv1.weight', 'got 992 characters and 141 dots'),
        ('w' * 1001, 'got 1001 characters and 0 dots'),
        (f'block1.{"9" * 19}.weight', '18 digits in a row, got 33 characters'),
    ],
)
@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors', 'w.npz'])
def test_keys_of_no_network(key, message, name, tmp_path):
    write_checkpoint(tmp_path / name, {'conv1.weight': torch.ones(1), key: torch.ones(1)})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / name)


# prints by how many kB the memory of a process grows at most while it reads a file
MEASURE_PEAK = """
import sys
from pathlib import Path
from mmrednet.checkpoints import read_checkpoint

def status(field):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

small, large = sys.argv[1:]
read_checkpoint(small)
# as much memory as the peak so far, so that the next peak is that of the large file
ballast = b'1' * (1024 * max(0, status('VmHWM') - status('VmRSS')))
before = status('VmRSS')
state = read_checkpoint(large).state
print(status('VmHWM') - before)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
@pytest.mark.parametrize('count', [1, 16])
def test_reading_takes_the_memory_of_the_file(ending, count, tmp_path):
    size = 64 << 20
    large = {f'{index}.weight': torch.ones(size // 4 // count) for index in range(count)}
    write_checkpoint(tmp_path / f'small{ending}', STATE)
    write_checkpoint(tmp_path / f'large{ending}', large)
    files = [tmp_path / f'{name}{ending}' for name in ('small', 'large')]
    run = run_code(MEASURE_PEAK, *files, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) * 1024 < 1.1 * size


class TestBombs:
    def test_compressed_zeros(self, tmp_path):
        npz_of(tmp_path / 'w.npz', (1 << 24,), data=bytes(1 << 26))
        assert (tmp_path / 'w.npz').stat().st_size < 1 << 17
        with pytest.raises(CheckpointError, match='bytes of tensors, more than 100 times as many'):
            read_checkpoint(tmp_path / 'w.npz')

    @pytest.mark.parametrize(
        'shape',
        [
            (1 << 50,),
            (1 << 40, 1 << 40),
            (-1,),
            (3,),
            (0, 1 << 70),
            (0, 1 << 33, 1 << 33),
            (1,) * 70,
        ],
    )
    def test_stated_shapes_of_arrays(self, shape, tmp_path):
        npz_of(tmp_path / 'w.npz', shape, data=bytes(16))
        with pytest.raises(
            CheckpointError, match=r'a shape .* does not fit the (144|336) bytes that are there'
        ):
            read_checkpoint(tmp_path / 'w.npz')

    def test_thousands_of_dimensions_are_not_multiplied(self, tmp_path, monkeypatch):
        header = {'a': dict(dtype='F32', shape=[(1 << 63) - 1] * 20000, data_offsets=[0, 0])}
        text = json.dumps(header).encode()
        (tmp_path / 'w.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text)
        monkeypatch.setattr('math.prod', None)
        with pytest.raises(CheckpointError, match='overflow computing buffer size'):
            read_checkpoint(tmp_path / 'w.safetensors')

    def test_compressed_arrays_with_other_bytes(self, tmp_path):
        np.savez_compressed(tmp_path / 'w.npz', weight=np.random.randn(100, 100))
        content = bytearray((tmp_path / 'w.npz').read_bytes())
        content[60:90] = bytes(255 - byte for byte in content[60:90])
        (tmp_path / 'w.npz').write_bytes(content)
        with pytest.raises(CheckpointError, match=r"w.npz, array 'weight.npy': "):
            read_checkpoint(tmp_path / 'w.npz')

    def test_torch_archives_with_compressed_parts(self, tmp_path):
        torch.save(STATE, tmp_path / 'plain.pth')
        with (
            zipfile.ZipFile(tmp_path / 'plain.pth') as source,
            zipfile.ZipFile(tmp_path / 'w.pth', 'w', zipfile.ZIP_DEFLATED) as target,
        ):
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        with pytest.raises(CheckpointError, match='got an archive with compressed parts'):
            read_checkpoint(tmp_path / 'w.pth')

    def test_views_of_one_number(self, tmp_path):
        torch.save(dict(weight=torch.zeros(1).expand(1 << 20, 1 << 10)), tmp_path / 'w.pth')
        with pytest.raises(CheckpointError, match='states 4294967296 bytes of tensors'):
            read_checkpoint(tmp_path / 'w.pth')

    def test_storages_that_the_legacy_format_states(self, tmp_path, monkeypatch):
        buffer = io.BytesIO()
        torch.save(dict(weight=torch.zeros(12345)), buffer, _use_new_zipfile_serialization=False)
        content = buffer.getvalue()
        # the count of elements in the pickle: BININT2 becomes BININT
        stated = b'J' + struct.pack('<i', 1 << 30)
        (tmp_path / 'w.pth').write_bytes(content.replace(b'M' + struct.pack('<H', 12345), stated))
        monkeypatch.delattr(torch, 'load')
        with pytest.raises(CheckpointError, match=r'w.pth cannot be read .* need 4294967304 bytes'):
            read_checkpoint(tmp_path / 'w.pth')

    @pytest.mark.parametrize(
        ('header', 'message'),
        [
            (
                {'a': dict(dtype='F32', shape=[1 << 30], data_offsets=[0, 4 << 30])},
                'perhaps cut off: .* file not fully covered',
            ),
            (
                {'a': dict(dtype='F32', shape=[1 << 40], data_offsets=[0, 4 << 40])},
                'file not fully covered',
            ),
            (
                {'a': dict(dtype='F32', shape=[1 << 40], data_offsets=[0, 8])},
                'invalid shape, data type, or offset',
            ),
            ({'a': dict(dtype='F32', shape=[-2], data_offsets=[0, -8])}, 'integer `-2`'),
            ({'a': dict(dtype='F99', shape=[2], data_offsets=[0, 8])}, 'unknown variant `F99`'),
            (
                {
                    'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8]),
                    'b': dict(dtype='F32', shape=[2], data_offsets=[0, 8]),
                },
                'invalid offset for tensor `[ab]`',
            ),
            (
                {'a': dict(dtype='F32', shape=[0, 1 << 70], data_offsets=[0, 0])},
                'floating point `1.18',
            ),
            (
                {
                    'a': dict(dtype='F32', shape=[0, 1 << 33, 1 << 33], data_offsets=[0, 0]),
                    'b': dict(dtype='F32', shape=[2], data_offsets=[0, 8]),
                },
                "'a' must have up to 16 dimensions and 17179869184 elements",
            ),
            (
                {'a': dict(dtype='F32', shape=[1] * 16 + [2], data_offsets=[0, 8])},
                "'a' must have up to 16 dimensions",
            ),
            ({'a': dict(dtype='F32', shape='ab', data_offsets=[0, 8])}, 'expected a sequence'),
            ({'a': 3}, 'integer `3`, expected struct TensorInfo'),
            ([], 'sequence, expected struct'),
            ({'__metadata__': dict(a=3)}, 'integer `3`, expected a string'),
        ],
    )
    def test_headers_of_safetensors(self, header, message, tmp_path):
        text = json.dumps(header).encode()
        (tmp_path / 'w.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + bytes(8))
        with pytest.raises(CheckpointError, match=f'w.safetensors is no .*{message}'):
            read_checkpoint(tmp_path / 'w.safetensors')
        (tmp_path / 'w.safetensors').write_bytes((1 << 60).to_bytes(8, 'little') + text)
        with pytest.raises(CheckpointError, match='header too large'):
            read_checkpoint(tmp_path / 'w.safetensors')


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (
            torch.tensor([1.0, float('nan')]),
            r"must be finite, got NaN or infinity in 1 of 3 tensors: \['bad'\]",
        ),
        (torch.tensor([1.0, float('inf')]), 'must be finite'),
        (torch.ones(2, dtype=torch.int8), 'must be floating point'),
        (torch.ones(2, dtype=torch.complex64), 'must be floating point'),
        (torch.ones(2).to_sparse(), 'must be dense'),
    ],
)
def test_values_that_are_no_weights(value, message, tmp_path):
    torch.save(dict(good=torch.ones(2), counter=torch.tensor(3), bad=value), tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'w.pth')


def test_torch_s_reason_is_kept(tmp_path):
    # an instruction of protocol 4
    with pytest.raises(
        CheckpointError, match=r'w.pth cannot be read as plain tensors, .*: Unsupported operand 140'
    ):
        read_checkpoint(torch_file_of(tmp_path / 'w.pth', b'\x8c\x01a'))


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
    assert (
        sha256_of(tmp_path / 'w.pth')
        == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    )
    assert hash_in_name('van-tiny_8xb128_in1k_20220501-385941af.pth') == '385941af'
    assert hash_in_name('resnet50-0676ba61.safetensors') == '0676ba61'
    assert hash_in_name('rednet50.pth') is None
    # a date, and digits that are none
    assert hash_in_name('rednet26_20210517.pth') is None
    assert hash_in_name('rednet26_20211317.pth') == '20211317'

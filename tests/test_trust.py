"""The check of kernels on first use, in Triton's interpreter: of right kernels, of one made
wrong on purpose, and of one that does not compile.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrednet.ops import Window, _torch, _triton, dispatch, require_kernels, transforms
from mmrednet.ops import involution as involution_op

triton = pytest.importorskip('triton')
from mmrednet.ops._triton import local as fused_local  # noqa: E402
from mmrednet.ops._triton import problems, trust  # noqa: E402
from mmrednet.ops._triton.verified import VERIFIED  # noqa: E402

DEVICE = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
pytestmark = pytest.mark.filterwarnings('ignore:.*encountered:RuntimeWarning')
SHIPPED_SIZE = problems.SIZE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Begin as a process of a user whose cache is empty."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('MMREDNET_TRITON', raising=False)
    monkeypatch.setattr(dispatch, '_logged', set())
    # the interpreter takes seconds for the maps and windows that are shipped
    monkeypatch.setattr(problems, 'SIZE', (2, 3))
    monkeypatch.setattr(problems, 'SHIFTED', Window((1, 3), border='shift'))
    forget(monkeypatch)
    return tmp_path / 'mmrednet/triton'


def forget(monkeypatch):
    """Forget what this process knows, as a new one does."""
    monkeypatch.setattr(trust, '_verdicts', {})
    monkeypatch.setattr(trust, 'failures', {})


def counted(monkeypatch):
    """Return a list that grows with every check."""
    checks, check = [], trust.check

    def count(*arguments):
        checks.append(arguments)
        return check(*arguments)

    monkeypatch.setattr(trust, 'check', count)
    return checks


def arguments_of(dtype=torch.float32):
    value, weight = torch.randn(1, 1, 2, 3, 4, device=DEVICE), torch.randn(1, 1, 9, 3, 4).to(DEVICE)
    return value.to(dtype), weight.to(dtype), list(Window(3))


def aggregate(*arguments):
    kernel = _triton._imported_late('local', 'aggregate', definition)
    return kernel(*arguments)


def definition(value, weight, window):
    return _torch.aggregate(value, weight, Window.from_flat(window))


def test_the_shipped_table_is_empty():
    assert len(VERIFIED) == 0


@pytest.mark.parametrize('family', problems.PROBLEMS)
def test_every_family_agrees_with_its_definitions(family, monkeypatch):
    layout = 'channels-last' if family == 'vector_attention' else 'strided'
    # of the others, all that depends on the size is in test_triton.py and test_triton_vector.py
    if family not in ('attention', 'vector_attention'):
        monkeypatch.setattr(problems, 'SIZE', SHIPPED_SIZE)
    assert trust.check(family, torch.float32, layout, DEVICE) is None


def test_every_registered_family_has_a_problem():
    sources = Path(_triton.__file__).parents[1].glob('*.py')
    registered = set()
    for path in sources:
        for part in path.read_text().split('_triton.register(')[1:]:
            registered.add(part.split("'")[1])
    assert registered == set(problems.PROBLEMS)


def test_a_family_is_checked_once(cache, monkeypatch):
    checks = counted(monkeypatch)
    torch.manual_seed(3)
    arguments = arguments_of()
    state, place = torch.get_rng_state(), torch.is_grad_enabled()
    for _ in range(2):
        torch.testing.assert_close(aggregate(*arguments), definition(*arguments))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == place
    assert [check[:3] for check in checks] == [('local', torch.float32, 'contiguous')]
    # another dtype is another check
    aggregate(*arguments_of(torch.bfloat16))
    assert len(checks) == 2
    # and a second process reads both verdicts
    forget(monkeypatch)
    aggregate(*arguments)
    aggregate(*arguments_of(torch.bfloat16))
    assert len(checks) == 2
    verdicts = [json.loads(path.read_text()) for path in cache.glob('*.json')]
    assert [verdict['verdict'] for verdict in verdicts] == [None, None]


def spoil(monkeypatch, factor=1.01):
    true = fused_local.aggregate
    monkeypatch.setattr(fused_local, 'aggregate', lambda *inputs: true(*inputs) * factor)


@pytest.mark.parametrize('factor', [1.01, torch.nan])
def test_a_wrong_kernel_is_left_for_its_definition(factor, cache, monkeypatch, caplog):
    spoil(monkeypatch, factor)
    arguments = arguments_of()
    with caplog.at_level('WARNING', 'mmrednet'):
        for _ in range(2):
            assert torch.equal(aggregate(*arguments), definition(*arguments))
        # other dtypes and operators of the family too
        other = arguments_of(torch.bfloat16)
        assert torch.equal(aggregate(*other), definition(*other))
    (message,) = caplog.messages
    assert message.startswith('local falls back from its triton kernel to plain torch: aggregate')
    assert 'differs from its definition by' in message
    assert 'more than 1e-04' in message
    assert 'please report this' in message
    assert 'without families that failed their check (local:' in _triton.state()
    with require_kernels('triton'), pytest.raises(RuntimeError, match='differs from its def'):
        aggregate(*arguments)
    # a second process is told, and does not check again
    forget(monkeypatch)
    monkeypatch.setattr(dispatch, '_logged', set())
    checks = counted(monkeypatch)
    with caplog.at_level('WARNING', 'mmrednet'):
        assert torch.equal(aggregate(*arguments), definition(*arguments))
    assert (checks, len(caplog.messages)) == ([], 2)


def test_a_wrong_gradient_is_found(monkeypatch):
    from mmrednet.ops._triton import attention

    true = attention.attention_backward

    def wrong(*arguments):
        grads = list(true(*arguments))
        grads[4] = grads[4] * 1.001
        return grads

    monkeypatch.setattr(attention, 'attention_backward', wrong)
    verdict = trust.check('attention', torch.float32, 'contiguous', DEVICE)
    assert verdict.startswith('gradient of attention for columns differs')


@triton.jit
def _does_not_compile(value, BLOCK: triton.language.constexpr):
    # a block must be a power of two
    triton.language.store(value + triton.language.arange(0, BLOCK), 0)


def test_a_kernel_that_does_not_compile(monkeypatch, caplog):
    def broken(value, weight, window):
        _does_not_compile[(1,)](value, BLOCK=3)
        return value

    monkeypatch.setattr(fused_local, 'aggregate', broken)
    arguments = arguments_of()
    with caplog.at_level('WARNING', 'mmrednet'):
        assert torch.equal(aggregate(*arguments), definition(*arguments))
    (message,) = caplog.messages
    assert 'it does not run' in message
    assert 'please report this' in message


@pytest.mark.parametrize(('switch', 'count'), [('1', 0), ('', 1)])
def test_the_switch_skips_the_check(switch, count, cache, monkeypatch):
    monkeypatch.setenv('MMREDNET_TRITON', switch)
    checks = counted(monkeypatch)
    spoil(monkeypatch)
    arguments = arguments_of()
    assert torch.equal(aggregate(*arguments), definition(*arguments)) == (count == 1)
    assert len(checks) == count
    assert cache.exists() == (count == 1)


def test_a_verified_chip_needs_no_check(monkeypatch):
    checks = counted(monkeypatch)
    monkeypatch.setattr(trust, 'VERIFIED', {trust.entry(DEVICE)})
    aggregate(*arguments_of())
    assert checks == []
    # another version of the sources is not verified
    monkeypatch.setattr(trust, 'VERIFIED', {trust.entry(DEVICE)._replace(sources='other')})
    aggregate(*arguments_of())
    assert len(checks) == 1


@pytest.mark.parametrize('way', ['capture', 'jit', 'compile'])
def test_no_check_while_a_graph_is_recorded(way, cache, monkeypatch, caplog):
    checks = counted(monkeypatch)
    arguments = arguments_of()
    with monkeypatch.context() as patch:
        if way == 'capture':
            patch.setattr(trust, '_is_recording', lambda _: True)
        elif way == 'jit':
            patch.setattr(torch.jit, 'is_tracing', lambda: True)
        else:
            patch.setattr(torch.compiler, 'is_compiling', lambda: True)
        with caplog.at_level('WARNING', 'mmrednet'):
            for _ in range(2):
                assert torch.equal(aggregate(*arguments), definition(*arguments))
        assert checks == []
        (message,) = caplog.messages
        assert 'call it once before' in message
        assert not cache.exists()
    # no verdict was kept: the next call checks
    aggregate(*arguments)
    assert len(checks) == 1
    monkeypatch.setattr(trust, '_is_recording', lambda _: True)
    used = []
    monkeypatch.setattr(fused_local, 'aggregate', lambda *_: used.append(True))
    aggregate(*arguments)
    assert used == [True]


def test_a_check_does_not_call_kernels_for_its_definitions(monkeypatch):
    """The definition of involution calls the primitives, whose kernel would be checked in turn."""
    calls, true = [], involution_op.definition
    kernel = _triton._imported_late('local', 'aggregate', definition)

    def definition_of_involution(value, hidden, weight, bias, window):
        kernel(*arguments_of())
        calls.append(trust.is_checking())
        return true(value, hidden, weight, bias, window)

    checks = counted(monkeypatch)
    monkeypatch.setattr(involution_op, 'definition', definition_of_involution)
    monkeypatch.setattr(fused_local, 'aggregate', None)
    assert trust.distrusted('involution', torch.zeros(1, 1, 1, 2, 2, device=DEVICE)) is None
    assert calls == [True]
    assert [check[0] for check in checks] == ['involution']
    assert not trust.is_checking()


def test_autograd_runs_in_the_body_of_a_custom_op():
    x = torch.randn(3, requires_grad=True)
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
        assert not x.sin().requires_grad
        with transforms.recorded():
            (grad,) = torch.autograd.grad(x.sin().sum(), x)
        assert not x.sin().requires_grad
    assert torch.equal(grad, x.detach().cos())


def test_a_broken_cache_does_not_matter(cache, monkeypatch):
    checks = counted(monkeypatch)
    aggregate(*arguments_of())
    (path,) = cache.glob('*.json')
    path.write_text('{"key": ')
    forget(monkeypatch)
    aggregate(*arguments_of())
    assert len(checks) == 2
    # nor one that cannot be written
    monkeypatch.setenv('XDG_CACHE_HOME', str(path))
    forget(monkeypatch)
    aggregate(*arguments_of())
    assert len(checks) == 3


def _write_often(folder):
    os.environ['XDG_CACHE_HOME'] = folder
    for number in range(300):
        trust._write(('key', 'of all'), str(number % 10) * 3000)


def test_processes_that_write_at_the_same_time(cache):
    folder = str(cache.parents[1])
    processes = [
        multiprocessing.get_context('fork').Process(target=_write_often, args=(folder,))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    verdicts = []
    while any(process.is_alive() for process in processes):
        is_known, verdict = trust._read(('key', 'of all'))
        if is_known:
            verdicts.append(verdict)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert verdicts
    assert {len(verdict) for verdict in verdicts} == {3000}
    assert list(cache.glob('*.tmp')) == []


def test_the_fingerprint_is_that_of_the_kernels():
    code = 'from mmrednet.ops._triton import trust; print(trust.fingerprint())'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == trust.fingerprint()
    assert len(trust.fingerprint()) == 16

"""Post-processing of Panoptic-DeepLab agrees with the published implementations."""

import golden
import pytest
import torch
from torch.nn import functional as F

from mmrednet.panoptic import nearest
from mmrednet.panoptic.centers import TOP_K_RULES, find_centers, window_maximum
from mmrednet.panoptic.merging import PanopticMerger
from mmrednet.panoptic.nearest import compare, nearest_center
from mmrednet.panoptic.resizing import resize
from mmrednet.panoptic.variants import VARIANTS, arguments

CLASSES, THINGS = 19, range(11, 19)
VOID = 255
NAMES = sorted(path.stem for path in (golden.FOLDER / 'panoptic').glob('pdl_post_*.json'))
RUNS = [
    (name, variant, run['nms_kernel'])
    for name in NAMES
    for run in golden.load(f'panoptic/{name}')[0]['runs']
    for variant in ('detectron2', 'bowenc0221')
    if 'error' not in run[variant]
]
DEEPLAB2, DEEPLAB2_MAPS = golden.load('panoptic/pdl_dl2_post')


def merger(variant, settings, **options):
    options = dict(
        threshold=settings['threshold'],
        top_k=settings['top_k'],
        stuff_area=settings['stuff_area'],
        **options,
    )
    return PanopticMerger(CLASSES, THINGS, **arguments(variant, test_cfg=options)['test_cfg'])


def published_ids(result):
    """Return class * 1000 + instance, -1 for void, as the published codes have them."""
    ids = result.category * 1000 + result.number
    return torch.cat([ids, torch.tensor([-1])])[result.slot]


def merge(case, arrays, variant, kernel, **options):
    run = merger(variant, case['settings'], nms_kernel=kernel, **options)
    semantic = arrays['semantic'].long()
    foreground = arrays.get('foreground')
    result = run(
        F.one_hot(semantic, CLASSES).permute(2, 0, 1).double(),
        arrays['heatmap'],
        arrays['offset'],
        semantic=semantic,
        foreground=None if foreground is None else foreground.bool(),
    )
    return run, result


@pytest.mark.parametrize(('name', 'variant', 'kernel'), RUNS)
def test_pytorch_implementations(name, variant, kernel):
    case, arrays = golden.load(f'panoptic/{name}')
    published = next(run for run in case['runs'] if run['nms_kernel'] == kernel)
    run, result = merge(case, arrays, variant, kernel, top_k_rule=variant)
    centers, exists = run.find_centers(arrays['heatmap'])
    assert centers[exists].tolist() == published[variant]['centers']
    # stored once where both agree
    key = f'{variant}.k{kernel}.panoptic'
    expected = arrays[key if key in arrays else f'detectron2.k{kernel}.panoptic'].long()
    expected = torch.where(expected == 255000, -1, expected)
    assert torch.equal(published_ids(result), expected)
    areas = {int(key): value for key, value in published[variant]['segments'].items()}
    void = areas.pop(published[variant]['void_label'], 0)
    assert int((result.slot == len(result.area)).sum()) == void
    ids = (result.category * 1000 + result.number).tolist()
    segments = {key: area for key, area in zip(ids, result.area.tolist(), strict=True) if area}
    assert segments == areas


@pytest.mark.parametrize('case', DEEPLAB2['cases'], ids=lambda c: f'{c["case"]}-{c["nms_kernel"]}')
def test_deeplab2(case):
    kernel, name = case['nms_kernel'], case['case']
    key = f'{name}.k{kernel}'
    inputs, arrays = golden.load(f'panoptic/{name}')
    options = dict(top_k_rule='deeplab2', score='center')
    run, result = merge(inputs, arrays, 'deeplab2', kernel, **options)
    centers, exists = run.find_centers(arrays['heatmap'])
    assert centers[exists].tolist() == case['centers']
    expected = DEEPLAB2_MAPS[f'{key}.panoptic'].long()
    expected = torch.where(expected == 255000, -1, expected)
    assert torch.equal(published_ids(result), expected)
    # deeplab2 gives stuff no score in its map
    is_thing = result.slot < len(centers[: len(result.area) - CLASSES])
    score = torch.cat([result.score, torch.zeros(1)])[result.slot].where(is_thing, 0.0)
    assert (score - DEEPLAB2_MAPS[f'{key}.score'].where(is_thing, 0.0)).abs().max() < 1e-6
    if f'{key}.compiled' in DEEPLAB2_MAPS:
        options.update(stuff_above=True, no_center='one_instance')
        compiled = merge(inputs, arrays, 'deeplab2', kernel, **options)[1]
        expected = DEEPLAB2_MAPS[f'{key}.compiled'].long()
        assert torch.equal(published_ids(compiled), torch.where(expected == 255000, -1, expected))


def published_scores(case):
    """Return (variant, score, scores by id) of each published score."""
    rows = [('detectron2', 'semantic_mass', case['detectron2']['instances'])]
    names = dict(semantic='semantic', instance='mass', both='semantic_mass')
    rows += [('bowenc0221', names[key], case['bowenc0221'][key]) for key in names]
    for variant, score, instances in rows:
        yield variant, score, {row['panoptic_id']: row['score'] for row in instances}


@pytest.mark.parametrize('name', ['pdl_scores_a', 'pdl_scores_resize'])
def test_scores(name):
    case, arrays = golden.load(f'panoptic/{name}')
    settings = case['settings']
    height, width = settings['image_size']
    maps = (arrays['logits'], arrays['heatmap'][None], arrays['offset'])
    logits, heat, offset = (
        resize(x[None, :, :height, :width], settings['output_size'], False)[0] for x in maps
    )
    for variant, score, expected in published_scores(case):
        run = merger(variant, settings, nms_kernel=settings['nms_kernel'], score=score)
        result = run(logits.softmax(0), heat[0], offset)
        assert torch.equal(published_ids(result), arrays['panoptic'].long())
        ids = (result.category * 1000 + result.number)[:-CLASSES].tolist()
        rows = zip(ids, result.score.tolist(), result.area.tolist(), strict=False)
        got = {key: value for key, value, area in rows if area}
        assert got.keys() == expected.keys()
        for key in expected:
            assert got[key] == pytest.approx(expected[key], abs=1e-6)
    areas = {row['panoptic_id']: row['area'] for row in case['detectron2']['instances']}
    infos = {info['id']: info for info in result.segments_info()}
    # mmdet's ids count instances in thousands
    for key, area in areas.items():
        category, number = divmod(key, 1000)
        own = number * 1000 + category
        assert infos[own]['category'] == category
        assert int((result.ids(VOID) == own).sum()) == area
    assert set(result.ids(VOID).unique().tolist()) - {VOID} == set(infos)


@pytest.mark.parametrize('top_k', [1, 3, 5, 8, 9, 10])
def test_the_best_centers_are_kept(top_k):
    """Nine separate maxima: the published codes lose one where there are as many or more."""
    _, arrays = golden.load('panoptic/pdl_post_topk9')
    heat = arrays['heatmap']
    counts = {}
    for rule in TOP_K_RULES:
        centers, exists = find_centers(heat, threshold=0.1, kernel_size=3, top_k=top_k, rule=rule)
        counts[rule] = int(exists.sum())
        assert exists.tolist() == [True] * counts[rule] + [False] * (len(exists) - counts[rule])
    maxima = ((heat > 0.1) & (heat == window_maximum(heat, 3))).nonzero()
    best = sorted(maxima.tolist(), key=lambda position: -float(heat[tuple(position)]))[:top_k]
    centers, exists = find_centers(heat, threshold=0.1, kernel_size=3, top_k=top_k)
    assert centers[exists].tolist() == sorted(best)
    assert counts == dict(
        best=min(top_k, 9),
        detectron2=min(top_k - 1, 9),
        bowenc0221=min(top_k - 1, 9),
        deeplab2=9 if top_k >= 9 else top_k - 1,
    )


def test_equally_good_centers():
    """The first ones are kept."""
    _, arrays = golden.load('panoptic/pdl_post_topk5_tie')
    centers, exists = find_centers(arrays['heatmap'], threshold=0.1, kernel_size=3, top_k=5)
    assert int(exists.sum()) == 5
    heat = torch.zeros(9, 9)
    heat[1::3, 1::3] = 0.5
    centers, exists = find_centers(heat, threshold=0.1, kernel_size=3, top_k=4)
    assert centers[exists].tolist() == [[1, 1], [1, 4], [1, 7], [4, 1]]


def test_fewer_pixels_than_centers():
    case, arrays = golden.load('panoptic/pdl_post_small_image')
    with pytest.raises(RuntimeError, match='out of range'):
        merge(case, arrays, 'detectron2', 7, top_k_rule='detectron2')
    for variant in VARIANTS:
        run, result = merge(case, arrays, variant, 7)
        centers, exists = run.find_centers(arrays['heatmap'])
        assert centers[exists].tolist() == [[3, 2], [11, 10]]
        assert sorted(result.area[result.area > 0].tolist()) == [29, 72, 79]


@pytest.mark.parametrize('size', [1, 3, 7, 13, 41])
@pytest.mark.parametrize('shape', [(5, 9), (50, 33)])
def test_window_maximum(size, shape):
    x = torch.randn(shape)
    expected = F.max_pool2d(x[None, None], size, 1, size // 2)[0, 0]
    assert torch.equal(window_maximum(x, size), expected)


def direct(points, centers):
    """The definition: all distances."""
    difference = points[:, None] - centers.T[:, :, None, None]
    return (difference**2).sum(0).argmin(0)


@pytest.mark.parametrize('count', [1, 2, 7, 150])
@pytest.mark.parametrize('shape', [(3, 5), (32, 64), (97, 131)])
@pytest.mark.parametrize('spread', [0.0, 3.0, 200.0])
def test_nearest_center(count, shape, spread):
    height, width = shape
    centers = torch.stack(
        [torch.randint(height, (count,)), torch.randint(width, (count,))], 1
    ).double()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    points = torch.stack([rows, columns]).double()
    # whole numbers have many equal distances
    points = points + (torch.randn(points.shape) * spread).round()
    mask = torch.rand(shape) < 0.7
    expected = direct(points, centers)
    got = nearest_center(points, centers, mask)
    assert got.shape == shape
    assert torch.equal(got[mask], expected[mask])
    assert torch.equal(compare(points[0], points[1], centers.T[:, :, None, None]), expected)


def test_most_centers_are_ruled_out(monkeypatch):
    """Offsets that lead to centres leave few candidates, and one needs no comparison."""
    compared = []

    def spy(rows, columns, centers):
        compared.append(rows.numel() * centers.shape[1])
        return compare(rows, columns, centers)

    monkeypatch.setattr(nearest, 'compare', spy)
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing='ij')
    centers = torch.cartesian_prod(torch.arange(15.5, 256, 32), torch.arange(15.5, 256, 32))
    points = torch.stack([rows, columns])
    mask = torch.ones(256, 256, dtype=torch.bool)
    expected = direct(points, centers)
    assert torch.equal(nearest_center(points, centers, mask), expected)
    assert sum(compared) < 0.2 * 64 * 256 * 256
    compared.clear()
    exact = centers[expected].permute(2, 0, 1)
    assert torch.equal(nearest_center(exact, centers, mask), expected)
    assert sum(compared) == 0


def test_memory_is_in_proportion_to_the_pixels():
    """No tensor has K x H x W elements."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.untyped_storage().nbytes())
            return result

    height, width = 160, 256
    heat = torch.zeros(height, width)
    heat[4::8, 4::16] = 0.5
    heat += 0.4 * torch.rand(height, width)
    run = PanopticMerger(4, [2, 3], nms_kernel=3, top_k=200)
    probability = torch.rand(4, height, width).softmax(0)
    offset = 100 * torch.randn(2, height, width)
    with Sizes() as sizes:
        result = run(probability, heat, offset)
    assert len(result.area) == 204
    # two numbers of 8 bytes per pixel; 200 centres would need 100 times that
    assert sizes.largest <= 32 * height * width


def test_the_result_does_not_depend_on_the_run():
    torch.use_deterministic_algorithms(True)
    try:
        heat, offset = torch.rand(64, 96), 30 * torch.randn(2, 64, 96)
        run = PanopticMerger(19, THINGS, stuff_area=20)
        probability = torch.rand(19, 64, 96).softmax(0)
        first, second = (run(probability, heat, offset) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        (dict(nms_kernel=4), 'nms_kernel'),
        (dict(top_k=0), 'top_k'),
        *(({name: 'x'}, name) for name in ('top_k_rule', 'numbering', 'score', 'no_center')),
    ],
)
def test_bad_arguments(options, name):
    with pytest.raises(ValueError, match=f'{name} must be|{name} at least'):
        PanopticMerger(3, [1], **options)

"""Panoptic segmentation of your own images, with maps of segment ids: a number for each class, and
number * 1000 + count for each object. docs/panoptic.md explains it.
"""

_base_ = [
    '../axial/_base_/panoptic-deeplab_r50.py',
    '../_base_/panoptic/datasets/loaders.py',
    '../_base_/panoptic/schedules/lookahead_60k.py',
    '../_base_/panoptic/default_runtime.py',
]
iterations = 10000
# width, height
crop_size = (513, 513)
scale = (1024, 512)
# the first class has the number 1
metainfo = dict(classes=('ground', 'object'), thing_classes=('object',))
dataset = dict(
    type='mmrednet.PanopticMapDataset',
    data_root='data/custom_panoptic/',
    img_suffix='.jpg',
    metainfo=metainfo,
)
model = dict(
    num_classes=2,
    thing_classes=[1],
    # number of pixels below which stuff becomes void
    test_cfg=dict(stuff_area=1024),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrednet.LoadPanopticMap'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    # void is 0
    dict(type='Pad', size=crop_size, pad_val=dict(img=(103.53, 116.28, 123.675), seg=0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmrednet.PackPanopticInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='mmrednet.LoadPanopticMap'),
    dict(type='mmrednet.PackPanopticInputs'),
]
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        **dataset,
        data_prefix=dict(img='images/train', seg='maps/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        **dataset,
        data_prefix=dict(img='images/val', seg='maps/val'),
        pipeline=test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=500, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000))

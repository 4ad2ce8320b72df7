"""The narrow decoder of `make demo-seg` on CamVid, for two CPU cores: half an hour at most."""

_base_ = '../../streets/_base_/ham-narrow_streets.py'

iterations, crop_size = 3000, (180, 240)
model = dict(data_preprocessor=dict(size=crop_size), decode_head=dict(num_classes=11))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
dataset = dict(type='mmrednet.CamVidDataset', data_root='data/camvid/')
train_dataloader = dict(
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(**dataset, data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'))
)
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(checkpoint=dict(interval=iterations))

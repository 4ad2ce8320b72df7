"""SegNeXt's decoder, narrow, on streets in Cityscapes format, for two CPU cores."""

_base_ = [
    '../../_base_/seg/models/ham.py',
    '../../_base_/seg/datasets/cityscapes.py',
    '../../_base_/seg/schedules/adamw_160k.py',
    '../../_base_/seg/default_runtime.py',
]

size = (128, 256)
iterations, batch_size = 1000, 8

model = dict(
    data_preprocessor=dict(size=size),
    decode_head=dict(
        in_index=[0, 1, 2, 3],
        channels=64,
        ham_channels=64,
        dropout_ratio=0.0,
        num_classes=19,
        norm_cfg=dict(num_groups=8),
    ),
)

data_root = 'data/streets/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=batch_size, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=0.002), clip_grad=dict(max_norm=5, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(interval=iterations, max_keep_ckpts=1, save_best=None),
)
randomness = dict(seed=0)

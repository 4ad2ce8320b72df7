"""A narrow RedNet on images of one shape each, by tools/synthetic/generate.py --format folder."""

_base_ = '../_base_/cls/recipes/rednet.py'
data_root = 'data/single_shapes/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrednet.RandomResizedCrop', size=64, area=(0.6, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmrednet.PackImage'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='mmrednet.PackImage')]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
model = dict(
    backbone=dict(type='mmrednet.RedNet', depth=26, base_channels=32, out_indices=(3,)),
    channels=1024,
    num_classes=5,
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(
        type='CosineAnnealingLR', T_max=8, by_epoch=True, begin=0, end=8, convert_to_iter_based=True
    ),
]
train_cfg = dict(max_epochs=8)
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='gloo'))

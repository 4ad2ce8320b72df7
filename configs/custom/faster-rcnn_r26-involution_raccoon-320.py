"""Faster R-CNN with involution in the stages of the backbone on raccoons, from scratch, for
two CPU cores: crops of 320 x 320 pixels, averaged weights, bfloat16.
"""

_base_ = './faster-rcnn_rednet26_raccoon.py'

iterations, size = 2000, (320, 320)
model = dict(
    backbone=dict(type='mmrednet.SpatialResNet', spatial_cfg=dict(type='Involution')),
    neck=dict(spatial_cfg=None),
    rpn_head=dict(spatial_cfg=None),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=size, ratio_range=(0.6, 1.6), keep_ratio=True),
    dict(type='RandomCrop', crop_size=size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=size)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(type='CpuAmpOptimWrapper')
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=iterations, T_max=iterations)
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(checkpoint=dict(interval=iterations))
custom_hooks = [dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.002, gamma=10)]

"""Semantic FPN at stride 4 on CamVid: crops of 288 x 384, in bfloat16, from scratch."""

_base_ = [
    '../../_base_/seg/models/semantic_fpn.py',
    '../../_base_/seg/datasets/camvid.py',
    '../../_base_/seg/schedules/adamw_160k.py',
    '../../_base_/seg/default_runtime.py',
]

iterations, crop_size = 6000, (288, 384)
norm_cfg = dict(type='BN', requires_grad=True)
# 1 / ln(1.10 + p) of each class, where p is its share of the labelled pixels of the train images;
# tools/analysis_tools/class_weights.py prints them
class_weight = [4.111, 3.398, 9.563, 2.798, 7.305, 5.454, 9.403, 9.441, 6.696, 9.868, 10.197]
model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size_divisor=32)),
    neck=dict(out_channels=64, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=11,
        loss_decode=dict(class_weight=class_weight),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='CpuAmpOptimWrapper',
    optimizer=dict(lr=0.001, weight_decay=0.01),
    clip_grad=dict(max_norm=5, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=100, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=2000)
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=1000, max_keep_ckpts=1, save_best=None),
)
custom_hooks = [dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.002, gamma=10)]
randomness = dict(seed=0)

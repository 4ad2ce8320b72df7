"""A narrow ResNet-26, whose stages take any operator, with SegNeXt's head: for compare_operators.py
on CamVid.
"""

_base_ = './_base_/ham-narrow_camvid-180x240.py'

iterations = 700
model = dict(
    backbone=dict(type='mmrednet.SpatialResNet', depth=26, base_channels=16),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(checkpoint=dict(interval=iterations))

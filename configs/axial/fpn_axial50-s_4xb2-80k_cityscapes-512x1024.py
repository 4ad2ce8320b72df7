_base_ = [
    '../_base_/seg/models/semantic_fpn.py',
    '../_base_/seg/datasets/cityscapes.py',
    '../_base_/seg/schedules/sgd_80k.py',
    '../_base_/seg/default_runtime.py',
]
model = dict(
    backbone=dict(type='mmrednet.AxialResNet', arch='s', depth=50, output_stride=16, span=65),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

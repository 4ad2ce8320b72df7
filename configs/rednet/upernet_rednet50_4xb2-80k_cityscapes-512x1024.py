_base_ = [
    '../_base_/seg/models/upernet.py',
    '../_base_/seg/datasets/cityscapes.py',
    '../_base_/seg/schedules/sgd_80k.py',
    '../_base_/seg/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmrednet.RedNet',
        depth=50,
        norm_cfg=dict(type='BN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/rednet50.pth'),
    )
)

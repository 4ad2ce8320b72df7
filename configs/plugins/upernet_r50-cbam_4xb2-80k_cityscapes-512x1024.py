_base_ = [
    '../_base_/seg/models/upernet.py',
    '../_base_/seg/datasets/cityscapes.py',
    '../_base_/seg/schedules/sgd_80k.py',
    '../_base_/seg/default_runtime.py',
]
model = dict(
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        norm_cfg=dict(type='BN', requires_grad=True),
        style='pytorch',
        contract_dilation=True,
        plugins=[dict(cfg=dict(type='mmrednet.CBAM'), position='after_conv3')],
    ),
)

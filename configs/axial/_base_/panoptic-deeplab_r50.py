_base_ = '../../_base_/panoptic/models/panoptic_deeplab.py'
model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        out_indices=(0, 1, 3),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    )
)

_base_ = [
    '../_base_/panoptic/models/panoptic_deeplab.py',
    '../_base_/panoptic/cityscapes_60k.py',
]
model = dict(
    backbone=dict(
        type='mmrednet.RedNet',
        depth=50,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        out_indices=(0, 1, 3),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/rednet50.pth'),
    ),
    num_classes=19,
    thing_classes=list(range(11, 19)),
    test_cfg=dict(nms_kernel=13, stuff_area=2048),
)

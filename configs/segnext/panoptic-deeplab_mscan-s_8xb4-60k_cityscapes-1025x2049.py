_base_ = [
    '../_base_/panoptic/models/panoptic_deeplab.py',
    '../_base_/panoptic/cityscapes_60k.py',
]
model = dict(
    backbone=dict(
        type='mmrednet.MSCAN',
        arch='small',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/mscan_s.pth'),
    ),
    # strides 4, 8, 16 and 32
    decoder=dict(in_channels=[64, 128, 320, 512], dilations=(3, 6, 9)),
    stride=32,
    num_classes=19,
    thing_classes=list(range(11, 19)),
    test_cfg=dict(nms_kernel=13, stuff_area=2048),
)

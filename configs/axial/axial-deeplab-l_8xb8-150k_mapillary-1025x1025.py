_base_ = ['./_base_/axial-deeplab-s.py', '../_base_/panoptic/mapillary_150k.py']
model = dict(
    backbone=dict(arch='l'),
    decoder=dict(in_channels=[256, 512, 2048]),
    num_classes=65,
    thing_classes=[0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), *range(59, 63)],
    test_cfg=dict(nms_kernel=13, stuff_area=2048),
)

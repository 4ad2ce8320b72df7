_base_ = ['./_base_/panoptic-deeplab_r50.py', '../_base_/panoptic/mapillary_150k.py']
model = dict(
    num_classes=65,
    thing_classes=[0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), *range(59, 63)],
    test_cfg=dict(nms_kernel=13, stuff_area=2048),
)

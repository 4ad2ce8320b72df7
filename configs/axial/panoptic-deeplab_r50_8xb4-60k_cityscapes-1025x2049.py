_base_ = ['./_base_/panoptic-deeplab_r50.py', '../_base_/panoptic/cityscapes_60k.py']
model = dict(
    num_classes=19,
    thing_classes=list(range(11, 19)),
    test_cfg=dict(nms_kernel=13, stuff_area=2048),
)

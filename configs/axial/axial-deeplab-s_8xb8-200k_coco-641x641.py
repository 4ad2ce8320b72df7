_base_ = ['./_base_/axial-deeplab-s.py', '../_base_/panoptic/coco_200k.py']
model = dict(
    num_classes=133,
    thing_classes=list(range(80)),
    test_cfg=dict(nms_kernel=41, stuff_area=4096),
)

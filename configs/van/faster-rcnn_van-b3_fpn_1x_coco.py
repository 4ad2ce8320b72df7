_base_ = './faster-rcnn_van-b0_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        arch='b3', drop_path_rate=0.3, init_cfg=dict(checkpoint='checkpoints/van_large_839.pth.tar')
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

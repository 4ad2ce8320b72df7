_base_ = './retinanet_mscan-t_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/mscan_b.pth')),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

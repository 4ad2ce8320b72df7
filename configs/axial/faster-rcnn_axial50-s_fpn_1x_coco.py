_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='mmrednet.AxialResNet', arch='s', depth=50),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

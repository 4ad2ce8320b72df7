_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(type='mmrednet.RedNet', init_cfg=dict(checkpoint='checkpoints/rednet50.pth'))
)

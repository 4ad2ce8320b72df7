_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmrednet.SE'), position='after_conv3')]))

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        dcn=dict(type='mmrednet.SpatialConv', spatial_cfg=dict(type='DCNv2')),
        stage_with_dcn=(False, True, True, True),
    )
)

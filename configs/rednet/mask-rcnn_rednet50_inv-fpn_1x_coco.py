_base_ = './mask-rcnn_rednet50_fpn_1x_coco.py'
model = dict(neck=dict(type='mmrednet.SpatialFPN'))
# the authors warm involution necks up for 2000 iterations in place of mmdet's 500
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

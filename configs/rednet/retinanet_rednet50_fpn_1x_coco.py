_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(type='mmrednet.RedNet', init_cfg=dict(checkpoint='checkpoints/rednet50.pth'))
)
# the authors warm RetinaNet up for 2000 iterations in place of mmdet's 500
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]

_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrednet.NAT',
        arch='mini',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/nat_mini.pth'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# as published, but that the last norm of the backbone starts from the classifier's final norm
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(rpb=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrednet.VAN',
        arch='b0',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/van_tiny_754.pth.tar'),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
# no code of the paper's detectors is published: this is mmdet's recipe for PVT, a pyramid of the
# same form
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, weight_decay=0.0001),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
)
# batch norms count the batches of all processes, where there are several
sync_bn = 'torch'

_base_ = './cascade-mask-rcnn_nat-mini_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
model = dict(
    backbone=dict(
        type='mmrednet.DiNAT',
        arch='large',
        dilations='coco',
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint='checkpoints/dinat_large_in22k_224.pth'),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
# in single precision, as published
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=7.5e-5))

_base_ = './mask-rcnn_nat-mini_fpn_amp-ms-crop-3x_coco.py'
model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='checkpoints/nat_tiny.pth'),
    ),
)

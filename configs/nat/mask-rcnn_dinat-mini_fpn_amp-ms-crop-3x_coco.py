_base_ = './mask-rcnn_nat-mini_fpn_amp-ms-crop-3x_coco.py'
model = dict(
    backbone=dict(
        type='mmrednet.DiNAT',
        dilations='coco',
        init_cfg=dict(checkpoint='checkpoints/dinat_mini_in1k_224.pth'),
    )
)

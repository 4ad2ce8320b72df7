_base_ = './cascade-mask-rcnn_nat-small_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
model = dict(
    backbone=dict(
        type='mmrednet.DiNAT',
        dilations='coco',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='checkpoints/dinat_small_in1k_224.pth'),
    )
)

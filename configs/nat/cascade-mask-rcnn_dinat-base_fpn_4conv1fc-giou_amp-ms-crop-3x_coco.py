_base_ = './cascade-mask-rcnn_nat-base_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
model = dict(
    backbone=dict(
        type='mmrednet.DiNAT',
        dilations='coco',
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint='checkpoints/dinat_base_in1k_224.pth'),
    )
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-5))

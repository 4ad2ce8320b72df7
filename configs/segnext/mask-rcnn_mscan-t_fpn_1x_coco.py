_base_ = '../van/mask-rcnn_van-b0_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        type='mmrednet.MSCAN', arch='tiny', init_cfg=dict(checkpoint='checkpoints/mscan_t.pth')
    )
)

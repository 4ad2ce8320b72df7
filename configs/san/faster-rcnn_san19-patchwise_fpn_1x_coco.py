_base_ = './faster-rcnn_san19-pairwise_fpn_1x_coco.py'
model = dict(
    backbone=dict(relation='patchwise', init_cfg=dict(checkpoint='checkpoints/san19_patchwise.pth'))
)

_base_ = './fpn_san10-pairwise_4xb2-80k_cityscapes-512x1024.py'
model = dict(
    backbone=dict(relation='patchwise', init_cfg=dict(checkpoint='checkpoints/san10_patchwise.pth'))
)

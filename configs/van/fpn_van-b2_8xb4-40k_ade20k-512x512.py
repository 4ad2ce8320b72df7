_base_ = './fpn_van-b0_8xb4-40k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='b2', init_cfg=dict(checkpoint='checkpoints/van_base_828.pth.tar')),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

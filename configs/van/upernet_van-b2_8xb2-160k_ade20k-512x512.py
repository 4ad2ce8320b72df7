_base_ = './upernet_van-b0_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='b2', init_cfg=dict(checkpoint='checkpoints/van_base_828.pth.tar')),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)

_base_ = './segnext_mscan-t.py'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='checkpoints/mscan_b.pth')),
    decode_head=dict(
        in_channels=[128, 320, 512], channels=512, ham_channels=512, ham_kwargs=dict(MD_R=64)
    ),
)

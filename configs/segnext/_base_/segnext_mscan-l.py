_base_ = './segnext_mscan-t.py'
model = dict(
    backbone=dict(
        arch='large', drop_path_rate=0.3, init_cfg=dict(checkpoint='checkpoints/mscan_l.pth')
    ),
    decode_head=dict(
        in_channels=[128, 320, 512], channels=1024, ham_channels=1024, ham_kwargs=dict(MD_R=64)
    ),
)
